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

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "nibble/host/parallel.hpp"
#include "nibble/host/simd.hpp"
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

/// Holds the 8·Bits bits of eight codes.
template <int Bits>
using ranks =
    std::conditional_t<Bits == 1, uint8_t,
                       std::conditional_t<Bits == 2, uint16_t, std::conditional_t<(Bits <= 4), uint32_t, uint64_t>>>;

template <int Bits>
void close_all(const uint8_t* __restrict codes, index_t units, unsigned char* __restrict to) {
  for (index_t unit = 0; unit < units; ++unit) {
    uint64_t x;
    std::memcpy(&x, codes + 8 * unit, 8);
    const auto closed = static_cast<ranks<Bits>>(close_ranks<Bits>(x));
    std::memcpy(to + static_cast<index_t>(sizeof closed) * unit, &closed, sizeof closed);
  }
}
template <int Bits>
void open_all(const unsigned char* __restrict from, index_t units, uint8_t* __restrict codes) {
  for (index_t unit = 0; unit < units; ++unit) {
    ranks<Bits> closed;
    std::memcpy(&closed, from + static_cast<index_t>(sizeof closed) * unit, sizeof closed);
    const uint64_t x = open_ranks<Bits>(closed);
    std::memcpy(codes + 8 * unit, &x, 8);
  }
}

/// Whether eight codes fill a number of their own, so that they can be written as they are.
template <int Bits>
inline constexpr bool whole_ranks = 8 * sizeof(ranks<Bits>) == 8 * Bits;
/// Units of eight codes between two steps of the other widths: their ranks stay in the first-level cache.
inline constexpr index_t rank_block = 512;

/// `count` codes of one row, a multiple of 32, to count·Bits/32 words.
template <int Bits>
void pack_whole(const uint8_t* codes, index_t count, unsigned char* bytes) {
  if constexpr (whole_ranks<Bits>) {
    close_all<Bits>(codes, count / 8, bytes);
  } else {
    ranks<Bits> closed[rank_block];
    for (index_t unit = 0; unit < count / 8; unit += rank_block) {
      const index_t units = nibble::min(rank_block, count / 8 - unit);
      close_all<Bits>(codes + 8 * unit, units, reinterpret_cast<unsigned char*>(closed));
      unsigned char* to = bytes + Bits * unit;
      for (index_t four = 0; four < units; four += 4, to += 4 * Bits) {
        if constexpr (Bits == 3) {
          const uint64_t a = closed[four], b = closed[four + 1], c = closed[four + 2], d = closed[four + 3];
          const uint64_t low = a | b << 24 | c << 48;
          const auto high = static_cast<uint32_t>(c >> 16 | d << 8);
          std::memcpy(to, &low, 8);
          std::memcpy(to + 8, &high, 4);
        } else {
          for (index_t u = 0; u < 4; ++u) std::memcpy(to + Bits * u, closed + four + u, Bits);
        }
      }
    }
  }
}
template <int Bits>
void unpack_whole(const unsigned char* bytes, index_t count, uint8_t* codes) {
  if constexpr (whole_ranks<Bits>) {
    open_all<Bits>(bytes, count / 8, codes);
  } else {
    ranks<Bits> closed[rank_block] = {};
    for (index_t unit = 0; unit < count / 8; unit += rank_block) {
      const index_t units = nibble::min(rank_block, count / 8 - unit);
      const unsigned char* from = bytes + Bits * unit;
      for (index_t four = 0; four < units; four += 4, from += 4 * Bits) {
        if constexpr (Bits == 3) {
          uint64_t low;
          uint32_t high;
          std::memcpy(&low, from, 8);
          std::memcpy(&high, from + 8, 4);
          closed[four] = static_cast<uint32_t>(low);
          closed[four + 1] = static_cast<uint32_t>(low >> 24);
          closed[four + 2] = static_cast<uint32_t>(low >> 48) | high << 16;
          closed[four + 3] = high >> 8;
        } else {
          for (index_t u = 0; u < 4; ++u) std::memcpy(closed + four + u, from + Bits * u, Bits);
        }
      }
      open_all<Bits>(reinterpret_cast<const unsigned char*>(closed), units, codes + 8 * unit);
    }
  }
}

