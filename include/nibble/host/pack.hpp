// SPDX-License-Identifier: Apache-2.0
/// @file
/// reference::pack and unpack at the speed of memory:
///     host::pack(layout, matrix<const uint8_t> codes, matrix<word> words)
///     host::unpack(layout, matrix<const word> words, matrix<uint8_t> codes)
///     host::pack_scales(scale layout, matrix<const T> scales, matrix<T> stored), host::unpack_scales(…, stored, scales)
/// Shapes are layout.packed(n, k); codes are in [0, 2^bits), one a byte; `can_pack` was asked before.
///
/// Two moves make every string of bits. *Along* a row, eight codes read as one 64-bit number close ranks in three steps
/// (pairs, fours, eight) to 8·bits bits. *Across* rows, a word is 32/bits codes of one column, one from each row, and
/// neighbouring columns are neighbouring lanes. Layouts whose words lie transposed move through a tile that stays in
/// cache, sixteen words (one cache line) wide.
#pragma once

#include <cstring>
#include <utility>

#include "nibble/host/parallel.hpp"
#include "nibble/pack.hpp"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "host::pack reads eight codes as one little-endian number; use reference::pack on this machine"
#endif

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Eight codes, one a byte, to 8·Bits bits, the first lowest.
template <int Bits>
constexpr uint64_t close_ranks(uint64_t x) noexcept {
  constexpr uint64_t one = (uint64_t(1) << Bits) - 1;
  constexpr uint64_t two = (uint64_t(1) << 2 * Bits) - 1;
  constexpr uint64_t four = (uint64_t(1) << 4 * Bits) - 1;
  if constexpr (Bits < 8) {
    x = (x & one * 0x0001000100010001u) | (x >> (8 - Bits) & (one << Bits) * 0x0001000100010001u);
    x = (x & two * 0x0000000100000001u) | (x >> (16 - 2 * Bits) & (two << 2 * Bits) * 0x0000000100000001u);
    x = (x & four) | (x >> (32 - 4 * Bits) & four << 4 * Bits);
  }
  return x;
}

/// The inverse; bits from 8·Bits on are ignored.
template <int Bits>
constexpr uint64_t open_ranks(uint64_t x) noexcept {
  constexpr uint64_t one = (uint64_t(1) << Bits) - 1;
  constexpr uint64_t two = (uint64_t(1) << 2 * Bits) - 1;
  constexpr uint64_t four = (uint64_t(1) << 4 * Bits) - 1;
  if constexpr (Bits < 8) {
    x = (x & four) | (x & four << 4 * Bits) << (32 - 4 * Bits);
    x = (x & two * 0x0000000100000001u) | (x & (two << 2 * Bits) * 0x0000000100000001u) << (16 - 2 * Bits);
    x = (x & one * 0x0001000100010001u) | (x & (one << Bits) * 0x0001000100010001u) << (8 - Bits);
  }
  return x;
}

/// f(integral_constant<int, bits>): the run-time width as a compile-time one.
template <class F>
void with_bits(int bits, F&& f) {
  switch (bits) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    case 3:
      return f(std::integral_constant<int, 3>{});
    case 4:
      return f(std::integral_constant<int, 4>{});
    case 5:
      return f(std::integral_constant<int, 5>{});
    case 6:
      return f(std::integral_constant<int, 6>{});
    case 7:
      return f(std::integral_constant<int, 7>{});
    default:
      return f(std::integral_constant<int, 8>{});
  }
}

/// One row's codes to ⌈count·Bits/32⌉ words.
template <int Bits>
void pack_along(const uint8_t* codes, index_t count, uint32_t* words) {
  auto* bytes = reinterpret_cast<unsigned char*>(words);
  for (index_t unit = 0; unit < count / 8; ++unit) {
    uint64_t x;
    std::memcpy(&x, codes + 8 * unit, 8);
    x = close_ranks<Bits>(x);
    std::memcpy(bytes + Bits * unit, &x, Bits);
  }
  if (count % 32 == 0) return;
  unsigned char rest[40] = {};
  for (index_t i = count / 8 * 8; i < count; ++i) rest[i % 8] = codes[i];
  uint64_t last;
  std::memcpy(&last, rest, 8);
  last = close_ranks<Bits>(last);
  std::memset(rest, 0, sizeof rest);
  std::memcpy(rest, &last, 8);
  const index_t done = count / 8 * Bits, total = 4 * ceil_div(count * Bits, 32);
  std::memcpy(bytes + done, rest, static_cast<size_t>(total - done));
}

