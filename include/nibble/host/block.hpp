// SPDX-License-Identifier: Apache-2.0
/// @file
/// Matrices to ggml's blocks and back, threaded and vectorised; the reference's bytes, which are ggml's. Compile with
/// -ffp-contract=off, as all that has a stated order of operations.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "nibble/block.hpp"
#include "nibble/block_layout.hpp"
#include "nibble/host/block/decode.hpp"
#include "nibble/host/block/tile.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/host/streamed.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Mean square of each of `rows` <= most_lanes rows, in order along the row, side by side.
template <class T>
void row_squares(matrix<const T> w, float* mean) noexcept {
  vectorised([&] {
    float sum[most_lanes] = {};
    for (index_t col = 0; col < w.cols; ++col)
      for (index_t row = 0; row < w.rows; ++row) {
        const auto x = static_cast<float>(w(row, col));
        sum[row] += x * x;
      }
    for (index_t row = 0; row < w.rows; ++row) mean[row] = sum[row] / static_cast<float>(w.cols);
  });
}

/// Whether a block's codes depend on the mean square of its row.
template <class Block>
inline constexpr bool sees_row = Block::type == block_type::q4_0 || Block::type == block_type::q4_1 ||
                                 Block::type == block_type::q5_0 || Block::type == block_type::q5_1;

/// At most most_lanes rows, a tile of blocks at a time, on this thread. @param stride bytes from a row of blocks to the next.
template <class Block, class Lanes, class T>
void encode_rows(matrix<const T> w, uint8_t* blocks, index_t stride, const float* importance) noexcept {
  float sigma2[most_lanes] = {};
  if (sees_row<Block> && importance != nullptr) row_squares(w, sigma2);
  const index_t across = w.cols / Block::weights;
  block_tile tile;
  std::memset(tile.row_sigma2, 0, sizeof(tile.row_sigma2));
  float numbers[std::is_same_v<T, float> ? 1 : Lanes::count * Block::weights];
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t block = 0; block < across; ++block) {
      const index_t first = block * Block::weights;
      if constexpr (std::is_same_v<T, float>) {
        tile.from[tile.count] = w.row(row) + first;
      } else {
        float* const x = numbers + tile.count * Block::weights;
        vectorised([=, from = w.row(row) + first] {
          for (int i = 0; i < Block::weights; ++i) x[i] = load(from[i]);
        });
        tile.from[tile.count] = x;
      }
      tile.importance[tile.count] = importance != nullptr ? importance + first : nullptr;
      tile.to[tile.count] = blocks + row * stride + block * index_t(sizeof(Block));
      tile.row_sigma2[tile.count] = sigma2[row];
      const bool last = row == w.rows - 1 && block == across - 1;
      if (++tile.count < Lanes::count && !last) continue;
      Lanes::template encode<Block>(tile);
      tile.count = 0;
    }
}

/// Blocks next to each other without a search, a batch of the first half and of the second by turns: most processors read two places at
/// once faster than one, if memory is asked for ahead.
template <class Block, class Lanes, class T>
void encode_run_along(const T* from, uint8_t* to, index_t blocks) noexcept {
  constexpr index_t batch = Lanes::count;
  const bool asks = !is_amd_with_avx512();
  const auto encode = [&](index_t at, index_t count) {
    Lanes::template encode_along<Block>(from + 32 * at, to + at * index_t(sizeof(Block)), count, asks);
  };
  if (!asks) return encode(0, blocks);
  const index_t half = blocks / (2 * batch) * batch, rest = 2 * half;
  for (index_t at = 0; at < half; at += batch) {
    encode(at, batch);
    encode(half + at, batch);
  }
  if (rest < blocks) encode(rest, blocks - rest);
}

/// Rows that follow each other without a gap, here and there, are one.
template <class Block, class Lanes, class T>
void encode_rows_along(matrix<const T> w, uint8_t* blocks, index_t stride) noexcept {
  const index_t across = w.cols / Block::weights;
  if (w.stride == w.cols && stride == across * index_t(sizeof(Block)))
    return encode_run_along<Block, Lanes>(w.data, blocks, w.rows * across);
  for (index_t row = 0; row < w.rows; ++row) encode_run_along<Block, Lanes>(w.row(row), blocks + row * stride, across);
}

