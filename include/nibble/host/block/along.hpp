// SPDX-License-Identifier: Apache-2.0
/// @file
/// Q8_0 and, without importance, Q4_0 to Q5_1: no search, so a block is read along its weights, 32 / N vectors of N lanes. N blocks next
/// to each other are a batch: what is least and greatest in each is brought into one vector, a lane a block, so that one division serves
/// all. The least and greatest do not hang on an order, but for equals: ±0, and what is as far below zero as above, of which ggml takes
/// the first.
#pragma once

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <cstring>
#include <type_traits>
#include <utility>

#include "nibble/block.hpp"
#include "nibble/block/lane.hpp"
#include "nibble/block_layout.hpp"
#include "nibble/core.hpp"
#include "nibble/host/quantize.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Whether blocks are encoded along their weights.
#if defined(__GNUC__) && defined(__SSE2__)
template <class Block>
constexpr bool goes_along(bool important) noexcept {
  return Block::type == block_type::q8_0 || (Block::weights == 32 && Block::type != block_type::iq4_nl && !important);
}
#else
template <class Block>
constexpr bool goes_along(bool) noexcept {
  return false;
}
#endif

#if defined(__GNUC__) && defined(__SSE2__)

/// The greater or the lesser of two numbers, none NaN, in one instruction.
template <bool Greater, int N>
NIBBLE_LANE lanes<N> extreme(const lanes<N>& a, const lanes<N>& b) noexcept {
  lanes<N> r;
  if constexpr (N == 4)
    r.v = Greater ? __builtin_ia32_maxps(a.v, b.v) : __builtin_ia32_minps(a.v, b.v);
  else if constexpr (Greater)
    r.v = a.v > b.v ? a.v : b.v;
  else
    r.v = a.v < b.v ? a.v : b.v;
  return r;
}

/// What lane i of a `paired` vector is: a lane of a, or, N further on, of b.
template <int N, int Level>
constexpr int paired_lane(int i, bool upper) noexcept {
  const int four = i & ~3;
  if (Level == 0) return four + i % 4 / 2 + (upper ? 2 : 0) + i % 2 * N;
  if (Level == 1) return four + i % 2 + (upper ? 2 : 0) + i % 4 / 2 * N;
  const int half = i / (N / 2) * N;  // of a, then of b
  if (Level == 2) return i % (N / 2) + (upper ? N / 2 : 0) + half;
  return i / 4 % 2 * 8 + i % 4 + (upper ? 4 : 0) + half;
}
template <int Level, bool Upper, int N, std::size_t... I>
NIBBLE_LANE lanes<N> paired(const lanes<N>& a, const lanes<N>& b, std::index_sequence<I...>) noexcept {
  lanes<N> r;
  r.v = __builtin_shufflevector(a.v, b.v, paired_lane<N, Level>(int(I), Upper)...);
  return r;
}

/// Half the lanes of a and of b left, each the extreme of two.
template <int Level, bool Greater, int N>
NIBBLE_LANE lanes<N> joined(const lanes<N>& a, const lanes<N>& b) noexcept {
  constexpr auto index = std::make_index_sequence<N>{};
  return extreme<Greater>(paired<Level, false>(a, b, index), paired<Level, true>(a, b, index));
}

/// The greatest and the least of weights, or the greatest magnitude alone.
template <int N>
struct block_range {
  lanes<N> high, low;
};

template <int N>
NIBBLE_LANE lanes<N> loaded(const float* from) noexcept {
  lanes<N> x;
  std::memcpy(&x.v, from, sizeof(x.v));
  return x;
}

/// What is loaded before in the text is loaded before: a compiler that mixes the loads of a batch's blocks, as gcc 12 does, makes a run of
/// them 0.7 to 0.8 times as fast, as a Zen 4 reads ahead where lines are asked for in order only.
NIBBLE_LANE void keep_order() noexcept {
  asm volatile("" ::: "memory");
}

// No loops from here on: gcc 12 leaves short ones at -O2, with what they carry in memory.

