// SPDX-License-Identifier: Apache-2.0
/// @file
/// A matrix view: pointer, extents, row stride; owns nothing, copies like a pointer. Shapes read `(n, k) row-major`.
#pragma once

#include "nibble/core.hpp"

NIBBLE_NAMESPACE_BEGIN

template <class T>
struct matrix {
  T* data = nullptr;
  index_t rows = 0;
  index_t cols = 0;
  index_t stride = 0;  ///< elements from one row to the next, at least `cols`

  matrix() = default;
  NIBBLE_HOST_DEVICE constexpr matrix(T* data_, index_t rows_, index_t cols_) noexcept
      : data(data_), rows(rows_), cols(cols_), stride(cols_) {}
  NIBBLE_HOST_DEVICE constexpr matrix(T* data_, index_t rows_, index_t cols_, index_t stride_) noexcept
      : data(data_), rows(rows_), cols(cols_), stride(stride_) {}
  /// A view of U reads as a view of const U.
  template <class U, class = decltype(static_cast<T*>(static_cast<U*>(nullptr)))>
  NIBBLE_HOST_DEVICE constexpr matrix(matrix<U> other) noexcept
      : data(other.data), rows(other.rows), cols(other.cols), stride(other.stride) {}

  NIBBLE_HOST_DEVICE constexpr T& operator()(index_t row, index_t col) const noexcept {
    return data[row * stride + col];
  }
  NIBBLE_HOST_DEVICE constexpr T* row(index_t row_) const noexcept { return data + row_ * stride; }
  NIBBLE_HOST_DEVICE constexpr index_t size() const noexcept { return rows * cols; }
  NIBBLE_HOST_DEVICE constexpr bool empty() const noexcept { return rows == 0 || cols == 0; }

  /// Rows [first, first + count).
  NIBBLE_HOST_DEVICE constexpr matrix rows_at(index_t first, index_t count) const noexcept {
    return matrix(data + first * stride, count, cols, stride);
  }
  /// Columns [first, first + count) of every row.
  NIBBLE_HOST_DEVICE constexpr matrix cols_at(index_t first, index_t count) const noexcept {
    return matrix(data + first, rows, count, stride);
  }
};

NIBBLE_NAMESPACE_END
