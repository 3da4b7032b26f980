// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the tests of the forward pass on CUDA share.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "nibble/fp8.hpp"
#include "nibble/smooth.hpp"
#include "support/device.hpp"
#include "support/model.hpp"

namespace nibble::test {

/// Nearest bf16 of a number: half a unit in the last of 8 bits.
inline constexpr double bf16_rounding = 0x1p-8;
inline constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

/// Uniform in [-scale, scale), reproducible by `name`.
inline owned<float> random_matrix(index_t rows, index_t cols, const char* name, float scale = 1.0f) {
  owned<float> x(rows, cols);
  x.data = random_values(3, name, rows * cols, 0.0f, scale);
  return x;
}

template <class T>
owned<T> stored_as(const owned<float>& x) {
  owned<T> y(x.rows, x.cols);
  for (std::size_t i = 0; i < x.data.size(); ++i) y.data[i] = T(x.data[i]);
  return y;
}

/// What the code of activation `x`, of int8 or e4m3, stands for.
inline float rounded_activation(float x, float scale, bool integers) {
  constexpr float_scheme<float_format::e4m3> e4m3;
  return integers ? (static_cast<float>(activation_code(x, scale)) - 128.0f) * scale
                  : dequantize(quantize(x, scale, e4m3), scale, e4m3);
}

/// A pointer that is aligned to nothing.
template <class T>
T* askew(T* p) {
  return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(p) + 1);
}

/// Root mean square of a − b, as a share of b's.
inline double distance(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double apart = 0, all = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    apart += std::pow(double{a[i]} - double{b[i]}, 2);
    all += std::pow(double{b[i]}, 2);
  }
  return std::sqrt(apart / all);
}

}  // namespace nibble::test
