// SPDX-License-Identifier: Apache-2.0
/// @file
/// plain_packing and plain_pairs in the instructions that AVX512_BF16 has for it: the same bits where no number is subnormal and no product
/// overflows. Everything is indexed by constants, by folds over index sequences, and forms with a full mask stand where plain ones would do, as in
/// host/gemm.
#pragma once

#include <utility>

#include "nibble/host/matmul/plain.hpp"

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>

#define NIBBLE_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"), always_inline)) inline
#define NIBBLE_BF16_ENTRY __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

inline bool has_avx512_bf16() noexcept {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16");
  return has;
}

/// 16 pairs of what follows: x[0], x[1], …
NIBBLE_BF16 __m512i pairs_of(const float* x, __mmask16 first, __mmask16 second) noexcept {
  return reinterpret_cast<__m512i>(
      _mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(second, x + 16), _mm512_maskz_loadu_ps(first, x)));
}
NIBBLE_BF16 __m512i pairs_of(const float* x) noexcept {
  return pairs_of(x, 0xffff, 0xffff);
}
/// Of the `count` there are, 0 to 32; 0 after them.
NIBBLE_BF16 __m512i pairs_of(const float* x, index_t count) noexcept {
  const uint32_t mask = count >= 32 ? ~0u : (1u << count) - 1;
  return pairs_of(x, static_cast<__mmask16>(mask), static_cast<__mmask16>(mask >> 16));
}

/// 16 × 16 pairs, to be transposed.
struct pair_square {
  pair_square() {}  // leaves the registers alone
  static constexpr index_t edge = 16;
  static constexpr auto sixteen = std::make_index_sequence<16>{};
  static constexpr auto eight = std::make_index_sequence<8>{};
  static constexpr auto four = std::make_index_sequence<4>{};
  __m512i row[16];

  template <std::size_t... I>
  NIBBLE_BF16 void load(const float* x, index_t stride, index_t rows, index_t count,
                        std::index_sequence<I...>) noexcept {
    ((row[I] = static_cast<index_t>(I) < rows ? pairs_of(x + static_cast<index_t>(I) * stride, count)
                                              : _mm512_setzero_si512()),
     ...);
  }
  template <std::size_t... I>
  NIBBLE_BF16 void load(const float* x, index_t stride, std::index_sequence<I...>) noexcept {
    ((row[I] = pairs_of(x + static_cast<index_t>(I) * stride)), ...);
  }
  template <std::size_t... I>
  NIBBLE_BF16 void load(const uint32_t* pairs, index_t stride, std::index_sequence<I...>) noexcept {
    ((row[I] = _mm512_loadu_si512(pairs + static_cast<index_t>(I) * stride)), ...);
  }
  template <std::size_t A>
  NIBBLE_BF16 void interleave_rows() noexcept {
    constexpr __mmask16 all = 0xffff;
    const __m512i low = _mm512_maskz_unpacklo_epi32(all, row[A], row[A + 1]);
    row[A + 1] = _mm512_maskz_unpackhi_epi32(all, row[A], row[A + 1]);
    row[A] = low;
  }
  /// Of four rows, row C then holds in its lane L of four columns column 4L + C.
  template <std::size_t A>
  NIBBLE_BF16 void interleave_quad() noexcept {
    constexpr __mmask8 all = 0xff;
    const __m512i a = row[A], b = row[A + 1], c = row[A + 2], d = row[A + 3];
    row[A] = _mm512_maskz_unpacklo_epi64(all, a, c), row[A + 1] = _mm512_maskz_unpackhi_epi64(all, a, c);
    row[A + 2] = _mm512_maskz_unpacklo_epi64(all, b, d), row[A + 3] = _mm512_maskz_unpackhi_epi64(all, b, d);
  }
  /// Lanes of rows C, C + 4, C + 8 and C + 12, as a square of 4 × 4.
  template <std::size_t C>
  NIBBLE_BF16 void exchange_lanes() noexcept {
    constexpr __mmask16 all = 0xffff;
    constexpr int even = 0x88, odd = 0xdd;
    const __m512i a = _mm512_maskz_shuffle_i32x4(all, row[C], row[C + 4], even),
                  b = _mm512_maskz_shuffle_i32x4(all, row[C], row[C + 4], odd),
                  c = _mm512_maskz_shuffle_i32x4(all, row[C + 8], row[C + 12], even),
                  d = _mm512_maskz_shuffle_i32x4(all, row[C + 8], row[C + 12], odd);
    row[C] = _mm512_maskz_shuffle_i32x4(all, a, c, even), row[C + 8] = _mm512_maskz_shuffle_i32x4(all, a, c, odd);
    row[C + 4] = _mm512_maskz_shuffle_i32x4(all, b, d, even), row[C + 12] = _mm512_maskz_shuffle_i32x4(all, b, d, odd);
  }
  template <std::size_t... Two, std::size_t... Four>
  NIBBLE_BF16 void transpose(std::index_sequence<Two...>, std::index_sequence<Four...>) noexcept {
    (interleave_rows<2 * Two>(), ...);
    (interleave_quad<4 * Four>(), ...);
    (exchange_lanes<Four>(), ...);
  }
  NIBBLE_BF16 void transpose() noexcept { transpose(eight, four); }
  template <std::size_t... I>
  NIBBLE_BF16 void store(uint32_t* out, index_t stride, index_t rows, std::index_sequence<I...>) const noexcept {
    ((static_cast<index_t>(I) < rows ? _mm512_store_si512(out + static_cast<index_t>(I) * stride, row[I]) : void()),
     ...);
  }
};

