// SPDX-License-Identifier: Apache-2.0
/// @file
/// Blocks to weights: the levels of 32 weights at a time as signed bytes, by shifts and masks that are constants, then a product (and a
/// sum) for each group. Vectors of 32 bytes are the compiler's; the baseline gets them in halves.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "nibble/block.hpp"
#include "nibble/block/lane.hpp"
#include "nibble/block_layout.hpp"
#include "nibble/core.hpp"
#include "nibble/host/streamed.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// How many bytes ahead of what is written memory is asked for.
constexpr int decode_ahead = 2048;

typedef uint8_t sixteen_codes __attribute__((vector_size(16)));
typedef uint16_t eight_codes __attribute__((vector_size(16)));
typedef float four_numbers __attribute__((vector_size(16)));

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
  /// Signed bytes + 128.
  NIBBLE_LANE void flip() noexcept { v ^= uint8_t{128}; }
  /// IQ4's numbers + 128.
  template <std::size_t... I>
  NIBBLE_LANE void look_up(std::index_sequence<I...>) noexcept {
    vector number = vector{} + static_cast<uint8_t>(iq4_values[0] + 128);
    ((number = v > static_cast<uint8_t>(I) ? vector{} + static_cast<uint8_t>(iq4_values[I + 1] + 128) : number), ...);
    v = number;
  }
  NIBBLE_LANE void store(uint8_t* to) const noexcept { std::memcpy(to, &v, sizeof(v)); }
};

/// What is added to levels, and to the integers of scales, so that none is negative.
template <class Block>
inline constexpr int level_bias =
    has_offset<Block>                                                        ? 0
    : Block::type == block_type::iq4_nl || Block::type == block_type::iq4_xs ? 128
                                                                             : 1 << (Block::bits - 1);
template <class Block>
inline constexpr int scale_bias = Block::type == block_type::q6_k                                        ? 128
                                  : Block::type == block_type::q3_k || Block::type == block_type::iq4_xs ? 32
                                                                                                         : 0;

/// Codes of run `Run` of 32 weights of a block: levels + level_bias.
template <int Run, class Block>
NIBBLE_LANE void codes_of_run(const Block& b, uint8_t* to) noexcept {
  constexpr block_type type = Block::type;
  if constexpr (type == block_type::q8_0) {
    codes_of_32 c(reinterpret_cast<const uint8_t*>(b.qs));
    c.flip();
    c.store(to);
  } else if constexpr (Block::weights == 32 || type == block_type::iq4_xs) {
    constexpr auto index = std::make_index_sequence<32>{};
    codes_of_32 c(b.qs + 16 * Run, index);
    if constexpr (Block::bits == 5) c.add_fifth(b.qh, index);
    if constexpr (type == block_type::iq4_nl || type == block_type::iq4_xs) c.look_up(std::make_index_sequence<15>{});
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
    c.store(to);
  }
}

template <class Block, std::size_t... Run>
NIBBLE_LANE void codes_of_block(const Block& b, uint8_t* to, std::index_sequence<Run...>) noexcept {
  (codes_of_run<int(Run)>(b, to + 32 * Run), ...);
}

/// 4 bytes as a number, little-endian, and what each of its bytes has in bits [Shift, …).
NIBBLE_LANE uint32_t four_of(const uint8_t* from) noexcept {
  uint32_t word;
  std::memcpy(&word, from, 4);
  return word;
}
template <int Shift, int Mask>
NIBBLE_LANE uint32_t each(uint32_t word) noexcept {
  return (word >> Shift) & static_cast<uint32_t>(Mask * 0x01010101);
}

