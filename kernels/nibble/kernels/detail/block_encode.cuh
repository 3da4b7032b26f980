// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels that make ggml's blocks, without their launchers: this much compiles under NVRTC. A group is a thread's, so that its
/// sums have the reference's order without a wait; a block is a team of as many lanes of a warp as it has groups, which share what
/// is the block's by shuffles and put their codes together in shared memory.
#pragma once

#include "nibble/block_encode.hpp"
#include "nibble/block_layout.hpp"
#include "nibble/block_search.hpp"
#include "nibble/kernels/detail/block_number.cuh"
#include "nibble/kernels/detail/device.cuh"
#include "nibble/kernels/tuning/block.cuh"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

using block_lane::integer;
using block_lane::number;

/// Lanes that make one block.
template <class Block>
inline constexpr int block_lanes = Block::weights / Block::group;

/// Count weights from `from` on, by 16-byte accesses where `wide` says that they may be.
template <int Count, class T>
__device__ void load_numbers(const T* from, bool wide, number* x) {
  constexpr int items = 16 / static_cast<int>(sizeof(T));
#pragma unroll
  for (int first = 0; first < Count; first += items) {
    device::chunk<T, items> some;
    if (wide) {
      some = device::load_once(reinterpret_cast<const device::chunk<T, items>*>(from + first));
    } else {
#pragma unroll
      for (int i = 0; i < items; ++i) some.at[i] = from[first + i];
    }
#pragma unroll
    for (int i = 0; i < items; ++i) x[first + i] = static_cast<float>(some.at[i]);
  }
}

/// Σx² of every row one after another, / k: a thread a row.
template <class Tuned, class T>
__global__ void __launch_bounds__(Tuned::value.threads) row_sigma2_kernel(matrix<const T> w, bool wide, float* sigma2) {
  const index_t row = index_t{blockIdx.x} * Tuned::value.threads + threadIdx.x;
  if (row >= w.rows) return;
  number sum(0.0f);
  for (index_t first = 0; first < w.cols; first += 32) {
    number x[32];
    load_numbers<32>(w.row(row) + first, wide, x);
#pragma unroll
    for (int i = 0; i < 32; ++i) sum = sum + x[i] * x[i];
  }
  sigma2[row] = device::divide(sum.v, static_cast<float>(w.cols));
}

/// A lane's place in the team of its block.
template <int Lanes>
struct block_team {
  int mine, first;  ///< which lane of the team; the team's first in the warp
  uint32_t mask;
  __device__ block_team()
      : mine(device::lane() % Lanes), first(device::lane() - mine), mask(((1u << Lanes) - 1u) << first) {}

  /// Every lane's value, in their order.
  __device__ void gather(number value, number (&all)[Lanes]) const {
#pragma unroll
    for (int i = 0; i < Lanes; ++i) all[i] = device::shuffle(value.v, first + i, mask);
  }
  /// This lane's of values that all lanes hold.
  template <class V>
  __device__ V own(const V (&all)[Lanes]) const {
    V value = all[0];
#pragma unroll
    for (int i = 1; i < Lanes; ++i)
      if (i == mine) value = all[i];
    return value;
  }
  /// Σx² of the block, lane after lane.
  template <int Size>
  __device__ number sum_of_squares(const number (&x)[Size]) const {
    number sum(0.0f);
    for (int lane = 0; lane < Lanes; ++lane) {
#pragma unroll
      for (int i = 0; i < Size; ++i) sum = sum + x[i] * x[i];
      sum = device::shuffle(sum.v, first + lane, mask);
    }
    return sum;
  }
};

/// What a team knows of a block beside its codes; every lane knows all of it.
template <class Block>
struct block_head {
  integer scales[block_lanes<Block>], minima[block_lanes<Block>];  ///< as they are stored
  integer d, dmin;
};

__device__ constexpr block_search::trials plain_trials(block_tag<q2_k>) {
  return {-0.5f, 0.1f, 15};
}
__device__ constexpr block_search::trials plain_trials(block_tag<q4_k>) {
  return {-1.0f, 0.1f, 20};
}
__device__ constexpr block_search::trials plain_trials(block_tag<q5_k>) {
  return {-0.5f, 0.1f, 15};
}

