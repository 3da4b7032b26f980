// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the forward passes on the host do with rows of activations, on all threads.
#pragma once

#include <cstddef>
#include <vector>

#include "nibble/host/parallel.hpp"
#include "nibble/matrix.hpp"

namespace nibble::mistral {

/// f(row) for each row; a thread takes `Tile` rows at a time.
template <index_t Tile, class F>
void over_rows(index_t rows, F&& f) {
  host::parallel_for(ceil_div(rows, Tile), [&](index_t tile) {
    const index_t first = tile * Tile, last = min(rows, first + Tile);
    for (index_t row = first; row < last; ++row) f(row);
  });
}

/// A matrix (rows, cols) in `data`, which grows where it is too small.
inline matrix<float> view(std::vector<float>& data, index_t rows, index_t cols) {
  if (static_cast<index_t>(data.size()) < rows * cols) data.resize(static_cast<size_t>(rows * cols));
  return {data.data(), rows, cols};
}

/// x += y
template <index_t Tile>
void add(matrix<const float> y, matrix<float> x) {
  over_rows<Tile>(x.rows, [&](index_t row) {
    for (index_t i = 0; i < x.cols; ++i) x(row, i) += y(row, i);
  });
}

}  // namespace nibble::mistral
