// SPDX-License-Identifier: Apache-2.0
/// @file
/// GPTQ at the speed of a BLAS; the formulas stand in nibble/gptq.hpp. Tiles of 128 rows are independent, each on one thread
/// from the first column to the last. Columns go in blocks of up to 128, cut where groups end: one product brings the errors
/// of all blocks before, then each column's error goes to those after it in its block. Fixed tiles and orders of summation:
/// the same bytes in every run, whatever the number of threads.
#pragma once

#include <cblas.h>

#include <vector>

#include "nibble/gptq.hpp"
#include "nibble/host/clip.hpp"
#include "nibble/host/fit.hpp"
#include "nibble/host/hessian.hpp"
#include "nibble/host/matmul.hpp"
#include "nibble/host/output_loss.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {

using nibble::gptq_ranges;

namespace detail {

/// Columns of a block.
inline constexpr index_t gptq_cols = 128;

/// One column of a tile of rows: the parameters of each, as the rounding of its row.
struct column_rounding {
  std::vector<float> scale, shift, low, high;
  std::vector<uint32_t> base;
  std::vector<float> zero;

  explicit column_rounding(index_t rows)
      : scale(static_cast<size_t>(rows)), shift(scale), low(scale), high(scale), base(scale.size()), zero(scale) {}

  template <bool ZeroFirst, class Scheme>
  void take(matrix<const params> p, index_t col, Scheme scheme) {
    for (size_t row = 0; row < scale.size(); ++row) {
      const params of = p(static_cast<index_t>(row), col);
      const rounding r = rounding_of<ZeroFirst>(of, scheme);
      scale[row] = r.scale, shift[row] = r.shift, low[row] = r.low, high[row] = r.high, base[row] = r.base;
      zero[row] = static_cast<float>(of.zero);
    }
  }
};

template <class Scheme>
class gptq_tile {
 public:
  /// A tile of rows of each of w (rows, k), p and q.
  gptq_tile(matrix<const float> w, const hessian& h, gptq_ranges ranges, Scheme scheme, matrix<params> p,
            matrix<uint8_t> q)
      : w_(w),
        l_(h.factor()),
        order_(h.order()),
        ranges_(ranges),
        scheme_(scheme),
        p_(p),
        q_(q),
        rounding_(w.rows),
        difference_(static_cast<size_t>(w.size())),
        weights_(static_cast<size_t>(gptq_cols * w.rows)),
        carried_(weights_),
        error_(weights_) {}

  /// @returns Σ (L_ii·(t_i − ŵ_i))² over the rows.
  double solve() {
    double loss = 0;
    for (index_t first = 0; first < w_.cols;) {
      const index_t end = block_end(first);
      begin(first, end - first);
      with_rule(scheme_, [&](auto zero_first, auto compute) {
        for (index_t i = first; i < end; ++i) {
          if (ranges_ != gptq_ranges::given && starts_group(i)) choose_range(i, end);
          loss += choose_codes<decltype(zero_first)::value, decltype(compute)::value>(first, i, end);
        }
      });
      keep(first, end - first);
      first = end;
    }
    return loss;
  }

 private:
  index_t parameters(index_t i) const { return order_.parameters[static_cast<size_t>(i)]; }
  bool starts_group(index_t i) const { return i == 0 || parameters(i) != parameters(i - 1); }
  index_t group_end(index_t first) const {
    index_t end = first + 1;
    while (end < w_.cols && parameters(end) == parameters(first)) ++end;
    return end;
  }
  /// Whole groups, or a part of one; any columns where ranges are given.
  index_t block_end(index_t first) const {
    if (ranges_ == gptq_ranges::given) return min(w_.cols, first + gptq_cols);
    index_t end = group_end(first);
    while (end < w_.cols && group_end(end) - first <= gptq_cols) end = group_end(end);
    return min(end, first + gptq_cols);
  }
  /// Columns of a block lie one after another here, rows side by side.
  matrix<float> columns(std::vector<float>& data, index_t cols) { return {data.data(), cols, w_.rows}; }
  matrix<const float> differences() const { return {difference_.data(), w_.rows, w_.cols}; }

  /// into (count, rows) ← Σ_{j<before} L_ij·(w_j − ŵ_j) for i in [first, first + count).
  void carry(index_t first, index_t count, index_t before, matrix<float> into) {
    if (before == 0)
      std::fill(into.data, into.data + into.size(), 0.0f);
    else
      sgemm(CblasNoTrans, CblasTrans, count, w_.rows, before, l_.rows_at(first, count), differences(), 0.0f, into);
  }

  void begin(index_t first, index_t cols) {
    carry(first, cols, first, columns(carried_, cols));
    const auto weights = columns(weights_, cols);
    for (index_t i = 0; i < cols; ++i)
      for (index_t row = 0; row < w_.rows; ++row)
        weights(i, row) = w_(row, order_.column[static_cast<size_t>(first + i)]);
    block_ = first;
  }

  void keep(index_t first, index_t cols) {
    const auto error = columns(error_, cols);
    for (index_t row = 0; row < w_.rows; ++row)
      for (index_t i = 0; i < cols; ++i) difference_[static_cast<size_t>(row * w_.cols + first + i)] = error(i, row);
  }

