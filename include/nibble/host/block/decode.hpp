// SPDX-License-Identifier: Apache-2.0
/// @file
/// Blocks to weights: the levels of 32 weights at a time as signed bytes, by shifts and masks that are constants, then a product (and a
/// sum) for each group. Vectors of 32 bytes are the compiler's; the baseline gets them in halves.
#pragma once

#include <cstring>
#include <utility>

#include "nibble/block.hpp"
#include "nibble/block/lane.hpp"
#include "nibble/block_layout.hpp"
#include "nibble/core.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Codes of 32 weights, inside a struct, as vectors in block/lane.hpp are. They stay in registers: what is stored in pieces and
/// loaded whole waits for all its pieces.
struct codes_of_32 {
  typedef uint8_t vector __attribute__((vector_size(32)));
  typedef uint8_t half __attribute__((vector_size(16)));
  vector v;

  NIBBLE_LANE explicit codes_of_32(const uint8_t* from) noexcept { std::memcpy(&v, from, sizeof(v)); }
  /// 16 bytes of nibbles, the low ones first.
  template <std::size_t... I>
  NIBBLE_LANE codes_of_32(const uint8_t* from, std::index_sequence<I...>) noexcept {
    half nibbles;
    std::memcpy(&nibbles, from, sizeof(nibbles));
    const half low = nibbles & uint8_t{15}, high = nibbles >> 4;
    v = __builtin_shufflevector(low, high, int(I)...);
  }
  template <int Shift, int Mask>
  NIBBLE_LANE void take() noexcept {
    v = (v >> Shift) & static_cast<uint8_t>(Mask);
  }
  /// Adds bits of other bytes, `Up` bits up.
  template <int Shift, int Mask, int Up>
  NIBBLE_LANE void add(const uint8_t* from) noexcept {
    codes_of_32 other(from);
    other.take<Shift, Mask>();
    v |= other.v << Up;
  }
  /// Adds the 32 bits of 4 bytes as fifth bits: a byte eight times over, of copy i bit i.
  template <std::size_t... I>
  NIBBLE_LANE void add_fifth(const uint8_t* from, std::index_sequence<I...>) noexcept {
    half bytes = {};
    std::memcpy(&bytes, from, 4);
    const vector single = {uint8_t(1u << I % 8)...};
    const vector copies = __builtin_shufflevector(bytes, bytes, int(I / 8)...) & single;
    v |= copies != 0 ? vector{} + uint8_t{16} : vector{};
  }
  /// Levels from codes: less a constant, or by IQ4's table.
  template <int Less>
  NIBBLE_LANE void lower() noexcept {
    v -= static_cast<uint8_t>(Less);
  }
  template <std::size_t... I>
  NIBBLE_LANE void look_up(std::index_sequence<I...>) noexcept {
    vector level = vector{} + static_cast<uint8_t>(iq4_values[0]);
    ((level = v > static_cast<uint8_t>(I) ? vector{} + static_cast<uint8_t>(iq4_values[I + 1]) : level), ...);
    v = level;
  }
  NIBBLE_LANE void store(int8_t* to) const noexcept { std::memcpy(to, &v, sizeof(v)); }
};

/// Levels of run `Run` of 32 weights of a block.
template <int Run, class Block>
NIBBLE_LANE void levels_of_run(const Block& b, int8_t* to) noexcept {
  constexpr block_type type = Block::type;
  if constexpr (type == block_type::q8_0) {
    codes_of_32(reinterpret_cast<const uint8_t*>(b.qs)).store(to);
  } else if constexpr (Block::weights == 32 || type == block_type::iq4_xs) {
    constexpr auto index = std::make_index_sequence<32>{};
    codes_of_32 c(b.qs + 16 * Run, index);
    if constexpr (Block::bits == 5) c.add_fifth(b.qh, index);
    if constexpr (type == block_type::iq4_nl || type == block_type::iq4_xs)
      c.look_up(std::make_index_sequence<15>{});
    else if constexpr (!has_offset<Block>)
      c.template lower<(1 << (Block::bits - 1))>();
    c.store(to);
  } else {
    constexpr int quarter = Run % 4;
    const uint8_t* low = nullptr;
    if constexpr (type == block_type::q6_k)
      low = b.ql + Run / 4 * 64 + Run % 2 * 32;
    else if constexpr (Block::bits < 4)
      low = b.qs + Run / 4 * 32;
    else
      low = b.qs + Run / 2 * 32;
    codes_of_32 c(low);
    if constexpr (type == block_type::q6_k)
      c.template take<quarter / 2 * 4, 15>();
    else if constexpr (Block::bits < 4)
      c.template take<quarter * 2, 3>();
    else
      c.template take<Run % 2 * 4, 15>();
    if constexpr (type == block_type::q3_k) c.template add<Run, 1, 2>(b.hmask);
    if constexpr (type == block_type::q5_k) c.template add<Run, 1, 4>(b.qh);
    if constexpr (type == block_type::q6_k) c.template add<quarter * 2, 3, 4>(b.qh + Run / 4 * 32);
    if constexpr (!has_offset<Block>) c.template lower<(1 << (Block::bits - 1))>();
    c.store(to);
  }
}

