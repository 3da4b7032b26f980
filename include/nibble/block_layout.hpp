// SPDX-License-Identifier: Apache-2.0
/// @file
/// Vocabulary of ggml's quantized blocks: 32 or 256 consecutive weights of a row in one struct, byte for byte as GGUF files store
/// it. A struct's name is its type's in lower case, and it is the tag that templates over block types take:
///     Block::type, Block::weights (in a block), Block::group (weights that share a scale), Block::bits (of a code), sizeof(Block)
/// Blocks of 256 are made of groups with scales of their own, which are small integers times the block's d (and dmin). How bytes
/// become weights stands in block.hpp. Rows are (k / weights) blocks; k is a multiple of `weights`. Little-endian.
/// Source: the GGUF specification and ggml's quantized types as of ggml 0.15.
#pragma once

#include "nibble/core.hpp"
#include "nibble/half.hpp"

NIBBLE_NAMESPACE_BEGIN

/// ggml's numbers.
enum class block_type : uint8_t {
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  iq4_nl = 20,
  iq4_xs = 23
};

/// x_i = d · (q_i − 8); byte j holds q_j low and q_(j+16) high.
struct q4_0 {
  static constexpr block_type type = block_type::q4_0;
  static constexpr int weights = 32, bits = 4, group = 32;
  fp16 d;
  uint8_t qs[16];
};

/// x_i = d · q_i + m.
struct q4_1 {
  static constexpr block_type type = block_type::q4_1;
  static constexpr int weights = 32, bits = 4, group = 32;
  fp16 d, m;
  uint8_t qs[16];
};

/// x_i = d · (q_i − 16); bit i of qh, as a little-endian word, is bit 4 of q_i.
struct q5_0 {
  static constexpr block_type type = block_type::q5_0;
  static constexpr int weights = 32, bits = 5, group = 32;
  fp16 d;
  uint8_t qh[4];
  uint8_t qs[16];
};

/// x_i = d · q_i + m.
struct q5_1 {
  static constexpr block_type type = block_type::q5_1;
  static constexpr int weights = 32, bits = 5, group = 32;
  fp16 d, m;
  uint8_t qh[4];
  uint8_t qs[16];
};

/// x_i = d · q_i.
struct q8_0 {
  static constexpr block_type type = block_type::q8_0;
  static constexpr int weights = 32, bits = 8, group = 32;
  fp16 d;
  int8_t qs[32];
};

/// 16 groups of 16: x = d·(scales & 15)·q − dmin·(scales >> 4). qs[32h + l] holds the codes of 128h + l + {0, 32, 64, 96} at bits
/// 0, 2, 4, 6, for h of 0, 1 and l below 32.
struct q2_k {
  static constexpr block_type type = block_type::q2_k;
  static constexpr int weights = 256, bits = 2, group = 16;
  uint8_t scales[16];
  uint8_t qs[64];
  fp16 d, dmin;
};

/// 16 groups of 16: x = d·(s − 32)·(q − 4). Low two bits of q as in q2_k; bit i/32 of hmask[i % 32] is the third. Low nibbles of s:
/// group j in scales[j], low for j < 8, else in scales[j − 8], high; the upper two bits in scales[8 + j % 4] at bit 2·(j/4).
struct q3_k {
  static constexpr block_type type = block_type::q3_k;
  static constexpr int weights = 256, bits = 3, group = 16;
  uint8_t hmask[32];
  uint8_t qs[64];
  uint8_t scales[12];
  fp16 d;
};

/// 8 groups of 32: x = d·s·q − dmin·m, s and m of 6 bits. qs[32c + l] holds the code of 64c + l low, of 64c + 32 + l high.
/// Group j < 4: s in scales[j], m in scales[j + 4], low six bits. j >= 4: scales[j + 4] holds the low nibbles of s (low) and m
/// (high); their upper two bits are the upper two of scales[j − 4] and scales[j].
struct q4_k {
  static constexpr block_type type = block_type::q4_k;
  static constexpr int weights = 256, bits = 4, group = 32;
  fp16 d, dmin;
  uint8_t scales[12];
  uint8_t qs[128];
};

