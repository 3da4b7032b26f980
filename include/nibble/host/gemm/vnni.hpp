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

/// Rows rows by Tokens tokens. `Shared` where a parameter is whole blocks'; `String` where codes are w.bits wide and the
/// kernel reads them as bytes. Everything is indexed by constants, as in register_tile.
template <int Bits, bool String, bool Shared, int Rows, int Tokens>
struct packed_tile {
  using in_block = input_block<16 / Bits>;
  static constexpr auto rows = std::make_index_sequence<Rows>{};
  static constexpr auto tokens = std::make_index_sequence<Tokens>{};
  static constexpr auto pairs = std::make_index_sequence<16 / Bits>{};

  NIBBLE_VNNI packed_tile(const packed_rows& w_, const gemm_output_view<in_block>& o_) noexcept
      : w(w_), o(o_), reader(w_.bits) {
    alignas(64) int32_t at[gemm_lanes];
    for (index_t l = 0; l < gemm_lanes; ++l) at[l] = static_cast<int32_t>(l * w.params_a_block / gemm_lanes);
    param_of_lane = _mm512_load_si512(at);
  }
  const packed_rows& w;
  const gemm_output_view<in_block>& o;
  string_reader reader;
  __m512i param_of_lane;
  __m512 sums[Rows][Tokens], scale[Rows];
  __m512i zero[Rows], word[Rows], code[Rows], whole[Rows][Tokens];

  NIBBLE_VNNI index_t block_bytes() const noexcept { return String ? 8 * w.bits : 64; }
  template <std::size_t R, std::size_t... T>
  NIBBLE_VNNI void clear_row(std::index_sequence<T...>) noexcept {
    ((sums[R][T] = _mm512_setzero_ps()), ...);
  }
  template <std::size_t R, std::size_t... T>
  NIBBLE_VNNI void load_row(index_t block, index_t param, __mmask64 present, std::index_sequence<T...>) noexcept {
    const auto* row = reinterpret_cast<const uint8_t*>(w.words + static_cast<index_t>(R) * w.stride);
    word[R] = _mm512_maskz_loadu_epi8(present, row + block * block_bytes());
    if constexpr (String) word[R] = reader.spread(word[R]);
    const float* scales = w.scales + static_cast<index_t>(R) * w.per_row + param;
    const int32_t* zeros = w.zeros + static_cast<index_t>(R) * w.per_row + param;
    if constexpr (Shared) {
      scale[R] = _mm512_set1_ps(*scales), zero[R] = _mm512_set1_epi32(*zeros);
    } else {
      scale[R] = _mm512_maskz_permutexvar_ps(all_lanes, param_of_lane, _mm512_loadu_ps(scales));
      zero[R] = _mm512_maskz_permutexvar_epi32(all_lanes, param_of_lane, _mm512_loadu_si512(zeros));
    }
    ((whole[R][T] = _mm512_setzero_si512()), ...);
  }
  /// The code in each half of every word, P codes up.
  template <std::size_t P>
  NIBBLE_VNNI static __m512i code_at(__m512i words) noexcept {
    const __m512i mask = _mm512_set1_epi16((1 << Bits) - 1);
    const __m512i low = P == 0 ? words : _mm512_maskz_srli_epi16(~__mmask32(0), words, P * Bits);
    return (P + 1) * Bits == 16 ? low : _mm512_and_si512(low, mask);
  }
  template <std::size_t T, std::size_t... R>
  NIBBLE_VNNI void add_pairs(__m512i in, std::index_sequence<R...>) noexcept {
    ((whole[R][T] = _mm512_dpwssd_epi32(whole[R][T], code[R], in)), ...);
  }
  template <std::size_t P, std::size_t... R, std::size_t... T>
  NIBBLE_VNNI void pair(index_t block, std::index_sequence<R...>, std::index_sequence<T...>) noexcept {
    ((code[R] = _mm512_sub_epi16(code_at<P>(word[R]), zero[R])), ...);
    (add_pairs<T>(_mm512_load_si512(o.x[static_cast<index_t>(T) * o.x_stride + block].pairs[P]), rows), ...);
  }
  template <std::size_t T, std::size_t... R>
  NIBBLE_VNNI void add_block(__m512 units, std::index_sequence<R...>) noexcept {
    ((sums[R][T] =
          add_product(sums[R][T], _mm512_mul_ps(_mm512_maskz_cvtepi32_ps(all_lanes, whole[R][T]), units), scale[R])),
     ...);
  }
  template <std::size_t... R, std::size_t... T, std::size_t... P>
  NIBBLE_VNNI void block(index_t b, index_t param, std::index_sequence<R...>, std::index_sequence<T...>,
                         std::index_sequence<P...>) noexcept {
    const index_t here = 4 * w.count - b * block_bytes();
    const auto present = here >= 64 ? ~__mmask64(0) : (__mmask64(1) << here) - 1;
    (load_row<R>(b, param, present, tokens), ...);
    (pair<P>(b, rows, tokens), ...);
    (add_block<T>(_mm512_load_ps(o.x[static_cast<index_t>(T) * o.x_stride + b].units), rows), ...);
  }
  template <std::size_t R, std::size_t... T>
  NIBBLE_VNNI void store_row(std::index_sequence<T...>) const noexcept {
    ((o.y[static_cast<index_t>(T) * o.y_stride + static_cast<index_t>(R)] = fold(sums[R][T])), ...);
  }
  template <std::size_t... R>
  NIBBLE_VNNI void multiply(std::index_sequence<R...>) noexcept {
    (clear_row<R>(tokens), ...);
    index_t b = 0;
    if constexpr (Shared) {
      for (index_t param = 0; b < w.blocks; ++param)
        for (const index_t end = min(w.blocks, b + w.blocks_a_param); b < end; ++b)
          block(b, param, rows, tokens, pairs);
    } else {
      for (; b < w.blocks; ++b) block(b, b * w.params_a_block, rows, tokens, pairs);
    }
    (store_row<R>(tokens), ...);
  }
};

struct vnni_kernel {
  static constexpr bool reads_strings = true;

  template <int Bits, int Rows, int Tokens>
  NIBBLE_VNNI_ENTRY static void words(const packed_rows& w, const gemm_output_view<input_block<16 / Bits>>& o) {
    w.blocks_a_param > 0 ? multiply<Bits, false, true, Rows, Tokens>(w, o)
                         : multiply<Bits, false, false, Rows, Tokens>(w, o);
  }
  template <int Rows, int Tokens>
  NIBBLE_VNNI_ENTRY static void strings(const packed_rows& w, const gemm_output_view<input_block<2>>& o) {
    w.blocks_a_param > 0 ? multiply<8, true, true, Rows, Tokens>(w, o) : multiply<8, true, false, Rows, Tokens>(w, o);
  }

 private:
  template <int Bits, bool String, bool Shared, int Rows, int Tokens>
  NIBBLE_VNNI static void multiply(const packed_rows& w, const gemm_output_view<input_block<16 / Bits>>& o) noexcept {
    packed_tile<Bits, String, Shared, Rows, Tokens> tile(w, o);
    tile.multiply(tile.rows);
  }
};

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END

#undef NIBBLE_VNNI
#undef NIBBLE_VNNI_ENTRY
#endif