/// One row's codes to ⌈count·Bits/32⌉ words.
template <int Bits>
void pack_along(const uint8_t* codes, index_t count, uint32_t* words) {
  const index_t whole = count / 32 * 32;
  auto* const bytes = reinterpret_cast<unsigned char*>(words);
  pack_whole<Bits>(codes, whole, bytes);
  if (whole == count) return;
  uint8_t rest[32] = {};
  unsigned char packed[4 * Bits];
  std::memcpy(rest, codes + whole, static_cast<size_t>(count - whole));
  pack_whole<Bits>(rest, 32, packed);
  std::memcpy(bytes + whole / 8 * Bits, packed, static_cast<size_t>(4 * ceil_div((count - whole) * Bits, 32)));
}
template <int Bits>
void unpack_along(const uint32_t* words, index_t count, uint8_t* codes) {
  const index_t whole = count / 32 * 32;
  const auto* const bytes = reinterpret_cast<const unsigned char*>(words);
  unpack_whole<Bits>(bytes, whole, codes);
  if (whole == count) return;
  unsigned char packed[4 * Bits] = {};
  uint8_t rest[32];
  std::memcpy(packed, bytes + whole / 8 * Bits, static_cast<size_t>(4 * ceil_div((count - whole) * Bits, 32)));
  unpack_whole<Bits>(packed, 32, rest);
  std::memcpy(codes + whole, rest, static_cast<size_t>(count - whole));
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
inline constexpr index_t across_cols = 4096;

template <int Bits, int Phase, int... Slots>
void pack_across_word(const uint8_t* const* rows, index_t count, uint32_t* __restrict words,
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

/// Columns that unpack_across takes apart at once: their bytes stay in the first-level cache.
inline constexpr index_t plane_cols = 256;

/// Bytes 0, 1, 2, 3 of `count` words, each kind by itself, `pitch` apart.
inline void split_bytes(const uint32_t* words, index_t count, uint8_t* planes, index_t pitch) {
  uint16_t low[plane_cols], high[plane_cols];
  for (index_t col = 0; col < count; ++col) {
    low[col] = static_cast<uint16_t>(words[col]);
    high[col] = static_cast<uint16_t>(words[col] >> 16);
  }
  const uint16_t* halves[] = {low, high};
  for (index_t half = 0; half < 2; ++half) {
    const uint16_t* from = halves[half];
    uint8_t* __restrict even = planes + 2 * half * pitch;
    uint8_t* __restrict odd = even + pitch;
    for (index_t col = 0; col < count; ++col) {
      even[col] = static_cast<uint8_t>(from[col]);
      odd[col] = static_cast<uint8_t>(from[col] >> 8);
    }
  }
}

/// Asks for `count` bytes that will soon be read or written, one cache line at a time. Into the second-level cache: rows
/// a power of two apart share few sets of the first.
inline void expect(const void* at, index_t count) noexcept {
  const auto* const bytes = static_cast<const char*>(at);
  const auto past = static_cast<index_t>(reinterpret_cast<std::uintptr_t>(at) % 64);
  for (index_t byte = -past; byte < count; byte += 64) __builtin_prefetch(bytes + byte, 0, 2);
}

/// Row `Code` of eight from Bits planes of bytes: one plane or two neighbouring ones, eight columns at a time.
template <int Bits, int Code>
void unpack_plane(const uint8_t* planes, index_t count, uint8_t* __restrict codes) {
  constexpr int byte = Code * Bits / 8, shift = Code * Bits % 8;
  constexpr uint64_t each = 0x0101010101010101u, mask = (1u << Bits) - 1;
  constexpr uint64_t low = each * (mask & 0xffu >> shift), high = each * (mask & 0xffu << (8 - shift));
  const uint8_t* at = planes + byte * plane_cols;
  const auto eight = [&](index_t col) {
    uint64_t x, y = 0;
    std::memcpy(&x, at + col, 8);
    if constexpr (shift + Bits > 8) std::memcpy(&y, at + plane_cols + col, 8);
    return (x >> shift & low) | (shift == 0 ? 0 : y << (8 - shift) % 8 & high);
  };
  const index_t whole = count / 8 * 8;
  for (index_t col = 0; col < whole; col += 8) {
    const uint64_t x = eight(col);
    std::memcpy(codes + col, &x, 8);
  }
  if (whole == count) return;
  const uint64_t x = eight(whole);
  std::memcpy(codes + whole, &x, static_cast<size_t>(count - whole));
}

/// The inverse of pack_across, eight rows at a time, since eight codes are Bits bytes; only the first `present` rows of
/// codes exist.
template <int Bits, int... Codes>
void unpack_across(const uint32_t* words, index_t pitch, index_t count, uint8_t* const* rows, index_t present,
                   std::integer_sequence<int, Codes...>) {
  alignas(64) uint8_t planes[4 * (Bits / 4 + 2) * plane_cols] = {};
  for (index_t first = 0; first < present; first += 8) {
    const index_t left = present - first, byte = first / 8 * Bits;
    const index_t last = ceil_div(first * Bits + nibble::min(left, index_t{8}) * Bits, 32);
    for (index_t col = 0; col < count; col += plane_cols) {
      const index_t cols = nibble::min(plane_cols, count - col), next = nibble::min(plane_cols, count - col - cols);
      for (index_t word = byte / 4; word < last; ++word)
        split_bytes(words + word * pitch + col, cols, planes + 4 * (word - byte / 4) * plane_cols, plane_cols);
      const uint8_t* const from = planes + byte % 4 * plane_cols;
      ((Codes < left ? (expect(rows[first + Codes] + col + cols, next),
                        unpack_plane<Bits, Codes>(from, cols, rows[first + Codes] + col))
                     : void()),
       ...);
    }
  }
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
      vectorised([&] {
        for (index_t i = tile * rows; i < nibble::min(codes.rows, (tile + 1) * rows); ++i)
          detail::pack_along<bits.value>(codes.row(i), codes.cols, words.row(i));
      });
    });
  });
}
inline void unpack(layout::compressed_tensors l, matrix<const uint32_t> words, matrix<uint8_t> codes) {
  const index_t rows = 1 + 65536 / (codes.cols + 1);
  detail::with_bits(l.bits, [&](auto bits) {
    parallel_for(ceil_div(codes.rows, rows), [&](index_t tile) {
      vectorised([&] {
        for (index_t i = tile * rows; i < nibble::min(codes.rows, (tile + 1) * rows); ++i)
          detail::unpack_along<bits.value>(words.row(i), codes.cols, codes.row(i));
      });
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
      vectorised([&] {
        detail::pack_across<bits.value>(rows, count, &words(word, col), words.stride, words.rows - word,
                                        std::make_integer_sequence<int, bits.value>{});
      });
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
      vectorised([&] {
        detail::unpack_across<bits.value>(&words(first / 32 * bits.value, col), words.stride, count, rows, present,
                                          std::make_integer_sequence<int, 8>{});
      });
    });
  });
}

