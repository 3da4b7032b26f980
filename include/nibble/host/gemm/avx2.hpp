// SPDX-License-Identifier: Apache-2.0
/// @file
/// The inner products of host::gemm in 256-bit vectors, the same bits as the plain loops: a row of W by up to four tokens,
/// whose 16 lanes are two vectors each.
#pragma once

#include <utility>

#include "nibble/host/gemm/plain.hpp"

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>

// No fused multiply-add: it would round a product and its sum once where the plain loops round twice.
#define NIBBLE_AVX2 __attribute__((target("avx2,f16c"), always_inline)) inline
#define NIBBLE_AVX2_ENTRY __attribute__((target("avx2,f16c")))

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

inline bool has_avx2() noexcept {
  return __builtin_cpu_supports("avx2") && has_f16c();
}

NIBBLE_AVX2 __m256 load_half(const float* from) noexcept {
  return _mm256_loadu_ps(from);
}
NIBBLE_AVX2 __m256 load_half(const bf16* from) noexcept {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
NIBBLE_AVX2 __m256 load_half(const fp16* from) noexcept {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

/// Sums of one row by Tokens tokens: lanes 0 … 7 and 8 … 15.
template <int Tokens>
struct row_sums {
  row_sums() {}  // leaves the registers alone
  static constexpr auto tokens = std::make_index_sequence<Tokens>{};
  __m256 sums[2][Tokens];

  template <std::size_t... T>
  NIBBLE_AVX2 void clear(std::index_sequence<T...>) noexcept {
    ((sums[0][T] = _mm256_setzero_ps()), ...);
    ((sums[1][T] = _mm256_setzero_ps()), ...);
  }
  /// sums += weight · 8 inputs of every token.
  template <int Half, std::size_t... T>
  NIBBLE_AVX2 void add(__m256 weight, const float* x, index_t stride, std::index_sequence<T...>) noexcept {
    ((sums[Half][T] = _mm256_add_ps(
          sums[Half][T], _mm256_mul_ps(_mm256_loadu_ps(x + static_cast<index_t>(T) * stride + 8 * Half), weight))),
     ...);
  }
  template <std::size_t... T>
  NIBBLE_AVX2 void store(const gemm_output_view& o, index_t row, std::index_sequence<T...>) const noexcept {
    ((o.y[static_cast<index_t>(T) * o.y_stride + row] = total(sums[0][T], sums[1][T])), ...);
  }
  /// lane_sums::total.
  NIBBLE_AVX2 static float total(__m256 low, __m256 high) noexcept {
    const __m256 eight = _mm256_add_ps(low, high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
};

template <int Bits, int Tokens>
struct packed_row_avx2 {
  static constexpr index_t run = 32 / Bits;
  static constexpr auto steps = std::make_index_sequence<static_cast<std::size_t>(run)>{};
  row_sums<Tokens> sums;
  __m256i word;
  __m256 scale, zero;

  template <int Half, std::size_t Step>
  NIBBLE_AVX2 void step(const float* x, index_t stride) noexcept {
    __m256i code = _mm256_srli_epi32(word, Bits * static_cast<int>(Step));
    if constexpr (Step + 1 < static_cast<std::size_t>(run))
      code = _mm256_and_si256(code, _mm256_set1_epi32((1 << Bits) - 1));
    const __m256 weight = _mm256_mul_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(code), zero), scale);
    sums.template add<Half>(weight, x + static_cast<index_t>(Step) * gemm_lanes, stride, sums.tokens);
  }
  /// 8 words, of which the last `8 − here` are not there; zeros in x make up for them.
  template <int Half, std::size_t... S>
  NIBBLE_AVX2 void half(const uint32_t* words, index_t here, const float* x, index_t stride,
                        std::index_sequence<S...>) noexcept {
    if (here >= 8) {
      word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    } else {
      const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
      const __m256i present = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(max(here, index_t(0)))), lane);
      word = _mm256_maskload_epi32(reinterpret_cast<const int*>(words), present);
    }
    (step<Half, S>(x, stride), ...);
  }
  NIBBLE_AVX2 void multiply(const packed_rows& w, const gemm_output_view& o, index_t row) noexcept {
    const uint32_t* words = w.words + row * w.stride;
    const float *scales = w.scales + row * w.per_row, *zeros = w.zeros + row * w.per_row;
    sums.clear(sums.tokens);
    const float* x = o.x;
    index_t left = 0;  // blocks of the group to come
    for (index_t first = 0; first < w.count; first += gemm_lanes, x += gemm_lanes * run) {
      const index_t here = w.count - first;
      if (w.blocks_a_param == 0) {
        scale = load_half(scales + first), zero = load_half(zeros + first);
      } else if (left-- == 0) {
        scale = _mm256_set1_ps(*scales++), zero = _mm256_set1_ps(*zeros++);
        left = w.blocks_a_param - 1;
      }
      half<0>(words + first, here, x, o.x_stride, steps);
      if (w.blocks_a_param == 0) scale = load_half(scales + first + 8), zero = load_half(zeros + first + 8);
      half<1>(words + first + 8, here - 8, x, o.x_stride, steps);
    }
    sums.store(o, row, sums.tokens);
  }
};

template <class T, int Tokens>
struct dense_row_avx2 {
  row_sums<Tokens> sums;

  NIBBLE_AVX2 void step(const T* w, const float* x, index_t stride) noexcept {
    sums.template add<0>(load_half(w), x, stride, sums.tokens);
    sums.template add<1>(load_half(w + 8), x, stride, sums.tokens);
  }
  NIBBLE_AVX2 void multiply(const T* w, index_t k, const gemm_output_view& o, index_t row) noexcept {
    sums.clear(sums.tokens);
    const index_t whole = k / gemm_lanes * gemm_lanes;
    for (index_t j = 0; j < whole; j += gemm_lanes) step(w + j, o.x + j, o.x_stride);
    if (whole < k) {
      T last[gemm_lanes];
      for (index_t l = 0; l < gemm_lanes; ++l) last[l] = whole + l < k ? w[whole + l] : T(0.0f);
      step(last, o.x + whole, o.x_stride);
    }
    sums.store(o, row, sums.tokens);
  }
};

struct avx2_kernel {
  template <int Bits, int Rows, int Tokens>
  NIBBLE_AVX2_ENTRY static void words(const packed_rows& w, const gemm_output_view& o) {
    for (index_t row = 0; row < Rows; ++row) {
      packed_row_avx2<Bits, Tokens> r;
      r.multiply(w, o, row);
    }
  }

  template <class T, int Rows, int Tokens>
  NIBBLE_AVX2_ENTRY static void dense(const T* w, index_t stride, index_t k, const gemm_output_view& o) {
    for (index_t row = 0; row < Rows; ++row) {
      dense_row_avx2<T, Tokens> r;
      r.multiply(w + row * stride, k, o, row);
    }
  }
};

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END

#undef NIBBLE_AVX2
#undef NIBBLE_AVX2_ENTRY
#endif
