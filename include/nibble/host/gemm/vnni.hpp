// SPDX-License-Identifier: Apache-2.0
/// @file
/// The inner products of host::gemm over packed weights in 512-bit vectors, the same integers and bits as the plain loops:
/// a shift and a mask leave a code in each half of a word, and one instruction adds both times their inputs to the word's
/// sum. Codes that do not lie whole in words are first spread over bytes, 64 by three instructions.
#pragma once

#include <utility>

#include "nibble/host/gemm/avx512.hpp"

#if defined(__GNUC__) && defined(__x86_64__)

#define NIBBLE_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni"), always_inline)) inline
#define NIBBLE_VNNI_LAMBDA __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni"), always_inline))
#define NIBBLE_VNNI_ENTRY __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")))

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

inline bool has_vnni() noexcept {
  return has_avx512() && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}

/// 64 codes of 1 to 8 bits out of 8 · bits bytes: every 8 bytes of the result come from `bits` bytes.
struct string_reader {
  __m512i bytes, shifts, mask;

  NIBBLE_VNNI explicit string_reader(int bits) noexcept {
    alignas(64) uint8_t from[64], shift[64];
    for (int i = 0; i < 64; ++i) {
      from[i] = static_cast<uint8_t>(min(i / 8 * bits + i % 8, 63));
      shift[i] = static_cast<uint8_t>(i % 8 * bits);
    }
    bytes = _mm512_load_si512(from), shifts = _mm512_load_si512(shift);
    mask = _mm512_set1_epi8(static_cast<char>((1 << bits) - 1));
  }
  NIBBLE_VNNI __m512i spread(__m512i string) const noexcept {
    const __m512i eights = _mm512_maskz_permutexvar_epi8(~__mmask64(0), bytes, string);
    return _mm512_and_si512(_mm512_maskz_multishift_epi64_epi8(~__mmask64(0), shifts, eights), mask);
  }
};

/// Words and parameters of Rows rows, a block at a time. `Shared` where a parameter is whole blocks'; `String` where codes
/// are w.bits wide and become a byte each. Everything is indexed by constants, as in register_tile.
template <bool String, bool Shared, int Rows>
struct packed_loader {
  static constexpr auto rows = std::make_index_sequence<Rows>{};

  NIBBLE_VNNI explicit packed_loader(const packed_rows& w_) noexcept : w(w_), reader(w_.bits) {
    alignas(64) int32_t at[gemm_lanes];
    for (index_t l = 0; l < gemm_lanes; ++l) at[l] = static_cast<int32_t>(l * w.params_a_block / gemm_lanes);
    param_of_lane = _mm512_load_si512(at);
  }
  const packed_rows& w;
  string_reader reader;
  __m512i param_of_lane, zero[Rows], word[Rows];
  __m512 scale[Rows];

  template <std::size_t R>
  NIBBLE_VNNI void load_row(index_t at, index_t param, __mmask64 present) noexcept {
    const auto* row = reinterpret_cast<const uint8_t*>(w.words + static_cast<index_t>(R) * w.stride);
    fetch_ahead(row + at + w.ahead);
    word[R] = _mm512_maskz_loadu_epi8(present, row + at);
    if constexpr (String) word[R] = reader.spread(word[R]);
    const float* scales = w.scales + static_cast<index_t>(R) * w.per_row + param;
    const int32_t* zeros = w.zeros + static_cast<index_t>(R) * w.per_row + param;
    if constexpr (Shared) {
      scale[R] = _mm512_set1_ps(*scales), zero[R] = _mm512_set1_epi32(*zeros);
    } else {
      scale[R] = _mm512_maskz_permutexvar_ps(all_lanes, param_of_lane, _mm512_loadu_ps(scales));
      zero[R] = _mm512_maskz_permutexvar_epi32(all_lanes, param_of_lane, _mm512_loadu_si512(zeros));
    }
  }
  template <std::size_t... R>
  NIBBLE_VNNI void load(index_t block, index_t param, std::index_sequence<R...>) noexcept {
    const index_t block_bytes = String ? 8 * w.bits : 64, at = block * block_bytes, here = 4 * w.count - at;
    const auto present = here >= 64 ? ~__mmask64(0) : (__mmask64(1) << here) - 1;
    (load_row<R>(at, param, present), ...);
  }
  /// f(block) with words and parameters loaded.
  template <class F>
  NIBBLE_VNNI void over_blocks(F&& f) noexcept {
    index_t b = 0;
    if constexpr (Shared) {
      for (index_t param = 0; b < w.blocks; ++param)
        for (const index_t end = min(w.blocks, b + w.blocks_a_param); b < end; ++b) load(b, param, rows), f(b);
    } else {
      for (; b < w.blocks; ++b) load(b, b * w.params_a_block, rows), f(b);
    }
  }
};