namespace detail {
/// Words of outputs in a tile of AWQ GEMM: one cache line.
inline constexpr index_t gemm_words = 16;
/// Inputs a thread goes through at once, in tiles that ask for the next one's lines.
inline constexpr index_t gemm_span = 2048;
/// Words from one row of a turned tile to the next; the odd line keeps a column's words off one cache set.
constexpr index_t gemm_pitch(index_t cols) noexcept {
  return cols + 16;
}

/// f(first word column, words there, first input, inputs there, inputs in the next tile) on every tile, `cols` inputs
/// wide, of words (k, n/8).
template <class F>
void gemm_tiles(index_t k, index_t word_cols, index_t cols, F f) {
  const index_t spans = ceil_div(k, gemm_span);
  parallel_for(ceil_div(word_cols, gemm_words) * spans, [&](index_t task) {
    const index_t word = task / spans * gemm_words, end = nibble::min(k, (task % spans + 1) * gemm_span);
    vectorised([&] {
      for (index_t col = task % spans * gemm_span; col < end; col += cols) {
        const index_t count = nibble::min(end - col, cols);
        f(word, nibble::min(word_cols - word, gemm_words), col, count, nibble::min(end - col - count, cols));
      }
    });
  });
}

/// Row of codes in nibble r % 8 of the word r / 8 after `word`.
inline index_t gemm_row(index_t word, index_t r) noexcept {
  return layout::source(layout::awq_gemm{}, 0, 0, 0, word + r / 8, static_cast<int32_t>(r % 8)).i;
}
}  // namespace detail

