// SPDX-License-Identifier: Apache-2.0
/// @file
/// Strings of bits down the columns of a matrix. A word is 32/bits codes of one column, one from each row, so neighbouring
/// columns are neighbouring lanes. Eight codes are `bits` bytes: to unpack, words are split into planes of bytes once, and
/// every row is made from one plane or two.
#pragma once

#include <cstring>
#include <utility>

#include "nibble/host/pack/expect.hpp"
#include "nibble/math.hpp"
#include "nibble/pack.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

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
/// Columns that pack_across takes at once, at most.
inline constexpr index_t across_cols = 4096;
/// What stands for rows past the last one.
inline constexpr uint8_t no_codes[across_cols] = {};

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

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END