/// sum + integers · unit · scale.
NIBBLE_VNNI __m512 add_runs(__m512 sum, __m512i integers, __m512 units, __m512 scale) noexcept {
  return add_product(sum, _mm512_mul_ps(_mm512_maskz_cvtepi32_ps(all_lanes, integers), units), scale);
}

/// Rows rows by Tokens tokens.
template <int Bits, bool String, bool Shared, int Rows, int Tokens>
struct packed_tile : packed_loader<String, Shared, Rows> {
  NIBBLE_VNNI explicit packed_tile(const packed_rows& w) noexcept : packed_loader<String, Shared, Rows>(w) {}
  using packed_loader<String, Shared, Rows>::rows;
  using view = gemm_output_view<pair_block<16 / Bits>>;
  static constexpr auto tokens = std::make_index_sequence<Tokens>{};
  static constexpr auto pairs = std::make_index_sequence<16 / Bits>{};
  __m512 sums[Rows][Tokens];
  __m512i code[Rows], whole[Rows][Tokens];

  template <std::size_t R, std::size_t... T>
  NIBBLE_VNNI void clear_row(std::index_sequence<T...>) noexcept {
    ((sums[R][T] = _mm512_setzero_ps()), ...);
  }
  template <std::size_t R, std::size_t... T>
  NIBBLE_VNNI void start_row(std::index_sequence<T...>) noexcept {
    ((whole[R][T] = _mm512_setzero_si512()), ...);
  }
  /// The code in each half of every word, P codes up, less the zero point.
  template <std::size_t P>
  NIBBLE_VNNI static __m512i steps(__m512i words, __m512i zero) noexcept {
    const __m512i mask = _mm512_set1_epi16((1 << Bits) - 1);
    const __m512i low = P == 0 ? words : _mm512_maskz_srli_epi16(~__mmask32(0), words, P * Bits);
    return _mm512_sub_epi16((P + 1) * Bits == 16 ? low : _mm512_and_si512(low, mask), zero);
  }
  template <std::size_t T, std::size_t... R>
  NIBBLE_VNNI void add_pairs(__m512i in, std::index_sequence<R...>) noexcept {
    ((whole[R][T] = _mm512_dpwssd_epi32(whole[R][T], code[R], in)), ...);
  }
  template <std::size_t P, std::size_t... R, std::size_t... T>
  NIBBLE_VNNI void pair(const view& o, index_t block, std::index_sequence<R...>, std::index_sequence<T...>) noexcept {
    ((code[R] = steps<P>(this->word[R], this->zero[R])), ...);
    (add_pairs<T>(_mm512_load_si512(o.x[static_cast<index_t>(T) * o.x_stride + block].pairs[P]), rows), ...);
  }
  template <std::size_t T, std::size_t... R>
  NIBBLE_VNNI void add_block(__m512 units, std::index_sequence<R...>) noexcept {
    ((sums[R][T] = add_runs(sums[R][T], whole[R][T], units, this->scale[R])), ...);
  }
  template <std::size_t R, std::size_t... T>
  NIBBLE_VNNI void store_row(const view& o, std::index_sequence<T...>) const noexcept {
    ((o.y[static_cast<index_t>(T) * o.y_stride + static_cast<index_t>(R)] = fold(sums[R][T])), ...);
  }
  template <std::size_t... R, std::size_t... T, std::size_t... P>
  NIBBLE_VNNI void multiply(const view& o, std::index_sequence<R...>, std::index_sequence<T...>,
                            std::index_sequence<P...>) noexcept {
    (clear_row<R>(tokens), ...);
    this->over_blocks([&](index_t b) NIBBLE_VNNI_LAMBDA {
      (start_row<R>(tokens), ...);
      (pair<P>(o, b, rows, tokens), ...);
      (add_block<T>(_mm512_load_ps(o.x[static_cast<index_t>(T) * o.x_stride + b].units), rows), ...);
    });
    (store_row<R>(o, tokens), ...);
  }
};

