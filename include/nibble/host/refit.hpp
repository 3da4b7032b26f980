// SPDX-License-Identifier: Apache-2.0
/// @file
/// Scales and zero points refitted under tr(ΔW·G'·ΔWᵀ), codes as they are: the rule is nibble::refitted, in nibble/gptq.hpp.
/// And codes and parameters improved by turns. Tiles of rows are independent.
#pragma once

#include <vector>

#include "nibble/gptq.hpp"
#include "nibble/host/observe.hpp"
#include "nibble/host/output_loss.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/host/sweep.hpp"
#include "nibble/matrix.hpp"
#include "nibble/quantize.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// A tile of rows whose parameters are being improved.
template <class Scheme>
class refit_tile {
 public:
  /// blocks: the Gram matrix's, a group wide.
  refit_tile(const tile_residual& residual, matrix<const float> w, const float* s, const diagonal_blocks& blocks,
             index_t width, Scheme scheme, matrix<const uint8_t> q, matrix<params> p)
      : residual_(residual), w_(w), s_(s), blocks_(blocks), width_(width), scheme_(scheme), q_(q), p_(p) {}

  /// One round over the groups; false when none changed.
  bool improve() {
    bool any = false;
    for (index_t col = 0; col < w_.cols; col += width_) {
      const index_t count = min(width_, w_.cols - col);
      const auto change = tile_buffers::view(change_, w_.rows, count);
      refit_group(col, change);
      if (moved_.empty()) continue;
      residual_.spread(col, moved_, change);
      any = true;
    }
    return any;
  }

 private:
  /// moved_ ← the rows where the group at `col` has new parameters, change ← what these add to D there.
  void refit_group(index_t col, matrix<float> change) {
    const index_t rows = w_.rows, count = change.cols, group = col / width_;
    const auto block = blocks_(group);
    const auto c = tile_buffers::view(steps_, rows + 1, count), ch = tile_buffers::view(product_, rows + 1, count);
    const auto slope = tile_buffers::view(slope_, rows, count);
    for (index_t row = 0; row < rows; ++row)
      for (index_t j = 0; j < count; ++j)
        c(row, j) = static_cast<float>(int32_t(q_(row, col + j)) - p_(row, group).zero) / s_[col + j];
    float* const e = c.row(rows);
    for (index_t j = 0; j < count; ++j) e[j] = 1.0f / s_[col + j];
    sgemm(CblasNoTrans, CblasNoTrans, rows + 1, count, count, c, block, 0.0f, ch);
    residual_.slopes(col, slope);
    const double ee = dot(ch.row(rows), e, count);
    moved_.clear();
    for (index_t row = 0; row < rows; ++row) {
      const float* const of = c.row(row);
      const group_products m{dot(ch.row(row), of, count), dot(ch.row(row), e, count), ee,
                             dot(slope.row(row), of, count), dot(slope.row(row), e, count)};
      params& p = p_(row, group);
      const params better = refitted(p, m, scheme_);
      if (better.scale == p.scale && better.zero == p.zero) continue;
      p = better;
      moved_.push_back(row);
      for (index_t j = 0; j < count; ++j) change(row, j) = move(row, col + j, better);
    }
  }

  float move(index_t row, index_t col, params p) {
    const float now = (nibble::dequantize(q_(row, col), p, scheme_) - w_(row, col)) / s_[col];
    const float change = now - residual_(row, col);
    residual_(row, col) = now;
    return change;
  }

  const tile_residual& residual_;
  matrix<const float> w_;
  const float* s_;
  const diagonal_blocks& blocks_;
  index_t width_;
  Scheme scheme_;
  matrix<const uint8_t> q_;
  matrix<params> p_;
  std::vector<float> steps_, product_, slope_, change_;
  std::vector<index_t> moved_;
};

}  // namespace detail

/// Up to `rounds` rounds over the parameters p (n, ⌈k / group_size⌉) of w (n, k), which is already scaled by s (k), under G' of
/// the unscaled inputs x. Codes q (n, k) stay. No row's loss rises, up to rounding in float.
template <class Scheme>
void refit(matrix<const float> w, const float* s, const second_moment& x, matrix<const uint8_t> q, index_t group_size,
           Scheme scheme, int rounds, matrix<params> p) {
  const group_shape g = per_group(group_size);
  const index_t width = g.width(w.cols);
  const diagonal_blocks blocks(x, width);
  detail::for_row_tiles(w.rows, [&](index_t first, index_t rows) {
    const auto of_tile = p.rows_at(first, rows);
    const auto weights = w.rows_at(first, rows);
    const auto codes = q.rows_at(first, rows);
    const detail::tile_residual residual(weights, codes, of_tile, s, g, scheme, x);
    detail::refit_tile<Scheme> tile(residual, weights, s, blocks, width, scheme, codes, of_tile);
    for (int round = 0; round < rounds && tile.improve(); ++round) {
    }
  });
}

/// Up to `rounds` times a sweep over the codes and a round over the parameters; ends early when neither changes anything.
/// @returns what codes_loss() gives of them in float, of_row as there.
template <class Scheme>
double sweep_and_refit(matrix<const float> w, const float* s, const second_moment& x, index_t group_size, Scheme scheme,
                       int rounds, matrix<params> p, matrix<uint8_t> q, const float* of_row = nullptr) {
  const group_shape g = per_group(group_size);
  const index_t width = g.width(w.cols);
  const diagonal_blocks sweep_blocks(x, detail::sweep_cols), refit_blocks(x, width);
  detail::packed_panels rest;
  const bool split = rounds > 0 && x.packed_gram() != nullptr && detail::splitting_pays();
  if (split) rest.pack(x.gram_matrix(), true);
  return detail::sum_over_row_tiles(w.rows, [&](index_t first, index_t rows) {
    const auto of_tile = p.rows_at(first, rows);
    const auto weights = w.rows_at(first, rows);
    const auto codes = q.rows_at(first, rows);
    const detail::tile_residual residual(weights, codes, of_tile, s, g, scheme, x, split ? &rest : nullptr);
    detail::sweep_tile<Scheme> sweeping(residual, of_tile, s, sweep_blocks, width, scheme, codes);
    detail::refit_tile<Scheme> refitting(residual, weights, s, refit_blocks, width, scheme, codes, of_tile);
    for (int round = 0; round < rounds; ++round) {
      const bool moved = sweeping.improve();
      if (!refitting.improve() && !moved) break;
    }
    double loss = 0;
    for (index_t row = 0; row < rows; ++row) {
      const double times = of_row == nullptr ? 1.0 : static_cast<double>(of_row[first + row]);
      loss += times * times * residual.loss_of(row);
    }
    return loss;
  });
}

}  // namespace host
NIBBLE_NAMESPACE_END
