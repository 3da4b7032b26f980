// SPDX-License-Identifier: Apache-2.0
/// @file
/// Strings of bits along one row. Eight codes read as one 64-bit number close ranks in three steps (pairs, fours, eight)
/// to 8·bits bits; 32 codes are `bits` words, whatever the width.
#pragma once

#include <cstring>
#include <type_traits>

#include "nibble/math.hpp"

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

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END
