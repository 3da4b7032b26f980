// SPDX-License-Identifier: Apache-2.0
/// @file
/// e2m1 codes in blocks of a row that share a scale of 8 bits: mxfp4 and nvfp4. Two codes a byte, the lower nibble first.
///     mxfp4  32 numbers; scale e8m0, 2^(code − 127): exponent of amax, less that of 6, which is 2, never below −127
///     nvfp4  16 numbers; scale e4m3 under a float of the tensor: code of R(amax / 6) · global
///            global = R(R(1 / tensor's amax) · 2688), so that the greatest block's scale is 448, the largest e4m3
///     code = float_code(x / s)     x' = float_value(code) · s     s = 2^(code − 127), or value / global
/// amax = max |x| over what is finite. NaN becomes 0, ±inf saturates. R rounds to the dtype the weights are in. An nvfp4
/// scale that rounds to 0 becomes 1/8, as in compressed-tensors. Sources: OCP Microscaling Formats Specification 1.0,
/// 5.3.3 and 6.3; compressed-tensors 0.19 (calculate_qparams, generate_mx_scales, generate_gparam), whose bytes these are.
#pragma once

#include "nibble/core.hpp"
#include "nibble/fit.hpp"
#include "nibble/float_code.hpp"
#include "nibble/float_scheme.hpp"
#include "nibble/half.hpp"
#include "nibble/math.hpp"

NIBBLE_NAMESPACE_BEGIN

/// Code of the scale of a block. @pre amax >= 0 and finite.
NIBBLE_HOST_DEVICE constexpr uint8_t block_scale_code(float amax, mxfp4 f) noexcept {
  const uint32_t half = f.rounding == mx_rounding::nearest ? 1u << 21 : 0u;
  const uint32_t exponent = (bit_cast<uint32_t>(amax) + half) >> 23;
  return static_cast<uint8_t>(exponent < 2 ? 0 : exponent - 2);
}
NIBBLE_HOST_DEVICE constexpr uint8_t block_scale_code(float amax, nvfp4 f) noexcept {
  const uint8_t code = float_code(f.global * round_to(f.compute_dtype, amax / 6.0f), float_format::e4m3);
  return code == 0 ? uint8_t{0x20} : code;
}

/// What a block's numbers are multiplied by.
NIBBLE_HOST_DEVICE constexpr float block_scale(uint8_t code, mxfp4) noexcept {
  return bit_cast<float>(code == 255 ? 0x7fc00000u : code == 0 ? 0x00400000u : uint32_t(code) << 23);
}
NIBBLE_HOST_DEVICE constexpr float block_scale(uint8_t code, nvfp4 f) noexcept {
  return float_value(code, float_format::e4m3) / f.global;
}

/// nvfp4 of a tensor, or of several that share their global scale (q, k and v; gate and up), whose absolute maximum is
/// `amax`; 1 where the product is no finite number. Two roundings, as torch divides a number by a tensor.
NIBBLE_HOST_DEVICE constexpr nvfp4 nvfp4_of(float amax, dtype compute = dtype::f32) noexcept {
  const float inverse = round_to(compute, 1.0f / clamp(amax, least_normal(compute), largest(compute)));
  const float global = round_to(compute, inverse * 2688.0f);
  return {is_finite(global) ? global : 1.0f, compute};
}

/// Code of `x` in a block whose scale has the value `scale`. @pre scale > 0.
NIBBLE_HOST_DEVICE constexpr uint8_t fp4_code(float x, float scale) noexcept {
  return float_code(x / scale, float_format::e2m1);
}

/// The number that a code stands for.
/// @error from x at most a fifth of |x|, or a quarter of the scale where that is more, unless x was clamped.
NIBBLE_HOST_DEVICE constexpr float fp4_value(uint8_t code, float scale) noexcept {
  return float_value(code, float_format::e2m1) * scale;
}

NIBBLE_NAMESPACE_END
