// SPDX-License-Identifier: Apache-2.0
/// @file
/// The loss that searches over one linear share: E‖ΔW·x‖² = tr(ΔW·G'·ΔWᵀ), G' the shrunk Gram matrix of its inputs, or
/// ‖ΔW·Xᵀ‖²/m where the inputs themselves are kept. Rows of ΔW are independent under it, so it is taken over fixed tiles
/// of rows, each by one thread from beginning to end: no thread waits for another, and scratch is a few tiles a thread.
#pragma once

#include <vector>

#include "nibble/host/matmul.hpp"
#include "nibble/host/observe.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Rows of W in a tile.
inline constexpr index_t loss_rows = 128;

/// Buffers of one thread, kept between tiles.
struct tile_buffers {
  std::vector<float> scaled, difference, product, importance;
  std::vector<params> fitted;
  std::vector<uint8_t> codes;

  static matrix<float> view(std::vector<float>& data, index_t rows, index_t cols) {
    if (static_cast<index_t>(data.size()) < rows * cols) data.resize(static_cast<size_t>(rows * cols));
    return {data.data(), rows, cols};
  }
};

inline tile_buffers& buffers() {
  thread_local tile_buffers instance;
  return instance;
}

/// difference · G', or difference · Xᵀ where x keeps its tokens.
inline matrix<float> project(matrix<const float> difference, const second_moment& x, std::vector<float>& into) {
  const auto other = x.sampled() ? x.samples() : x.gram_matrix();
  const auto out = tile_buffers::view(into, difference.rows, other.rows);
  sgemm(CblasNoTrans, CblasTrans, difference.rows, other.rows, difference.cols, difference, other, 0.0f, out);
  return out;
}

