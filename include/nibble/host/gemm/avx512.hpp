// SPDX-License-Identifier: Apache-2.0
/// @file
/// The inner products of host::gemm over dense weights in 512-bit vectors, the same bits as the plain loops.
#pragma once

#include <utility>

#include "nibble/host/gemm/plain.hpp"

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>

#define NIBBLE_AVX512 __attribute__((target("avx512f"), always_inline)) inline
#define NIBBLE_AVX512_ENTRY __attribute__((target("avx512f")))

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

inline bool has_avx512() noexcept {
  return __builtin_cpu_supports("avx512f");
}

// Forms with a full mask where the plain ones would do: gcc 12 warns of the undefined register in those (PR 105593).
inline constexpr __mmask16 all_lanes = 0xffff;

/// Product and sum apart: a sum with explicit rounding is opaque to gcc, which neither fuses it with the product nor
/// puts it off until its result is used, with all products waiting in memory.
NIBBLE_AVX512 __m512 add_product(__m512 sum, __m512 a, __m512 b) noexcept {
  return _mm512_maskz_add_round_ps(all_lanes, sum, _mm512_mul_ps(a, b), _MM_FROUND_CUR_DIRECTION);
}

/// lane_sums::total.
NIBBLE_AVX512 float fold(__m512 v) noexcept {
  v = _mm512_add_ps(v, _mm512_maskz_shuffle_f32x4(all_lanes, v, v, 0x4e));
  v = _mm512_add_ps(v, _mm512_maskz_shuffle_f32x4(all_lanes, v, v, 0xb1));
  v = _mm512_add_ps(v, _mm512_maskz_shuffle_ps(all_lanes, v, v, 0x4e));
  v = _mm512_add_ps(v, _mm512_maskz_shuffle_ps(all_lanes, v, v, 0xb1));
  return _mm512_cvtss_f32(v);
}

NIBBLE_AVX512 __m512 load_lanes(const float* from) noexcept {
  return _mm512_loadu_ps(from);
}
NIBBLE_AVX512 __m512 load_lanes(const bf16* from) noexcept {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(all_lanes, _mm512_maskz_cvtepu16_epi32(all_lanes, bits), 16));
}
NIBBLE_AVX512 __m512 load_lanes(const fp16* from) noexcept {
  return _mm512_maskz_cvtph_ps(all_lanes, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

/// Sums of Rows rows by Tokens tokens, 16 lanes each. Everything is indexed by constants, by folds over index sequences:
/// left to the compiler's unrolling, sums live in memory.
template <int Rows, int Tokens>
struct register_tile {
  register_tile() {}  // leaves the registers alone
  static constexpr auto rows = std::make_index_sequence<Rows>{};
  static constexpr auto tokens = std::make_index_sequence<Tokens>{};
  __m512 sums[Rows][Tokens], weights[Rows];

  template <std::size_t... R>
  NIBBLE_AVX512 void clear(std::index_sequence<R...>) noexcept {
    (clear_row<R>(tokens), ...);
  }
  template <std::size_t R, std::size_t... T>
  NIBBLE_AVX512 void clear_row(std::index_sequence<T...>) noexcept {
    ((sums[R][T] = _mm512_setzero_ps()), ...);
  }
  /// sums += weights · 16 inputs of every token.
  template <std::size_t... T>
  NIBBLE_AVX512 void add(const float* x, index_t stride, std::index_sequence<T...>) noexcept {
    (add_token<T>(load_lanes(x + static_cast<index_t>(T) * stride), rows), ...);
  }
  template <std::size_t T, std::size_t... R>
  NIBBLE_AVX512 void add_token(__m512 in, std::index_sequence<R...>) noexcept {
    ((sums[R][T] = add_product(sums[R][T], in, weights[R])), ...);
  }
  template <std::size_t... R>
  NIBBLE_AVX512 void store(const gemm_output_view<float>& o, std::index_sequence<R...>) const noexcept {
    (store_row<R>(o, tokens), ...);
  }
  template <std::size_t R, std::size_t... T>
  NIBBLE_AVX512 void store_row(const gemm_output_view<float>& o, std::index_sequence<T...>) const noexcept {
    ((o.y[static_cast<index_t>(T) * o.y_stride + static_cast<index_t>(R)] = fold(sums[R][T])), ...);
  }
};

template <class T, int Rows, int Tokens>
struct dense_tile {
  register_tile<Rows, Tokens> tile;

  template <std::size_t... R>
  NIBBLE_AVX512 static void fetch(const T* w, index_t stride, index_t ahead, std::index_sequence<R...>) noexcept {
    (fetch_ahead(reinterpret_cast<const char*>(w + static_cast<index_t>(R) * stride) + ahead), ...);
  }

  template <std::size_t... R>
  NIBBLE_AVX512 void step(const T* w, index_t stride, const float* x, index_t x_stride,
                          std::index_sequence<R...>) noexcept {
    ((tile.weights[R] = load_lanes(w + static_cast<index_t>(R) * stride)), ...);
    tile.add(x, x_stride, tile.tokens);
  }
  NIBBLE_AVX512 void multiply(const T* w, index_t stride, index_t k, index_t ahead,
                              const gemm_output_view<float>& o) noexcept {
    tile.clear(tile.rows);
    const index_t whole = k / gemm_lanes * gemm_lanes;
    for (index_t j = 0; j < whole; j += gemm_lanes) {
      fetch(w + j, stride, ahead, tile.rows);
      step(w + j, stride, o.x + j, o.x_stride, tile.rows);
    }
    if (whole < k) {
      T last[Rows * gemm_lanes];
      for (index_t r = 0; r < Rows; ++r)
        for (index_t l = 0; l < gemm_lanes; ++l)
          last[r * gemm_lanes + l] = whole + l < k ? w[r * stride + whole + l] : T(0.0f);
      step(last, gemm_lanes, o.x + whole, o.x_stride, tile.rows);
    }
    tile.store(o, tile.rows);
  }
};

struct avx512_kernel {
  template <class T, int Rows, int Tokens>
  NIBBLE_AVX512_ENTRY static void dense(const T* w, index_t stride, index_t k, index_t ahead,
                                        const gemm_output_view<float>& o) {
    dense_tile<T, Rows, Tokens> t;
    t.multiply(w, stride, k, ahead, o);
  }
};

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END

#undef NIBBLE_AVX512
#undef NIBBLE_AVX512_ENTRY
#endif
