// SPDX-License-Identifier: Apache-2.0
/// @file
/// The few floating-point functions the rules are stated in, identical bit for bit on host and device.
#pragma once

#include "nibble/core.hpp"

NIBBLE_NAMESPACE_BEGIN

template <class T>
NIBBLE_HOST_DEVICE constexpr T min(T a, T b) noexcept {
  return b < a ? b : a;
}

template <class T>
NIBBLE_HOST_DEVICE constexpr T max(T a, T b) noexcept {
  return a < b ? b : a;
}

/// `x` limited to [low, high]; NaN comes back as NaN.
template <class T>
NIBBLE_HOST_DEVICE constexpr T clamp(T x, T low, T high) noexcept {
  return x < low ? low : (high < x ? high : x);
}

/// |x|; clears the sign of −0 and NaN.
NIBBLE_HOST_DEVICE constexpr float abs(float x) noexcept {
  return bit_cast<float>(bit_cast<uint32_t>(x) & 0x7fffffffu);
}

NIBBLE_HOST_DEVICE constexpr bool is_nan(float x) noexcept {
  return (bit_cast<uint32_t>(x) & 0x7fffffffu) > 0x7f800000u;
}

NIBBLE_HOST_DEVICE constexpr bool is_finite(float x) noexcept {
  return (bit_cast<uint32_t>(x) & 0x7f800000u) != 0x7f800000u;
}

/// Nearest integer, ties to even, as IEEE roundToIntegralTiesToEven: the sign of zero is kept, NaN and ±inf come back.
/// Adding 2^23 to |x| leaves no fraction bits, so the addition itself rounds; from 2^23 on every float is an integer.
/// Vectorises on every instruction set, unlike rintf.
NIBBLE_HOST_DEVICE constexpr float round_even(float x) noexcept {
  constexpr float two23 = 8388608.0f;
  const float magnitude = abs(x);
  const float rounded = (magnitude + two23) - two23;
  const float signed_ = bit_cast<float>(bit_cast<uint32_t>(rounded) | (bit_cast<uint32_t>(x) & 0x80000000u));
  return magnitude < two23 ? signed_ : x;
}

NIBBLE_NAMESPACE_END