/// One group of q2_k, q4_k or q5_k: its codes, and the block's head. q: importance, used if Weighed.
template <bool Weighed, class Block, int Size, int Lanes>
__device__ void encode_group(const number (&x)[Size], const number (&q)[Size], const block_team<Lanes>& lanes,
                             integer* codes, block_head<Block>& head) {
  constexpr int most_code = (1 << Block::bits) - 1, most = Size == 16 ? 15 : 63;
  constexpr block_search::trials trials =
      Weighed ? block_search::trials{-0.9f, 0.05f, 36} : plain_trials(block_tag<Block>{});
  number w[Size];
  if constexpr (Weighed) {
    const number factor(Size == 16 ? 1.0f : 2.0f);
    block_search::weigh<Size>(x, q, factor * lanes.sum_of_squares(x) / number(256.0f), w);
  } else {
    number rms(0.0f);
    if constexpr (Size == 32) rms = square_root(block_search::sum_of_squares<Size>(x) / number(32.0f));
#pragma unroll
    for (int i = 0; i < Size; ++i) w[i] = rms + abs(x[i]);
  }
  block_search::ranged_fit<number> fit;
  block_search::ranged<Size, !Weighed && Size == 16>(x, w, most_code, trials, fit);
  number scales[Lanes], minima[Lanes];
  lanes.gather(fit.scale, scales);
  lanes.gather(fit.minimum, minima);
  if constexpr (Weighed) {
    number weights[Lanes];
    lanes.gather(block_search::sum<Size>(w), weights);
    head.d = half_bits(block_search::of_weights<Lanes>(scales, weights, most, head.scales));
    head.dmin = half_bits(block_search::of_weights<Lanes>(minima, weights, most, head.minima));
  } else {
    head.d = half_bits(block_search::of_largest<Lanes>(scales, most, head.scales));
    head.dmin = half_bits(block_search::of_largest<Lanes>(minima, most, head.minima));
  }
  const number scale = half_value(head.d) * numbers(lanes.own(head.scales));
  const number minimum = half_value(head.dmin) * numbers(lanes.own(head.minima));
#pragma unroll
  for (int i = 0; i < Size; ++i)
    codes[i] = integers(select(scale == number(0.0f), block_search::ranged_code(fit, x[i], most_code),
                               level((x[i] + minimum) / scale, 0, most_code)));
}

/// q3_k.
template <bool Weighed, int Lanes>
__device__ void encode_group(const number (&x)[16], const number (&q)[16], const block_team<Lanes>& lanes,
                             integer* codes, block_head<q3_k>& head) {
  number scales[16], scale;
  block_search::centred_fit<number> fit;
  if constexpr (Weighed) {
    number w[16], weights[16];
    block_search::weigh<16>(x, q, number(2.0f) * lanes.sum_of_squares(x) / number(256.0f), w);
    block_search::centred<16>(x, w, 4, fit);
#pragma unroll
    for (int i = 0; i < 16; ++i) codes[i] = integers(block_search::centred_code(fit, x[i], 4));
    lanes.gather(fit.scale, scales);
    lanes.gather(block_search::sum<16>(w), weights);
    block_search::centred<16>(scales, weights, 32, fit);
    head.d = half_bits(fit.scale);
#pragma unroll
    for (int j = 0; j < 16; ++j) head.scales[j] = integers(block_search::centred_code(fit, scales[j], 32));
  } else {
    number found[16];
    block_search::swept<16, 1>(x, 4, found, &scale);
    lanes.gather(scale, scales);
#pragma unroll
    for (int i = 0; i < 16; ++i) codes[i] = integers(found[i]);
    const number max = block_search::largest<16>(scales), inverse = number(-32.0f) / max;
    const block_lane::truth none = max == number(0.0f);
    head.d = half_bits(select(none, number(0.0f), number(1.0f) / inverse));
#pragma unroll
    for (int j = 0; j < 16; ++j)
      head.scales[j] = select(none, integer(0), integers(level(inverse * scales[j], -32, 31)) + integer(32));
  }
  scale = half_value(head.d) * numbers(lanes.own(head.scales) - integer(32));
  block_search::choose_centred_codes<16>(x, scale, 4, codes);
}

/// q6_k.
template <bool Weighed, int Lanes>
__device__ void encode_group(const number (&x)[16], const number (&q)[16], const block_team<Lanes>& lanes,
                             integer* codes, block_head<q6_k>& head) {
  number w[16], scales[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) w[i] = Weighed ? q[i] : x[i] * x[i];
  block_search::centred_fit<number> fit;
  block_search::centred<16>(x, w, 32, fit);
  lanes.gather(fit.scale, scales);
  const number max = block_search::largest<16>(scales), inverse = number(-128.0f) / max;
  const block_lane::truth none = abs(max) < number(block_search::least_maximum);
  head.d = select(none, integer(0), half_bits(number(1.0f) / inverse));
#pragma unroll
  for (int j = 0; j < 16; ++j)
    head.scales[j] = select(none, integer(0), lesser(whole(inverse * scales[j]), integer(127)));
#pragma unroll
  for (int i = 0; i < 16; ++i) codes[i] = select(none, integer(0), integers(block_search::centred_code(fit, x[i], 32)));
  block_search::choose_centred_codes<16>(x, half_value(head.d) * numbers(lanes.own(head.scales)), 32, codes);
}