template <int Bits>
void unpack_along(const uint32_t* words, index_t count, uint8_t* codes) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(words);
  for (index_t unit = 0; unit < count / 8; ++unit) {
    uint64_t x = 0;
    std::memcpy(&x, bytes + Bits * unit, Bits);
    x = open_ranks<Bits>(x);
    std::memcpy(codes + 8 * unit, &x, 8);
  }
  if (count % 8 == 0) return;
  const index_t done = count / 8 * 8;
  uint64_t x = 0;
  std::memcpy(&x, bytes + done / 8 * Bits, static_cast<size_t>(ceil_div((count - done) * Bits, 8)));
  x = open_ranks<Bits>(x);
  std::memcpy(codes + done, &x, static_cast<size_t>(count - done));
}

/// Code `Slot` of word `Phase` of a string; 32 codes of Bits bits are Bits words.
template <int Bits, int Phase, int Slot>
struct string_slot {
  static constexpr int code = Phase * 32 / Bits + Slot;
  static constexpr int shift = code * Bits - Phase * 32;
};

template <int Shift>
constexpr uint32_t shifted(uint32_t code) noexcept {
  if constexpr (Shift >= 32)
    return 0;
  else if constexpr (Shift < 0)
    return code >> -Shift;
  else
    return code << Shift;
}

/// Rows of codes that pack_across takes: 32, and room for slots past the last one, whose codes are not used.
inline constexpr int across_rows = 40;
/// Columns that pack_across and unpack_across take at once, at most: their words stay in the first-level cache.
inline constexpr index_t across_cols = 1024;

template <int Bits, int Phase, int... Slots>
void pack_across_word(const uint8_t* const* rows, index_t count, uint32_t* words,
                      std::integer_sequence<int, Slots...>) {
  const uint8_t* const at[] = {rows[string_slot<Bits, Phase, Slots>::code]...};
  for (index_t col = 0; col < count; ++col)
    words[col] = (shifted<string_slot<Bits, Phase, Slots>::shift>(at[Slots][col]) | ...);
}

/// 32 rows of `count` codes to Bits rows of words `pitch` apart, of which the first `present` are written.
template <int Bits, int... Phases>
void pack_across(const uint8_t* const* rows, index_t count, uint32_t* words, index_t pitch, index_t present,
                 std::integer_sequence<int, Phases...>) {
  ((Phases < present ? pack_across_word<Bits, Phases>(rows, count, words + Phases * pitch,
                                                      std::make_integer_sequence<int, layout::string_slots(Bits)>{})
                     : void()),
   ...);
}

template <int Bits, int Code>
void unpack_across_row(const uint32_t* words, index_t pitch, index_t count, uint8_t* codes) {
  constexpr int word = Code * Bits / 32, shift = Code * Bits % 32;
  constexpr uint32_t mask = (1u << Bits) - 1;
  const uint32_t* low = words + word * pitch;
  if constexpr (shift + Bits <= 32) {
    for (index_t col = 0; col < count; ++col) codes[col] = static_cast<uint8_t>(low[col] >> shift & mask);
  } else {
    const uint32_t* high = low + pitch;
    for (index_t col = 0; col < count; ++col)
      codes[col] = static_cast<uint8_t>((low[col] >> shift | high[col] << (32 - shift)) & mask);
  }
}

/// The inverse of pack_across; only the first `present` rows of codes exist.
template <int Bits, int... Codes>
void unpack_across(const uint32_t* words, index_t pitch, index_t count, uint8_t* const* rows, index_t present,
                   std::integer_sequence<int, Codes...>) {
  ((Codes < present ? unpack_across_row<Bits, Codes>(words, pitch, count, rows[Codes]) : void()), ...);
}

inline constexpr uint8_t no_codes[across_cols] = {};

}  // namespace detail

