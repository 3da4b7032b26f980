// SPDX-License-Identifier: Apache-2.0
/// @file
/// nibble::quantize over whole matrices, threaded and vectorised; equal to reference::quantize bit for bit.
/// Per element: one division, the clamp before the rounding (integers bound both, so the order does not matter), and
/// the rounding as an addition of 1.5 · 2^23, which leaves the code in the sum's low byte.
#pragma once

#include <type_traits>

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>
#endif

#include "nibble/half.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/math.hpp"
#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

template <dtype Type>
using dtype_constant = std::integral_constant<dtype, Type>;

/// f(integral_constant) of a dtype known at run time.
template <class F>
void with_dtype(dtype type, F&& f) {
  switch (type) {
    case dtype::f32:
      return f(dtype_constant<dtype::f32>{});
    case dtype::f16:
      return f(dtype_constant<dtype::f16>{});
    case dtype::bf16:
      return f(dtype_constant<dtype::bf16>{});
  }
}

/// `a` where `first`, else `b`. By masks: written as a choice, it comes back as a branch, and the loop stays scalar.
inline uint32_t select(bool first, uint32_t a, uint32_t b) noexcept {
  const uint32_t mask = 0u - static_cast<uint32_t>(first);
  return (a & mask) | (b & ~mask);
}

/// round_to without branches. @pre x is not NaN.
template <dtype Type>
inline float round_number(float x) noexcept {
  if constexpr (Type == dtype::bf16) {
    const uint32_t bits = bit_cast<uint32_t>(x);
    return bit_cast<float>((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
  } else if constexpr (Type == dtype::f16) {
    // Adding and taking away 1.5 · 2^13 times the power of two of |x| rounds to 11 bits; below 2^-14 to 2^-24.
    const uint32_t bits = bit_cast<uint32_t>(x) & 0x7fffffffu, exponent = bits & 0x7f800000u;
    const uint32_t least = 0x38800000u;
    const float magic = bit_cast<float>(select(exponent < least, least, exponent) + (13u << 23)) * 1.5f;
    const float magnitude = bit_cast<float>(bits);
    const auto rounded = bit_cast<uint32_t>((magnitude + magic) - magic);
    const uint32_t limited = select(bits >= 0x477ff000u, 0x7f800000u, rounded);  // from 65520 on
    return bit_cast<float>(limited | (bit_cast<uint32_t>(x) & 0x80000000u));
  } else {
    return x;
  }
}

/// fp16_value without branches: subnormals through an exact product, inf and NaN by their own exponent.
inline float load(fp16 x) noexcept {
  const uint32_t magnitude = x.bits & 0x7fffu;
  const float value = bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return bit_cast<float>(bit_cast<uint32_t>(value) | special | (uint32_t(x.bits & 0x8000u) << 16));
}
inline float load(bf16 x) noexcept {
  return bit_cast<float>(uint32_t(x.bits) << 16);
}
inline float load(float x) noexcept {
  return x;
}

/// Stores x as T(x) would, without branches. @pre x is not NaN.
inline void store(float x, float& to) noexcept {
  to = x;
}
inline void store(float x, bf16& to) noexcept {
  to.bits = static_cast<uint16_t>(bit_cast<uint32_t>(round_number<dtype::bf16>(x)) >> 16);
}
inline void store(float x, fp16& to) noexcept {
  const uint32_t bits = bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = select(magnitude < 0x38800000u, subnormal, normal);
  const uint32_t limited = select(magnitude >= 0x477ff000u, 0x7c00u, finite);
  to.bits = static_cast<uint16_t>(limited | ((bits >> 16) & 0x8000u));
}

/// Elements converted between fp16 and float at once; both copies stay in the first-level cache.
inline constexpr index_t span_block = 512;

#if defined(__GNUC__) && defined(__x86_64__)
__attribute__((target("avx,f16c"))) inline void load_eights(const fp16* from, float* to, index_t count) noexcept {
  for (index_t i = 0; i < count; i += 8) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(bits));
  }
}
__attribute__((target("avx,f16c"))) inline void store_eights(const float* from, fp16* to, index_t count) noexcept {
  for (index_t i = 0; i < count; i += 8) {
    const __m128i bits = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), bits);
  }
}
#else
inline constexpr bool has_f16c() noexcept {
  return false;
}
inline void load_eights(const fp16*, float*, index_t) noexcept {}
inline void store_eights(const float*, fp16*, index_t) noexcept {}
#endif