  /// Code of column i of every row, and its error to the columns after it in the block.
  template <bool ZeroFirst, dtype Compute>
  double choose_codes(index_t first, index_t i, index_t end) {
    if (i == first || starts_group(i)) rounding_.template take<ZeroFirst>(p_, parameters(i), scheme_);
    const index_t rows = w_.rows;
    const float pivot = l_(i, i);
    const auto weights = columns(weights_, end - first), carried = columns(carried_, end - first);
    const auto error = columns(error_, end - first);
    float missed[loss_rows];
    uint8_t codes[loss_rows];
    vectorised([&] {
      const float* const w = weights.row(i - first);
      const float* const z = carried.row(i - first);
      float* const e = error.row(i - first);
      for (index_t row = 0; row < rows; ++row) {
        const auto at = static_cast<size_t>(row);
        const rounding r{rounding_.scale[at], rounding_.shift[at], rounding_.low[at], rounding_.high[at],
                         rounding_.base[at]};
        const float target = w[row] + z[row] / pivot;
        const uint8_t code = code_of(steps_of<ZeroFirst, Compute>(target, r), r);
        const float value = round_number<Compute>((static_cast<float>(code) - rounding_.zero[at]) * r.scale);
        codes[row] = code;
        missed[row] = (target - value) * pivot;
        e[row] = w[row] - value;
      }
      for (index_t j = i + 1; j < end; ++j) {
        const float factor = l_(j, i);
        float* const later = carried.row(j - first);
        for (index_t row = 0; row < rows; ++row) later[row] += factor * e[row];
      }
    });
    double loss = 0;
    const index_t column = order_.column[static_cast<size_t>(i)];
    for (index_t row = 0; row < rows; ++row) {
      q_(row, column) = codes[row];
      loss += static_cast<double>(missed[row]) * static_cast<double>(missed[row]);
    }
    return loss;
  }

  /// Parameters of the group that begins at column i, of its weights as they are now; the block ends at `end`.
  void choose_range(index_t i, index_t end) {
    const index_t rows = w_.rows, count = group_end(i) - i;
    const auto moved = tile_buffers::view(moved_, count, rows);
    if (i + count <= end) {
      const auto carried = columns(carried_, end - block_).rows_at(i - block_, count);
      std::copy(carried.data, carried.data + carried.size(), moved.data);
    } else {
      carry(i, count, i, moved);
    }
    const auto corner = l_.rows_at(i, count).cols_at(i, count);
    cblas_strsm(CblasRowMajor, CblasLeft, CblasLower, CblasNoTrans, CblasNonUnit, static_cast<int>(count),
                static_cast<int>(rows), 1.0f, corner.data, leading(corner.stride), moved.data, leading(moved.stride));
    const auto group = tile_buffers::view(group_, rows, count);
    for (index_t row = 0; row < rows; ++row)
      for (index_t j = 0; j < count; ++j)
        group(row, j) = w_(row, order_.column[static_cast<size_t>(i + j)]) + moved(j, row);
    const auto p = p_.cols_at(parameters(i), 1);
    if (ranges_ == gptq_ranges::minmax) {
      fit(matrix<const float>(group), p, per_channel, scheme_, nibble::minmax{});
      return;
    }
    const auto cost = group_cost(corner);
    importance_.resize(static_cast<size_t>(count));
    for (index_t j = 0; j < count; ++j) importance_[static_cast<size_t>(j)] = cost(j, j);
    fit(matrix<const float>(group), p, per_channel, scheme_, ends_search{}, importance_.data());
    if (ranges_ != gptq_ranges::gram) return;
    const std::vector<float> ones(static_cast<size_t>(count), 1.0f);
    clip_tile<Scheme>(group, ones.data(), cost, scheme_, p).search(clip_steps);
  }

  /// L_ggᵀ·L_gg.
  matrix<const float> group_cost(matrix<const float> corner) {
    const index_t count = corner.rows;
    const auto lower = tile_buffers::view(lower_, count, count);
    const auto cost = tile_buffers::view(cost_, count, count);
    for (index_t i = 0; i < count; ++i)
      for (index_t j = 0; j < count; ++j) lower(i, j) = j <= i ? corner(i, j) : 0.0f;
    sgemm(CblasTrans, CblasNoTrans, count, count, count, lower, lower, 0.0f, cost);
    return cost;
  }

  matrix<const float> w_, l_;
  const column_order& order_;
  gptq_ranges ranges_;
  Scheme scheme_;
  matrix<params> p_;
  matrix<uint8_t> q_;
  column_rounding rounding_;
  index_t block_ = 0;
  std::vector<float> difference_;                 ///< w − ŵ (rows, k) in the order of solving
  std::vector<float> weights_, carried_, error_;  ///< of the block's columns
  std::vector<float> moved_, group_, lower_, cost_, importance_;
};

}  // namespace detail

/// Codes q (n, k), and, unless `ranges` is given, parameters p (n, ⌈k / group⌉) of w (n, k), whose columns are scaled by what h
/// was made with. p has a column for each that h.order() names. @pre w is finite, h.usable().
/// @returns tr(ΔW·H·ΔWᵀ) under the damped Hessian.
template <class Scheme>
double gptq(matrix<const float> w, const hessian& h, gptq_ranges ranges, Scheme scheme, matrix<params> p,
            matrix<uint8_t> q) {
  return h.unit() * detail::sum_over_row_tiles(w.rows, [&](index_t first, index_t rows) {
           return detail::gptq_tile<Scheme>(w.rows_at(first, rows), h, ranges, scheme, p.rows_at(first, rows),
                                            q.rows_at(first, rows))
               .solve();
         });
}

}  // namespace host
NIBBLE_NAMESPACE_END