/// Of Vectors · N weights, lane by lane.
template <int Vectors, bool Magnitude, int N>
NIBBLE_LANE void range_of_vectors(const float* x, block_range<N>& to) noexcept {
  if constexpr (Vectors == 1) {
    to.high = Magnitude ? abs(loaded<N>(x)) : loaded<N>(x);
    to.low = to.high;
  } else {
    block_range<N> a, b;
    range_of_vectors<Vectors / 2, Magnitude>(x, a);
    range_of_vectors<Vectors / 2, Magnitude>(x + Vectors / 2 * N, b);
    to.high = extreme<true>(a.high, b.high);
    if (!Magnitude) to.low = extreme<false>(a.low, b.low);
  }
}

/// Of 2^Level blocks. With Level = log2(N) lane j is block j.
template <int Level, bool Magnitude, int N>
NIBBLE_LANE void range_of(const float* x, block_range<N>& to) noexcept {
  if constexpr (Level == 0) {
    range_of_vectors<32 / N, Magnitude>(x, to);
    keep_order();
  } else {
    block_range<N> a, b;
    range_of<Level - 1, Magnitude>(x, a);
    range_of<Level - 1, Magnitude>(x + (32 << (Level - 1)), b);
    to.high = joined<Level - 1, true>(a.high, b.high);
    if (!Magnitude) to.low = joined<Level - 1, false>(a.low, b.low);
  }
}

/// 16 bytes of codes, and four of them.
typedef uint8_t sixteen_bytes __attribute__((vector_size(16)));
typedef int32_t four_integers __attribute__((vector_size(16)));
typedef int16_t eight_integers __attribute__((vector_size(16)));
typedef char sixteen_chars __attribute__((vector_size(16)));

/// Four of the integers of a, from Part · 4 on.
template <int Part, int N>
NIBBLE_LANE four_integers quarter(const int_lanes<N>* a) noexcept {
  if constexpr (N == 4)
    return a[Part].v;
  else
    return __builtin_shufflevector(a[Part / 2].v, a[Part / 2].v, Part % 2 * 4, Part % 2 * 4 + 1, Part % 2 * 4 + 2,
                                   Part % 2 * 4 + 3);
}

/// Low bytes of 16 integers in [−128, 128) if Signed, else in [0, 256).
template <bool Signed, int N>
NIBBLE_LANE sixteen_bytes low_bytes(const int_lanes<N>* a) noexcept {
  if constexpr (N == 16) {
    return __builtin_convertvector(a[0].v, sixteen_bytes);
  } else {
    const auto first = (eight_integers)__builtin_ia32_packssdw128(quarter<0>(a), quarter<1>(a));
    const auto second = (eight_integers)__builtin_ia32_packssdw128(quarter<2>(a), quarter<3>(a));
    if constexpr (Signed)
      return (sixteen_bytes)__builtin_ia32_packsswb128(first, second);
    else
      return (sixteen_bytes)__builtin_ia32_packuswb128(first, second);
  }
}

/// How weights become codes: (x − low) · inverse + offset, its fraction dropped. The same number in all lanes.
template <int N>
struct code_scale {
  lanes<N> inverse, low, offset;
};
/// Of a batch, a number a block; d and m fp16 bits.
template <int N>
struct batch_scale {
  float inverse[N], low[N], offset[N];
  int32_t d[N], m[N];
};

template <class Vector, class Number>
NIBBLE_LANE void spill(const Vector& from, Number* to) noexcept {
  std::memcpy(to, &from.v, sizeof(from.v));
}

/// How far ahead memory is asked for, in floats and bytes: a batch is too long for a processor to see its end before it is done
/// computing. Chosen by bench_block.
constexpr int read_ahead = 512, write_ahead = 2048;

// Comparisons are made by select_less alone below: gcc 12 takes masks that are combined apart into lanes.

/// 1 / d, or 0 for 0 and where it is more than a float.
template <int N>
NIBBLE_LANE lanes<N> finite_inverse(const lanes<N>& d) noexcept {
  using V = lanes<N>;
  const V inverse = V(1.0f) / d;
  return select_less(V(3.4028235e38f), abs(inverse), V::zero(), inverse);
}

/// Whether a lane is ±0, in any.
template <int N>
NIBBLE_LANE bool any_zero(const lanes<N>& a) noexcept {
  using I = int_lanes<N>;
  lane_mask<N> zero;
  zero.v = (I(1) - lesser(bits_of(abs(a)), I(1))).v;
  return any(zero);
}

/// The first of 32 weights of magnitude `most`.
NIBBLE_LANE float first_of(const float* x, float most) noexcept {
  for (int i = 0; i < 32; ++i)
    if (x[i] == most || x[i] == -most) return x[i];
  return most;
}