/// load and store of `count` elements. @pre none to store is NaN.
inline void load_span(const fp16* from, float* to, index_t count) noexcept {
  const index_t eights = has_f16c() ? count / 8 * 8 : 0;
  load_eights(from, to, eights);
  for (index_t i = eights; i < count; ++i) to[i] = load(from[i]);
}
inline void store_span(const float* from, fp16* to, index_t count) noexcept {
  const index_t eights = has_f16c() ? count / 8 * 8 : 0;
  store_eights(from, to, eights);
  for (index_t i = eights; i < count; ++i) store(from[i], to[i]);
}
/// round_number<dtype::f16> in place.
inline void round_span(float* x, index_t count) noexcept {
  fp16 rounded[span_block];
  store_span(x, rounded, count);
  load_span(rounded, x, count);
}

/// What one group's codes need: code = low byte of round_even(clamp(R(R(x / scale) + shift), low, high)) + base.
struct rounding {
  float scale, shift, low, high;
  uint32_t base;
};

template <bool ZeroFirst, class Scheme>
inline rounding rounding_of(params p, Scheme s) noexcept {
  const auto zero = static_cast<float>(p.zero);
  const auto mid = static_cast<float>(mid_code(s)), top = static_cast<float>(max_code(s));
  if (ZeroFirst) return {p.scale, zero - mid, -mid, top - mid, uint32_t(mid_code(s))};
  return {p.scale, 0.0f, -zero, top - zero, uint32_t(p.zero)};
}

/// `x`, or 0 in place of NaN.
inline float number_or_zero(float x) noexcept {
  return bit_cast<float>(select(x == x, bit_cast<uint32_t>(x), 0u));
}

/// The number of steps from `base` to the code of x, not rounded to an integer yet.
template <bool ZeroFirst, dtype Compute>
inline float steps_of(float x, const rounding& r) noexcept {
  const float v = round_number<Compute>(number_or_zero(x) / r.scale);
  return ZeroFirst ? round_number<Compute>(v + r.shift) : v;
}

/// `v` clamped and rounded, as a float whose low byte is that number.
inline float rounded_number(float v, const rounding& r) noexcept {
  constexpr float magic = 12582912.0f;  // 1.5 · 2^23
  v = v < r.low ? r.low : v;
  v = v > r.high ? r.high : v;
  return v + magic;
}

/// The rounded, clamped number of steps from `base` to the code of x, as a float whose low byte is that number.
template <bool ZeroFirst, dtype Compute>
inline float rounded_steps(float x, const rounding& r) noexcept {
  return rounded_number(steps_of<ZeroFirst, Compute>(x, r), r);
}

inline uint8_t code_of(float steps, const rounding& r) noexcept {
  return static_cast<uint8_t>(bit_cast<uint32_t>(rounded_number(steps, r)) + r.base);
}

