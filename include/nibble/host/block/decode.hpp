// SPDX-License-Identifier: Apache-2.0
/// @file
/// Blocks to weights in loops that compilers vectorise: first every code of the block as a byte, by one shift and mask for a run of
/// bytes, then a product (and a sum) for each group.
#pragma once

#include <cstring>
#include <type_traits>

#include "nibble/block.hpp"
#include "nibble/block_layout.hpp"
#include "nibble/core.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// to[i] ← from[i] >> shift & mask, i < Count.
template <int Count>
inline void take_bits(const uint8_t* __restrict from, int shift, int mask, uint8_t* __restrict to) noexcept {
  for (int i = 0; i < Count; ++i) to[i] = static_cast<uint8_t>(from[i] >> shift & mask);
}
/// to[i] += (from[i] >> shift & mask) << up.
template <int Count>
inline void add_bits(const uint8_t* __restrict from, int shift, int mask, int up, uint8_t* __restrict to) noexcept {
  for (int i = 0; i < Count; ++i) to[i] = static_cast<uint8_t>(to[i] + ((from[i] >> shift & mask) << up));
}

/// All codes of a block, a byte each.
inline void codes_of_32(const uint8_t* qs, uint8_t* codes) noexcept {
  take_bits<16>(qs, 0, 15, codes);
  take_bits<16>(qs, 4, 15, codes + 16);
}
inline void add_fifth_bits(const uint8_t* qh, uint8_t* codes) noexcept {
  for (int i = 0; i < 32; ++i) codes[i] = static_cast<uint8_t>(codes[i] + ((qh[i / 8] >> i % 8 & 1) << 4));
}
inline void all_codes(const q4_0& b, uint8_t* codes) noexcept {
  codes_of_32(b.qs, codes);
}
inline void all_codes(const q4_1& b, uint8_t* codes) noexcept {
  codes_of_32(b.qs, codes);
}
inline void all_codes(const q5_0& b, uint8_t* codes) noexcept {
  codes_of_32(b.qs, codes);
  add_fifth_bits(b.qh, codes);
}
inline void all_codes(const q5_1& b, uint8_t* codes) noexcept {
  codes_of_32(b.qs, codes);
  add_fifth_bits(b.qh, codes);
}
inline void all_codes(const q8_0& b, uint8_t* codes) noexcept {
  for (int i = 0; i < 32; ++i) codes[i] = static_cast<uint8_t>(b.qs[i] + 128);
}
inline void all_codes(const q2_k& b, uint8_t* codes) noexcept {
  for (int run = 0; run < 8; ++run) take_bits<32>(b.qs + run / 4 * 32, run % 4 * 2, 3, codes + 32 * run);
}
inline void all_codes(const q3_k& b, uint8_t* codes) noexcept {
  for (int run = 0; run < 8; ++run) {
    take_bits<32>(b.qs + run / 4 * 32, run % 4 * 2, 3, codes + 32 * run);
    add_bits<32>(b.hmask, run, 1, 2, codes + 32 * run);
  }
}
inline void all_codes(const q4_k& b, uint8_t* codes) noexcept {
  for (int run = 0; run < 8; ++run) take_bits<32>(b.qs + run / 2 * 32, run % 2 * 4, 15, codes + 32 * run);
}
inline void all_codes(const q5_k& b, uint8_t* codes) noexcept {
  for (int run = 0; run < 8; ++run) {
    take_bits<32>(b.qs + run / 2 * 32, run % 2 * 4, 15, codes + 32 * run);
    add_bits<32>(b.qh, run, 1, 4, codes + 32 * run);
  }
}
inline void all_codes(const q6_k& b, uint8_t* codes) noexcept {
  for (int run = 0; run < 8; ++run) {
    take_bits<32>(b.ql + run / 4 * 64 + run % 2 * 32, run % 4 / 2 * 4, 15, codes + 32 * run);
    add_bits<32>(b.qh + run / 4 * 32, run % 4 * 2, 3, 4, codes + 32 * run);
  }
}
inline void all_codes(const iq4_nl& b, uint8_t* codes) noexcept {
  codes_of_32(b.qs, codes);
}
inline void all_codes(const iq4_xs& b, uint8_t* codes) noexcept {
  for (int group = 0; group < 8; ++group) codes_of_32(b.qs + 16 * group, codes + 32 * group);
}

/// A block's weights. @param bytes of any alignment.
template <class Block, class T>
inline void decode_block(const uint8_t* bytes, T* __restrict to) noexcept {
  constexpr bool of_table = Block::type == block_type::iq4_nl || Block::type == block_type::iq4_xs;
  Block b;
  std::memcpy(static_cast<void*>(&b), bytes, sizeof(Block));
  uint8_t codes[Block::weights];
  all_codes(b, codes);
  for (int first = 0; first < Block::weights; first += Block::group) {
    const auto s = block_group(b, first / Block::group);
    float x[Block::group];
    for (int i = 0; i < Block::group; ++i) {
      const int code = codes[first + i];
      x[i] = block_value<Block>(s, of_table ? iq4_values[code] : block_level<Block>(code));
    }
    for (int i = 0; i < Block::group; ++i) to[first + i] = static_cast<T>(x[i]);
  }
}

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END
