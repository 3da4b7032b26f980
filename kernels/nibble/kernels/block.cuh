// SPDX-License-Identifier: Apache-2.0
/// @file
/// ggml's blocks on a GPU; equal to the reference bit for bit.
#pragma once

#include "nibble/kernels/check.hpp"
#include "nibble/kernels/detail/block.cuh"
#include "nibble/kernels/launch.cuh"
#include "nibble/kernels/tuning/block.cuh"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// Whether blocks belong to an (n, k) matrix.
template <class Block, class T>
status check_blocks(matrix<T> w, index_t block_rows, index_t block_cols) noexcept {
  if (w.cols % Block::weights != 0) return status::bad_group;
  if (block_rows != w.rows || block_cols != w.cols / Block::weights) return status::bad_shape;
  return status::ok;
}

}  // namespace detail

/// reference::dequantize_blocks on device pointers, asynchronous in `stream`. blocks (n, k / Block::weights), w (n, k) float, fp16 or
/// bf16; any strides; by 16-byte stores where w is 16-byte aligned, row for row.
/// @returns bad_group where a block's weights do not divide k, bad_shape, misaligned (blocks to less than 2 bytes, w to less than
/// an element), or what launch says.
template <class Block, class T>
status dequantize_blocks(matrix<const Block> blocks, matrix<T> w, cudaStream_t stream) {
  if (!detail::well_formed(w) || !detail::well_formed(blocks)) return status::bad_shape;
  const status checked = detail::check_blocks<Block>(w, blocks.rows, blocks.cols);
  if (checked != status::ok) return checked;
  if (reinterpret_cast<size_t>(blocks.data) % alignof(Block) != 0 || !detail::aligned(w)) return status::misaligned;
  if (w.empty()) return status::ok;
  return dispatch(tuning::dequantize_blocks{}, [&](auto tuned) {
    constexpr int items = 16 / static_cast<int>(sizeof(T)), threads = tuned.value.threads;
    const index_t chunks = w.cols / items, across_threads = detail::power_of_two(chunks, threads);
    const index_t high = threads / across_threads, across = ceil_div(chunks, across_threads);
    const index_t down = ceil_div(w.rows, high);
    if (across > 2147483647 / down) return status::too_large;
    return launch(detail::dequantize_blocks_kernel<decltype(tuned), items, Block, T>, across * down,
                  extent3(across_threads, high), 0, stream, blocks, w, detail::aligned(w, items),
                  static_cast<unsigned>(across));
  });
}

}  // namespace kernels
NIBBLE_NAMESPACE_END
