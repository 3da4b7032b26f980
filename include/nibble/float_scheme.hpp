// SPDX-License-Identifier: Apache-2.0
/// @file
/// Floating-point codes of 8 and 4 bits: which formats there are, and what a quantizer to one of them is. A code is the format's
/// bits, in the low bits of a byte; the affine map of a scheme (scheme.hpp) shrinks to a scale, for a format that holds 0 and
/// both signs needs no zero point. A group is a `group_shape` as ever, its parameters one float.
/// Sources: Micikevicius et al., "FP8 Formats for Deep Learning" (arXiv:2209.05433); OCP 8-bit Floating Point
/// Specification 1.0; OCP Microscaling Formats Specification 1.0, 5.3 (e2m1).
#pragma once

#include "nibble/core.hpp"
#include "nibble/half.hpp"

NIBBLE_NAMESPACE_BEGIN

/// Sign, exponent and mantissa bits by the name.
///     format  bits  bias  largest  least normal  least  inf          NaN
///     e4m3       8     7      448          2^-6   2^-9  none         S.1111.111
///     e5m2       8    15    57344         2^-14  2^-16  S.11111.00   S.11111.01, .10, .11
///     e2m1       4     1        6             1    0.5  none         none
/// e4m3 is what others call e4m3fn: its highest exponent is one of numbers.
enum class float_format : uint8_t { e4m3, e5m2, e2m1 };

/// @tparam Scale scales are rounded to it before codes are chosen. @tparam Compute every operation of fit and quantize is
/// rounded to it.
template <float_format Format, dtype Scale = dtype::f32, dtype Compute = dtype::f32>
struct float_scheme {
  static constexpr float_format format = Format;
  static constexpr dtype scale_dtype = Scale;
  static constexpr dtype compute_dtype = Compute;
};

/// The same chosen at run time.
struct any_float_scheme {
  float_format format = float_format::e4m3;
  dtype scale_dtype = dtype::f32;
  dtype compute_dtype = dtype::f32;
};

/// What power of two a block's amax is taken for. `down`: the one below it, as the specification has it; 7 of 8 units then saturate
/// at 6. `nearest`: amax is rounded to one bit of mantissa first, as e2m1 would round it were its range larger, ties up, so that
/// from 7 of 8 units on the power above is taken: as compressed-tensors has it.
enum class mx_rounding : uint8_t { down, nearest };

/// e2m1 in blocks of 32 numbers of a row under a power of two, stored as its exponent + 127 (e8m0; 255 is NaN).
struct mxfp4 {
  static constexpr index_t block = 32;
  mx_rounding rounding = mx_rounding::nearest;
};

/// e2m1 in blocks of 16 numbers of a row under an e4m3 scale, which was multiplied by one float of the tensor before it was stored.
struct nvfp4 {
  static constexpr index_t block = 16;
  float global = 1.0f;               ///< finite and above 0
  dtype compute_dtype = dtype::f32;  ///< a block's amax / 6 is rounded to it
};

NIBBLE_NAMESPACE_END