/// Σ a·b over two spans, floats summed sixteen at a time, runs of 1024 in double.
inline double dot(const float* a, const float* b, index_t count) {
  double sum = 0;
  vectorised([&] {
    for (index_t first = 0; first < count; first += 1024) {
      const index_t last = min(count, first + 1024);
      float lanes[16] = {};
      index_t i = first;
      for (; i + 16 <= last; i += 16)
        for (index_t lane = 0; lane < 16; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
      float part = 0;
      for (const float lane : lanes) part += lane;
      for (; i < last; ++i) part += a[i] * b[i];
      sum += static_cast<double>(part);
    }
  });
  return sum;
}

/// d·G'·dᵀ of one row d (k), by its product of project().
inline double row_loss(const float* d, const float* projected, const second_moment& x) {
  if (!x.sampled()) return dot(d, projected, x.inputs());
  double apart = 0;  // Σ d²·diag(G), all that full shrinkage would leave
  for (index_t col = 0; col < x.inputs(); ++col) {
    const auto difference = static_cast<double>(d[col]);
    apart += difference * difference * static_cast<double>(x.diagonal()[static_cast<size_t>(col)]);
  }
  const auto shrinkage = static_cast<double>(x.shrinkage());
  const double together = dot(projected, projected, x.tokens());
  return (1 - shrinkage) * together / static_cast<double>(max(x.tokens(), index_t(1))) + shrinkage * apart;
}

/// Columns of G' that a loss takes at a time, of k.
inline index_t loss_cols(index_t k) noexcept {
  return clamp(round_up(k / 8, index_t(32)), index_t(32), index_t(512));
}

/// tr(D·G'·Dᵀ) of a tile of rows. G' is symmetric, so that of each pair of its columns' blocks one is multiplied: half of project().
inline double tile_loss(matrix<const float> d, const second_moment& x, std::vector<float>& product) {
  double loss = 0;
  if (x.sampled()) {
    const auto projected = project(d, x, product);
    for (index_t row = 0; row < d.rows; ++row) loss += row_loss(d.row(row), projected.row(row), x);
    return loss;
  }
  const matrix<const float> g = x.gram_matrix();
  const detail::packed_panels* const packed = x.packed_gram();
  thread_local row_pairs packing;
  if (packed != nullptr) packing.pack(d);
  const index_t k = d.cols, wide = packed != nullptr ? product_depth : loss_cols(k);
  for (index_t col = 0; col < k; col += wide) {
    const index_t cols = min(wide, k - col);
    const auto before = tile_buffers::view(product, 2 * d.rows, cols).rows_at(0, d.rows);
    const matrix<float> own(before.data + before.size(), d.rows, cols);
    const auto of_d = d.cols_at(col, cols);
    if (packed != nullptr) {
      with_pairs([&](auto of) {
        multiply_pairs<decltype(of)>(packing, *packed, 0, col, col, before);
        multiply_pairs<decltype(of)>(packing, *packed, col, col + cols, col, own);
      });
    } else {
      const auto beside = g.cols_at(col, cols);
      sgemm(CblasNoTrans, CblasNoTrans, d.rows, cols, col, d.cols_at(0, col), beside.rows_at(0, col), 0.0f, before);
      sgemm(CblasNoTrans, CblasNoTrans, d.rows, cols, cols, of_d, beside.rows_at(col, cols), 0.0f, own);
    }
    for (index_t row = 0; row < d.rows; ++row)
      loss += 2 * dot(of_d.row(row), before.row(row), cols) + dot(of_d.row(row), own.row(row), cols);
  }
  return loss;
}

/// (ŵ − w) / s · of_row, ŵ what codes q stand for; a tile of rows of each, and difference too. of_row null: 1.
template <class Scheme>
void codes_difference(matrix<const float> w, matrix<const uint8_t> q, matrix<const params> p, const float* s,
                      const float* of_row, group_shape g, Scheme scheme, matrix<float> difference) {
  dequantize(q, p, difference, g, scheme);
  vectorised([&] {
    for (index_t row = 0; row < w.rows; ++row) {
      const float times = of_row != nullptr ? of_row[row] : 1.0f;
      for (index_t col = 0; col < w.cols; ++col)
        difference(row, col) = (difference(row, col) - w(row, col)) / s[col] * times;
    }
  });
}

/// f(first row, rows) for every tile, each on one thread.
template <class F>
void for_row_tiles(index_t rows, F&& f) {
  single_threaded_blas();
  parallel_for(ceil_div(rows, loss_rows),
               [&](index_t tile) { f(tile * loss_rows, min(loss_rows, rows - tile * loss_rows)); });
}

/// The sum of what f(first row, rows) returns, in tile order.
template <class F>
double sum_over_row_tiles(index_t rows, F&& f) {
  std::vector<double> parts(static_cast<size_t>(ceil_div(rows, loss_rows)), 0.0);
  for_row_tiles(rows,
                [&](index_t first, index_t count) { parts[static_cast<size_t>(first / loss_rows)] = f(first, count); });
  double sum = 0;
  for (const double part : parts) sum += part;
  return sum;
}

}  // namespace detail

/// tr(ΔW·G'·ΔWᵀ) of difference (n, k).
inline double output_loss(matrix<const float> difference, const second_moment& x) {
  return detail::sum_over_row_tiles(difference.rows, [&](index_t first, index_t rows) {
    return detail::tile_loss(difference.rows_at(first, rows), x, detail::buffers().product);
  });
}

/// Loss of codes q (n, k) with parameters p for w (n, k), which is already scaled by s (k); x is not.
/// @param of_row (n) what the outputs are multiplied by afterwards, or null for 1: where a scale of the next linear's inputs was divided
/// out of these rows, that scale, with which the loss is that of the rows as they were.
template <class Scheme>
double codes_loss(matrix<const float> w, matrix<const uint8_t> q, matrix<const params> p, const float* s,
                  const second_moment& x, index_t group_size, Scheme scheme, const float* of_row = nullptr) {
  return detail::sum_over_row_tiles(w.rows, [&](index_t first, index_t rows) {
    auto& with = detail::buffers();
    const auto difference = detail::tile_buffers::view(with.difference, rows, w.cols);
    detail::codes_difference(w.rows_at(first, rows), q.rows_at(first, rows), p.rows_at(first, rows), s,
                             of_row == nullptr ? nullptr : of_row + first, per_group(group_size), scheme, difference);
    return detail::tile_loss(difference, x, with.product);
  });
}

}  // namespace host
NIBBLE_NAMESPACE_END
