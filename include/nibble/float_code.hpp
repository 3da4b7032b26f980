// SPDX-License-Identifier: Apache-2.0
/// @file
/// Value ↔ code of e4m3, e5m2 and e2m1. To the nearest, ties to even, as IEEE 754 rounds; beyond the largest number codes
/// saturate, ±inf too. NaN becomes 0x7f in the formats that have one, as the conversion instructions of GPUs give it, and 0 in
/// e2m1, which has none (there the instruction gives 6). The sign of zero is kept.
#pragma once

#include "nibble/core.hpp"
#include "nibble/float_scheme.hpp"
#include "nibble/math.hpp"

NIBBLE_NAMESPACE_BEGIN

/// Bits of a code.
NIBBLE_HOST_DEVICE constexpr int bits_of(float_format format) noexcept {
  return format == float_format::e2m1 ? 4 : 8;
}

NIBBLE_HOST_DEVICE constexpr int mantissa_bits(float_format format) noexcept {
  return format == float_format::e4m3 ? 3 : format == float_format::e5m2 ? 2 : 1;
}

/// What is added to an exponent to store it: exponent 1 in a code is 2^(1 − bias), the least normal number.
NIBBLE_HOST_DEVICE constexpr int exponent_bias(float_format format) noexcept {
  return format == float_format::e4m3 ? 7 : format == float_format::e5m2 ? 15 : 1;
}

/// Largest finite value.
NIBBLE_HOST_DEVICE constexpr float largest(float_format format) noexcept {
  return format == float_format::e4m3 ? 448.0f : format == float_format::e5m2 ? 57344.0f : 6.0f;
}

/// 2^exponent. @pre exponent in [−126, 127].
NIBBLE_HOST_DEVICE constexpr float two_to(int exponent) noexcept {
  return bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23);
}

/// Code of the number of `format` nearest to `x`.
NIBBLE_HOST_DEVICE constexpr uint8_t float_code(float x, float_format format) noexcept {
  if (is_nan(x)) return format == float_format::e2m1 ? uint8_t{0} : uint8_t{0x7f};
  const int mantissa = mantissa_bits(format), dropped = 23 - mantissa, bias = exponent_bias(format);
  const float magnitude = min(abs(x), largest(format));
  const uint32_t sign = bit_cast<uint32_t>(x) >> 31 << (bits_of(format) - 1);
  if (magnitude < two_to(1 - bias)) {
    // A sum with 2^23 times the least number has that for its unit in the last place, so the addition rounds to it.
    const float aligned = two_to(1 - bias + dropped);
    return static_cast<uint8_t>(sign | (bit_cast<uint32_t>(magnitude + aligned) - bit_cast<uint32_t>(aligned)));
  }
  const uint32_t bits = bit_cast<uint32_t>(magnitude);
  const uint32_t rounded = (bits + (1u << (dropped - 1)) - 1u + ((bits >> dropped) & 1u)) >> dropped;
  return static_cast<uint8_t>(sign | (rounded - (static_cast<uint32_t>(127 - bias) << mantissa)));
}

/// Value of `code`; exact. @pre code < 16 for e2m1.
NIBBLE_HOST_DEVICE constexpr float float_value(uint8_t code, float_format format) noexcept {
  const int mantissa = mantissa_bits(format), dropped = 23 - mantissa, bias = exponent_bias(format);
  const uint32_t sign_bit = 1u << (bits_of(format) - 1);
  const uint32_t magnitude = code & (sign_bit - 1u), sign = (code & sign_bit) != 0 ? 0x80000000u : 0u;
  if (format == float_format::e4m3 && magnitude == 0x7fu) return bit_cast<float>(sign | 0x7fc00000u);
  if (format == float_format::e5m2 && magnitude >= 0x7cu)
    return bit_cast<float>(sign | 0x7f800000u | (magnitude & 3u) << 21);
  if (magnitude >> mantissa == 0) {  // subnormal: between the least normal number and its double, less the former
    const float least = two_to(1 - bias);
    const float value = bit_cast<float>(bit_cast<uint32_t>(least) + (magnitude << dropped)) - least;
    return bit_cast<float>(sign | bit_cast<uint32_t>(value));
  }
  return bit_cast<float>(sign | ((magnitude << dropped) + (static_cast<uint32_t>(127 - bias) << 23)));
}

NIBBLE_NAMESPACE_END
