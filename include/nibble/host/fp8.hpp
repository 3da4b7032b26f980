// SPDX-License-Identifier: Apache-2.0
/// @file
/// nibble::fit, quantize and dequantize of floating-point codes over whole matrices, threaded and vectorised; equal to the
/// reference bit for bit (but for which NaN a NaN is). float_code and float_value are written here without branches, for a
/// format known at compile time: both of their cases are computed, and one is chosen by a mask.
#pragma once

#include <type_traits>

#include "nibble/float_code.hpp"
#include "nibble/fp8.hpp"
#include "nibble/host/fit.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"
#include "nibble/search.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

template <float_format Format>
using format_constant = std::integral_constant<float_format, Format>;

/// f(format, compute dtype), both as constants, for a scheme.
template <class FloatScheme, class F>
void with_format(FloatScheme s, F&& f) {
  with_dtype(s.compute_dtype, [&](auto compute) {
    switch (s.format) {
      case float_format::e4m3:
        return f(format_constant<float_format::e4m3>{}, compute);
      case float_format::e5m2:
        return f(format_constant<float_format::e5m2>{}, compute);
      case float_format::e2m1:
        return f(format_constant<float_format::e2m1>{}, compute);
    }
  });
}

/// nibble::float_code of `x`, or the code of NaN where `of` is NaN (x may be anything then). A sum with 2^(23 − mantissa) times
/// the power of two of |x|, at least that of the least normal number, has the unit in the last place that |x| has as a code: its
/// low bits are the significand, rounded, and where that carries it carries into the exponent.
template <float_format Format>
inline uint8_t code_of_number(float x, float of) noexcept {
  constexpr int mantissa = mantissa_bits(Format), dropped = 23 - mantissa;
  constexpr auto least = bit_cast<int32_t>(two_to(1 - exponent_bias(Format))),
                 most = bit_cast<int32_t>(largest(Format));
  constexpr int32_t last = ((most - least) >> dropped) + (1 << mantissa);
  // Limits of integers: those of floats are choices to a compiler, which comes back with branches.
  const int32_t magnitude = min(bit_cast<int32_t>(abs(x)), most), power = max(magnitude & 0x7f800000, least);
  const float aligned = bit_cast<float>(power + (dropped << 23));
  const int32_t significand = bit_cast<int32_t>(bit_cast<float>(magnitude) + aligned) - bit_cast<int32_t>(aligned);
  const auto code = static_cast<uint32_t>(significand + ((power - least) >> dropped));
  const uint32_t sign = bit_cast<uint32_t>(x) >> 31 << (bits_of(Format) - 1);
  const uint32_t number = 0u - static_cast<uint32_t>(of == of);
  if (Format == float_format::e2m1) return static_cast<uint8_t>((code | sign) & number);
  return static_cast<uint8_t>(code + (sign & number) + (~number & uint32_t(0x7f - last)));
}

/// nibble::float_value of a code that is no NaN; a NaN's comes as a number.
template <float_format Format>
inline float value_of_code(uint8_t code) noexcept {
  constexpr int mantissa = mantissa_bits(Format), dropped = 23 - mantissa, bias = exponent_bias(Format);
  constexpr uint32_t sign_bit = 1u << (bits_of(Format) - 1);
  constexpr float least = two_to(1 - bias);
  const uint32_t magnitude = code & (sign_bit - 1u), sign = uint32_t(code & sign_bit) << (32 - bits_of(Format));
  const float subnormal = bit_cast<float>(bit_cast<uint32_t>(least) + (magnitude << dropped)) - least;
  uint32_t bits = (magnitude << dropped) + (uint32_t(127 - bias) << 23);
  if (Format == float_format::e5m2) bits = select(magnitude >= 0x7cu, 0x7f800000u, bits);
  return bit_cast<float>(sign | select(magnitude < (1u << mantissa), bit_cast<uint32_t>(subnormal), bits));
}

template <float_format Format>
inline bool is_nan_code(uint8_t code) noexcept {
  return Format == float_format::e4m3 ? (code & 0x7fu) == 0x7fu
                                      : Format == float_format::e5m2 && (code & 0x7fu) > 0x7cu;
}

/// x, or NaN. By masks, as `select`.
inline float or_nan(float x, bool nan) noexcept {
  return bit_cast<float>(select(nan, 0x7fc00000u, bit_cast<uint32_t>(x)));
}
inline bf16 or_nan(bf16 x, bool nan) noexcept {
  x.bits = static_cast<uint16_t>(select(nan, 0x7fc0u, x.bits));
  return x;
}
inline fp16 or_nan(fp16 x, bool nan) noexcept {
  x.bits = static_cast<uint16_t>(select(nan, 0x7e00u, x.bits));
  return x;
}

