// SPDX-License-Identifier: Apache-2.0
/// @file
/// Floating-point codes over matrices, by search: a format is the list of its numbers, a code the place of the nearest.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "nibble/float_scheme.hpp"
#include "nibble/half.hpp"
#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"
#include "nibble/search.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {
namespace detail {

/// The finite numbers from 0 up, each at the place of its code.
inline std::vector<double> numbers(int exponents, int steps, int bias, int finite) {
  std::vector<double> values;
  for (int exponent = 0; exponent < exponents; ++exponent)
    for (int step = 0; step < steps; ++step) {
      const double fraction = static_cast<double>(step) / steps;
      values.push_back(exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1.0 + fraction, exponent - bias));
    }
  values.resize(static_cast<std::size_t>(finite));
  return values;
}

inline const std::vector<double>& numbers_of(float_format format) {
  static const std::vector<double> e4m3 = numbers(16, 8, 7, 127), e5m2 = numbers(32, 4, 15, 124),
                                   e2m1 = numbers(4, 2, 1, 8);
  return format == float_format::e4m3 ? e4m3 : format == float_format::e5m2 ? e5m2 : e2m1;
}

}  // namespace detail

inline uint8_t float_code(float x, float_format format) {
  if (std::isnan(x)) return format == float_format::e2m1 ? 0 : 127;
  const std::vector<double>& values = detail::numbers_of(format);
  const double magnitude = std::fabs(static_cast<double>(x));
  const auto above =
      static_cast<std::size_t>(std::lower_bound(values.begin(), values.end(), magnitude) - values.begin());
  std::size_t nearest = std::min(above, values.size() - 1);
  if (above > 0 && above < values.size()) {
    const double up = values[above] - magnitude, down = magnitude - values[above - 1];
    if (down < up || (down == up && above % 2 == 1)) nearest = above - 1;
  }
  const std::size_t sign = format == float_format::e2m1 ? 8 : 128;
  return static_cast<uint8_t>(nearest + (std::signbit(x) ? sign : 0));
}

inline float float_value(uint8_t code, float_format format) {
  const std::vector<double>& values = detail::numbers_of(format);
  const int sign = format == float_format::e2m1 ? 8 : 128, place = code % sign;
  double value = std::numeric_limits<double>::quiet_NaN();
  if (place < static_cast<int>(values.size())) value = values[static_cast<std::size_t>(place)];
  if (format == float_format::e5m2 && place == 124) value = std::numeric_limits<double>::infinity();
  return static_cast<float>(code < sign ? value : -value);
}

/// w (n, k) row-major; scales (g.down(n), g.across(k)): the greatest finite |w| of each group over the format's largest.
template <class FloatScheme, class T>
void fit(matrix<const T> w, matrix<float> scales, group_shape g, FloatScheme s, minmax) {
  const index_t height = g.height(w.rows), width = g.width(w.cols);
  const auto most = static_cast<float>(detail::numbers_of(s.format).back());
  for (index_t down = 0; down < scales.rows && w.cols > 0; ++down)
    for (index_t across = 0; across < scales.cols && w.rows > 0; ++across) {
      float amax = 0.0f;
      for (index_t row = down * height; row < std::min(w.rows, (down + 1) * height); ++row)
        for (index_t col = across * width; col < std::min(w.cols, (across + 1) * width); ++col) {
          const float x = std::fabs(static_cast<float>(w(row, col)));
          if (std::isfinite(x)) amax = std::max(amax, x);
        }
      const bool half = s.scale_dtype == dtype::f16, full = s.scale_dtype == dtype::f32;
      const float top = full ? std::numeric_limits<float>::max() : half ? 65504.0f : 255.0f * std::ldexp(1.0f, 120);
      const float scale = round_to(s.scale_dtype, std::min(round_to(s.compute_dtype, amax / most), top));
      scales(down, across) = scale > 0.0f ? scale : std::ldexp(1.0f, full ? -23 : half ? -10 : -7);
    }
}

/// w (n, k) row-major; scales (g.down(n), g.across(k)); q (n, k), one code a byte.
template <class FloatScheme, class T>
void quantize(matrix<const T> w, matrix<const float> scales, matrix<uint8_t> q, group_shape g, FloatScheme s) {
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t col = 0; col < w.cols; ++col) {
      const float scale = scales(row / g.height(w.rows), col / g.width(w.cols));
      const float ratio = round_to(s.compute_dtype, static_cast<float>(w(row, col)) / scale);
      q(row, col) = reference::float_code(ratio, s.format);
    }
}

/// q (n, k); w (n, k) receives value · scale, rounded to the compute dtype, then to T.
template <class FloatScheme, class T>
void dequantize(matrix<const uint8_t> q, matrix<const float> scales, matrix<T> w, group_shape g, FloatScheme s) {
  for (index_t row = 0; row < q.rows; ++row)
    for (index_t col = 0; col < q.cols; ++col) {
      const float scale = scales(row / g.height(q.rows), col / g.width(q.cols));
      w(row, col) = static_cast<T>(round_to(s.compute_dtype, reference::float_value(q(row, col), s.format) * scale));
    }
}

}  // namespace reference
NIBBLE_NAMESPACE_END
