// SPDX-License-Identifier: Apache-2.0
/// @file
/// As many blocks as a vector has lanes, turned so that weight i of all of them stands in one vector, encoded, and turned back: by
/// the same text (block_encode.hpp) for 4, 8 and 16 lanes, compiled for the baseline, AVX2 and AVX-512.
#pragma once

#include <cstring>

#include "nibble/block_encode.hpp"
#include "nibble/block_layout.hpp"
#include "nibble/core.hpp"

#if defined(__GNUC__)
#define NIBBLE_LANE_ENTRY(instructions) __attribute__((target(instructions), flatten, noinline))
#else
#define NIBBLE_LANE_ENTRY(instructions)
#endif

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

constexpr int most_lanes = 16;

/// Blocks next to each other in no particular way; T is what the weights are stored as.
template <class T>
struct block_tile {
  const T* from[most_lanes];
  const float* importance[most_lanes];  ///< all null, or none
  uint8_t* to[most_lanes];
  float row_sigma2[most_lanes];
  int count = 0;
};

/// x[i] lane j ← from[j][i]; lanes without a block repeat the first.
template <int N, int Size, class T>
NIBBLE_LANE void turn(const T* const* from, int count, lanes<N>* x) noexcept {
  for (int j = 0; j < N; ++j) {
    const T* const block = from[j < count ? j : 0];
    float* const lane = reinterpret_cast<float*>(x) + j;
    for (int i = 0; i < Size; ++i) lane[N * i] = static_cast<float>(block[i]);
  }
}

template <class Block, int N, class T>
NIBBLE_LANE void encode_tile(const block_tile<T>& tile) noexcept {
  constexpr int units = sizeof(Block) / 2;
  lanes<N> x[Block::weights], importance[Block::weights];
  int_lanes<N> out[units];
  block_search::block_input<lanes<N>> in;
  turn<N, Block::weights>(tile.from, tile.count, x);
  in.x = x;
  in.importance = nullptr;
  if (tile.importance[0] != nullptr) {
    turn<N, Block::weights>(tile.importance, tile.count, importance);
    in.importance = importance;
  }
  std::memcpy(&in.row_sigma2, tile.row_sigma2, sizeof(in.row_sigma2));
  block_search::encode(in, out, block_tag<Block>{});
  for (int j = 0; j < tile.count; ++j) {
    const int32_t* const lane = reinterpret_cast<const int32_t*>(out) + j;
    for (int i = 0; i < units; ++i) {
      const auto unit = static_cast<uint16_t>(lane[N * i]);
      std::memcpy(tile.to[j] + 2 * i, &unit, 2);
    }
  }
}

/// One instruction set: how many lanes its vectors have, and whether this machine has it.
struct four_lanes {
  static constexpr int count = 4;
  static bool here() noexcept { return true; }
  template <class Block, class T>
  static void encode(const block_tile<T>& tile) noexcept {
    encode_tile<Block, 4>(tile);
  }
};

#if defined(__GNUC__) && defined(__x86_64__)
struct eight_lanes {
  static constexpr int count = 8;
  static bool here() noexcept { return __builtin_cpu_supports("avx2"); }
  template <class Block, class T>
  NIBBLE_LANE_ENTRY("avx2")
  static void encode(const block_tile<T>& tile) noexcept {
    encode_tile<Block, 8>(tile);
  }
};

struct sixteen_lanes {
  static constexpr int count = 16;
  static bool here() noexcept {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  template <class Block, class T>
  NIBBLE_LANE_ENTRY("avx512f,avx512bw,avx512dq,avx512vl")
  static void encode(const block_tile<T>& tile) noexcept {
    encode_tile<Block, 16>(tile);
  }
};
#endif

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END
