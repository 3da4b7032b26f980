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
  template <class In, std::size_t... T>
  NIBBLE_AVX2 void store(const gemm_output_view<In>& o, index_t row, std::index_sequence<T...>) const noexcept {
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
  using in_block = pair_block<16 / Bits>;
  static constexpr auto pairs = std::make_index_sequence<16 / Bits>{};
  row_sums<Tokens> sums;
  __m256i word, whole[Tokens];

  /// 8 words, of which the last `8 − here` are not there; zeros in x make up for them.
  NIBBLE_AVX2 static __m256i load(const uint32_t* words, index_t here) noexcept {
    if (here >= 8) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    const __m256i present = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(max(here, index_t(0)))), lane);
    return _mm256_maskload_epi32(reinterpret_cast<const int*>(words), present);
  }
  /// Adds the products of the code in each half of every word, P codes up.
  template <std::size_t P, int Half, std::size_t... T>
  NIBBLE_AVX2 void pair(const in_block* x, index_t stride, __m256i zero, std::index_sequence<T...>) noexcept {
    constexpr int up = static_cast<int>(P) * Bits;
    __m256i code = _mm256_srli_epi16(word, up);
    if constexpr (up + Bits < 16) code = _mm256_and_si256(code, _mm256_set1_epi16((1 << Bits) - 1));
    code = _mm256_sub_epi16(code, zero);
    ((whole[T] = _mm256_add_epi32(
          whole[T], _mm256_madd_epi16(code, _mm256_load_si256(reinterpret_cast<const __m256i*>(
                                                x[static_cast<index_t>(T) * stride].pairs[P] + 8 * Half))))),
     ...);
  }
  template <int Half, std::size_t... P, std::size_t... T>
  NIBBLE_AVX2 void half(const in_block* x, index_t stride, __m256 scale, __m256i zero, std::index_sequence<P...>,
                        std::index_sequence<T...>) noexcept {
    ((whole[T] = _mm256_setzero_si256()), ...);
    (pair<P, Half>(x, stride, zero, sums.tokens), ...);
    ((sums.sums[Half][T] = _mm256_add_ps(
          sums.sums[Half][T],
          _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(whole[T]),
                                      _mm256_load_ps(x[static_cast<index_t>(T) * stride].units + 8 * Half)),
                        scale))),
     ...);
  }
  NIBBLE_AVX2 static __m256 scale_of(const float* from, __m256i at, bool shared) noexcept {
    return shared ? _mm256_set1_ps(*from) : _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), at);
  }
  NIBBLE_AVX2 static __m256i zero_of(const int32_t* from, __m256i at, bool shared) noexcept {
    return shared ? _mm256_set1_epi32(*from)
                  : _mm256_permutevar8x32_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), at);
  }
  NIBBLE_AVX2 void multiply(const packed_rows& w, const gemm_output_view<in_block>& o, index_t row) noexcept {
    const uint32_t* words = w.words + row * w.stride;
    const float* scales = w.scales + row * w.per_row;
    const int32_t* zeros = w.zeros + row * w.per_row;
    // Lane l of half h has parameter (8h + l) · p / 16 of its block's p: a half begins p/2 on.
    const index_t of_half = w.params_a_block / 2;
    const __m256i lane = _mm256_mullo_epi32(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0),
                                            _mm256_set1_epi32(static_cast<int>(w.params_a_block)));
    const __m256i at = _mm256_srli_epi32(lane, 4);
    sums.clear(sums.tokens);
    index_t param = 0, left = w.blocks_a_param;  // of the group: its number, and its blocks to come
    for (index_t b = 0; b < w.blocks; ++b) {
      const in_block* x = o.x + b;
      const index_t here = w.count - b * gemm_lanes;
      const bool shared = w.blocks_a_param > 0;
      fetch_ahead(reinterpret_cast<const char*>(words + b * gemm_lanes) + w.ahead);
      word = load(words + b * gemm_lanes, here);
      half<0>(x, o.x_stride, scale_of(scales + param, at, shared), zero_of(zeros + param, at, shared), pairs,
              sums.tokens);
      word = load(words + b * gemm_lanes + 8, here - 8);
      const index_t second = shared ? param : param + of_half;
      half<1>(x, o.x_stride, scale_of(scales + second, at, shared), zero_of(zeros + second, at, shared), pairs,
              sums.tokens);
      if (!shared)
        param += w.params_a_block;
      else if (--left == 0)
        ++param, left = w.blocks_a_param;
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
  NIBBLE_AVX2 void multiply(const T* w, index_t k, index_t ahead, const gemm_output_view<float>& o,
                            index_t row) noexcept {
    sums.clear(sums.tokens);
    const index_t whole = k / gemm_lanes * gemm_lanes;
    for (index_t j = 0; j < whole; j += gemm_lanes) {
      fetch_ahead(reinterpret_cast<const char*>(w + j) + ahead);
      step(w + j, o.x + j, o.x_stride);
    }
    if (whole < k) {
      T last[gemm_lanes];
      for (index_t l = 0; l < gemm_lanes; ++l) last[l] = whole + l < k ? w[whole + l] : T(0.0f);
      step(last, o.x + whole, o.x_stride);
    }
    sums.store(o, row, sums.tokens);
  }
};

struct avx2_kernel {
  static constexpr bool reads_strings = false, reads_bytes = false;

  template <int Bits, bool, int Rows, int Tokens>
  static void packed(const packed_rows& w, const gemm_output_view<pair_block<16 / Bits>>& o) {
    over_packed_rows<Bits, Tokens>(w, o, Rows);
  }

  template <class T, int Rows, int Tokens>
  static void dense(const T* w, index_t stride, index_t k, index_t ahead, const gemm_output_view<float>& o) {
    over_dense_rows<T, Tokens>(w, stride, k, ahead, o, Rows);
  }

 private:
  template <int Bits, int Tokens>
  NIBBLE_AVX2_ENTRY static void over_packed_rows(const packed_rows& w, const gemm_output_view<pair_block<16 / Bits>>& o,
                                                 index_t rows) {
    for (index_t row = 0; row < rows; ++row) {
      packed_row_avx2<Bits, Tokens> r;
      r.multiply(w, o, row);
    }
  }
  template <class T, int Tokens>
  NIBBLE_AVX2_ENTRY static void over_dense_rows(const T* w, index_t stride, index_t k, index_t ahead,
                                                const gemm_output_view<float>& o, index_t rows) {
    for (index_t row = 0; row < rows; ++row) {
      dense_row_avx2<T, Tokens> r;
      r.multiply(w + row * stride, k, ahead, o, row);
    }
  }
};

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END

#undef NIBBLE_AVX2
#undef NIBBLE_AVX2_ENTRY
#endif
