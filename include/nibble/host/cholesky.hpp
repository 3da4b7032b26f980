// SPDX-License-Identifier: Apache-2.0
/// @file
/// H = Lᵀ·L with L lower triangular: the Cholesky factorisation that begins at the last row. Its factor is what GPTQ needs of
/// a Hessian (nibble/gptq.hpp). Blocks of 128 from the last to the first, each taken from all that is above it by one product
/// a tile; a block itself is factorised in double. Tiles are fixed: the same bytes whatever the number of threads.
#pragma once

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "nibble/host/matmul.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/math.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Rows that are factorised at a time, and edge of the tiles they are taken from.
inline constexpr index_t cholesky_block = 128, cholesky_tile = 256;

/// The lower triangle of h (n, n), n small ← L. @returns false at a pivot that is not positive and finite.
inline bool factorise_block(matrix<float> h) {
  const index_t n = h.rows;
  std::vector<double> data(static_cast<size_t>(n * n));
  const matrix<double> l(data.data(), n, n);
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j <= i; ++j) l(i, j) = static_cast<double>(h(i, j));
  for (index_t last = n - 1; last >= 0; --last) {
    const double pivot = l(last, last);
    if (!(pivot > 0) || !std::isfinite(pivot)) return false;
    const double root = std::sqrt(pivot);
    double* const row = l.row(last);
    row[last] = root;
    for (index_t j = 0; j < last; ++j) row[j] /= root;
    for (index_t i = 0; i < last; ++i)
      for (index_t j = 0; j <= i; ++j) l(i, j) -= row[i] * row[j];
  }
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j <= i; ++j) {
      h(i, j) = static_cast<float>(l(i, j));
      if (!is_finite(h(i, j)) || (i == j && !(h(i, j) > 0))) return false;
    }
  return true;
}

}  // namespace detail

/// The lower triangle of h (k, k), of which only that is read ← L, h = Lᵀ·L. What is above the diagonal stays.
/// @returns false when h is not positive definite in float, or not finite; its lower triangle is spoiled then.
inline bool factorise(matrix<float> h) {
  const index_t k = h.rows, edge = detail::cholesky_tile;
  detail::single_threaded_blas();
  for (index_t end = k; end > 0;) {
    const index_t first = (end - 1) / detail::cholesky_block * detail::cholesky_block, rows = end - first;
    const auto block = h.rows_at(first, rows);
    const auto corner = block.cols_at(first, rows);
    if (!detail::factorise_block(corner)) return false;
    parallel_for(ceil_div(first, edge), [&](index_t tile) {
      const index_t col = tile * edge;
      cblas_strsm(CblasRowMajor, CblasLeft, CblasLower, CblasTrans, CblasNonUnit, static_cast<int>(rows),
                  static_cast<int>(min(edge, first - col)), 1.0f, corner.data, detail::leading(corner.stride),
                  block.data + col, detail::leading(block.stride));
    });
    const index_t tiles = ceil_div(first, edge);
    parallel_for(tiles * (tiles + 1) / 2, [&](index_t tile) {
      auto down = static_cast<index_t>((std::sqrt(8.0 * static_cast<double>(tile) + 1) - 1) / 2);
      while (down * (down + 1) / 2 > tile) --down;
      while ((down + 1) * (down + 2) / 2 <= tile) ++down;
      const index_t row = down * edge, col = (tile - down * (down + 1) / 2) * edge;
      const index_t height = min(edge, first - row), width = min(edge, first - col);
      if (row == col)  // the lower triangle only
        cblas_ssyrk(CblasRowMajor, CblasLower, CblasTrans, static_cast<int>(height), static_cast<int>(rows), -1.0f,
                    block.data + row, detail::leading(block.stride), 1.0f, h.row(row) + col, detail::leading(h.stride));
      else
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, static_cast<int>(height), static_cast<int>(width),
                    static_cast<int>(rows), -1.0f, block.data + row, detail::leading(block.stride), block.data + col,
                    detail::leading(block.stride), 1.0f, h.row(row) + col, detail::leading(h.stride));
    });
    end = first;
  }
  return true;
}

}  // namespace host
NIBBLE_NAMESPACE_END
