// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows quantize and fit for floating-point codes under one scale a group. R rounds to the compute dtype, S to the dtype the
/// scale is stored in:
///     scale = S(R(amax / largest(format)))     amax = max |x| of the group, over what is finite
///     code  = float_code(R(x / scale))
///     x'    = R(float_value(code) · scale)
/// A scale of 0 becomes the epsilon of its dtype, one that is too large for it the largest there is. NaN stays NaN where the
/// format has one, and ±inf saturates. We divide; x · (1 / scale) gives other codes near ties.
/// Source: compressed-tensors 0.19 (calculate_qparams, quantize), whose codes, scales and read-back weights these are.
#pragma once

#include "nibble/core.hpp"
#include "nibble/fit.hpp"
#include "nibble/float_code.hpp"
#include "nibble/float_scheme.hpp"
#include "nibble/half.hpp"
#include "nibble/math.hpp"

NIBBLE_NAMESPACE_BEGIN

/// Scale of a group whose absolute maximum is `amax`; NaN counts as 0, inf as the largest float.
/// @returns > 0 and finite.
template <class FloatScheme>
NIBBLE_HOST_DEVICE constexpr float fit(float amax, FloatScheme s) noexcept {
  amax = is_nan(amax) ? 0.0f : min(amax, largest(dtype::f32));
  const float scale = round_to(s.compute_dtype, amax / largest(s.format));
  const float stored = round_to(s.scale_dtype, min(scale, largest(s.scale_dtype)));
  return stored > 0.0f ? stored : epsilon(s.scale_dtype);
}

/// Code of `x`, which is not rounded to the compute dtype itself: it is taken as stored. @pre scale > 0 and finite.
template <class FloatScheme>
NIBBLE_HOST_DEVICE constexpr uint8_t quantize(float x, float scale, FloatScheme s) noexcept {
  return float_code(round_to(s.compute_dtype, x / scale), s.format);
}

/// The number that `code` stands for.
/// @error from x at most 2^-(mantissa bits + 1) · |x|, or half the least number · scale, unless x was clamped; and R's
/// roundings.
template <class FloatScheme>
NIBBLE_HOST_DEVICE constexpr float dequantize(uint8_t code, float scale, FloatScheme s) noexcept {
  return round_to(s.compute_dtype, float_value(code, s.format) * scale);
}

NIBBLE_NAMESPACE_END
