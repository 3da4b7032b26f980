// SPDX-License-Identifier: Apache-2.0
/// @file
/// Integer dot products of host::int8_matmul: Σ_j d_j · (c_j − 128) of codes d, a byte each as they are stored, and inputs
/// c − 128 as signed integers. Every path adds the same integers modulo 2^32, in which a sum of up to int8_inputs terms may wrap
/// round on its way and is exact at its end, once the zero points are taken off.
///     VNNI   64 bytes of d by 64 signed bytes an instruction, four products a lane, none of which saturates
///     AVX2   16 of each as int16: vpmaddubsw, which takes bytes, saturates at 2^15, and 2 · 255 · 127 is above that
///     plain  the same int16
#pragma once

#include <cstddef>
#include <utility>

#include "nibble/core.hpp"
#include "nibble/host/simd.hpp"

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>

#define NIBBLE_INT8 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"), always_inline)) inline
#define NIBBLE_INT8_ENTRY __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define NIBBLE_INT16 __attribute__((target("avx2"), always_inline)) inline
#define NIBBLE_INT16_ENTRY __attribute__((target("avx2")))
#endif

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Rows of d (rows, k) by tokens of inputs: sums[t · rows of the call + r].
template <class Input>
struct int8_operands {
  const uint8_t* d;
  index_t d_stride;
  const Input* x;    ///< filled up with zeros to whole vectors
  index_t x_stride;  ///< a multiple of a vector's elements
  index_t k;
};

/// Plain loops over a row and a token.
struct plain_int8 {
  using input = int16_t;
  static constexpr index_t lanes = 16;
  static constexpr int rows = 1, tokens = 1;

  template <int Rows, int Tokens>
  static void multiply(const int8_operands<input>& in, uint32_t* sums) {
    vectorised([&] { sums[0] = dot(in.d, in.x, in.k); });
  }

 private:
  static uint32_t dot(const uint8_t* d, const int16_t* x, index_t k) noexcept {
    uint32_t sum = 0;
    for (index_t j = 0; j < k; ++j) sum += static_cast<uint32_t>(int32_t(d[j]) * int32_t(x[j]));
    return sum;
  }
};

#if defined(__GNUC__) && defined(__x86_64__)

/// The total of eight sums of each of four vectors.
NIBBLE_INT16 __m128i fold_eights(__m256i a, __m256i b, __m256i c, __m256i d) noexcept {
  const __m256i four = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
  return _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
}

struct avx2_int8 {
  using input = int16_t;
  static constexpr index_t lanes = 16;
  static constexpr int rows = 2, tokens = 4;

  template <int Rows, int Tokens>
  NIBBLE_INT16_ENTRY static void multiply(const int8_operands<input>& in, uint32_t* sums) {
    tile<Rows, Tokens> of;
    of.multiply(in, sums, std::make_index_sequence<Rows>{}, std::make_index_sequence<Tokens>{});
  }

 private:
  /// Everything is indexed by constants: left to the compiler's unrolling, sums live in memory.
  template <int Rows, int Tokens>
  struct tile {
    tile() {}  // leaves the registers alone
    __m256i sum[Rows][Tokens], code[Rows];

    /// 16 codes from d on, of which `here` are there.
    NIBBLE_INT16 static __m256i load(const uint8_t* d, index_t here) noexcept {
      if (here >= 16) return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(d)));
      alignas(16) uint8_t some[16] = {};
      for (index_t j = 0; j < here; ++j) some[j] = d[j];
      return _mm256_cvtepu8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(some)));
    }
    template <std::size_t R, std::size_t... T>
    NIBBLE_INT16 void clear(std::index_sequence<T...>) noexcept {
      ((sum[R][T] = _mm256_setzero_si256()), ...);
    }
    template <std::size_t T, std::size_t... R>
    NIBBLE_INT16 void add(__m256i x, std::index_sequence<R...>) noexcept {
      ((sum[R][T] = _mm256_add_epi32(sum[R][T], _mm256_madd_epi16(code[R], x))), ...);
    }
    template <std::size_t R>
    NIBBLE_INT16 void store(uint32_t* sums) const noexcept {
      if constexpr (Tokens == 4) {
        alignas(16) uint32_t total[4];
        _mm_store_si128(reinterpret_cast<__m128i*>(total), fold_eights(sum[R][0], sum[R][1], sum[R][2], sum[R][3]));
        for (int t = 0; t < 4; ++t) sums[t * Rows + static_cast<int>(R)] = total[t];
      } else {
        const __m256i none = _mm256_setzero_si256();
        sums[R] = static_cast<uint32_t>(_mm_cvtsi128_si32(fold_eights(sum[R][0], none, none, none)));
      }
    }
    template <std::size_t... R, std::size_t... T>
    NIBBLE_INT16 void multiply(const int8_operands<input>& in, uint32_t* sums, std::index_sequence<R...> rows_,
                               std::index_sequence<T...> tokens_) noexcept {
      (clear<R>(tokens_), ...);
      for (index_t j = 0; j < in.k; j += lanes) {
        ((code[R] = load(in.d + static_cast<index_t>(R) * in.d_stride + j, in.k - j)), ...);
        (add<T>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in.x + static_cast<index_t>(T) * in.x_stride + j)),
                rows_),
         ...);
      }
      (store<R>(sums), ...);
    }
  };
};