template <class Block, int N>
NIBBLE_LANE void batch_scales(const float* x, batch_scale<N>& to) noexcept {
  using V = lanes<N>;
  constexpr int levels = N == 4 ? 2 : N == 8 ? 3 : 4;
  constexpr auto top = static_cast<float>(1 << (Block::bits - 1));
  block_range<N> range;
  range_of<levels, Block::type == block_type::q8_0>(x, range);
  if constexpr (Block::type == block_type::q8_0) {
    const V d = range.high / V(127.0f);
    spill(half_bits(d), to.d);
    const V inverse = finite_inverse(d);
    spill(inverse, to.inverse);
  } else if constexpr (has_offset<Block>) {
    if (any_zero(range.low))
      for (int j = 0; j < N; ++j)
        if (range.low.v[j] == 0.0f) {
          range.low.v[j] = first_of(x + 32 * j, 0.0f);
          if (range.high.v[j] == 0.0f) range.high.v[j] = range.low.v[j];
        }
    const V d = (range.high - range.low) / V(2.0f * top - 1.0f);
    spill(half_bits(d), to.d);
    spill(half_bits(range.low), to.m);
    spill(range.low, to.low);
    const V inverse = finite_inverse(d);
    spill(inverse, to.inverse);
  } else {
    V max = select_less(negated(range.low), range.high, range.high, range.low);
    if (any_zero(range.high + range.low))
      for (int j = 0; j < N; ++j)
        if (range.high.v[j] == -range.low.v[j])
          max.v[j] = range.high.v[j] == 0.0f ? 0.0f : first_of(x + 32 * j, range.high.v[j]);
    const V d = max / V(-top);
    spill(half_bits(d), to.d);
    const V inverse = finite_inverse(d);
    spill(inverse, to.inverse);
    // ggml's codes are 0 where 1 / d is infinite, which x · 0 + 0 makes too; for d = 0 they are 8 (16)
    for (int j = 0; j < N; ++j) to.offset[j] = top + 0.5f;
    if (any_zero(inverse))
      for (int j = 0; j < N; ++j)
        if (to.inverse[j] == 0.0f && d.v[j] != 0.0f) to.offset[j] = 0.0f;
  }
}

/// Integers of N weights under the scale of their block. Rounding may make one more than there are codes.
template <class Block, int N>
NIBBLE_LANE int_lanes<N> integers_of(const lanes<N>& x, const code_scale<N>& s) noexcept {
  using V = lanes<N>;
  using I = int_lanes<N>;
  if constexpr (Block::type == block_type::q8_0) {
    const V ratio = x * s.inverse;
    // the float below ½: ties go away from zero
    return truncated(ratio + of_bits((bits_of(ratio) & I(-2147483647 - 1)) | I(0x3effffff)));
  } else if constexpr (has_offset<Block>) {
    return truncated((x - s.low) * s.inverse + V(0.5f));
  } else {
    return truncated(x * s.inverse + s.offset);
  }
}
/// Codes of 16 weights.
template <class Block, int N, std::size_t... I>
NIBBLE_LANE sixteen_bytes bytes_of(const float* x, const code_scale<N>& s, std::index_sequence<I...>) noexcept {
  const int_lanes<N> integers[] = {integers_of<Block>(loaded<N>(x + N * I), s)...};
  const sixteen_bytes bytes = low_bytes<Block::type == block_type::q8_0>(integers);
  if constexpr (Block::type == block_type::q8_0) return bytes;
  const sixteen_bytes most = sixteen_bytes{} + static_cast<uint8_t>((1 << Block::bits) - 1);
  return (sixteen_bytes)_mm_min_epu8((__m128i)bytes, (__m128i)most);
}
/// Two nibbles a byte, the same in fewer instructions.
template <class Block>
NIBBLE_LANE sixteen_bytes nibbles_of(const float* x, const code_scale<16>& s) noexcept {
  const int_lanes<16> most(15), both = lesser(integers_of<Block>(loaded<16>(x), s), most) |
                                       lesser(integers_of<Block>(loaded<16>(x + 16), s), most) << 4;
  return low_bytes<false>(&both);
}

