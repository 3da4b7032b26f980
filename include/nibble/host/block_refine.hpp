// SPDX-License-Identifier: Apache-2.0
/// @file
/// Matrices to ggml's blocks with less error than its own encoders leave, in the same bytes per weight (block_refine.hpp), threaded and
/// vectorised. Compile with -ffp-contract=off.
#pragma once

#include <cstring>
#include <vector>

#include "nibble/block.hpp"
#include "nibble/block_refine.hpp"
#include "nibble/host/block.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Lanes of refine_tile: its blocks, better than what stands in tile.to or not.
template <class Block, int N>
NIBBLE_LANE void refine_tile(const block_tile& tile, Block* to) noexcept {
  constexpr int units = sizeof(Block) / 2, padded = (units + N - 1) / N * N;
  lanes<N> x[Block::weights], w[Block::weights];
  int_lanes<N> out[padded];
  gather<N, Block::weights>(tile.from, tile.count, x);
  if (tile.importance[0] != nullptr)
    gather<N, Block::weights>(tile.importance, tile.count, w);
  else
    for (lanes<N>& each : w) each = lanes<N>(1.0f);
  block_search::refine(x, w, out, block_tag<Block>{});
  for (int i = units; i < padded; ++i) out[i] = int_lanes<N>(0);
  uint8_t* places[N];
  for (int j = 0; j < N; ++j) places[j] = reinterpret_cast<uint8_t*>(to + j);
  scatter<N, units>(out, tile.count, places);
}

/// The instruction sets of tile.hpp, for refine_tile.
struct refine_four : four_lanes {
  template <class Block>
  static void refine(const block_tile& tile, Block* to) noexcept {
    refine_tile<Block, 4>(tile, to);
  }
};
#if defined(__GNUC__) && defined(__x86_64__)
struct refine_eight : eight_lanes {
  template <class Block>
  NIBBLE_LANE_ENTRY("avx2")
  static void refine(const block_tile& tile, Block* to) noexcept {
    refine_tile<Block, 8>(tile, to);
  }
};
struct refine_sixteen : sixteen_lanes {
  template <class Block>
  NIBBLE_LANE_ENTRY("avx512f,avx512bw,avx512dq,avx512vl")
  static void refine(const block_tile& tile, Block* to) noexcept {
    refine_tile<Block, 16>(tile, to);
  }
};
#endif

/// f(Lanes{}) with the widest vectors of this machine.
template <class F>
void with_refining_lanes(F&& f) {
#if defined(__GNUC__) && defined(__x86_64__)
  if (sixteen_lanes::here()) return f(refine_sixteen{});
  if (eight_lanes::here()) return f(refine_eight{});
#endif
  f(refine_four{});
}

/// Σ w·(x − x̂)² of a block as a decoder reads it, in double; NaN where a weight is.
template <class Block>
double block_error(const float* x, const float* importance, const Block& b) noexcept {
  float back[Block::weights];
  decode(b, back);
  double sum = 0;
  for (int i = 0; i < Block::weights; ++i) {
    const double off = static_cast<double>(x[i]) - static_cast<double>(back[i]);
    sum += (importance != nullptr ? static_cast<double>(importance[i]) : 1.0) * off * off;
  }
  return sum;
}

/// Replaces blocks of rows by refined ones where those have less error.
template <class Block, class Lanes>
void refine_rows(matrix<const float> w, uint8_t* blocks, index_t stride, const float* importance) noexcept {
  block_tile tile;
  Block refined[most_lanes];
  const index_t across = w.cols / Block::weights;
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t block = 0; block < across; ++block) {
      const index_t first = block * Block::weights;
      tile.from[tile.count] = w.row(row) + first;
      tile.importance[tile.count] = importance != nullptr ? importance + first : nullptr;
      tile.to[tile.count] = blocks + row * stride + block * index_t(sizeof(Block));
      const bool last = row == w.rows - 1 && block == across - 1;
      if (++tile.count < Lanes::count && !last) continue;
      Lanes::refine(tile, refined);
      for (int j = 0; j < tile.count; ++j) {
        Block before;
        std::memcpy(static_cast<void*>(&before), tile.to[j], sizeof(Block));
        if (block_error(tile.from[j], tile.importance[j], refined[j]) <
            block_error(tile.from[j], tile.importance[j], before))
          std::memcpy(tile.to[j], &refined[j], sizeof(Block));
      }
      tile.count = 0;
    }
}

template <class Block, class Lanes>
void refine_all(matrix<const float> w, uint8_t* blocks, index_t stride, const float* importance) {
  parallel_for(ceil_div(w.rows, most_lanes), [&](index_t tile) {
    const index_t first = tile * most_lanes;
    refine_rows<Block, Lanes>(w.rows_at(first, min(index_t(most_lanes), w.rows - first)), blocks + first * stride,
                              stride, importance);
  });
}

}  // namespace detail

/// Replaces each of `bytes` (n, k / weights · bytes of a block), which quantize_blocks made of w (n, k), by the block that
/// block_refine.hpp finds, where that has less error Σ importance · (w − ŵ)², so that none has more.
/// @param importance (k), or null for 1. @pre as quantize_blocks.
inline void refine_blocks(matrix<const float> w, matrix<uint8_t> bytes, block_type type,
                          const float* importance = nullptr) {
  with_block(type, [&](auto tag) {
    using Block = typename decltype(tag)::type;
    detail::with_refining_lanes(
        [&](auto lanes_of) { detail::refine_all<Block, decltype(lanes_of)>(w, bytes.data, bytes.stride, importance); });
  });
}

}  // namespace host
NIBBLE_NAMESPACE_END