/// iq4_xs.
template <bool Weighed, int Lanes>
__device__ void encode_group(const number (&x)[32], const number (&q)[32], const block_team<Lanes>& lanes,
                             integer* codes, block_head<iq4_xs>& head) {
  number w[32], scales[8];
  if constexpr (Weighed) {
    block_search::weigh<32>(x, q, lanes.sum_of_squares(x) * number(2.0f / 256.0f), w);
  } else {
#pragma unroll
    for (int i = 0; i < 32; ++i) w[i] = x[i] * x[i];
  }
  lanes.gather(block_search::iq4_scale<32>(x, w), scales);
  const number d = negated(block_search::largest<8>(scales)) / number(32.0f), inverse = block_search::inverse_of(d);
  head.d = half_bits(d);
#pragma unroll
  for (int j = 0; j < 8; ++j) head.scales[j] = integers(level(inverse * scales[j], -32, 31)) + integer(32);
  const number own = d * numbers(lanes.own(head.scales) - integer(32)), own_inverse = block_search::inverse_of(own);
#pragma unroll
  for (int i = 0; i < 32; ++i) codes[i] = block_search::nearest_iq4_code(own_inverse * x[i]);
}

/// A byte of Count codes, each `width` bits from `shift` on, `step` apart.
template <int Count>
__device__ uint32_t byte_of(const uint8_t* codes, int step, int shift, int width) {
  uint32_t byte = 0;
#pragma unroll
  for (int i = 0; i < Count; ++i) byte |= (uint32_t{codes[step * i]} >> shift & ((1u << width) - 1u)) << (width * i);
  return byte;
}
/// Byte i of those in which weights 32 apart share one: nibbles, pairs of bits or single bits.
__device__ inline uint32_t nibbles_32_apart(const uint8_t* codes, int i) {
  return byte_of<2>(codes + i / 32 * 64 + i % 32, 32, 0, 4);
}
__device__ inline uint32_t pairs_32_apart(const uint8_t* codes, int i, int shift) {
  return byte_of<4>(codes + i / 32 * 128 + i % 32, 32, shift, 2);
}
__device__ inline uint32_t bits_32_apart(const uint8_t* codes, int i, int shift) {
  return byte_of<8>(codes + i, 32, shift, 1);
}

/// Bytes [first, last) of a block hold codes; what they are of its 256 codes.
template <class Block>
struct code_bytes;
template <>
struct code_bytes<q2_k> {
  static constexpr int first = 16, last = 80;
  __device__ static uint32_t at(const uint8_t* codes, int byte) { return pairs_32_apart(codes, byte - 16, 0); }
};
template <>
struct code_bytes<q3_k> {
  static constexpr int first = 0, last = 96;
  __device__ static uint32_t at(const uint8_t* codes, int byte) {
    return byte < 32 ? bits_32_apart(codes, byte, 2) : pairs_32_apart(codes, byte - 32, 0);
  }
};
template <>
struct code_bytes<q4_k> {
  static constexpr int first = 16, last = 144;
  __device__ static uint32_t at(const uint8_t* codes, int byte) { return nibbles_32_apart(codes, byte - 16); }
};
template <>
struct code_bytes<q5_k> {
  static constexpr int first = 16, last = 176;
  __device__ static uint32_t at(const uint8_t* codes, int byte) {
    return byte < 48 ? bits_32_apart(codes, byte - 16, 4) : nibbles_32_apart(codes, byte - 48);
  }
};
template <>
struct code_bytes<q6_k> {
  static constexpr int first = 0, last = 192;
  __device__ static uint32_t at(const uint8_t* codes, int byte) {
    return byte < 128 ? byte_of<2>(codes + byte / 64 * 128 + byte % 64, 64, 0, 4)
                      : pairs_32_apart(codes, byte - 128, 4);
  }
};
template <>
struct code_bytes<iq4_xs> {
  static constexpr int first = 8, last = 136;
  __device__ static uint32_t at(const uint8_t* codes, int byte) {
    return byte_of<2>(codes + (byte - 8) / 16 * 32 + (byte - 8) % 16, 16, 0, 4);
  }
};