/// Codes of a block's halves to where they lie in it.
template <class Block>
NIBBLE_LANE void store_codes(const sixteen_bytes& first, const sixteen_bytes& second, uint8_t* to) noexcept {
  if constexpr (Block::type == block_type::q8_0) {
    std::memcpy(to, &first, 16);
    std::memcpy(to + 16, &second, 16);
    return;
  }
  if constexpr (Block::bits == 5) {
    const auto fifth = static_cast<uint32_t>(__builtin_ia32_pmovmskb128((sixteen_chars)(first << 3))) |
                       static_cast<uint32_t>(__builtin_ia32_pmovmskb128((sixteen_chars)(second << 3))) << 16;
    std::memcpy(to, &fifth, 4);
  }
  const sixteen_bytes nibbles = (first & uint8_t{15}) | second << 4;
  std::memcpy(to + (Block::bits == 5 ? 4 : 0), &nibbles, 16);
}

/// A batch: N blocks of x (N, 32) to `to`, one after another. @param asks  for memory ahead.
template <class Block, int N>
NIBBLE_LANE void encode_batch(const float* x, uint8_t* to, bool asks) noexcept {
  constexpr auto index = std::make_index_sequence<16 / N>{};
  batch_scale<N> scale;
  batch_scales<Block>(x, scale);
  for (int j = 0; j < N; ++j, x += 32, to += sizeof(Block)) {
    if (asks) {
      __builtin_prefetch(x + read_ahead);
      __builtin_prefetch(x + read_ahead + 16);
      __builtin_prefetch(to + write_ahead, 1);
    }
    code_scale<N> s;
    s.inverse = lanes<N>(scale.inverse[j]);
    if constexpr (has_offset<Block>)
      s.low = lanes<N>(scale.low[j]);
    else if constexpr (Block::type != block_type::q8_0)
      s.offset = lanes<N>(scale.offset[j]);
    std::memcpy(to, &scale.d[j], 2);
    if constexpr (has_offset<Block>) std::memcpy(to + 2, &scale.m[j], 2);
    uint8_t* const codes = to + (has_offset<Block> ? 4 : 2);
    if constexpr (N == 16 && Block::bits == 4) {
      const sixteen_bytes nibbles = nibbles_of<Block>(x, s);
      std::memcpy(codes, &nibbles, sizeof(nibbles));
    } else {
      store_codes<Block>(bytes_of<Block>(x, s, index), bytes_of<Block>(x + 16, s, index), codes);
    }
  }
}

/// N weights of any storage type as floats.
template <int N>
NIBBLE_LANE void widen(const bf16* from, float* to) noexcept {
  typedef uint16_t halves __attribute__((vector_size(2 * N)));
  halves h;
  std::memcpy(&h, from, sizeof(h));
  int_lanes<N> bits;
  bits.v = __builtin_convertvector(h, typename int_lanes<N>::vector) << 16;
  std::memcpy(to, &bits.v, sizeof(bits.v));
}
template <int N>
NIBBLE_LANE void widen(const fp16* from, float* to) noexcept {
  typedef uint16_t halves __attribute__((vector_size(2 * N)));
  halves h;
  std::memcpy(&h, from, sizeof(h));
  int_lanes<N> bits;
  bits.v = __builtin_convertvector(h, typename int_lanes<N>::vector);
  const lanes<N> x = half_value(bits);
  std::memcpy(to, &x.v, sizeof(x.v));
}

/// `blocks` blocks next to each other. @param asks  for memory ahead.
template <class Block, int N, class T>
NIBBLE_LANE void encode_run(const T* from, uint8_t* to, index_t blocks, bool asks) noexcept {
  float x[32 * N];
  for (; blocks >= N; blocks -= N, from += 32 * N, to += N * sizeof(Block)) {
    if constexpr (std::is_same_v<T, float>) {
      encode_batch<Block, N>(from, to, asks);
    } else {
      for (int i = 0; i < 32 * N; i += N) widen<N>(from + i, x + i);
      encode_batch<Block, N>(x, to, asks);
    }
  }
  if (blocks == 0) return;
  const auto rest = static_cast<int>(32 * blocks);
  std::memset(x, 0, sizeof(x));
  for (int i = 0; i < rest; ++i) x[i] = load(from[i]);
  uint8_t made[N * sizeof(Block)];
  encode_batch<Block, N>(x, made, false);
  std::memcpy(to, made, static_cast<std::size_t>(blocks) * sizeof(Block));
}

#endif

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END