/// As q4_k; bits 2c and 2c + 1 of qh[l] are the fifth bits of 64c + l and 64c + 32 + l.
struct q5_k {
  static constexpr block_type type = block_type::q5_k;
  static constexpr int weights = 256, bits = 5, group = 32;
  fp16 d, dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};

/// 16 groups of 16: x = d·s·(q − 32). ql[64h + l] holds the low nibbles of 128h + l (low) and + 64 (high), for l below 64; qh[32h + l]
/// the upper two bits of 128h + l + {0, 32, 64, 96} at bits 0, 2, 4, 6.
struct q6_k {
  static constexpr block_type type = block_type::q6_k;
  static constexpr int weights = 256, bits = 6, group = 16;
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  fp16 d;
};

/// x_i = d · iq4_value(q_i), codes as in q4_0.
struct iq4_nl {
  static constexpr block_type type = block_type::iq4_nl;
  static constexpr int weights = 32, bits = 4, group = 32;
  fp16 d;
  uint8_t qs[16];
};

/// 8 groups of 32: x = d·(s − 32)·iq4_value(q), s of 6 bits: group j's low nibble in scales_l[j / 2], high for odd j, its upper two
/// bits at bit 2j of scales_h. Codes of a group as in q4_0, in qs[16j …].
struct iq4_xs {
  static constexpr block_type type = block_type::iq4_xs;
  static constexpr int weights = 256, bits = 4, group = 32;
  fp16 d;
  uint16_t scales_h;
  uint8_t scales_l[4];
  uint8_t qs[128];
};

static_assert(sizeof(q4_0) == 18 && alignof(q4_0) == 2);
static_assert(sizeof(q4_1) == 20 && alignof(q4_1) == 2);
static_assert(sizeof(q5_0) == 22 && alignof(q5_0) == 2);
static_assert(sizeof(q5_1) == 24 && alignof(q5_1) == 2);
static_assert(sizeof(q8_0) == 34 && alignof(q8_0) == 2);
static_assert(sizeof(q2_k) == 84 && alignof(q2_k) == 2);
static_assert(sizeof(q3_k) == 110 && alignof(q3_k) == 2);
static_assert(sizeof(q4_k) == 144 && alignof(q4_k) == 2);
static_assert(sizeof(q5_k) == 176 && alignof(q5_k) == 2);
static_assert(sizeof(q6_k) == 210 && alignof(q6_k) == 2);
static_assert(sizeof(iq4_nl) == 18 && alignof(iq4_nl) == 2);
static_assert(sizeof(iq4_xs) == 136 && alignof(iq4_xs) == 2);
#if !defined(__CUDACC_RTC__)  // whose offsetof is no constant
static_assert(offsetof(q4_0, qs) == 2);
static_assert(offsetof(q4_1, m) == 2 && offsetof(q4_1, qs) == 4);
static_assert(offsetof(q5_0, qh) == 2 && offsetof(q5_0, qs) == 6);
static_assert(offsetof(q5_1, qh) == 4 && offsetof(q5_1, qs) == 8);
static_assert(offsetof(q8_0, qs) == 2);
static_assert(offsetof(q2_k, qs) == 16 && offsetof(q2_k, d) == 80 && offsetof(q2_k, dmin) == 82);
static_assert(offsetof(q3_k, qs) == 32 && offsetof(q3_k, scales) == 96 && offsetof(q3_k, d) == 108);
static_assert(offsetof(q4_k, scales) == 4 && offsetof(q4_k, qs) == 16);
static_assert(offsetof(q5_k, scales) == 4 && offsetof(q5_k, qh) == 16 && offsetof(q5_k, qs) == 48);
static_assert(offsetof(q6_k, qh) == 128 && offsetof(q6_k, scales) == 192 && offsetof(q6_k, d) == 208);
static_assert(offsetof(iq4_nl, qs) == 2);
static_assert(offsetof(iq4_xs, scales_h) == 2 && offsetof(iq4_xs, scales_l) == 4 && offsetof(iq4_xs, qs) == 8);
#endif

