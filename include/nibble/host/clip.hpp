// SPDX-License-Identifier: Apache-2.0
/// @file
/// Ranges of scaled weights judged under the Gram matrix's diagonal blocks: a group's loss is d·G'_gg·dᵀ, d its rounding
/// error over the channels' scales. Unlike the searches of host::fit, this one sees that errors of correlated channels
/// cancel or add up.
#pragma once

#include <vector>

#include "nibble/fit.hpp"
#include "nibble/host/matmul.hpp"
#include "nibble/host/observe.hpp"
#include "nibble/host/output_loss.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {

/// Steps that clip_under_gram takes of either end.
inline constexpr int clip_steps = 6;

namespace detail {

/// One group of columns in a tile of rows, and each row's best range so far.
template <class Scheme>
class clip_tile {
 public:
  /// w (rows, g), s (g), gram (g, g); p (rows, 1) holds the parameters to begin with, and receives better ones.
  /// @param how losses are taken.
  clip_tile(matrix<const float> w, const float* s, matrix<const float> gram, Scheme scheme, matrix<params> p,
            matmul_precision how = matmul_precision::float32)
      : w_(w),
        s_(s),
        gram_(gram),
        scheme_(scheme),
        how_(how),
        p_(p),
        ranges_(static_cast<size_t>(w.rows)),
        ends_(ranges_.size()),
        tried_(ranges_.size()),
        losses_(ranges_.size()),
        codes_(static_cast<size_t>(w.size())),
        difference_(codes_.size()),
        product_(codes_.size()) {
    for (size_t row = 0; row < ranges_.size(); ++row) {
      range& of = ranges_[row];
      const float* const weights = w.row(static_cast<index_t>(row));
      for (index_t col = 0; col < w.cols; ++col) {
        of.low = min(of.low, observed(weights[col]));
        of.high = max(of.high, observed(weights[col]));
      }
      tried_[row] = p(static_cast<index_t>(row), 0);
    }
    if (how_ == matmul_precision::bfloat16) packed_.pack(gram_);
    judge();
    for (size_t row = 0; row < ranges_.size(); ++row) ranges_[row].loss = losses_[row];
  }

  /// Each end by itself times 1 − i·d, d = 1 / (2·steps), i = 0 … steps; then one d/2, and one d/4, around each row's
  /// best. Symmetric schemes have one end.
  void search(int steps) {
    const float step = 0.5f / static_cast<float>(steps);
    for (int i = 0; i <= steps; ++i)
      for (int j = 0; j <= steps; ++j) {
        if (scheme_.symmetric && i != j) continue;
        attempt([&](const range&) { return ends{1 - step * static_cast<float>(i), 1 - step * static_cast<float>(j)}; });
      }
    for (const float finer : {step / 2, step / 4})
      for (int i = -1; i <= 1; ++i)
        for (int j = -1; j <= 1; ++j) {
          if ((i == 0 && j == 0) || (scheme_.symmetric && i != j)) continue;
          attempt([&](const range& of) {
            return ends{of.at.low + finer * static_cast<float>(i), of.at.high + finer * static_cast<float>(j)};
          });
        }
  }

 private:
  /// What is left of the range's ends.
  struct ends {
    float low = 1, high = 1;
  };
  struct range {
    float low = 0, high = 0;  ///< of the weights, 0 included
    ends at;                  ///< of the best
    double loss = 0;
  };

  /// Tries the range that choose(range) gives each row.
  template <class Choose>
  void attempt(Choose choose) {
    for (size_t row = 0; row < ranges_.size(); ++row) {
      const range& of = ranges_[row];
      ends_[row] = choose(of);
      tried_[row] = fit(of.low * ends_[row].low, of.high * ends_[row].high, scheme_);
    }
    judge();
    for (size_t row = 0; row < ranges_.size(); ++row) {
      if (!(losses_[row] < ranges_[row].loss)) continue;
      ranges_[row].at = ends_[row];
      ranges_[row].loss = losses_[row];
      p_(static_cast<index_t>(row), 0) = tried_[row];
    }
  }

  /// losses_ ← of every row, rounded with what is tried.
  void judge() {
    const matrix<float> d(difference_.data(), w_.rows, w_.cols), product(product_.data(), w_.rows, w_.cols);
    const matrix<uint8_t> q(codes_.data(), w_.rows, w_.cols);
    const matrix<const params> p(tried_.data(), w_.rows, 1);
    quantize(w_, p, q, per_channel, scheme_);
    codes_difference(w_, matrix<const uint8_t>(q), p, s_, nullptr, per_channel, scheme_, d);
    if (how_ == matmul_precision::bfloat16) {
      thread_local row_pairs rows;
      rows.pack(d);
      with_pairs([&](auto of) { multiply_pairs<decltype(of)>(rows, packed_, 0, w_.cols, 0, product); });
    } else {
      sgemm(CblasNoTrans, CblasNoTrans, w_.rows, w_.cols, w_.cols, d, gram_, 0.0f, product);
    }
    for (size_t row = 0; row < losses_.size(); ++row)
      losses_[row] = dot(d.row(static_cast<index_t>(row)), product.row(static_cast<index_t>(row)), w_.cols);
  }

  matrix<const float> w_;
  const float* s_;
  matrix<const float> gram_;
  Scheme scheme_;
  matmul_precision how_;
  matrix<params> p_;
  std::vector<range> ranges_;
  std::vector<ends> ends_;
  std::vector<params> tried_;
  std::vector<double> losses_;
  std::vector<uint8_t> codes_;
  std::vector<float> difference_, product_;
  packed_panels packed_;  ///< gram_, where losses are taken in bfloat16
};

}  // namespace detail

/// p (n, ⌈k / group_size⌉) ← better ranges of w (n, k), which is already scaled by s (k); x is not. p holds a fit to begin
/// with, which stays where nothing beats it, so no group ends worse under its diagonal block, up to rounding in x.precision(). @pre w is finite.
template <class Scheme>
void clip_under_gram(matrix<const float> w, const float* s, const second_moment& x, index_t group_size, Scheme scheme,
                     matrix<params> p, int steps = clip_steps) {
  const index_t width = per_group(group_size).width(w.cols), groups = ceil_div(w.cols, width);
  const diagonal_blocks blocks(x, width);
  detail::single_threaded_blas();
  parallel_for(groups * ceil_div(w.rows, detail::loss_rows), [&](index_t tile) {
    const index_t group = tile % groups, col = group * width, count = min(width, w.cols - col);
    const index_t row = tile / groups * detail::loss_rows, rows = min(detail::loss_rows, w.rows - row);
    detail::clip_tile<Scheme>(w.rows_at(row, rows).cols_at(col, count), s + col, blocks(group), scheme,
                              p.rows_at(row, rows).cols_at(group, 1), x.precision())
        .search(steps);
  });
}

}  // namespace host
NIBBLE_NAMESPACE_END