struct vnni_int8 {
  using input = int8_t;
  static constexpr index_t lanes = 64;
  static constexpr int rows = 4, tokens = 4;

  static bool here() noexcept {
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
  }
  template <int Rows, int Tokens>
  NIBBLE_INT8_ENTRY static void multiply(const int8_operands<input>& in, uint32_t* sums) {
    tile<Rows, Tokens> of;
    of.multiply(in, sums, std::make_index_sequence<Rows>{}, std::make_index_sequence<Tokens>{});
  }

 private:
  template <int Rows, int Tokens>
  struct tile {
    tile() {}  // leaves the registers alone
    __m512i sum[Rows][Tokens], code[Rows];

    template <std::size_t R, std::size_t... T>
    NIBBLE_INT8 void clear(std::index_sequence<T...>) noexcept {
      ((sum[R][T] = _mm512_setzero_si512()), ...);
    }
    template <std::size_t T, std::size_t... R>
    NIBBLE_INT8 void add(__m512i x, std::index_sequence<R...>) noexcept {
      ((sum[R][T] = _mm512_dpbusd_epi32(sum[R][T], code[R], x)), ...);
    }
    /// By masked forms: gcc 12 warns of the undefined register in the plain ones, the cast's too (PR 105593).
    NIBBLE_INT8 static __m256i halves(__m512i v) noexcept {
      return _mm256_add_epi32(_mm512_maskz_extracti64x4_epi64(0xff, v, 0), _mm512_maskz_extracti64x4_epi64(0xff, v, 1));
    }
    template <std::size_t R>
    NIBBLE_INT8 void store(uint32_t* sums) const noexcept {
      if constexpr (Tokens == 4) {
        alignas(16) uint32_t total[4];
        const __m256i four = _mm256_hadd_epi32(_mm256_hadd_epi32(halves(sum[R][0]), halves(sum[R][1])),
                                               _mm256_hadd_epi32(halves(sum[R][2]), halves(sum[R][3])));
        _mm_store_si128(reinterpret_cast<__m128i*>(total),
                        _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1)));
        for (int t = 0; t < 4; ++t) sums[t * Rows + static_cast<int>(R)] = total[t];
      } else {
        alignas(32) uint32_t eight[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(eight), halves(sum[R][0]));
        uint32_t total = 0;
        for (const uint32_t one : eight) total += one;
        sums[R] = total;
      }
    }
    template <std::size_t... R, std::size_t... T>
    NIBBLE_INT8 void multiply(const int8_operands<input>& in, uint32_t* sums, std::index_sequence<R...> rows_,
                              std::index_sequence<T...> tokens_) noexcept {
      (clear<R>(tokens_), ...);
      index_t j = 0;
      for (; j + lanes <= in.k; j += lanes) {
        ((code[R] = _mm512_loadu_si512(in.d + static_cast<index_t>(R) * in.d_stride + j)), ...);
        (add<T>(_mm512_loadu_si512(in.x + static_cast<index_t>(T) * in.x_stride + j), rows_), ...);
      }
      if (j < in.k) {
        const __mmask64 present = (__mmask64(1) << (in.k - j)) - 1;
        ((code[R] = _mm512_maskz_loadu_epi8(present, in.d + static_cast<index_t>(R) * in.d_stride + j)), ...);
        (add<T>(_mm512_loadu_si512(in.x + static_cast<index_t>(T) * in.x_stride + j), rows_), ...);
      }
      (store<R>(sums), ...);
    }
  };
};
#endif

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END

#if defined(__GNUC__) && defined(__x86_64__)
#undef NIBBLE_INT8
#undef NIBBLE_INT8_ENTRY
#undef NIBBLE_INT16
#undef NIBBLE_INT16_ENTRY
#endif