/// The integers that d and dmin are multiplied by, for all groups of a block: four at a time as the bytes of a number.
template <class Block>
NIBBLE_LANE void group_integers(const Block& b, uint8_t* scales, [[maybe_unused]] uint8_t* minima) noexcept {
  constexpr block_type type = Block::type;
  if constexpr (type == block_type::q2_k) {
    sixteen_codes both;
    std::memcpy(&both, b.scales, 16);
    const sixteen_codes low = both & uint8_t{15}, high = both >> 4;
    std::memcpy(scales, &low, 16);
    std::memcpy(minima, &high, 16);
  } else if constexpr (type == block_type::q3_k) {
    const uint32_t first = four_of(b.scales), second = four_of(b.scales + 4), high = four_of(b.scales + 8);
    const uint32_t codes[4] = {each<0, 15>(first) | each<0, 3>(high) << 4, each<0, 15>(second) | each<2, 3>(high) << 4,
                               each<4, 15>(first) | each<4, 3>(high) << 4, each<4, 15>(second) | each<6, 3>(high) << 4};
    std::memcpy(scales, codes, 16);
  } else if constexpr (type == block_type::q6_k) {
    sixteen_codes integers;
    std::memcpy(&integers, b.scales, 16);
    integers ^= uint8_t{128};
    std::memcpy(scales, &integers, 16);
  } else if constexpr (type == block_type::iq4_xs) {
    for (int j = 0; j < 8; ++j)
      scales[j] = static_cast<uint8_t>((b.scales_l[j / 2] >> j % 2 * 4 & 15) | (b.scales_h >> 2 * j & 3) << 4);
  } else {
    const uint32_t first = four_of(b.scales), second = four_of(b.scales + 4), third = four_of(b.scales + 8);
    const uint32_t of_scales[2] = {each<0, 63>(first), each<0, 15>(third) | each<6, 3>(first) << 4};
    const uint32_t of_minima[2] = {each<0, 63>(second), each<4, 15>(third) | each<6, 3>(second) << 4};
    std::memcpy(scales, of_scales, 8);
    std::memcpy(minima, of_minima, 8);
  }
}

/// An fp16 as a float by integers where it is below 2^-14, as d of real models often is: a processor takes a hundred cycles for a float
/// that small.
NIBBLE_LANE float scale_value(fp16 d) noexcept {
  const uint32_t magnitude = d.bits & 0x7fffu;
  if (magnitude >= 0x0400u) return fp16_value(d.bits);
  const float size = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  return (d.bits & 0x8000u) != 0 ? -size : size;
}