/// Where scales, d and dmin stand, in units of two bytes, and how scales are put there.
template <class Block>
struct head_units;
template <>
struct head_units<q2_k> {
  static constexpr int scales = 0, count = 8, d = 40, dmin = 41;
  __device__ static void put(const block_head<q2_k>& head, integer* to) {
    integer both[16];
#pragma unroll
    for (int j = 0; j < 16; ++j) both[j] = (head.scales[j] & integer(15)) | (head.minima[j] & integer(15)) << 4;
    block_search::put_bytes<16>(both, to);
  }
};
template <>
struct head_units<q3_k> {
  static constexpr int scales = 48, count = 6, d = 54, dmin = -1;
  __device__ static void put(const block_head<q3_k>& head, integer* to) {
    block_search::put_scales_of_q3(head.scales, to);
  }
};
template <>
struct head_units<q4_k> {
  static constexpr int scales = 2, count = 6, d = 0, dmin = 1;
  __device__ static void put(const block_head<q4_k>& head, integer* to) {
    block_search::put_scales_of_12(head.scales, head.minima, to);
  }
};
template <>
struct head_units<q5_k> {
  static constexpr int scales = 2, count = 6, d = 0, dmin = 1;
  __device__ static void put(const block_head<q5_k>& head, integer* to) {
    block_search::put_scales_of_12(head.scales, head.minima, to);
  }
};
template <>
struct head_units<q6_k> {
  static constexpr int scales = 96, count = 8, d = 104, dmin = -1;
  __device__ static void put(const block_head<q6_k>& head, integer* to) {
    integer bytes[16];
#pragma unroll
    for (int j = 0; j < 16; ++j) bytes[j] = head.scales[j] & integer(255);
    block_search::put_bytes<16>(bytes, to);
  }
};
template <>
struct head_units<iq4_xs> {
  static constexpr int scales = 1, count = 3, d = 0, dmin = -1;
  __device__ static void put(const block_head<iq4_xs>& head, integer* to) {
    block_search::put_scales_of_iq4(head.scales, to);
  }
};

/// A block of 256 weights by its team. `codes`: 256 bytes of shared memory.
template <bool Weighed, class Block, int Size, int Lanes>
__device__ void encode_by_team(const number (&x)[Size], const number (&q)[Size], const block_team<Lanes>& lanes,
                               uint8_t* codes, uint16_t* to) {
  integer own[Size];
  block_head<Block> head;
  encode_group<Weighed>(x, q, lanes, own, head);
#pragma unroll
  for (int i = 0; i < Size; i += 4) {
    uint32_t four = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) four |= static_cast<uint32_t>(own[i + j].v) << (8 * j);
    device::store(reinterpret_cast<uint32_t*>(codes + lanes.mine * Size + i), four);
  }
  device::warp_barrier(lanes.mask);
  using bytes = code_bytes<Block>;
  for (int byte = bytes::first + 2 * lanes.mine; byte < bytes::last; byte += 2 * Lanes)
    device::store(to + byte / 2, static_cast<uint16_t>(bytes::at(codes, byte) | bytes::at(codes, byte + 1) << 8));
  if (lanes.mine != 0) return;
  using units = head_units<Block>;
  integer scales[units::count];
  units::put(head, scales);
#pragma unroll
  for (int i = 0; i < units::count; ++i) device::store(to + units::scales + i, static_cast<uint16_t>(scales[i].v));
  device::store(to + units::d, static_cast<uint16_t>(head.d.v));
  if constexpr (units::dmin >= 0) device::store(to + units::dmin, static_cast<uint16_t>(head.dmin.v));
}

/// Blocks of a matrix one after another, a team each. importance (k) and row_sigma2 (n), the latter for blocks of 32, if Weighed.
template <class Tuned, bool Weighed, class Block, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    quantize_blocks_kernel(matrix<const T> w, matrix<Block> blocks, const float* importance, const float* row_sigma2,
                           bool wide) {
  constexpr int size = Block::group, lanes = block_lanes<Block>, teams = Tuned::value.threads / lanes;
  NIBBLE_SHARED(uint8_t, codes, lanes > 1 ? teams * 256 : 16);
  const int team_index = static_cast<int>(threadIdx.x) / lanes;
  const index_t block = index_t{blockIdx.x} * teams + team_index;
  if (block >= blocks.rows * blocks.cols) return;
  const index_t row = block / blocks.cols, of_row = block % blocks.cols;
  const index_t col = of_row * Block::weights + static_cast<int>(threadIdx.x) % lanes * size;
  number x[size], q[size];
  load_numbers<size>(w.row(row) + col, wide, x);
#pragma unroll
  for (int i = 0; i < size; ++i) q[i] = Weighed ? importance[col + i] : 0.0f;
  auto* const to = reinterpret_cast<uint16_t*>(blocks.row(row) + of_row);
  if constexpr (lanes > 1) {
    encode_by_team<Weighed, Block>(x, q, block_team<lanes>(), codes + team_index * 256, to);
  } else {
    constexpr int count = static_cast<int>(sizeof(Block)) / 2;
    integer units[count];
    const number sigma2 = Weighed ? row_sigma2[row] : 0.0f;
    const block_search::block_input<number> in{x, Weighed ? q : nullptr, sigma2};
    block_search::encode(in, units, block_tag<Block>{});
#pragma unroll
    for (int i = 0; i < count; ++i) device::store(to + i, static_cast<uint16_t>(units[i].v));
  }
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
