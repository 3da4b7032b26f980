// SPDX-License-Identifier: Apache-2.0
/// @file
/// Blocks of e2m1 codes over matrices, from the formats' definitions: logarithms where the mathematics reads exponents.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "nibble/float_scheme.hpp"
#include "nibble/half.hpp"
#include "nibble/matrix.hpp"
#include "nibble/reference/fp8.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {
namespace detail {

inline double block_scale(mxfp4, uint8_t code) {
  return code == 255 ? std::numeric_limits<double>::quiet_NaN() : std::ldexp(1.0, code - 127);
}
inline uint8_t block_scale_code(mxfp4 f, float amax) {
  if (amax == 0.0f) return 0;
  int exponent = std::ilogb(amax);
  if (f.rounding == mx_rounding::nearest && static_cast<double>(amax) >= std::ldexp(1.75, exponent)) ++exponent;
  return static_cast<uint8_t>(std::clamp(exponent - 2 + 127, 0, 254));
}

inline double block_scale(nvfp4 f, uint8_t code) {
  return reference::float_value(code, float_format::e4m3) / f.global;
}
inline uint8_t block_scale_code(nvfp4 f, float amax) {
  const float share = round_to(f.compute_dtype, amax / 6.0f);
  const uint8_t code = reference::float_code(f.global * share, float_format::e4m3);
  return code != 0 ? code : reference::float_code(0.125f, float_format::e4m3);
}

}  // namespace detail

/// w (n, k) row-major; packed (n, ⌈k/2⌉), number 2j of a row in the low half of byte j; scales (n, ⌈k/block⌉), stored codes.
template <class BlockFormat, class T>
void fit_quantize_pack(matrix<const T> w, matrix<uint8_t> packed, matrix<uint8_t> scales, BlockFormat f) {
  for (index_t row = 0; row < w.rows; ++row) {
    for (index_t col = 0; col < packed.cols; ++col) packed(row, col) = 0;
    for (index_t block = 0; block < scales.cols; ++block) {
      const index_t first = block * f.block, last = std::min(w.cols, first + f.block);
      float amax = 0.0f;
      for (index_t col = first; col < last; ++col) {
        const float x = std::fabs(static_cast<float>(w(row, col)));
        if (std::isfinite(x)) amax = std::max(amax, x);
      }
      scales(row, block) = detail::block_scale_code(f, amax);
      const auto scale = static_cast<float>(detail::block_scale(f, scales(row, block)));
      for (index_t col = first; col < last; ++col) {
        const int code = reference::float_code(static_cast<float>(w(row, col)) / scale, float_format::e2m1);
        packed(row, col / 2) = static_cast<uint8_t>(packed(row, col / 2) + (col % 2 == 0 ? code : 16 * code));
      }
    }
  }
}

/// The inverse: w (n, k) receives value · scale, rounded to T.
template <class BlockFormat, class T>
void unpack_dequantize(matrix<const uint8_t> packed, matrix<const uint8_t> scales, matrix<T> w, BlockFormat f) {
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t col = 0; col < w.cols; ++col) {
      const int two = packed(row, col / 2);
      const auto code = static_cast<uint8_t>(col % 2 == 0 ? two % 16 : two / 16);
      const auto scale = static_cast<float>(detail::block_scale(f, scales(row, col / f.block)));
      w(row, col) = static_cast<T>(reference::float_value(code, float_format::e2m1) * scale);
    }
}

}  // namespace reference
NIBBLE_NAMESPACE_END