inline void pack(layout::awq_gemm, matrix<const uint8_t> codes, matrix<uint32_t> words) {
  using namespace detail;
  constexpr index_t cols = 512, pitch = gemm_pitch(cols), ahead = 32;
  gemm_tiles(words.rows, words.cols, cols,
             [=](index_t word, index_t present, index_t col, index_t count, index_t next) {
               alignas(64) uint32_t turned[gemm_words * pitch];
               for (index_t w = 0; w < present; w += 4) {
                 const uint8_t* rows[across_rows];
                 for (index_t r = 0; r < across_rows; ++r) {
                   const index_t i = gemm_row(word + w, r);
                   rows[r] = i < codes.rows ? &codes(i, col) : no_codes;
                   if (r < 32 && i < codes.rows) expect(rows[r] + count, next);
                 }
                 pack_across<4>(rows, count, turned + w * pitch, pitch, 4, std::make_integer_sequence<int, 4>{});
               }
               for (index_t c = 0; c < count; ++c) {
                 uint32_t* const to = &words(col + c, word);
                 if (c + ahead < count) expect(to + ahead * words.stride, 4 * present);
                 if (present == gemm_words)
                   for (index_t w = 0; w < gemm_words; ++w) to[w] = turned[w * pitch + c];
                 else
                   for (index_t w = 0; w < present; ++w) to[w] = turned[w * pitch + c];
               }
             });
}
inline void unpack(layout::awq_gemm, matrix<const uint32_t> words, matrix<uint8_t> codes) {
  using namespace detail;
  constexpr index_t cols = 128, pitch = gemm_pitch(cols);
  gemm_tiles(
      words.rows, words.cols, cols, [=](index_t word, index_t present, index_t col, index_t count, index_t next) {
        alignas(64) uint32_t turned[gemm_words * pitch];
        for (index_t c = 0; c < count; ++c) {
          const uint32_t* const from = &words(col + c, word);
          if (c < next) expect(from + count * words.stride, 4 * present);
          if (present == gemm_words)
            for (index_t w = 0; w < gemm_words; ++w) turned[w * pitch + c] = from[w];
          else
            for (index_t w = 0; w < present; ++w) turned[w * pitch + c] = from[w];
        }
        for (index_t w = 0; w < present; w += 4) {
          uint8_t* rows[32] = {};
          const index_t codes_there = nibble::min(present - w, index_t{4}) * 8;
          for (index_t r = 0; r < codes_there; ++r) {
            rows[r] = &codes(gemm_row(word + w, r), col);
            expect(rows[r] + count, next);
          }
          unpack_across<4>(turned + w * pitch, pitch, count, rows, codes_there, std::make_integer_sequence<int, 8>{});
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
