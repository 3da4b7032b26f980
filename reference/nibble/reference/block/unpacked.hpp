// SPDX-License-Identifier: Apache-2.0
/// @file
/// Blocks with a code, a scale and a minimum an integer each, and how every type stores them: written down a second time from the
/// table of the layouts (block_layout.hpp), by arithmetic on single codes.
#pragma once

#include "nibble/block_layout.hpp"
#include "nibble/half.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {
namespace ggml {

/// A block's integers. Scales are signed as they multiply: q3_k and iq4_xs in [−32, 31], q6_k in [−128, 127], others unsigned.
/// `d` and `minimum_d` are what they are multiples of; `minimum_d` is m of q4_1 and q5_1.
struct unpacked {
  int codes[256] = {};
  int scales[16] = {};
  int minima[16] = {};
  fp16 d{0.0f};
  fp16 minimum_d{0.0f};
};

/// Where the bits of one field lie: bits [shift, shift + width) of a byte.
struct place {
  uint8_t* byte;
  int shift, width;
};
inline void put(place at, int value) {
  const int mask = (1 << at.width) - 1;
  *at.byte = static_cast<uint8_t>((*at.byte & ~(mask << at.shift)) | (value & mask) << at.shift);
}
inline int get(place at) {
  return *at.byte >> at.shift & ((1 << at.width) - 1);
}

/// A field in two parts: `low` has the low bits, `high` the others.
struct split {
  place low, high;
};
inline void put(split at, int value) {
  put(at.low, value);
  put(at.high, value >> at.low.width);
}
inline int get(split at) {
  return get(at.low) + (get(at.high) << at.low.width);
}

/// Code i of 32 in 16 bytes.
inline place half_apart(uint8_t* qs, int i) {
  return i < 16 ? place{qs + i, 0, 4} : place{qs + (i - 16), 4, 4};
}
/// Code i of 256, `width` bits, in runs of 32 bytes; a byte holds codes 32 apart, 8 / width of them.
inline place run_of_32(uint8_t* qs, int i, int width) {
  const int each = 8 / width, run = i / (32 * each), in_byte = i / 32 % each;
  return {qs + 32 * run + i % 32, width * in_byte, width};
}

inline place code_at(q4_0& b, int i) {
  return half_apart(b.qs, i);
}
inline place code_at(q4_1& b, int i) {
  return half_apart(b.qs, i);
}
inline split code_at(q5_0& b, int i) {
  return {half_apart(b.qs, i), {b.qh + i / 8, i % 8, 1}};
}
inline split code_at(q5_1& b, int i) {
  return {half_apart(b.qs, i), {b.qh + i / 8, i % 8, 1}};
}
inline place code_at(q8_0& b, int i) {
  return {reinterpret_cast<uint8_t*>(b.qs) + i, 0, 8};
}
inline place code_at(q2_k& b, int i) {
  return run_of_32(b.qs, i, 2);
}
inline split code_at(q3_k& b, int i) {
  return {run_of_32(b.qs, i, 2), run_of_32(b.hmask, i, 1)};
}
inline place code_at(q4_k& b, int i) {
  return run_of_32(b.qs, i, 4);
}
inline split code_at(q5_k& b, int i) {
  return {run_of_32(b.qs, i, 4), run_of_32(b.qh, i, 1)};
}
inline split code_at(q6_k& b, int i) {
  const int half = i / 128, in_half = i % 128;
  const place low{b.ql + 64 * half + in_half % 64, in_half < 64 ? 0 : 4, 4};
  return {low, run_of_32(b.qh, i, 2)};
}
inline place code_at(iq4_nl& b, int i) {
  return half_apart(b.qs, i);
}
inline place code_at(iq4_xs& b, int i) {
  return half_apart(b.qs + 16 * (i / 32), i % 32);
}

/// Scale j, less its least value.
inline split scale_at(q3_k& b, int j) {
  const place low = j < 8 ? place{b.scales + j, 0, 4} : place{b.scales + (j - 8), 4, 4};
  return {low, {b.scales + 8 + j % 4, 2 * (j / 4), 2}};
}
inline split scale_at(iq4_xs& b, int j) {
  auto* const high = reinterpret_cast<uint8_t*>(&b.scales_h);
  return {{b.scales_l + j / 2, 4 * (j % 2), 4}, {high + j / 4, 2 * (j % 4), 2}};
}
inline place scale_at(q2_k& b, int j) {
  return {b.scales + j, 0, 4};
}
inline place minimum_at(q2_k& b, int j) {
  return {b.scales + j, 4, 4};
}
/// The 12 bytes of q4_k and q5_k: groups 0 to 3 whole, the others in two parts.
inline split scale_at_12(uint8_t* s, int j) {
  if (j < 4) return {{s + j, 0, 4}, {s + j, 4, 2}};
  return {{s + j + 4, 0, 4}, {s + (j - 4), 6, 2}};
}
inline split minimum_at_12(uint8_t* s, int j) {
  if (j < 4) return {{s + j + 4, 0, 4}, {s + j + 4, 4, 2}};
  return {{s + j + 4, 4, 4}, {s + j, 6, 2}};
}
inline split scale_at(q4_k& b, int j) {
  return scale_at_12(b.scales, j);
}
inline split scale_at(q5_k& b, int j) {
  return scale_at_12(b.scales, j);
}
inline split minimum_at(q4_k& b, int j) {
  return minimum_at_12(b.scales, j);
}
inline split minimum_at(q5_k& b, int j) {
  return minimum_at_12(b.scales, j);
}
inline place scale_at(q6_k& b, int j) {
  return {reinterpret_cast<uint8_t*>(b.scales) + j, 0, 8};
}

template <class Block>
constexpr bool is(block_type type) {
  return Block::type == type;
}
/// Blocks of 32 have no integer scales.
template <class Block>
inline constexpr bool scaled_groups = Block::weights == 256;
template <class Block>
inline constexpr bool minima_of_groups =
    is<Block>(block_type::q2_k) || is<Block>(block_type::q4_k) || is<Block>(block_type::q5_k);
template <class Block>
inline constexpr bool minimum_of_block = is<Block>(block_type::q4_1) || is<Block>(block_type::q5_1);
template <class Block>
inline constexpr bool of_table = is<Block>(block_type::iq4_nl) || is<Block>(block_type::iq4_xs);
/// What is added to a signed scale before its bits are stored.
template <class Block>
inline constexpr int scale_shift = is<Block>(block_type::q3_k) || is<Block>(block_type::iq4_xs) ? 32 : 0;

template <class Block>
Block packed(const unpacked& u) {
  Block b{};
  b.d = u.d;
  if constexpr (minimum_of_block<Block>) b.m = u.minimum_d;
  if constexpr (minima_of_groups<Block>) b.dmin = u.minimum_d;
  if constexpr (scaled_groups<Block>)
    for (int j = 0; j < Block::weights / Block::group; ++j) {
      put(scale_at(b, j), u.scales[j] + scale_shift<Block>);
      if constexpr (minima_of_groups<Block>) put(minimum_at(b, j), u.minima[j]);
    }
  for (int i = 0; i < Block::weights; ++i)
    put(code_at(b, i), is<Block>(block_type::q8_0) ? u.codes[i] - 128 : u.codes[i]);
  return b;
}

template <class Block>
unpacked read(Block b) {
  unpacked u;
  u.d = b.d;
  if constexpr (minimum_of_block<Block>) u.minimum_d = b.m;
  if constexpr (minima_of_groups<Block>) u.minimum_d = b.dmin;
  if constexpr (scaled_groups<Block>)
    for (int j = 0; j < Block::weights / Block::group; ++j) {
      u.scales[j] = get(scale_at(b, j)) - scale_shift<Block>;
      if (is<Block>(block_type::q6_k)) u.scales[j] = static_cast<int8_t>(u.scales[j]);
      if constexpr (minima_of_groups<Block>) u.minima[j] = get(minimum_at(b, j));
    }
  for (int i = 0; i < Block::weights; ++i) {
    u.codes[i] = get(code_at(b, i));
    if (is<Block>(block_type::q8_0)) u.codes[i] = static_cast<int8_t>(u.codes[i]) + 128;
  }
  return u;
}

/// Weight i, in the order of operations of ggml: (d · scale) · level, less dmin · minimum, or plus m.
template <class Block>
float value(const unpacked& u, int i) {
  const int group = i / Block::group;
  auto scale = static_cast<float>(u.d);
  if (scaled_groups<Block>) scale *= static_cast<float>(u.scales[group]);
  if (of_table<Block>) return scale * static_cast<float>(iq4_values[u.codes[i]]);
  const auto code = static_cast<float>(u.codes[i]);
  if (minimum_of_block<Block>) return scale * code + static_cast<float>(u.minimum_d);
  if (minima_of_groups<Block>)
    return scale * code - static_cast<float>(u.minimum_d) * static_cast<float>(u.minima[group]);
  return scale * (code - static_cast<float>(1 << (Block::bits - 1)));
}

}  // namespace ggml
}  // namespace reference
NIBBLE_NAMESPACE_END
