// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a quantizer is: bits, symmetry, the published convention it follows, and the dtypes its parameters are stored
/// in and its arithmetic runs in. Rules take a scheme by value: `scheme<…>` when all of it is known at compile time
/// (kernels, engines), `any_scheme` when a user chose it (whole passes); both spell the same members.
///
/// Codes are unsigned, in [0, 2^bits), one a byte; so are zero points. A convention that speaks of signed codes
/// (compressed-tensors, torchao) means code − 2^(bits−1). A symmetric scheme's zero point is 2^(bits−1).
#pragma once

#include "nibble/core.hpp"
#include "nibble/half.hpp"

NIBBLE_NAMESPACE_BEGIN

/// The published affine conventions; they differ in how a range becomes (scale, zero) and in where the zero point is
/// added before rounding. The formulas stand in fit.hpp and quantize.hpp.
enum class convention : uint8_t { compressed_tensors, autoawq, gptq, torchao };

/// @tparam Bits 1 to 8.
template <int Bits, bool Symmetric = false, convention Convention = convention::compressed_tensors,
          dtype Scale = dtype::f32, dtype Compute = dtype::f32>
struct scheme {
  static_assert(Bits >= 1 && Bits <= 8, "a code is one byte at most");
  static constexpr int bits = Bits;
  static constexpr bool symmetric = Symmetric;
  static constexpr convention rule = Convention;
  static constexpr dtype scale_dtype = Scale;      ///< scales are rounded to it before codes are chosen
  static constexpr dtype compute_dtype = Compute;  ///< every operation of fit and quantize is rounded to it
};

/// A scheme chosen at run time. @pre 1 <= bits <= 8.
struct any_scheme {
  int bits = 4;
  bool symmetric = false;
  convention rule = convention::compressed_tensors;
  dtype scale_dtype = dtype::f32;
  dtype compute_dtype = dtype::f32;
};

template <class Scheme>
NIBBLE_HOST_DEVICE constexpr int32_t max_code(Scheme s) noexcept {
  return (int32_t(1) << s.bits) - 1;
}

/// 2^(bits−1): the zero point of a symmetric scheme, and the distance from signed codes to ours.
template <class Scheme>
NIBBLE_HOST_DEVICE constexpr int32_t mid_code(Scheme s) noexcept {
  return int32_t(1) << (s.bits - 1);
}

/// The affine map of one group: weight ≈ (code − zero) · scale. scale > 0 and finite, zero in [0, 2^bits).
struct params {
  float scale;
  int32_t zero;
};

/// The rectangle of a weight matrix (n, k) that shares one `params`; −1 means the whole extent.
/// The parameter matrix is (⌈n / rows⌉, ⌈k / cols⌉); the last group along either side may be short.
struct group_shape {
  index_t rows = 1;
  index_t cols = -1;

  NIBBLE_HOST_DEVICE constexpr index_t height(index_t n) const noexcept { return rows < 0 ? (n > 0 ? n : 1) : rows; }
  NIBBLE_HOST_DEVICE constexpr index_t width(index_t k) const noexcept { return cols < 0 ? (k > 0 ? k : 1) : cols; }
  NIBBLE_HOST_DEVICE constexpr index_t down(index_t n) const noexcept { return ceil_div(n, height(n)); }
  NIBBLE_HOST_DEVICE constexpr index_t across(index_t k) const noexcept { return ceil_div(k, width(k)); }
};

inline constexpr group_shape per_tensor{-1, -1};
inline constexpr group_shape per_channel{1, -1};
NIBBLE_HOST_DEVICE constexpr group_shape per_group(index_t size) noexcept {
  return group_shape{1, size};
}

NIBBLE_NAMESPACE_END
