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

/// D = (ŵ − w) / s of a tile of rows, and its products D·G', or D·Xᵀ where x keeps its tokens, both kept up to date.
class tile_residual {
 public:
  template <class Scheme>
  tile_residual(matrix<const float> w, matrix<const uint8_t> q, matrix<const params> p, const float* s, group_shape g,
                Scheme scheme, const second_moment& x)
      : x_(x),
        difference_(tile_buffers::view(buffers().difference, w.rows, w.cols)),
        projected_(first_product(w, q, p, s, g, scheme)) {}

  index_t rows() const noexcept { return difference_.rows; }
  index_t cols() const noexcept { return difference_.cols; }
  float& operator()(index_t row, index_t col) const noexcept { return difference_(row, col); }

  /// out (rows, count) ← D·G' of columns [first, first + count).
  void slopes(index_t first, matrix<float> out) const {
    if (!x_.sampled()) {
      for (index_t row = 0; row < rows(); ++row)
        for (index_t j = 0; j < out.cols; ++j) out(row, j) = projected_(row, first + j);
      return;
    }
    sgemm(CblasNoTrans, CblasNoTrans, rows(), out.cols, x_.tokens(), projected_, x_.samples().cols_at(first, out.cols),
          0.0f, out);
    const float apart = x_.shrinkage(), kept = (1 - apart) / static_cast<float>(max(x_.tokens(), index_t(1)));
    for (index_t row = 0; row < rows(); ++row)
      for (index_t j = 0; j < out.cols; ++j)
        out(row, j) =
            kept * out(row, j) + apart * difference_(row, first + j) * x_.diagonal()[static_cast<size_t>(first + j)];
  }

  /// What the changes (rows, count) of D's columns [first, first + count), which it holds already, add to the products.
  void spread(index_t first, matrix<const float> change) const {
    if (x_.sampled())
      sgemm(CblasNoTrans, CblasTrans, rows(), x_.tokens(), change.cols, change,
            x_.samples().cols_at(first, change.cols), 1.0f, projected_);
    else
      sgemm(CblasNoTrans, CblasNoTrans, rows(), cols(), change.cols, change,
            x_.gram_matrix().rows_at(first, change.cols), 1.0f, projected_);
  }

 private:
  template <class Scheme>
  matrix<float> first_product(matrix<const float> w, matrix<const uint8_t> q, matrix<const params> p, const float* s,
                              group_shape g, Scheme scheme) const {
    codes_difference(w, q, p, s, nullptr, g, scheme, difference_);
    return project(difference_, x_, buffers().product);
  }

  const second_moment& x_;
  matrix<float> difference_, projected_;
};

/// A tile of rows whose codes are being improved.
template <class Scheme>
class sweep_tile {
 public:
  sweep_tile(const tile_residual& residual, matrix<const params> p, const float* s, const diagonal_blocks& blocks,
             index_t width, Scheme scheme, matrix<uint8_t> q)
      : residual_(residual),
        p_(p),
        s_(s),
        blocks_(blocks),
        width_(width),
        scheme_(scheme),
        q_(q),
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
      const auto slope = tile_buffers::view(slope_, q_.rows, count),
                 change = tile_buffers::view(change_, q_.rows, count);
      residual_.slopes(col, slope);
      bool moved = false;
      vectorised([&] {
        for (index_t row = 0; row < q_.rows; ++row)
          moved = improve_row(row, col, block, slope.row(row), change.row(row)) || moved;
      });
      if (moved) residual_.spread(col, change);
      any = any || moved;
    }
    return any;
  }

 private:
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
      residual_(row, col + i) += step;
      moved = true;
      const float* const curvature = block.row(i);
      for (index_t j = 0; j < block.cols; ++j) slope[j] += step * curvature[j];
    }
    return moved;
  }

  const tile_residual& residual_;
  matrix<const params> p_;
  const float* s_;
  const diagonal_blocks& blocks_;
  index_t width_;
  Scheme scheme_;
  matrix<uint8_t> q_;
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
    const auto of_tile = p.rows_at(first, rows);
    const auto codes = q.rows_at(first, rows);
    const detail::tile_residual residual(w.rows_at(first, rows), codes, of_tile, s, g, scheme, x);
    detail::sweep_tile<Scheme> tile(residual, of_tile, s, blocks, g.width(w.cols), scheme, codes);
    int round = 0;
    while (round < rounds && tile.improve()) ++round;
  });
}

}  // namespace host
NIBBLE_NAMESPACE_END