/// 16 codes as floats less Bias: a byte below the upper bytes of 2^23 is 2^23 + code. gcc 12 makes an instruction a lane of bytes that
/// are converted. @param x 16 / N vectors.
template <int Bias, int N>
NIBBLE_LANE void numbers_of(const uint8_t* from, lanes<N>* x) noexcept {
  sixteen_codes codes;
  std::memcpy(&codes, from, sizeof(codes));
  const sixteen_codes none = {};
  const eight_codes upper = eight_codes{} + uint16_t{0x4b00};
  const auto low =
      (eight_codes)__builtin_shufflevector(codes, none, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const auto high =
      (eight_codes)__builtin_shufflevector(codes, none, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  const auto a = (four_numbers)__builtin_shufflevector(low, upper, 0, 8, 1, 9, 2, 10, 3, 11);
  const auto b = (four_numbers)__builtin_shufflevector(low, upper, 4, 12, 5, 13, 6, 14, 7, 15);
  const auto c = (four_numbers)__builtin_shufflevector(high, upper, 0, 8, 1, 9, 2, 10, 3, 11);
  const auto d = (four_numbers)__builtin_shufflevector(high, upper, 4, 12, 5, 13, 6, 14, 7, 15);
  const lanes<N> bias(8388608.0f + static_cast<float>(Bias));
  if constexpr (N == 4) {
    x[0].v = a - bias.v;
    x[1].v = b - bias.v;
    x[2].v = c - bias.v;
    x[3].v = d - bias.v;
  } else {
    x[0].v = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7) - bias.v;
    x[1].v = __builtin_shufflevector(c, d, 0, 1, 2, 3, 4, 5, 6, 7) - bias.v;
  }
}

/// Scale and offset of a block's groups: block_group's.
template <class Block>
struct group_scales {
  static constexpr int count = Block::weights / Block::group;
  float scale[16], offset[16];  ///< of which `count`
};

/// unit · (code − Bias) of 16 groups.
template <int Bias, int N, std::size_t... I>
NIBBLE_LANE void scaled_groups(const uint8_t* codes, const lanes<N>& unit, float* to,
                               std::index_sequence<I...>) noexcept {
  lanes<N> x[16 / N];
  numbers_of<Bias>(codes, x);
  ((x[I] = unit * x[I], std::memcpy(to + N * I, &x[I].v, sizeof(x[I].v))), ...);
}

template <class Block, int N>
NIBBLE_LANE void all_groups(const Block& b, group_scales<Block>& to) noexcept {
  constexpr auto index = std::make_index_sequence<16 / N>{};
  if constexpr (Block::weights == 32) {
    to.scale[0] = scale_value(b.d);
    if constexpr (has_offset<Block>) to.offset[0] = scale_value(b.m);
  } else {
    uint8_t scales[16] = {}, minima[16] = {};
    group_integers(b, scales, minima);
    scaled_groups<scale_bias<Block>>(scales, lanes<N>(scale_value(b.d)), to.scale, index);
    if constexpr (has_offset<Block>) scaled_groups<0>(minima, lanes<N>(-scale_value(b.dmin)), to.offset, index);
  }
}

/// 16 weights of a group.
template <class Block, int N, std::size_t... I>
NIBBLE_LANE void decode_sixteen(const uint8_t* codes, const lanes<N>& scale, const lanes<N>& offset, float* to,
                                std::index_sequence<I...>) noexcept {
  lanes<N> x[16 / N];
  numbers_of<level_bias<Block>>(codes, x);
  ((x[I] = scale * x[I]), ...);
  if constexpr (has_offset<Block>) ((x[I] = x[I] + offset), ...);
  (std::memcpy(to + N * I, &x[I].v, sizeof(x[I].v)), ...);
}

/// A block's weights.
template <class Block, int N>
NIBBLE_LANE void decode_block(const Block& b, float* __restrict to) noexcept {
  constexpr auto index = std::make_index_sequence<16 / N>{};
  uint8_t codes[Block::weights];
  codes_of_block(b, codes, std::make_index_sequence<Block::weights / 32>{});
  group_scales<Block> groups;
  all_groups<Block, N>(b, groups);
  for (int j = 0; j < group_scales<Block>::count; ++j) {
    const lanes<N> scale(groups.scale[j]), offset(has_offset<Block> ? groups.offset[j] : 0.0f);
    const int first = Block::group * j;
    decode_sixteen<Block>(codes + first, scale, offset, to + first, index);
    if constexpr (Block::group == 32) decode_sixteen<Block>(codes + first + 16, scale, offset, to + first + 16, index);
  }
}

/// A block at bytes of any alignment.
template <class Block, int N, class T>
NIBBLE_LANE void decode_at(const uint8_t* from, bool aligned, T* to) noexcept {
  Block copy;
  if (!aligned) std::memcpy(static_cast<void*>(&copy), from, sizeof(Block));
  const Block& b = aligned ? *reinterpret_cast<const Block*>(from) : copy;
  if constexpr (std::is_same_v<T, float>) {
    decode_block<Block, N>(b, to);
  } else {
    float numbers[Block::weights];
    decode_block<Block, N>(b, numbers);
    for (int w = 0; w < Block::weights; ++w) to[w] = static_cast<T>(numbers[w]);
  }
}

/// `blocks` blocks next to each other. @param streamed past the caches.
template <class Block, int N, class T>
NIBBLE_LANE void decode_run(const uint8_t* from, T* to, index_t blocks, bool streamed) noexcept {
  constexpr int bytes = Block::weights * int(sizeof(T));
  const bool aligned = reinterpret_cast<std::uintptr_t>(from) % alignof(Block) == 0;
  if (!streamed) {
    for (index_t i = 0; i < blocks; ++i, from += sizeof(Block), to += Block::weights) {
      for (int line = 0; line < bytes; line += 64) ask_ahead<true>(to, decode_ahead + line);
      decode_at<Block, N>(from, aligned, to);
    }
    return;
  }
  line_stream<256 * int(sizeof(T))> out(to);
  for (index_t i = 0; i < blocks; ++i, from += sizeof(Block)) {
    decode_at<Block, N>(from, aligned, static_cast<T*>(out.next()));
    out.put(bytes);
  }
  out.finish();
}

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END