/// What iq4_nl and iq4_xs have in the place of evenly spaced numbers, rising with the code.
inline constexpr int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/// iq4_values[code], without a table in memory: a byte of one of two words. @pre code < 16.
NIBBLE_HOST_DEVICE constexpr int iq4_value(int code) noexcept {
  const uint64_t half = code < 8 ? 0xf6eaddcfbfad9881u : 0x7159453526190d01u;
  const int byte = static_cast<int>(half >> 8 * (code & 7) & 255u);
  return byte < 128 ? byte : byte - 256;
}

/// A block type as a value that a function can be called with.
template <class Block>
struct block_tag {
  using type = Block;
};

#if !defined(__CUDACC_RTC__)  // the rest is what hosts ask by a type's number

/// f(block_tag<Block>{}) for the struct of `type`, which settles it at compile time. @pre `type` is one of the enumerators.
template <class F>
constexpr decltype(auto) with_block(block_type type, F&& f) {
  switch (type) {
    case block_type::q4_0:
      return f(block_tag<q4_0>{});
    case block_type::q4_1:
      return f(block_tag<q4_1>{});
    case block_type::q5_0:
      return f(block_tag<q5_0>{});
    case block_type::q5_1:
      return f(block_tag<q5_1>{});
    case block_type::q8_0:
      return f(block_tag<q8_0>{});
    case block_type::q2_k:
      return f(block_tag<q2_k>{});
    case block_type::q3_k:
      return f(block_tag<q3_k>{});
    case block_type::q4_k:
      return f(block_tag<q4_k>{});
    case block_type::q5_k:
      return f(block_tag<q5_k>{});
    case block_type::q6_k:
      return f(block_tag<q6_k>{});
    case block_type::iq4_nl:
      return f(block_tag<iq4_nl>{});
    case block_type::iq4_xs:
      break;
  }
  return f(block_tag<iq4_xs>{});
}

/// Every block type, by ggml's numbers.
inline constexpr block_type block_types[] = {
    block_type::q4_0, block_type::q4_1, block_type::q5_0, block_type::q5_1, block_type::q8_0,   block_type::q2_k,
    block_type::q3_k, block_type::q4_k, block_type::q5_k, block_type::q6_k, block_type::iq4_nl, block_type::iq4_xs};

/// Whether a number from a file is that of a block type.
constexpr bool is_block_type(uint32_t number) noexcept {
  for (const block_type type : block_types)
    if (static_cast<uint32_t>(type) == number) return true;
  return false;
}

/// Weights in a block: 32 or 256.
constexpr index_t block_weights(block_type type) noexcept {
  return with_block(type, [](auto tag) -> index_t { return decltype(tag)::type::weights; });
}

/// Bytes of a block.
constexpr index_t block_bytes(block_type type) noexcept {
  return with_block(type, [](auto tag) -> index_t { return sizeof(typename decltype(tag)::type); });
}

/// Bits that a weight takes with its share of scales: from 2.625 (q2_k) to 8.5 (q8_0).
constexpr double bits_per_weight(block_type type) noexcept {
  return 8.0 * static_cast<double>(block_bytes(type)) / static_cast<double>(block_weights(type));
}

/// ggml's name.
constexpr const char* block_name(block_type type) noexcept {
  switch (type) {
    case block_type::q4_0:
      return "Q4_0";
    case block_type::q4_1:
      return "Q4_1";
    case block_type::q5_0:
      return "Q5_0";
    case block_type::q5_1:
      return "Q5_1";
    case block_type::q8_0:
      return "Q8_0";
    case block_type::q2_k:
      return "Q2_K";
    case block_type::q3_k:
      return "Q3_K";
    case block_type::q4_k:
      return "Q4_K";
    case block_type::q5_k:
      return "Q5_K";
    case block_type::q6_k:
      return "Q6_K";
    case block_type::iq4_nl:
      return "IQ4_NL";
    case block_type::iq4_xs:
      break;
  }
  return "IQ4_XS";
}

#endif

NIBBLE_NAMESPACE_END