/// x as floats: themselves, or a copy of at most span_block of them in `block`.
inline const float* as_floats(const float* x, index_t, float*) noexcept {
  return x;
}
inline const float* as_floats(const bf16* x, index_t count, float* block) noexcept {
  for (index_t i = 0; i < count; ++i) block[i] = load(x[i]);
  return block;
}
inline const float* as_floats(const fp16* x, index_t count, float* block) noexcept {
  load_span(x, block, count);
  return block;
}

template <float_format Format, dtype Compute, class T>
inline void code_span(const T* __restrict x, uint8_t* __restrict q, index_t count, float scale) noexcept {
  if constexpr (Compute != dtype::f16 && !std::is_same_v<T, fp16>) {
    for (index_t i = 0; i < count; ++i) {
      const float value = load(x[i]);
      q[i] = code_of_number<Format>(round_number<Compute>(value / scale), value);
    }
  } else {
    for (index_t first = 0; first < count; first += span_block) {
      const index_t size = min(span_block, count - first);
      float block[span_block], ratio[span_block];
      const float* const values = as_floats(x + first, size, block);
      for (index_t i = 0; i < size; ++i)
        ratio[i] = round_number < Compute == dtype::bf16 ? Compute : dtype::f32 > (values[i] / scale);
      if constexpr (Compute == dtype::f16) round_span(ratio, size);
      for (index_t i = 0; i < size; ++i) q[first + i] = code_of_number<Format>(ratio[i], values[i]);
    }
  }
}

template <float_format Format, dtype Compute, class T>
inline void value_span(const uint8_t* __restrict q, T* __restrict x, index_t count, float scale) noexcept {
  if constexpr (std::is_same_v<T, fp16>) {  // computing in fp16 rounds once, as storing does
    constexpr dtype compute = Compute == dtype::f16 ? dtype::f32 : Compute;
    for (index_t first = 0; first < count; first += span_block) {
      const index_t size = min(span_block, count - first);
      float block[span_block];
      for (index_t i = 0; i < size; ++i) block[i] = round_number<compute>(value_of_code<Format>(q[first + i]) * scale);
      store_span(block, x + first, size);
      for (index_t i = 0; i < size; ++i) x[first + i] = or_nan(x[first + i], is_nan_code<Format>(q[first + i]));
    }
  } else {
    for (index_t i = 0; i < count; ++i) {
      T value;
      store(round_number<Compute>(value_of_code<Format>(q[i]) * scale), value);
      x[i] = or_nan(value, is_nan_code<Format>(q[i]));
    }
  }
}

}  // namespace detail

/// w (n, k) row-major; scales (g.down(n), g.across(k)).
template <class FloatScheme, class T>
void fit(matrix<const T> w, matrix<float> scales, group_shape g, FloatScheme s, minmax) {
  const auto one = [&](const detail::rectangle& at, float& scale, auto&) {
    const auto ends = detail::range_of(w, at);
    scale = nibble::fit(max(-ends.low, ends.high), s);
  };
  detail::for_groups<detail::no_scratch>(w.rows, w.cols, scales, g, one);
}

/// w (n, k) row-major; scales (g.down(n), g.across(k)); q (n, k), one code a byte.
template <class FloatScheme, class T>
void quantize(matrix<const T> w, matrix<const float> scales, matrix<uint8_t> q, group_shape g, FloatScheme s) {
  detail::with_format(s, [&](auto format, auto compute) {
    detail::for_group_spans(w.rows, w.cols, scales, g, [=](index_t row, index_t col, index_t count, float scale) {
      detail::code_span<format.value, compute.value>(w.row(row) + col, q.row(row) + col, count, scale);
    });
  });
}

/// The inverse: w (n, k) gets the numbers that q (n, k) stands for, rounded to the compute dtype, then to T.
template <class FloatScheme, class T>
void dequantize(matrix<const uint8_t> q, matrix<const float> scales, matrix<T> w, group_shape g, FloatScheme s) {
  detail::with_format(s, [&](auto format, auto compute) {
    detail::for_group_spans(q.rows, q.cols, scales, g, [=](index_t row, index_t col, index_t count, float scale) {
      detail::value_span<format.value, compute.value>(q.row(row) + col, w.row(row) + col, count, scale);
    });
  });
}

}  // namespace host
NIBBLE_NAMESPACE_END