/// f(Lanes{}) with the widest vectors of this machine.
template <class F>
void with_lanes(F&& f) {
#if defined(__GNUC__) && defined(__x86_64__)
  if (sixteen_lanes::here()) return f(sixteen_lanes{});
  if (eight_lanes::here()) return f(eight_lanes{});
#endif
  f(four_lanes{});
}

template <class Block, class Lanes, class T>
void encode_blocks(matrix<const T> w, uint8_t* blocks, index_t stride, const float* importance) {
  parallel_for(ceil_div(w.rows, most_lanes), [&](index_t tile) {
    const index_t first = tile * most_lanes;
    const matrix<const T> rows = w.rows_at(first, min(index_t(most_lanes), w.rows - first));
    uint8_t* const to = blocks + first * stride;
    if constexpr (goes_along<Block>(false))
      if (goes_along<Block>(importance != nullptr)) return encode_rows_along<Block, Lanes>(rows, to, stride);
    if constexpr (!goes_along<Block>(true)) encode_rows<Block, Lanes>(rows, to, stride, importance);
  });
}

/// @param stride bytes from a row of blocks to the next. @param streamed past the caches. Rows that follow each other without a gap, here
/// and there, are one.
template <class Block, class Lanes, class T>
void decode_blocks_in(const uint8_t* blocks, index_t stride, matrix<T> w, bool streamed) {
  const index_t across = w.cols / Block::weights, step = rows_at_once(w.cols);
  const bool whole = w.stride == w.cols && stride == across * index_t(sizeof(Block));
  parallel_for(ceil_div(w.rows, step), [&](index_t tile) {
    const index_t first = tile * step, last = min(w.rows, first + step), joined = whole ? last - first : 1;
    for (index_t row = first; row < last; row += joined)
      Lanes::template decode<Block>(blocks + row * stride, w.row(row), joined * across, streamed);
  });
}
/// Memory is what holds it up: 16 lanes gain nothing over 8.
template <class Block, class T>
void decode_blocks(const uint8_t* blocks, index_t stride, matrix<T> w) {
  const bool streamed = is_streamed(w.rows * w.cols * index_t(sizeof(T)));
#if defined(__GNUC__) && defined(__x86_64__)
  if (eight_lanes::here()) return decode_blocks_in<Block, eight_lanes>(blocks, stride, w, streamed);
#endif
  decode_blocks_in<Block, four_lanes>(blocks, stride, w, streamed);
}

}  // namespace detail

/// w (n, k) row-major; blocks (n, k / Block::weights); importance (k) of columns, or null. @pre Block::weights divides k.
template <class Block, class T>
void quantize_blocks(matrix<const T> w, matrix<Block> blocks, const float* importance = nullptr) {
  detail::with_lanes([&](auto lanes_of) {
    detail::encode_blocks<Block, decltype(lanes_of)>(w, reinterpret_cast<uint8_t*>(blocks.data),
                                                     blocks.stride * index_t(sizeof(Block)), importance);
  });
}

/// The same for a type chosen at run time: bytes (n, k / weights · bytes of a block), of any alignment.
template <class T>
void quantize_blocks(matrix<const T> w, matrix<uint8_t> bytes, block_type type, const float* importance = nullptr) {
  with_block(type, [&](auto tag) {
    using Block = typename decltype(tag)::type;
    detail::with_lanes([&](auto lanes_of) {
      detail::encode_blocks<Block, decltype(lanes_of)>(w, bytes.data, bytes.stride, importance);
    });
  });
}

/// The inverse: w (n, k) receives the blocks' weights, rounded to T.
template <class Block, class T>
void dequantize_blocks(matrix<const Block> blocks, matrix<T> w) {
  detail::decode_blocks<Block>(reinterpret_cast<const uint8_t*>(blocks.data), blocks.stride * index_t(sizeof(Block)),
                               w);
}

/// The same for a type chosen at run time, from bytes of any alignment.
template <class T>
void dequantize_blocks(matrix<const uint8_t> bytes, matrix<T> w, block_type type) {
  with_block(type, [&](auto tag) { detail::decode_blocks<typename decltype(tag)::type>(bytes.data, bytes.stride, w); });
}

}  // namespace host
NIBBLE_NAMESPACE_END
