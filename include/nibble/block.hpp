// SPDX-License-Identifier: Apache-2.0
/// @file
/// ggml's quantized blocks (block_layout.hpp) as numbers. A block is groups of weights that share a scale and, in some types, an
/// offset; a weight is an integer, its level:
///     x = scale · level            scale = d, or d · s_j          level = code − 2^(bits−1), or of IQ4's table
///     x = scale · level + offset   offset = m, or −(dmin · m_j)   level = code
/// Each product and sum is rounded to float, in this order, as ggml's dequantize_row functions do, so that every finite weight has
/// their bits (−0 where d < 0 meets level 0 too). Where d, m or dmin is NaN or infinite weights may be NaN, with no stated payload.
/// A compiler that fuses products and sums changes that, as nvcc does without --fmad=false; kernels ask for each operation by name.
/// Source: the GGUF specification; bytes and numbers compared with ggml's own.
#pragma once

#include "nibble/block_layout.hpp"
#include "nibble/core.hpp"
#include "nibble/half.hpp"

NIBBLE_NAMESPACE_BEGIN

/// What the weights of a group have in common. `offset` is 0 and not added where the type has none.
struct block_scales {
  float scale;
  float offset;
};

template <class Block>
inline constexpr bool has_offset =
    Block::type == block_type::q4_1 || Block::type == block_type::q5_1 || Block::type == block_type::q2_k ||
    Block::type == block_type::q4_k || Block::type == block_type::q5_k;

/// The weight of `level` in a group of a `Block`.
template <class Block>
NIBBLE_HOST_DEVICE constexpr float block_value(block_scales s, int level) noexcept {
  const float product = s.scale * static_cast<float>(level);
  return has_offset<Block> ? product + s.offset : product;
}

