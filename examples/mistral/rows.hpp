// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the forward passes on the host do with rows of activations, on all threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>

#include "nibble/host/parallel.hpp"
#include "nibble/math.hpp"
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

/// Room for rows. Numbers are what happens to be there until they are set, and lost when it grows.
class row_buffer {
 public:
  float* data() { return data_.get(); }
  void reserve(index_t size) {
    if (data_ != nullptr && size <= size_) return;
    data_.reset();  // first, so that its place can be had again
    data_.reset(new float[static_cast<size_t>(size)]);
    size_ = size;
  }

 private:
  std::unique_ptr<float[]> data_;
  index_t size_ = 0;
};

/// A matrix (rows, cols) in `data`, which grows where it is too small.
inline matrix<float> view(row_buffer& data, index_t rows, index_t cols) {
  data.reserve(rows * cols);
  return {data.data(), rows, cols};
}

/// to ← from, of as many rows and columns.
inline void copy_rows(matrix<const float> from, matrix<float> to) {
  over_rows<64>(from.rows, [&](index_t row) { std::copy_n(from.row(row), from.cols, to.row(row)); });
}

/// x += y
template <index_t Tile>
void add(matrix<const float> y, matrix<float> x) {
  over_rows<Tile>(x.rows, [&](index_t row) {
    for (index_t i = 0; i < x.cols; ++i) x(row, i) += y(row, i);
  });
}

}  // namespace nibble::mistral