/// 8 × 32 sums in registers.
struct pair_sums {
  pair_sums() {}  // leaves the registers alone
  static constexpr auto rows = std::make_index_sequence<plain_pairs::rows>{};
  __m512 low[plain_pairs::rows], high[plain_pairs::rows];

  template <std::size_t... I>
  NIBBLE_BF16 void clear(std::index_sequence<I...>) noexcept {
    ((low[I] = _mm512_setzero_ps(), high[I] = _mm512_setzero_ps()), ...);
  }
  template <std::size_t... I>
  NIBBLE_BF16 void add(const uint32_t* a, index_t row, const uint32_t* b, std::index_sequence<I...>) noexcept {
    const auto first = reinterpret_cast<__m512bh>(_mm512_load_si512(b)),
               second = reinterpret_cast<__m512bh>(_mm512_load_si512(b + 16));
    (add_row<I>(reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a[static_cast<index_t>(I) * row]))),
                first, second),
     ...);
  }
  template <std::size_t I>
  NIBBLE_BF16 void add_row(__m512bh own, __m512bh first, __m512bh second) noexcept {
    low[I] = _mm512_dpbf16_ps(low[I], own, first), high[I] = _mm512_dpbf16_ps(high[I], own, second);
  }
  template <bool Add, std::size_t... I>
  NIBBLE_BF16 void store(float* c, index_t stride, std::index_sequence<I...>) const noexcept {
    (store_row<Add>(c + static_cast<index_t>(I) * stride, low[I], high[I]), ...);
  }
  template <bool Add>
  NIBBLE_BF16 static void store_row(float* to, __m512 first, __m512 second) noexcept {
    if constexpr (Add)
      first = _mm512_add_ps(_mm512_loadu_ps(to), first), second = _mm512_add_ps(_mm512_loadu_ps(to + 16), second);
    _mm512_storeu_ps(to, first), _mm512_storeu_ps(to + 16, second);
  }
};

template <index_t Depth>
struct avx512_packing : plain_packing<Depth> {
  NIBBLE_BF16_ENTRY static void pack_row(const float* x, index_t k, uint32_t* out) noexcept {
    index_t i = 0;
    for (; i + 32 <= k; i += 32) _mm512_storeu_si512(out + i / 2, pairs_of(x + i));
    if (i == k) return;
    const auto held = static_cast<__mmask16>((1u << packed_pairs<Depth>(k - i)) - 1);
    _mm512_mask_storeu_epi32(out + i / 2, held, pairs_of(x + i, k - i));
  }

