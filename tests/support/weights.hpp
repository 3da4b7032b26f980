// SPDX-License-Identifier: Apache-2.0
/// @file
/// Weight matrices for tests: reproducible numbers with a little of everything that breaks quantizers.
#pragma once

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "nibble/half.hpp"
#include "nibble/matrix.hpp"

/// A matrix that owns its elements.
template <class T>
struct owned {
  nibble::index_t rows, cols;
  std::vector<T> data;

  owned(nibble::index_t rows_, nibble::index_t cols_, T fill = T()) : rows(rows_), cols(cols_) {
    data.assign(static_cast<std::size_t>(rows * cols), fill);
  }
  nibble::matrix<T> view() { return {data.data(), rows, cols}; }
  nibble::matrix<const T> view() const { return {data.data(), rows, cols}; }
};

/// N(0, 0.02²), with rows of one sign, of zeros, of ties, with outliers, of tiny numbers.
template <class T>
owned<T> weights(nibble::index_t rows, nibble::index_t cols, unsigned seed = 1) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  owned<T> w(rows, cols);
  for (nibble::index_t row = 0; row < rows; ++row)
    for (nibble::index_t col = 0; col < cols; ++col) {
      float x = normal(engine);
      switch (row % 9) {
        case 2:
          x = std::fabs(x) + 0.01f;
          break;
        case 3:
          x = -std::fabs(x);
          break;
        case 4:
          x = col % 37 < 20 ? 0.0f : x;
          break;
        case 5:
          x = static_cast<float>(col % 31 - 15) * 0.5f;
          break;
        case 6:
          x = col % 17 == 3 ? 50.0f * x : x;
          break;
        case 7:
          x *= 1e-36f;
          break;
        default:
          break;
      }
      w.data[static_cast<std::size_t>(row * cols + col)] = T(x);
    }
  return w;
}

/// The same with NaN, ±inf, −0, denormals and the largest numbers sprinkled in.
template <class T>
owned<T> nasty_weights(nibble::index_t rows, nibble::index_t cols, unsigned seed = 1) {
  auto w = weights<T>(rows, cols, seed);
  const float inf = std::numeric_limits<float>::infinity();
  const float odd[] = {std::numeric_limits<float>::quiet_NaN(), inf, -inf, -0.0f, 1e-45f, -1e-40f, 3e38f, -60000.0f};
  for (std::size_t i = 0; i < w.data.size(); i += 5) w.data[i] = T(odd[(i / 5) % 8]);
  for (nibble::index_t col = 0; col < cols && rows > 1; ++col) w.data[static_cast<std::size_t>(cols + col)] = T(odd[0]);
  return w;
}
