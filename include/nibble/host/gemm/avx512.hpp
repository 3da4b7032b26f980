// SPDX-License-Identifier: Apache-2.0
/// @file
/// The inner products of host::gemm in 512-bit vectors, the same bits as the plain loops. Of 2 and 4 bits a code becomes
/// its weight by one permutation: a register holds the 16 (or four times the 4) weights that a group's codes can mean, and
/// a permutation looks at the low four bits of each word only, so no mask is needed, just a shift from code to code.
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
  NIBBLE_AVX512 void store(const gemm_output_view& o, std::index_sequence<R...>) const noexcept {
    (store_row<R>(o, tokens), ...);
  }
  template <std::size_t R, std::size_t... T>
  NIBBLE_AVX512 void store_row(const gemm_output_view& o, std::index_sequence<T...>) const noexcept {
    ((o.y[static_cast<index_t>(T) * o.y_stride + static_cast<index_t>(R)] = fold(sums[R][T])), ...);
  }
};

/// Weights of packed codes: `Shared` where a group is whole blocks, so that its weights are looked up, not computed.
template <int Bits, int Rows, int Tokens, bool Shared>
struct packed_tile {
  static constexpr index_t run = 32 / Bits;
  explicit packed_tile(const packed_rows& rows) : w(rows) {}
  const packed_rows& w;
  register_tile<Rows, Tokens> tile;
  __m512i word[Rows];
  __m512 scale[Rows], zero[Rows];  // where not Shared
  __m512 meaning[Rows];            // of each code, where Shared

  template <std::size_t... R>
  NIBBLE_AVX512 void load(index_t first, __mmask16 present, std::index_sequence<R...>) noexcept {
    ((word[R] = _mm512_maskz_loadu_epi32(present, w.words + static_cast<index_t>(R) * w.stride + first)), ...);
    if constexpr (!Shared) {
      ((scale[R] = load_lanes(w.scales + static_cast<index_t>(R) * w.per_row + first)), ...);
      ((zero[R] = load_lanes(w.zeros + static_cast<index_t>(R) * w.per_row + first)), ...);
    }
  }
  template <std::size_t... R>
  NIBBLE_AVX512 void look_up(index_t param, __m512 codes, std::index_sequence<R...>) noexcept {
    ((meaning[R] = weight_of(codes, _mm512_set1_ps(w.scales[static_cast<index_t>(R) * w.per_row + param]),
                             _mm512_set1_ps(w.zeros[static_cast<index_t>(R) * w.per_row + param]))),
     ...);
    if constexpr (Bits == 8) {
      ((scale[R] = _mm512_set1_ps(w.scales[static_cast<index_t>(R) * w.per_row + param])), ...);
      ((zero[R] = _mm512_set1_ps(w.zeros[static_cast<index_t>(R) * w.per_row + param])), ...);
    }
  }
  NIBBLE_AVX512 static __m512 weight_of(__m512 code, __m512 scale, __m512 zero) noexcept {
    return _mm512_mul_ps(_mm512_sub_ps(code, zero), scale);
  }
  template <std::size_t R>
  NIBBLE_AVX512 void next_weight(__m512 codes) noexcept {
    if constexpr (Bits == 8) {
      const __m512i code = _mm512_and_si512(word[R], _mm512_set1_epi32(255));
      tile.weights[R] = weight_of(_mm512_maskz_cvtepi32_ps(all_lanes, code), scale[R], zero[R]);
    } else if constexpr (Shared) {
      tile.weights[R] = _mm512_maskz_permutexvar_ps(all_lanes, word[R], meaning[R]);
    } else {
      tile.weights[R] = weight_of(_mm512_maskz_permutexvar_ps(all_lanes, word[R], codes), scale[R], zero[R]);
    }
    word[R] = _mm512_maskz_srli_epi32(all_lanes, word[R], Bits);
  }
  template <std::size_t... R>
  NIBBLE_AVX512 void step(const float* x, index_t stride, __m512 codes, std::index_sequence<R...>) noexcept {
    (next_weight<R>(codes), ...);
    tile.add(x, stride, tile.tokens);
  }
  template <std::size_t... S>
  NIBBLE_AVX512 void block(const float* x, index_t stride, __m512 codes, std::index_sequence<S...>) noexcept {
    (step(x + static_cast<index_t>(S) * gemm_lanes, stride, codes, tile.rows), ...);
  }
  NIBBLE_AVX512 void multiply(const gemm_output_view& o) noexcept {
    const __m512 codes = _mm512_maskz_cvtepi32_ps(
        all_lanes, _mm512_and_si512(_mm512_set1_epi32((1 << Bits) - 1),
                                    _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)));
    tile.clear(tile.rows);
    const float* x = o.x;
    index_t param = 0, left = 0;  // of the group: its number, and its blocks to come
    for (index_t first = 0; first < w.count; first += gemm_lanes, x += gemm_lanes * run) {
      const index_t here = w.count - first;
      load(first, static_cast<__mmask16>(here >= gemm_lanes ? 0xffffu : (1u << here) - 1), tile.rows);
      if (Shared && left-- == 0) {
        look_up(param++, codes, tile.rows);
        left = w.blocks_a_param - 1;
      }
      block(x, o.x_stride, codes, std::make_index_sequence<run>{});
    }
    tile.store(o, tile.rows);
  }
};

template <class T, int Rows, int Tokens>
struct dense_tile {
  register_tile<Rows, Tokens> tile;

  template <std::size_t... R>
  NIBBLE_AVX512 void step(const T* w, index_t stride, const float* x, index_t x_stride,
                          std::index_sequence<R...>) noexcept {
    ((tile.weights[R] = load_lanes(w + static_cast<index_t>(R) * stride)), ...);
    tile.add(x, x_stride, tile.tokens);
  }
  NIBBLE_AVX512 void multiply(const T* w, index_t stride, index_t k, const gemm_output_view& o) noexcept {
    tile.clear(tile.rows);
    const index_t whole = k / gemm_lanes * gemm_lanes;
    for (index_t j = 0; j < whole; j += gemm_lanes) step(w + j, stride, o.x + j, o.x_stride, tile.rows);
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
  template <int Bits, int Rows, int Tokens>
  NIBBLE_AVX512_ENTRY static void words(const packed_rows& w, const gemm_output_view& o) {
    if (w.blocks_a_param > 0) {
      packed_tile<Bits, Rows, Tokens, true> t(w);
      t.multiply(o);
    } else {
      packed_tile<Bits, Rows, Tokens, false> t(w);
      t.multiply(o);
    }
  }

  template <class T, int Rows, int Tokens>
  NIBBLE_AVX512_ENTRY static void dense(const T* w, index_t stride, index_t k, const gemm_output_view& o) {
    dense_tile<T, Rows, Tokens> t;
    t.multiply(w, stride, k, o);
  }
};

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END

#undef NIBBLE_AVX512
#undef NIBBLE_AVX512_ENTRY
#endif