  NIBBLE_BF16_ENTRY static void pack_rows(matrix<const float> w, uint32_t* out) noexcept {
    pair_square square;
    for (index_t half = 0; half < block_cols; half += 16)
      for (index_t i = 0; i < w.cols; i += 32) {
        const index_t rows = clamp(w.rows - half, index_t(0), index_t(16)), count = w.cols - i;
        const float* const from = w.data + half * w.stride + i;
        if (rows == 16 && count >= 32)
          square.load(from, w.stride, pair_square::sixteen);
        else
          square.load(from, w.stride, rows, min(count, index_t(32)), pair_square::sixteen);
        square.transpose();
        square.store(out + i / 2 * block_cols + half, block_cols, packed_pairs<Depth>(count), pair_square::sixteen);
      }
  }

  NIBBLE_BF16_ENTRY static void pack_columns(matrix<const float> x, uint32_t* out) noexcept {
    alignas(64) uint16_t from[32];  // the first rows' 16 and the second's, one of each by turns
    for (int i = 0; i < 32; ++i) from[i] = static_cast<uint16_t>(i / 2 + i % 2 * 16);
    const __m512i order = _mm512_load_si512(from);
    const auto mask = x.cols >= 32 ? ~0u : (1u << x.cols) - 1;
    for (index_t row = 0; row < x.rows; row += 2)
      for (index_t half = 0; half < block_cols; half += 16) {
        const auto there = static_cast<__mmask16>(mask >> half);
        const auto after = row + 1 < x.rows ? there : __mmask16(0);
        const float* const first = x.row(row) + half;
        const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(
            _mm512_maskz_loadu_ps(after, first + (after == 0 ? 0 : x.stride)), _mm512_maskz_loadu_ps(there, first)));
        _mm512_store_si512(out + row / 2 * block_cols + half,
                           _mm512_maskz_permutexvar_epi16(~__mmask32(0), order, both));
      }
    for (index_t t = ceil_div(x.rows, index_t(2)); t < packed_pairs<Depth>(x.rows); ++t)
      for (index_t half = 0; half < block_cols; half += 16)
        _mm512_store_si512(out + t * block_cols + half, _mm512_setzero_si512());
  }
};

struct avx512_pairs : avx512_packing<plain_pairs::depth> {
  static constexpr index_t rows = plain_pairs::rows, apart = plain_pairs::apart, tile_rows = plain_pairs::tile_rows;
  static constexpr bool takes_panels = true;

  NIBBLE_BF16_ENTRY static void block(const uint32_t* a, index_t row, index_t step, const uint32_t* b, index_t pairs,
                                      float* c, index_t stride, bool add) noexcept {
    pair_sums sums;
    sums.clear(pair_sums::rows);
    for (index_t t = 0; t < pairs; ++t) sums.add(a + t * step, row, b + t * block_cols, pair_sums::rows);
    if (add)
      sums.store<true>(c, stride, pair_sums::rows);
    else
      sums.store<false>(c, stride, pair_sums::rows);
  }
};

/// plain_tiles::turn.
NIBBLE_BF16_ENTRY inline void turn_panel(const uint32_t* panel, index_t pairs, index_t stride, uint32_t* out) noexcept {
  pair_square square;
  for (index_t col = 0; col < block_cols; col += pair_square::edge)
    for (index_t t = 0; t < pairs; t += pair_square::edge) {
      square.load(panel + t * block_cols + col, block_cols, pair_square::sixteen);
      square.transpose();
      square.store(out + col * stride + t, stride, pair_square::edge, pair_square::sixteen);
    }
}

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END

#undef NIBBLE_BF16
#undef NIBBLE_BF16_ENTRY
#endif
