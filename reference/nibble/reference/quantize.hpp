// SPDX-License-Identifier: Apache-2.0
/// @file
/// The rounding rule over matrices, written from the conventions' definitions on *signed* codes where they use them.
#pragma once

#include <algorithm>
#include <cmath>

#include "nibble/half.hpp"
#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {

/// w (n, k) row-major; p (g.down(n), g.across(k)); q (n, k), one code a byte.
template <class Scheme, class T>
void quantize(matrix<const T> w, matrix<const params> p, matrix<uint8_t> q, group_shape g, Scheme s = {}) {
  const int levels = 1 << s.bits;
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t col = 0; col < w.cols; ++col) {
      const params of_group = p(row / g.height(w.rows), col / g.width(w.cols));
      const auto x = static_cast<float>(w(row, col));
      const float ratio = round_to(s.compute_dtype, x / of_group.scale);
      double code = 0.0;
      if (std::isnan(x)) {
        code = of_group.zero;
      } else if (s.rule == convention::compressed_tensors) {
        const auto signed_zero = static_cast<float>(of_group.zero - levels / 2);
        const double shifted = round_to(s.compute_dtype, ratio + signed_zero);
        code = std::nearbyint(std::clamp(shifted, -levels / 2.0, levels / 2.0 - 1)) + levels / 2.0;
      } else {
        code = std::clamp(std::nearbyint(static_cast<double>(ratio)) + of_group.zero, 0.0, levels - 1.0);
      }
      q(row, col) = static_cast<uint8_t>(code);
    }
}

/// q (n, k); w (n, k) receives (code − zero) · scale, rounded to the compute dtype, then to T.
template <class Scheme, class T>
void dequantize(matrix<const uint8_t> q, matrix<const params> p, matrix<T> w, group_shape g, Scheme s = {}) {
  for (index_t row = 0; row < q.rows; ++row)
    for (index_t col = 0; col < q.cols; ++col) {
      const params of_group = p(row / g.height(q.rows), col / g.width(q.cols));
      const float value = static_cast<float>(q(row, col) - of_group.zero) * of_group.scale;
      w(row, col) = static_cast<T>(round_to(s.compute_dtype, value));
    }
}

}  // namespace reference
NIBBLE_NAMESPACE_END
