// SPDX-License-Identifier: Apache-2.0
/// @file
/// fp16 and bf16 as storage: two bytes, layout-compatible with `__half` and `__nv_bfloat16`, arithmetic in float.
/// Conversions from float round to nearest even; NaN stays NaN (quiet, sign kept), overflow becomes ±inf.
/// Source: IEEE 754-2019 binary16; bfloat16 is the upper half of binary32.
#pragma once

#include "nibble/core.hpp"
#include "nibble/math.hpp"

NIBBLE_NAMESPACE_BEGIN

/// Bits of the binary16 nearest to `x`.
NIBBLE_HOST_DEVICE constexpr uint16_t fp16_bits(float x) noexcept {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to inf
  if (magnitude < 0x38800000u) {  // below 2^-14: subnormal; adding 2^-1 aligns the unit in the last place to 2^-24
    const float aligned = bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bit_cast<uint32_t>(aligned) - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

/// Value of binary16 bits; exact.
NIBBLE_HOST_DEVICE constexpr float fp16_value(uint16_t bits) noexcept {
  const uint32_t sign = (bits & 0x8000u) * 0x10000u;
  const uint32_t magnitude = (bits & 0x7fffu);
  if (magnitude >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  const float value = bit_cast<float>(magnitude << 13) * 5.192296858534828e33f;  // · 2^112, exact; subnormals included
  return bit_cast<float>(bit_cast<uint32_t>(value) | sign);
}

/// Bits of the bfloat16 nearest to `x`.
NIBBLE_HOST_DEVICE constexpr uint16_t bf16_bits(float x) noexcept {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if (is_nan(x)) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// Value of bfloat16 bits; exact.
NIBBLE_HOST_DEVICE constexpr float bf16_value(uint16_t bits) noexcept {
  return bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

struct fp16 {
  uint16_t bits;
  fp16() = default;
  NIBBLE_HOST_DEVICE constexpr explicit fp16(float x) noexcept : bits(fp16_bits(x)) {}
  NIBBLE_HOST_DEVICE constexpr operator float() const noexcept { return fp16_value(bits); }
};

struct bf16 {
  uint16_t bits;
  bf16() = default;
  NIBBLE_HOST_DEVICE constexpr explicit bf16(float x) noexcept : bits(bf16_bits(x)) {}
  NIBBLE_HOST_DEVICE constexpr operator float() const noexcept { return bf16_value(bits); }
};

/// Floating-point storage types, as a value.
enum class dtype : uint8_t { f32, f16, bf16 };

NIBBLE_HOST_DEVICE constexpr index_t size_of(dtype type) noexcept {
  return type == dtype::f32 ? 4 : 2;
}

/// `x` rounded to what `type` can store.
NIBBLE_HOST_DEVICE constexpr float round_to(dtype type, float x) noexcept {
  return type == dtype::f32 ? x : type == dtype::f16 ? fp16_value(fp16_bits(x)) : bf16_value(bf16_bits(x));
}

/// The dtype of storage type `T`: float, fp16 or bf16.
template <class T>
struct dtype_of;
template <>
struct dtype_of<float> {
  static constexpr dtype value = dtype::f32;
};
template <>
struct dtype_of<fp16> {
  static constexpr dtype value = dtype::f16;
};
template <>
struct dtype_of<bf16> {
  static constexpr dtype value = dtype::bf16;
};

NIBBLE_NAMESPACE_END
