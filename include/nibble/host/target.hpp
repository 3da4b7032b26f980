// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a linear should do with inputs that differ from the ones it was trained on, since the layers before it are quantized:
/// of all weights, those that give on the inputs x as they are what w gave on the inputs x₀ of the original model,
///     w* = argmin E‖w·x₀ − w*·x‖² = w + w·E[(x₀ − x)·xᵀ]·H⁻¹,
/// H the damped, shrunk Hessian of x, E[(x₀ − x)·xᵀ] shrunk likewise; a share α of the way there, w + α·(w* − w). Codes are then chosen for w* under H, since
/// what w* itself misses does not depend on them. (GPTAQ, Li et al., arXiv 2504.02692, has the same aim, and approximates it
/// a column at a time.)
/// Where the output joins a residual stream, r + w·x, that has drifted from r₀ as well, what w* should give is r₀ + w·x₀ − r, so
/// E[(r₀ − r)·xᵀ]·H⁻¹ comes to w* − w, a share of its own: a linear can take back what earlier ones did to the stream.
#pragma once

#include <cblas.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "nibble/host/hessian.hpp"
#include "nibble/host/matmul.hpp"
#include "nibble/host/observe.hpp"
#include "nibble/host/output_loss.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/matrix.hpp"
#include "nibble/observe.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {

/// E[(x₀ − x)·xᵀ] (k, k), and E[(r₀ − r)·xᵀ] (n, k) where a residual stream is followed, gathered in chunks of tokens.
class drift {
 public:
  drift() = default;
  /// @param outputs n, channels of the residual stream that the linear's output joins; 0: that is not followed. @param how products are
  /// taken, of differences and of x.
  explicit drift(index_t inputs, index_t outputs = 0, matmul_precision how = matmul_precision::float32)
      : inputs_(inputs),
        outputs_(outputs),
        how_(how),
        data_(static_cast<size_t>(inputs * inputs), 0.0f),
        residual_(static_cast<size_t>(outputs * inputs), 0.0f) {}

  /// Adds tokens: x₀ and x (m, k), and r₀ and r (m, n) where there are outputs, what is not finite as 0. Summed over 512 tokens, then added.
  void add(matrix<const float> original, matrix<const float> x, matrix<const float> original_residual = {},
           matrix<const float> residual = {}) {
    const index_t k = inputs_, chunk = detail::gram_tokens;
    detail::single_threaded_blas();
    for (index_t first = 0; first < x.rows; first += chunk) {
      const index_t rows = min(chunk, x.rows - first);
      const auto clean = detail::tile_buffers::view(clean_, rows, k),
                 apart = detail::tile_buffers::view(apart_, rows, k + outputs_);
      parallel_for(rows, [&](index_t row) {
        for (index_t col = 0; col < k; ++col) {
          clean(row, col) = observed(x(first + row, col));
          apart(row, col) = observed(original(first + row, col)) - clean(row, col);
        }
        for (index_t col = 0; col < outputs_; ++col)
          apart(row, k + col) = observed(original_residual(first + row, col)) - observed(residual(first + row, col));
      });
      if (how_ == matmul_precision::bfloat16) packed_inputs().pack(clean, false);
      add_product(apart.cols_at(0, k), clean, {data_.data(), k, k});
      add_product(apart.cols_at(k, outputs_), clean, {residual_.data(), outputs_, k});
    }
    tokens_ += x.rows;
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t tokens() const noexcept { return tokens_; }
  /// Σ (x₀ − x)·xᵀ over the tokens, not divided.
  matrix<const float> sum() const noexcept { return {data_.data(), inputs_, inputs_}; }
  /// Σ (r₀ − r)·xᵀ likewise; of no rows where it is not followed.
  matrix<const float> residual_sum() const noexcept { return {residual_.data(), outputs_, inputs_}; }

 private:
  /// Of the thread that adds, whatever it adds to.
  static detail::packed_columns& packed_inputs() {
    thread_local detail::packed_columns instance;
    return instance;
  }
  void add_product(matrix<const float> apart, matrix<const float> clean, matrix<float> sum) {
    const bool rounded = how_ == matmul_precision::bfloat16;
    thread_local detail::packed_columns packing;
    auto &packed_apart = packing, &packed_clean = packed_inputs();  // this thread's, for all threads
    if (rounded) packed_apart.pack(apart);
    const index_t edge = detail::gram_tile, wide = detail::gram_columns, across = ceil_div(sum.cols, wide);
    parallel_for(ceil_div(sum.rows, edge) * across, [&](index_t tile) {
      const index_t i = tile / across * edge, j = tile % across * wide;
      const index_t height = min(edge, sum.rows - i), width = min(wide, sum.cols - j);
      const auto to = sum.rows_at(i, height).cols_at(j, width);
      if (rounded)
        detail::add_columns_product(packed_apart, i, packed_clean, j, to);
      else
        detail::sgemm(CblasTrans, CblasNoTrans, height, width, clean.rows, apart.cols_at(i, height),
                      clean.cols_at(j, width), 1.0f, to);
    });
  }

  index_t inputs_ = 0, outputs_ = 0, tokens_ = 0;
  matmul_precision how_ = matmul_precision::float32;
  std::vector<float> data_, residual_, clean_, apart_;
};

/// How much of what has drifted a target makes up for, from 0 to 1.
struct drift_shares {
  float inputs = 1, residual = 0;
};

/// w + w·E[(x₀ − x)·xᵀ]·H⁻¹ and E[(r₀ − r)·xᵀ]·H⁻¹, shares of each, for linears that read one input.
class moved_targets {
 public:
  /// @param s (k), or null for 1: what columns of the linears are scaled by, as h's are; d is not. @param shrinkage λ, of what is beside the
  /// diagonal of d.sum(). @param several  linears follow: E[(x₀ − x)·xᵀ]·H⁻¹ is solved for once, k rows, instead of each linear's own.
  /// d and h are to outlive it. @pre h.usable(), d.tokens() > 0
  moved_targets(const float* s, const drift& d, const hessian& h, const drift_shares& share, float shrinkage,
                bool several)
      : s_(s == nullptr ? std::vector<float>() : std::vector<float>(s, s + d.inputs())),
        d_(d),
        h_(h),
        residual_(share.residual > 0 && d.residual_sum().rows > 0),
        solved_(several),
        data_(static_cast<size_t>(d.inputs() * d.inputs())) {
    const index_t k = d.inputs();
    const auto& column = h.order().column;
    const double unit = h.unit() * static_cast<double>(d.tokens());
    const double per_token = static_cast<double>(share.inputs) / unit;
    of_residual_ = static_cast<double>(share.residual) / unit;
    // d in the units and the order of h: diag(1/s)·E[(x₀ − x)·xᵀ]·diag(1/s) / unit
    const matrix<float> o(data_.data(), k, k);
    parallel_for(k, [&](index_t row) {
      const double of_row = per_token / scale(row);
      for (index_t i = 0; i < k; ++i) {
        const index_t col = column[static_cast<size_t>(i)];
        const float sum = shrink(d.sum()(row, col), row, col, shrinkage);
        o(row, i) = static_cast<float>(of_row / scale(col) * static_cast<double>(sum));
      }
    });
    if (solved_) detail::for_row_tiles(k, [&](index_t first, index_t rows) { solve(o.rows_at(first, rows)); });
  }

