// SPDX-License-Identifier: Apache-2.0
/// @file
/// Activation statistics as plain loops in double. Each call adds a chunk of tokens to what was gathered before.
#pragma once

#include <cmath>

#include "nibble/core.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {

/// sum (k) += Σ over the rows of x (m, k) of |x|; NaN and ±inf count as 0. Divide by the tokens for the mean.
template <class T>
void absolute_sum(matrix<const T> x, double* sum) {
  for (index_t row = 0; row < x.rows; ++row)
    for (index_t col = 0; col < x.cols; ++col) {
      const auto value = static_cast<double>(static_cast<float>(x(row, col)));
      if (std::isfinite(value)) sum[col] += std::fabs(value);
    }
}

/// maximum (k) = max(maximum, |x|) over the rows of x (m, k); NaN and ±inf count as 0.
template <class T>
void absolute_maximum(matrix<const T> x, float* maximum) {
  for (index_t row = 0; row < x.rows; ++row)
    for (index_t col = 0; col < x.cols; ++col) {
      const float value = std::fabs(static_cast<float>(x(row, col)));
      if (std::isfinite(value) && value > maximum[col]) maximum[col] = value;
    }
}

/// g (k, k) += xᵀ x, both triangles; NaN and ±inf count as 0. Divide by the tokens for the Gram matrix.
template <class T>
void gram(matrix<const T> x, matrix<double> g) {
  for (index_t row = 0; row < x.rows; ++row)
    for (index_t i = 0; i < x.cols; ++i)
      for (index_t j = 0; j < x.cols; ++j) {
        const auto a = static_cast<double>(static_cast<float>(x(row, i)));
        const auto b = static_cast<double>(static_cast<float>(x(row, j)));
        if (std::isfinite(a) && std::isfinite(b)) g(i, j) += a * b;
      }
}

}  // namespace reference
NIBBLE_NAMESPACE_END
