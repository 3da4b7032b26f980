// SPDX-License-Identifier: Apache-2.0
/// @file
/// As many blocks as a vector has lanes, turned so that weight i of all of them stands in one vector, encoded, and turned back: by
/// the same text (block_encode.hpp) for 4, 8 and 16 lanes, compiled for the baseline, AVX2 and AVX-512.
#pragma once

#include <cstring>
#include <utility>

#include "nibble/block_encode.hpp"
#include "nibble/block_layout.hpp"
#include "nibble/core.hpp"
#include "nibble/host/block/along.hpp"
#include "nibble/host/block/decode.hpp"

#if defined(__GNUC__)
#define NIBBLE_LANE_ENTRY(instructions) __attribute__((target(instructions), flatten, noinline))
#else
#define NIBBLE_LANE_ENTRY(instructions)
#endif

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

constexpr int most_lanes = 16;

/// Blocks next to each other in no particular way.
struct block_tile {
  const float* from[most_lanes];
  const float* importance[most_lanes];  ///< all null, or none
  uint8_t* to[most_lanes];
  float row_sigma2[most_lanes];
  int count = 0;
};

/// turned[i] lane j ← rows[j] lane i. Each round interleaves halves, which after log2(N) of them has turned all.
template <class V, std::size_t... I>
NIBBLE_LANE void interleave(const V* from, V* to, std::index_sequence<I...>) noexcept {
  constexpr int n = V::count;
  for (int k = 0; k < n / 2; ++k) {
    to[2 * k].v = __builtin_shufflevector(from[k].v, from[k + n / 2].v, int(I / 2 + I % 2 * n)...);
    to[2 * k + 1].v = __builtin_shufflevector(from[k].v, from[k + n / 2].v, int((n + I) / 2 + I % 2 * n)...);
  }
}
/// Whether an even number of rounds turns N rows, which leaves them where they were.
template <int N>
inline constexpr bool even_rounds = N == 4 || N == 16;

/// The result is in `rows` if even_rounds, else in `other`.
template <class V>
NIBBLE_LANE void turn(V* rows, V* other) noexcept {
  constexpr auto index = std::make_index_sequence<V::count>{};
  interleave(rows, other, index);
  interleave(other, rows, index);
  if constexpr (V::count >= 8) interleave(rows, other, index);
  if constexpr (V::count >= 16) interleave(other, rows, index);
}

/// x[i] lane j ← from[j][i]; lanes without a block repeat the first.
template <int N, int Size>
NIBBLE_LANE void gather(const float* const* from, int count, lanes<N>* x) noexcept {
  for (int first = 0; first < Size; first += N) {
    lanes<N> scratch[N];
    lanes<N>* const rows = even_rounds<N> ? x + first : scratch;
    for (int j = 0; j < N; ++j) std::memcpy(&rows[j].v, from[j < count ? j : 0] + first, sizeof(rows[j].v));
    turn(rows, even_rounds<N> ? scratch : x + first);
  }
}

/// to[j] ← units of lane j, two bytes each. @pre `units` is as long as a multiple of N.
template <int N, int Units>
NIBBLE_LANE void scatter(int_lanes<N>* units, int count, uint8_t* const* to) noexcept {
  typedef uint16_t halves __attribute__((vector_size(2 * N)));
  for (int first = 0; first < Units; first += N) {
    int_lanes<N> scratch[N];
    turn(units + first, scratch);
    const int_lanes<N>* const turned = even_rounds<N> ? units + first : scratch;
    for (int j = 0; j < count; ++j) {
      const halves two_bytes = __builtin_convertvector(turned[j].v, halves);
      uint8_t* const at = to[j] + 2 * first;
      if (first + N <= Units)
        std::memcpy(at, &two_bytes, 2 * N);
      else
        std::memcpy(at, &two_bytes, 2 * (Units % N));
    }
  }
}

template <class Block, int N>
NIBBLE_LANE void encode_tile(const block_tile& tile) noexcept {
  constexpr int units = sizeof(Block) / 2;
  lanes<N> x[Block::weights], importance[Block::weights];
  int_lanes<N> out[(units + N - 1) / N * N];
  block_search::block_input<lanes<N>> in;
  gather<N, Block::weights>(tile.from, tile.count, x);
  in.x = x;
  in.importance = nullptr;
  if (tile.importance[0] != nullptr) {
    gather<N, Block::weights>(tile.importance, tile.count, importance);
    in.importance = importance;
  }
  std::memcpy(&in.row_sigma2, tile.row_sigma2, sizeof(in.row_sigma2));
  block_search::encode(in, out, block_tag<Block>{});
  for (int i = units; i < (units + N - 1) / N * N; ++i) out[i] = int_lanes<N>(0);
  scatter<N, units>(out, tile.count, tile.to);
}

/// One instruction set: how many lanes its vectors have, and whether this machine has it.
struct four_lanes {
  static constexpr int count = 4;
  static bool here() noexcept { return true; }
  template <class Block>
  static void encode(const block_tile& tile) noexcept {
    encode_tile<Block, 4>(tile);
  }
  template <class Block, class T>
  static void encode_along(const T* from, uint8_t* to, index_t blocks, bool asks) noexcept {
    encode_run<Block, 4>(from, to, blocks, asks);
  }
  template <class Block, class T>
  static void decode(const uint8_t* from, T* to, index_t blocks, bool streamed) noexcept {
    decode_run<Block, 4>(from, to, blocks, streamed);
  }
};

#if defined(__GNUC__) && defined(__x86_64__)
struct eight_lanes {
  static constexpr int count = 8;
  static bool here() noexcept { return __builtin_cpu_supports("avx2"); }
  template <class Block>
  NIBBLE_LANE_ENTRY("avx2")
  static void encode(const block_tile& tile) noexcept {
    encode_tile<Block, 8>(tile);
  }
  template <class Block, class T>
  NIBBLE_LANE_ENTRY("avx2")
  static void encode_along(const T* from, uint8_t* to, index_t blocks, bool asks) noexcept {
    encode_run<Block, 8>(from, to, blocks, asks);
  }
  template <class Block, class T>
  NIBBLE_LANE_ENTRY("avx2")
  static void decode(const uint8_t* from, T* to, index_t blocks, bool streamed) noexcept {
    decode_run<Block, 8>(from, to, blocks, streamed);
  }
};

struct sixteen_lanes {
  static constexpr int count = 16;
  static bool here() noexcept {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  template <class Block>
  NIBBLE_LANE_ENTRY("avx512f,avx512bw,avx512dq,avx512vl")
  static void encode(const block_tile& tile) noexcept {
    encode_tile<Block, 16>(tile);
  }
  template <class Block, class T>
  NIBBLE_LANE_ENTRY("avx512f,avx512bw,avx512dq,avx512vl")
  static void encode_along(const T* from, uint8_t* to, index_t blocks, bool asks) noexcept {
    encode_run<Block, 16>(from, to, blocks, asks);
  }
};
#endif

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END
