// SPDX-License-Identifier: Apache-2.0
/// @file
/// SmoothQuant as plain loops: scales of all linears that read one input, activations as signed bytes, and their
/// product with signed bytes of weights. Codes are kept unsigned, 128 more than what they mean.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "nibble/core.hpp"
#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {

/// s (k) from the largest |x| of each channel and the weights (n_i, k) of every linear that reads it, in double;
/// NaN and ±inf count as 0. @pre 0 <= alpha <= 1.
template <class T>
std::vector<double> smooth_scales(const std::vector<float>& activation, const std::vector<matrix<const T>>& linears,
                                  double alpha) {
  std::vector<double> s(activation.size());
  for (std::size_t j = 0; j < s.size(); ++j) {
    double most = 0;
    for (const auto& w : linears)
      for (index_t row = 0; row < w.rows; ++row) {
        const auto value = static_cast<double>(static_cast<float>(w(row, static_cast<index_t>(j))));
        if (std::isfinite(value)) most = std::max(most, std::fabs(value));
      }
    const double loud = std::isfinite(activation[j]) ? static_cast<double>(activation[j]) : 0.0;
    s[j] = std::max(1e-5, std::pow(loud, alpha) / std::pow(std::max(1e-5, most), 1 - alpha));
  }
  return s;
}

/// q (m, k) of x (m, k) under scales of every token (m, 1) or of all tokens (1, 1).
template <class T>
void quantize_activations(matrix<const T> x, matrix<const float> scales, matrix<uint8_t> q) {
  for (index_t token = 0; token < x.rows; ++token)
    for (index_t j = 0; j < x.cols; ++j) {
      const auto value = static_cast<float>(x(token, j));
      const float ratio = value / scales(scales.rows == 1 ? 0 : token, 0);
      const float integer = std::isnan(value) ? 0.0f : std::nearbyint(std::clamp(ratio, -127.0f, 127.0f));
      q(token, j) = static_cast<uint8_t>(static_cast<int>(integer) + 128);
    }
}

/// A scale a token: scales (m, 1) ← largest finite |x| / 127, at least 2^-126; q (m, k) under them.
template <class T>
void quantize_tokens(matrix<const T> x, matrix<float> scales, matrix<uint8_t> q) {
  for (index_t token = 0; token < x.rows; ++token) {
    float most = 0;
    for (index_t j = 0; j < x.cols; ++j) {
      const float size = std::fabs(static_cast<float>(x(token, j)));
      if (std::isfinite(size)) most = std::max(most, size);
    }
    scales(token, 0) = std::max(most / 127, std::ldexp(1.0f, -126));
  }
  quantize_activations(x, matrix<const float>(scales), q);
}

/// y (m, n) = x·Wᵀ of codes x (m, k) and w (n, k), summed in int32, scaled back in double. p (n, 1).
/// @pre k <= 2^17, codes of x at least 1, zero points of w 128: nothing else keeps sums below 2^31.
inline void int8_matmul(matrix<const uint8_t> x, matrix<const float> scales, matrix<const uint8_t> w,
                        matrix<const params> p, matrix<float> y) {
  for (index_t token = 0; token < x.rows; ++token)
    for (index_t row = 0; row < w.rows; ++row) {
      std::int32_t sum = 0;
      for (index_t j = 0; j < x.cols; ++j)
        sum += (std::int32_t(x(token, j)) - 128) * (std::int32_t(w(row, j)) - p(row, 0).zero);
      const auto scale = static_cast<double>(scales(scales.rows == 1 ? 0 : token, 0));
      y(token, row) = static_cast<float>(sum * (scale * static_cast<double>(p(row, 0).scale)));
    }
}

}  // namespace reference
NIBBLE_NAMESPACE_END