/// Layouts without a faster way: word by word, on all threads.
template <class Layout>
void pack(Layout l, matrix<const uint8_t> codes, matrix<typename Layout::word> words) {
  const index_t rows = 1 + 65536 / (words.cols + 1);
  parallel_for(ceil_div(words.rows, rows), [&](index_t tile) {
    for (index_t row = tile * rows; row < nibble::min(words.rows, (tile + 1) * rows); ++row)
      for (index_t col = 0; col < words.cols; ++col) words(row, col) = word_at(l, codes, row, col);
  });
}
template <class Layout>
void unpack(Layout l, matrix<const typename Layout::word> words, matrix<uint8_t> codes) {
  const index_t rows = 1 + 65536 / (codes.cols + 1);
  parallel_for(ceil_div(codes.rows, rows), [&](index_t tile) {
    for (index_t i = tile * rows; i < nibble::min(codes.rows, (tile + 1) * rows); ++i)
      for (index_t j = 0; j < codes.cols; ++j) codes(i, j) = code_at(l, words, codes.rows, codes.cols, i, j);
  });
}

inline void pack(layout::compressed_tensors l, matrix<const uint8_t> codes, matrix<uint32_t> words) {
  const index_t rows = 1 + 65536 / (codes.cols + 1);
  detail::with_bits(l.bits, [&](auto bits) {
    parallel_for(ceil_div(codes.rows, rows), [&](index_t tile) {
      for (index_t i = tile * rows; i < nibble::min(codes.rows, (tile + 1) * rows); ++i)
        detail::pack_along<bits.value>(codes.row(i), codes.cols, words.row(i));
    });
  });
}
inline void unpack(layout::compressed_tensors l, matrix<const uint32_t> words, matrix<uint8_t> codes) {
  const index_t rows = 1 + 65536 / (codes.cols + 1);
  detail::with_bits(l.bits, [&](auto bits) {
    parallel_for(ceil_div(codes.rows, rows), [&](index_t tile) {
      for (index_t i = tile * rows; i < nibble::min(codes.rows, (tile + 1) * rows); ++i)
        detail::unpack_along<bits.value>(words.row(i), codes.cols, codes.row(i));
    });
  });
}

inline void pack(layout::awq_gemv, matrix<const uint8_t> codes, matrix<uint32_t> words) {
  pack(layout::compressed_tensors{4}, codes, words);
}
inline void unpack(layout::awq_gemv, matrix<const uint32_t> words, matrix<uint8_t> codes) {
  unpack(layout::compressed_tensors{4}, words, codes);
}

inline void pack(layout::compressed_tensors_zeros l, matrix<const uint8_t> codes, matrix<uint32_t> words) {
  const index_t across = ceil_div(codes.cols, detail::across_cols);
  detail::with_bits(l.bits, [&](auto bits) {
    parallel_for(ceil_div(codes.rows, 32) * across, [&](index_t tile) {
      const index_t first = tile / across * 32, col = tile % across * detail::across_cols;
      const index_t word = first / 32 * bits.value, count = nibble::min(codes.cols - col, detail::across_cols);
      const uint8_t* rows[detail::across_rows];
      for (index_t r = 0; r < detail::across_rows; ++r)
        rows[r] = first + r < codes.rows ? &codes(first + r, col) : detail::no_codes;
      detail::pack_across<bits.value>(rows, count, &words(word, col), words.stride, words.rows - word,
                                      std::make_integer_sequence<int, bits.value>{});
    });
  });
}
inline void unpack(layout::compressed_tensors_zeros l, matrix<const uint32_t> words, matrix<uint8_t> codes) {
  const index_t across = ceil_div(codes.cols, detail::across_cols);
  detail::with_bits(l.bits, [&](auto bits) {
    parallel_for(ceil_div(codes.rows, 32) * across, [&](index_t tile) {
      const index_t first = tile / across * 32, col = tile % across * detail::across_cols;
      const index_t count = nibble::min(codes.cols - col, detail::across_cols);
      const index_t present = nibble::min(codes.rows - first, index_t{32});
      uint8_t* rows[32] = {};
      for (index_t r = 0; r < present; ++r) rows[r] = &codes(first + r, col);
      detail::unpack_across<bits.value>(&words(first / 32 * bits.value, col), words.stride, count, rows, present,
                                        std::make_integer_sequence<int, 32>{});
    });
  });
}