/// Rows rows by one token, whose integers are bytes: half as many instructions a code, and one more a word for zero points.
template <int Bits, bool String, bool Shared, int Rows>
struct packed_column : packed_loader<String, Shared, Rows> {
  NIBBLE_VNNI explicit packed_column(const packed_rows& w) noexcept : packed_loader<String, Shared, Rows>(w) {}
  using packed_loader<String, Shared, Rows>::rows;
  using in_block = byte_block<8 / Bits>;
  static constexpr auto phases = std::make_index_sequence<8 / Bits>{};
  __m512 sums[Rows];
  __m512i code[Rows][8 / Bits], whole[Rows];

  template <std::size_t R, std::size_t... P>
  NIBBLE_VNNI void split(std::index_sequence<P...>) noexcept {
    const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << Bits) - 1));
    ((code[R][P] = String ? this->word[R]
                          : _mm512_and_si512(_mm512_maskz_srli_epi16(~__mmask32(0), this->word[R], P * Bits), mask)),
     ...);
  }
  template <std::size_t P, std::size_t... R>
  NIBBLE_VNNI void add_high(__m512i in, std::index_sequence<R...>) noexcept {
    ((whole[R] = _mm512_dpbusd_epi32(whole[R], code[R][P], in)), ...);
  }
  template <std::size_t P, std::size_t... R>
  NIBBLE_VNNI void add_low(__m512i in, std::index_sequence<R...>) noexcept {
    ((whole[R] = _mm512_dpbusd_epi32(whole[R], in, code[R][P])), ...);
  }
  template <std::size_t... R, std::size_t... P>
  NIBBLE_VNNI void multiply(const gemm_output_view<in_block>& o, std::index_sequence<R...>,
                            std::index_sequence<P...>) noexcept {
    ((sums[R] = _mm512_setzero_ps()), ...);
    this->over_blocks([&](index_t b) NIBBLE_VNNI_LAMBDA {
      const in_block& x = o.x[b];
      (split<R>(phases), ...);
      ((whole[R] = _mm512_setzero_si512()), ...);
      (add_high<P>(_mm512_load_si512(x.high[P]), rows), ...);
      ((whole[R] = _mm512_maskz_slli_epi32(all_lanes, whole[R], 8)), ...);
      (add_low<P>(_mm512_load_si512(x.low[P]), rows), ...);
      const __m512i total = _mm512_load_si512(x.totals);
      ((whole[R] = _mm512_dpwssd_epi32(whole[R], this->zero[R], total)), ...);
      const __m512 units = _mm512_load_ps(x.units);
      ((sums[R] = add_runs(sums[R], whole[R], units, this->scale[R])), ...);
    });
    ((o.y[static_cast<index_t>(R)] = fold(sums[R])), ...);
  }
};

struct vnni_kernel {
  static constexpr bool reads_strings = true, reads_bytes = true;

  template <int Bits, bool String, int Rows, int Tokens>
  NIBBLE_VNNI_ENTRY static void packed(const packed_rows& w, const gemm_output_view<pair_block<16 / Bits>>& o) {
    if (w.blocks_a_param > 0)
      run(packed_tile<Bits, String, true, Rows, Tokens>(w), o);
    else
      run(packed_tile<Bits, String, false, Rows, Tokens>(w), o);
  }
  template <int Bits, bool String, int Rows, int Tokens>
  NIBBLE_VNNI_ENTRY static void packed(const packed_rows& w, const gemm_output_view<byte_block<8 / Bits>>& o) {
    static_assert(Tokens == 1, "bytes are one token's");
    if (w.blocks_a_param > 0)
      run(packed_column<Bits, String, true, Rows>(w), o);
    else
      run(packed_column<Bits, String, false, Rows>(w), o);
  }

 private:
  template <int Bits, bool String, bool Shared, int Rows, int Tokens, class View>
  NIBBLE_VNNI static void run(packed_tile<Bits, String, Shared, Rows, Tokens>&& tile, const View& o) noexcept {
    tile.multiply(o, tile.rows, tile.tokens, tile.pairs);
  }
  template <int Bits, bool String, bool Shared, int Rows, class View>
  NIBBLE_VNNI static void run(packed_column<Bits, String, Shared, Rows>&& column, const View& o) noexcept {
    column.multiply(o, column.rows, column.phases);
  }
};

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END

#undef NIBBLE_VNNI
#undef NIBBLE_VNNI_LAMBDA
#undef NIBBLE_VNNI_ENTRY
#endif