  /// target (n, k) ← what w (n, k) should be; where that is not finite, w. @pre where d follows a residual stream, w has a row for each of its
  /// channels.
  void of(matrix<const float> w, matrix<float> target) const {
    const index_t k = w.cols;
    const auto& column = h_.order().column;
    const matrix<const float> o(data_.data(), k, k);
    detail::for_row_tiles(w.rows, [&](index_t first, index_t rows) {
      const auto moved = detail::tile_buffers::view(detail::buffers().product, rows, k);
      for (index_t row = 0; residual_ && row < rows; ++row)
        for (index_t i = 0; i < k; ++i) {
          const index_t col = column[static_cast<size_t>(i)];
          const float sum = d_.residual_sum()(first + row, col);
          moved(row, i) = static_cast<float>(of_residual_ / scale(col) * static_cast<double>(sum));
        }
      if (solved_ && residual_) solve(moved);
      detail::sgemm(CblasNoTrans, CblasNoTrans, rows, k, k, w.rows_at(first, rows), o, residual_ ? 1.0f : 0.0f, moved);
      if (!solved_) solve(moved);
      for (index_t row = 0; row < rows; ++row)
        for (index_t i = 0; i < k; ++i) {
          const index_t col = column[static_cast<size_t>(i)];
          const float own = w(first + row, col), there = own + moved(row, i);
          target(first + row, col) = is_finite(there) ? there : own;
        }
    });
  }

 private:
  double scale(index_t at) const { return s_.empty() ? 1.0 : static_cast<double>(s_[static_cast<size_t>(at)]); }
  /// rows ← rows · (Lᵀ·L)⁻¹
  void solve(matrix<float> rows) const {
    for (const auto transposed : {CblasNoTrans, CblasTrans})
      cblas_strsm(CblasRowMajor, CblasRight, CblasLower, transposed, CblasNonUnit, static_cast<int>(rows.rows),
                  static_cast<int>(rows.cols), 1.0f, h_.factor().data, detail::leading(h_.factor().stride), rows.data,
                  detail::leading(rows.stride));
  }

  std::vector<float> s_;
  const drift& d_;
  const hessian& h_;
  bool residual_, solved_;
  double of_residual_ = 0;
  std::vector<float> data_;  ///< of d.sum() in h's order, times H⁻¹ where that is solved for
};

/// moved_targets::of a single linear.
inline void moved_target(matrix<const float> w, const float* s, const drift& d, const hessian& h,
                         const drift_shares& share, float shrinkage, matrix<float> target) {
  moved_targets(s, d, h, share, shrinkage, false).of(w, target);
}

}  // namespace host
NIBBLE_NAMESPACE_END