template <bool ZeroFirst, dtype Compute, class T>
inline void quantize_span(const T* __restrict x, uint8_t* __restrict q, index_t count, rounding r) noexcept {
  if constexpr (Compute == dtype::f16) {
    for (index_t first = 0; first < count; first += span_block) {
      const index_t size = min(span_block, count - first);
      float steps[span_block];
      if constexpr (std::is_same_v<T, fp16>)
        load_span(x + first, steps, size);
      else
        for (index_t i = 0; i < size; ++i) steps[i] = load(x[first + i]);
      for (index_t i = 0; i < size; ++i) steps[i] = number_or_zero(steps[i]) / r.scale;
      round_span(steps, size);
      if constexpr (ZeroFirst) {
        for (index_t i = 0; i < size; ++i) steps[i] += r.shift;
        round_span(steps, size);
      }
      for (index_t i = 0; i < size; ++i) q[first + i] = code_of(steps[i], r);
    }
  } else if constexpr (std::is_same_v<T, fp16>) {
    for (index_t first = 0; first < count; first += span_block) {
      const index_t size = min(span_block, count - first);
      float block[span_block];
      load_span(x + first, block, size);
      quantize_span<ZeroFirst, Compute>(block, q + first, size, r);
    }
  } else {
    for (index_t i = 0; i < count; ++i) q[i] = code_of(steps_of<ZeroFirst, Compute>(load(x[i]), r), r);
  }
}

template <dtype Compute, class T>
inline void dequantize_span(const uint8_t* __restrict q, T* __restrict x, index_t count, params p) noexcept {
  if constexpr (std::is_same_v<T, fp16>) {  // computing in fp16 rounds once, as storing does
    constexpr dtype compute = Compute == dtype::f16 ? dtype::f32 : Compute;
    for (index_t first = 0; first < count; first += span_block) {
      const index_t size = min(span_block, count - first);
      float block[span_block];
      dequantize_span<compute>(q + first, block, size, p);
      store_span(block, x + first, size);
    }
  } else {
    for (index_t i = 0; i < count; ++i) {
      const float value = static_cast<float>(int32_t(q[i]) - p.zero) * p.scale;
      store(round_number<Compute>(value), x[i]);
    }
  }
}

/// Rows a thread takes at once: some 2^16 elements.
inline index_t rows_at_once(index_t cols) noexcept {
  return cols >= 65536 ? 1 : ceil_div(65536, cols < 1 ? 1 : cols);
}

/// f(row, first column, columns, parameters) for every group's piece of every row, rows shared out over the pool.
template <class P, class F>
void for_group_spans(index_t rows, index_t cols, matrix<const P> p, group_shape g, F f) {
  const index_t height = g.height(rows), width = g.width(cols), step = rows_at_once(cols);
  parallel_for(ceil_div(rows, step), [&](index_t tile) {
    vectorised([&] {
      for (index_t row = tile * step; row < min(rows, (tile + 1) * step); ++row) {
        const P* const of_row = p.row(row / height);
        for (index_t col = 0, group = 0; col < cols; col += width, ++group)
          f(row, col, min(width, cols - col), of_row[group]);
      }
    });
  });
}

}  // namespace detail

/// w (n, k) row-major; p (g.down(n), g.across(k)); q (n, k), one code a byte.
template <class Scheme, class T>
void quantize(matrix<const T> w, matrix<const params> p, matrix<uint8_t> q, group_shape g, Scheme s = {}) {
  detail::with_dtype(s.compute_dtype, [&](auto compute) {
    const auto run = [&](auto zero_first) {
      detail::for_group_spans(w.rows, w.cols, p, g, [=](index_t row, index_t col, index_t count, params of_group) {
        const auto r = detail::rounding_of<zero_first.value>(of_group, s);
        detail::quantize_span<zero_first.value, compute.value>(w.row(row) + col, q.row(row) + col, count, r);
      });
    };
    if (s.rule == convention::compressed_tensors)
      run(std::true_type{});
    else
      run(std::false_type{});
  });
}

/// The inverse: w (n, k) gets the weights that q (n, k) stands for, rounded to the compute dtype, then to T.
template <class Scheme, class T>
void dequantize(matrix<const uint8_t> q, matrix<const params> p, matrix<T> w, group_shape g, Scheme s = {}) {
  detail::with_dtype(s.compute_dtype, [&](auto compute) {
    detail::for_group_spans(q.rows, q.cols, p, g, [=](index_t row, index_t col, index_t count, params of_group) {
      detail::dequantize_span<compute.value>(q.row(row) + col, w.row(row) + col, count, of_group);
    });
  });
}

}  // namespace host
NIBBLE_NAMESPACE_END