namespace detail {
/// A tile of AWQ GEMM: 16 words of outputs (one cache line) by 256 inputs; the pitch keeps columns off one cache set.
inline constexpr index_t gemm_words = 16, gemm_cols = 256, gemm_pitch = gemm_cols + 16;

/// f(first word column, words there, first input, inputs there) on every tile of words (k, n/8).
template <class F>
void gemm_tiles(index_t k, index_t word_cols, F&& f) {
  const index_t down = ceil_div(k, gemm_cols);
  parallel_for(ceil_div(word_cols, gemm_words) * down, [&](index_t tile) {
    const index_t word = tile / down * gemm_words, col = tile % down * gemm_cols;
    f(word, nibble::min(word_cols - word, gemm_words), col, nibble::min(k - col, gemm_cols));
  });
}
}  // namespace detail

inline void pack(layout::awq_gemm l, matrix<const uint8_t> codes, matrix<uint32_t> words) {
  detail::gemm_tiles(words.rows, words.cols, [&](index_t word, index_t present, index_t col, index_t count) {
    alignas(64) uint32_t turned[detail::gemm_words * detail::gemm_pitch];
    for (index_t w = 0; w < present; w += 4) {
      const uint8_t* rows[detail::across_rows];
      for (index_t r = 0; r < detail::across_rows; ++r) {
        const index_t i = source(l, 0, 0, 0, word + w + r / 8, static_cast<int32_t>(r % 8)).i;
        rows[r] = i < codes.rows ? &codes(i, col) : detail::no_codes;
      }
      detail::pack_across<4>(rows, count, turned + w * detail::gemm_pitch, detail::gemm_pitch, 4,
                             std::make_integer_sequence<int, 4>{});
    }
    for (index_t c = 0; c < count; ++c)
      for (index_t w = 0; w < present; ++w) words(col + c, word + w) = turned[w * detail::gemm_pitch + c];
  });
}
inline void unpack(layout::awq_gemm l, matrix<const uint32_t> words, matrix<uint8_t> codes) {
  detail::gemm_tiles(words.rows, words.cols, [&](index_t word, index_t present, index_t col, index_t count) {
    alignas(64) uint32_t turned[detail::gemm_words * detail::gemm_pitch];
    for (index_t c = 0; c < count; ++c)
      for (index_t w = 0; w < present; ++w) turned[w * detail::gemm_pitch + c] = words(col + c, word + w);
    for (index_t w = 0; w < present; w += 4) {
      uint8_t* rows[32] = {};
      const index_t codes_there = nibble::min(present - w, index_t{4}) * 8;
      for (index_t r = 0; r < codes_there; ++r)
        rows[r] = &codes(source(l, 0, 0, 0, word + w + r / 8, static_cast<int32_t>(r % 8)).i, col);
      detail::unpack_across<4>(turned + w * detail::gemm_pitch, detail::gemm_pitch, count, rows, codes_there,
                               std::make_integer_sequence<int, 32>{});
    }
  });
}

/// stored = the scales where the layout wants them, T{} elsewhere. scales (n, groups); stored (l.packed(n, groups)).
template <class ScaleLayout, class Source, class T>
void pack_scales(ScaleLayout l, matrix<Source> scales, matrix<T> stored) {
  for (index_t row = 0; row < stored.rows; ++row)
    for (index_t col = 0; col < stored.cols; ++col) stored(row, col) = T{};
  for (index_t i = 0; i < scales.rows; ++i)
    for (index_t g = 0; g < scales.cols; ++g) {
      const layout::extents at = where_scale(l, scales.cols, i, g);
      stored(at.rows, at.cols) = scales(i, g);
    }
}
template <class ScaleLayout, class Source, class T>
void unpack_scales(ScaleLayout l, matrix<Source> stored, matrix<T> scales) {
  for (index_t i = 0; i < scales.rows; ++i)
    for (index_t g = 0; g < scales.cols; ++g) {
      const layout::extents at = where_scale(l, scales.cols, i, g);
      scales(i, g) = stored(at.rows, at.cols);
    }
}

}  // namespace host
NIBBLE_NAMESPACE_END