template <class Block, std::size_t... Run>
NIBBLE_LANE void levels_of_block(const Block& b, int8_t* to, std::index_sequence<Run...>) noexcept {
  (levels_of_run<int(Run)>(b, to + 32 * Run), ...);
}

/// The integers that d and dmin are multiplied by in group j.
NIBBLE_LANE int scale_integer(const q2_k& b, int j) noexcept {
  return b.scales[j] & 15;
}
NIBBLE_LANE int scale_integer(const q3_k& b, int j) noexcept {
  return ((b.scales[j % 8] >> j / 8 * 4 & 15) | (b.scales[8 + j % 4] >> j / 4 * 2 & 3) << 4) - 32;
}
NIBBLE_LANE int scale_integer(const q4_k& b, int j) noexcept {
  return nibble::detail::scale_of_12(b.scales, j);
}
NIBBLE_LANE int scale_integer(const q5_k& b, int j) noexcept {
  return nibble::detail::scale_of_12(b.scales, j);
}
NIBBLE_LANE int scale_integer(const q6_k& b, int j) noexcept {
  return b.scales[j];
}
NIBBLE_LANE int scale_integer(const iq4_xs& b, int j) noexcept {
  return ((b.scales_l[j / 2] >> j % 2 * 4 & 15) | (b.scales_h >> 2 * j & 3) << 4) - 32;
}
NIBBLE_LANE int minimum_integer(const q2_k& b, int j) noexcept {
  return b.scales[j] >> 4;
}
NIBBLE_LANE int minimum_integer(const q4_k& b, int j) noexcept {
  return nibble::detail::minimum_of_12(b.scales, j);
}
NIBBLE_LANE int minimum_integer(const q5_k& b, int j) noexcept {
  return nibble::detail::minimum_of_12(b.scales, j);
}

/// block_group of all groups, with d and dmin made floats once: below 2^-14, where d of real models often is, a processor takes a
/// hundred cycles for it.
template <class Block>
NIBBLE_LANE void all_groups(const Block& b, nibble::block_scales* to) noexcept {
  if constexpr (Block::weights == 32) {
    to[0] = block_group(b, 0);
  } else {
    const float d = b.d;
    for (int j = 0; j < Block::weights / Block::group; ++j) to[j] = {d * static_cast<float>(scale_integer(b, j)), 0.0f};
    if constexpr (has_offset<Block>) {
      const float dmin = b.dmin;
      for (int j = 0; j < Block::weights / Block::group; ++j)
        to[j].offset = -(dmin * static_cast<float>(minimum_integer(b, j)));
    }
  }
}

/// A block's weights.
template <class Block, class T>
NIBBLE_LANE void decode_block(const Block& b, T* __restrict to) noexcept {
  int8_t levels[Block::weights];
  levels_of_block(b, levels, std::make_index_sequence<Block::weights / 32>{});
  nibble::block_scales groups[Block::weights / Block::group];
  all_groups(b, groups);
  for (int first = 0; first < Block::weights; first += Block::group) {
    const auto s = groups[first / Block::group];
    for (int i = 0; i < Block::group; ++i) to[first + i] = static_cast<T>(block_value<Block>(s, levels[first + i]));
  }
}

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END