namespace detail {

/// Nibble of weight i of 32: the first 16 lie low in their bytes, the others high.
NIBBLE_HOST_DEVICE constexpr int nibble_of_32(const uint8_t* qs, int i) noexcept {
  return qs[i % 16] >> 4 * (i / 16) & 15;
}

/// Bit i of 32 that lie in 4 bytes.
NIBBLE_HOST_DEVICE constexpr int bit_of_32(const uint8_t* qh, int i) noexcept {
  return qh[i / 8] >> i % 8 & 1;
}

/// Two bits of weight i of 256: 128 in 32 bytes, weights 32 apart in one byte.
NIBBLE_HOST_DEVICE constexpr int two_bits_of_256(const uint8_t* qs, int i) noexcept {
  return qs[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
}

/// Nibble of weight i of 256: weights 32 apart in one byte.
NIBBLE_HOST_DEVICE constexpr int nibble_of_256(const uint8_t* qs, int i) noexcept {
  return qs[i / 64 * 32 + i % 32] >> i % 64 / 32 * 4 & 15;
}

/// Scale and minimum of group j of 8, 6 bits each, from the 12 bytes of q4_k and q5_k.
NIBBLE_HOST_DEVICE constexpr int scale_of_12(const uint8_t* s, int j) noexcept {
  return j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
}
NIBBLE_HOST_DEVICE constexpr int minimum_of_12(const uint8_t* s, int j) noexcept {
  return j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
}

template <class Block>
NIBBLE_HOST_DEVICE constexpr block_scales scales_with_minimum(const Block& b, int scale, int minimum) noexcept {
  return {static_cast<float>(b.d) * static_cast<float>(scale),
          -(static_cast<float>(b.dmin) * static_cast<float>(minimum))};
}
template <class Block>
NIBBLE_HOST_DEVICE constexpr block_scales scales_of(const Block& b, int scale) noexcept {
  return {static_cast<float>(b.d) * static_cast<float>(scale), 0.0f};
}

}  // namespace detail

/// Code of weight i as it is stored, in [0, 2^bits); q8_0's is its byte + 128.
NIBBLE_HOST_DEVICE constexpr int block_code(const q4_0& b, int i) noexcept {
  return detail::nibble_of_32(b.qs, i);
}
NIBBLE_HOST_DEVICE constexpr int block_code(const q4_1& b, int i) noexcept {
  return detail::nibble_of_32(b.qs, i);
}
NIBBLE_HOST_DEVICE constexpr int block_code(const q5_0& b, int i) noexcept {
  return detail::nibble_of_32(b.qs, i) | detail::bit_of_32(b.qh, i) << 4;
}
NIBBLE_HOST_DEVICE constexpr int block_code(const q5_1& b, int i) noexcept {
  return detail::nibble_of_32(b.qs, i) | detail::bit_of_32(b.qh, i) << 4;
}
NIBBLE_HOST_DEVICE constexpr int block_code(const q8_0& b, int i) noexcept {
  return b.qs[i] + 128;
}
NIBBLE_HOST_DEVICE constexpr int block_code(const q2_k& b, int i) noexcept {
  return detail::two_bits_of_256(b.qs, i);
}
NIBBLE_HOST_DEVICE constexpr int block_code(const q3_k& b, int i) noexcept {
  return detail::two_bits_of_256(b.qs, i) | (b.hmask[i % 32] >> i / 32 & 1) << 2;
}
NIBBLE_HOST_DEVICE constexpr int block_code(const q4_k& b, int i) noexcept {
  return detail::nibble_of_256(b.qs, i);
}
NIBBLE_HOST_DEVICE constexpr int block_code(const q5_k& b, int i) noexcept {
  return detail::nibble_of_256(b.qs, i) | (b.qh[i % 32] >> i / 32 & 1) << 4;
}
NIBBLE_HOST_DEVICE constexpr int block_code(const q6_k& b, int i) noexcept {
  const int low = b.ql[i / 128 * 64 + i % 64] >> i % 128 / 64 * 4 & 15;
  return low | detail::two_bits_of_256(b.qh, i) << 4;
}
NIBBLE_HOST_DEVICE constexpr int block_code(const iq4_nl& b, int i) noexcept {
  return detail::nibble_of_32(b.qs, i);
}
NIBBLE_HOST_DEVICE constexpr int block_code(const iq4_xs& b, int i) noexcept {
  return detail::nibble_of_32(b.qs + i / 32 * 16, i % 32);
}

/// The integer that a code stands for.
template <class Block>
NIBBLE_HOST_DEVICE constexpr int block_level(int code) noexcept {
  if (Block::type == block_type::iq4_nl || Block::type == block_type::iq4_xs) return iq4_value(code);
  return has_offset<Block> ? code : code - (1 << (Block::bits - 1));
}

/// Scale and offset of group j. @pre 0 <= j < Block::weights / Block::group.
NIBBLE_HOST_DEVICE constexpr block_scales block_group(const q4_0& b, int) noexcept {
  return {static_cast<float>(b.d), 0.0f};
}
NIBBLE_HOST_DEVICE constexpr block_scales block_group(const q4_1& b, int) noexcept {
  return {static_cast<float>(b.d), static_cast<float>(b.m)};
}
NIBBLE_HOST_DEVICE constexpr block_scales block_group(const q5_0& b, int) noexcept {
  return {static_cast<float>(b.d), 0.0f};
}
NIBBLE_HOST_DEVICE constexpr block_scales block_group(const q5_1& b, int) noexcept {
  return {static_cast<float>(b.d), static_cast<float>(b.m)};
}
NIBBLE_HOST_DEVICE constexpr block_scales block_group(const q8_0& b, int) noexcept {
  return {static_cast<float>(b.d), 0.0f};
}
NIBBLE_HOST_DEVICE constexpr block_scales block_group(const q2_k& b, int j) noexcept {
  return detail::scales_with_minimum(b, b.scales[j] & 15, b.scales[j] >> 4);
}
NIBBLE_HOST_DEVICE constexpr block_scales block_group(const q3_k& b, int j) noexcept {
  const int low = b.scales[j % 8] >> j / 8 * 4 & 15, high = b.scales[8 + j % 4] >> j / 4 * 2 & 3;
  return detail::scales_of(b, (low | high << 4) - 32);
}
NIBBLE_HOST_DEVICE constexpr block_scales block_group(const q4_k& b, int j) noexcept {
  return detail::scales_with_minimum(b, detail::scale_of_12(b.scales, j), detail::minimum_of_12(b.scales, j));
}
NIBBLE_HOST_DEVICE constexpr block_scales block_group(const q5_k& b, int j) noexcept {
  return detail::scales_with_minimum(b, detail::scale_of_12(b.scales, j), detail::minimum_of_12(b.scales, j));
}
NIBBLE_HOST_DEVICE constexpr block_scales block_group(const q6_k& b, int j) noexcept {
  return detail::scales_of(b, b.scales[j]);
}
NIBBLE_HOST_DEVICE constexpr block_scales block_group(const iq4_nl& b, int) noexcept {
  return {static_cast<float>(b.d), 0.0f};
}
NIBBLE_HOST_DEVICE constexpr block_scales block_group(const iq4_xs& b, int j) noexcept {
  const int low = b.scales_l[j / 2] >> j % 2 * 4 & 15, high = b.scales_h >> 2 * j & 3;
  return detail::scales_of(b, (low | high << 4) - 32);
}

/// Weight i of a block. @pre 0 <= i < Block::weights.
template <class Block>
NIBBLE_HOST_DEVICE constexpr float decoded(const Block& b, int i) noexcept {
  return block_value<Block>(block_group(b, i / Block::group), block_level<Block>(block_code(b, i)));
}

/// All of a block's weights, in the order of the row, to x (Block::weights).
template <class Block>
NIBBLE_HOST_DEVICE constexpr void decode(const Block& b, float* x) noexcept {
  for (int first = 0; first < Block::weights; first += Block::group) {
    const block_scales s = block_group(b, first / Block::group);
    for (int i = first; i < first + Block::group; ++i)
      x[i] = block_value<Block>(s, block_level<Block>(block_code(b, i)));
  }
}

NIBBLE_NAMESPACE_END
