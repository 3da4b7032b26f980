// SPDX-License-Identifier: Apache-2.0
/// @file
/// Codes improved one at a time under tr(ΔW·G'·ΔWᵀ): the rule is nibble::improved_code, in nibble/awq.hpp. Columns go in
/// order, in blocks of 64: inside a block each new code moves the slopes of the block only, and one matrix product then
/// moves all others. Tiles of rows are independent.
#pragma once

#include <vector>

#include "nibble/awq.hpp"
#include "nibble/host/matmul.hpp"
#include "nibble/host/observe.hpp"
#include "nibble/host/output_loss.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/matrix.hpp"
#include "nibble/quantize.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Columns between two updates of all slopes.
inline constexpr index_t sweep_cols = 64;

/// A tile of rows whose codes are being improved. Its products are kept up to date: D·G', or D·Xᵀ where x keeps its
/// tokens, with D = (ŵ − w) / s.
template <class Scheme>
class sweep_tile {
 public:
  sweep_tile(matrix<const params> p, const float* s, const second_moment& x, const diagonal_blocks& blocks,
             index_t width, Scheme scheme, matrix<uint8_t> q, matrix<float> difference, matrix<float> projected)
      : p_(p),
        s_(s),
        x_(x),
        blocks_(blocks),
        width_(width),
        scheme_(scheme),
        q_(q),
        difference_(difference),
        projected_(projected),
        slope_(static_cast<size_t>(q.rows * sweep_cols)),
        change_(slope_.size()),
        block_(static_cast<size_t>(sweep_cols * sweep_cols)) {}

  /// One round over the codes; false when none changed.
  bool improve() {
    bool any = false;
    for (index_t col = 0; col < q_.cols; col += sweep_cols) {
      const index_t count = min(sweep_cols, q_.cols - col);
      const auto block = tile_buffers::view(block_, count, count);
      for (index_t i = 0; i < count; ++i)
        for (index_t j = 0; j < count; ++j) block(i, j) = blocks_(col / sweep_cols)(i, j);
      const auto slope = slopes(col, count);
      const auto change = tile_buffers::view(change_, q_.rows, count);
      bool moved = false;
      vectorised([&] {
        for (index_t row = 0; row < q_.rows; ++row)
          moved = improve_row(row, col, block, slope.row(row), change.row(row)) || moved;
      });
      if (moved) spread(col, change);
      any = any || moved;
    }
    return any;
  }

 private:
  /// D·G' of columns [col, col + count).
  matrix<float> slopes(index_t col, index_t count) {
    const auto slope = tile_buffers::view(slope_, q_.rows, count);
    if (!x_.sampled()) {
      for (index_t row = 0; row < q_.rows; ++row)
        for (index_t j = 0; j < count; ++j) slope(row, j) = projected_(row, col + j);
      return slope;
    }
    sgemm(CblasNoTrans, CblasNoTrans, q_.rows, count, x_.tokens(), projected_, x_.samples().cols_at(col, count), 0.0f,
          slope);
    const float apart = x_.shrinkage(), kept = (1 - apart) / static_cast<float>(max(x_.tokens(), index_t(1)));
    for (index_t row = 0; row < q_.rows; ++row)
      for (index_t j = 0; j < count; ++j)
        slope(row, j) =
            kept * slope(row, j) + apart * difference_(row, col + j) * x_.diagonal()[static_cast<size_t>(col + j)];
    return slope;
  }

  /// change (block.cols) ← what each new code of the row adds to D.
  bool improve_row(index_t row, index_t col, matrix<const float> block, float* slope, float* change) {
    bool moved = false;
    for (index_t i = 0; i < block.rows; ++i) {
      change[i] = 0;
      const params p = p_(row, (col + i) / width_);
      const float s = s_[col + i];
      uint8_t& code = q_(row, col + i);
      const uint8_t better = improved_code(code, p, slope[i], block(i, i), s, scheme_);
      if (better == code) continue;
      const float step = (nibble::dequantize(better, p, scheme_) - nibble::dequantize(code, p, scheme_)) / s;
      code = better;
      change[i] = step;
      difference_(row, col + i) += step;
      moved = true;
      const float* const curvature = block.row(i);
      for (index_t j = 0; j < block.cols; ++j) slope[j] += step * curvature[j];
    }
    return moved;
  }

  /// What the changes of columns [col, col + change.cols) add to the products.
  void spread(index_t col, matrix<const float> change) {
    if (x_.sampled())
      sgemm(CblasNoTrans, CblasTrans, q_.rows, x_.tokens(), change.cols, change, x_.samples().cols_at(col, change.cols),
            1.0f, projected_);
    else
      sgemm(CblasNoTrans, CblasNoTrans, q_.rows, q_.cols, change.cols, change,
            x_.gram_matrix().rows_at(col, change.cols), 1.0f, projected_);
  }

  matrix<const params> p_;
  const float* s_;
  const second_moment& x_;
  const diagonal_blocks& blocks_;
  index_t width_;
  Scheme scheme_;
  matrix<uint8_t> q_;
  matrix<float> difference_, projected_;
  std::vector<float> slope_, change_, block_;
};

}  // namespace detail

/// Up to `rounds` sweeps over the codes q (n, k) of w (n, k), which is already scaled by s (k), under G' of the unscaled
/// inputs x; fewer when a sweep changes nothing. p (n, ⌈k / group_size⌉) stays. No row's loss rises, up to rounding in
/// float.
template <class Scheme>
void sweep(matrix<const float> w, const float* s, const second_moment& x, matrix<const params> p, index_t group_size,
           Scheme scheme, int rounds, matrix<uint8_t> q) {
  const group_shape g = per_group(group_size);
  const diagonal_blocks blocks(x, detail::sweep_cols);
  detail::for_row_tiles(w.rows, [&](index_t first, index_t rows) {
    auto& with = detail::buffers();
    const auto difference = detail::tile_buffers::view(with.difference, rows, w.cols);
    const auto of_tile = p.rows_at(first, rows);
    const auto codes = q.rows_at(first, rows);
    detail::codes_difference(w.rows_at(first, rows), matrix<const uint8_t>(codes), of_tile, s, g, scheme, difference);
    const auto projected = detail::project(difference, x, with.product);
    detail::sweep_tile<Scheme> tile(of_tile, s, x, blocks, g.width(w.cols), scheme, codes, difference, projected);
    int round = 0;
    while (round < rounds && tile.improve()) ++round;
  });
}

}  // namespace host
NIBBLE_NAMESPACE_END
