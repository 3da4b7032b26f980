// SPDX-License-Identifier: Apache-2.0
/// @file
/// ggml's blocks on a GPU; equal to the reference bit for bit.
#pragma once

#include "nibble/kernels/check.hpp"
#include "nibble/kernels/detail/block.cuh"
#include "nibble/kernels/detail/block_encode.cuh"
#include "nibble/kernels/launch.cuh"
#include "nibble/kernels/tuning/block.cuh"
#include "nibble/kernels/workspace.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// Whether blocks belong to an (n, k) matrix, and addresses are of their types.
template <class Block, class T, class U>
status check_blocks(matrix<T> w, matrix<U> blocks) noexcept {
  if (!well_formed(w) || !well_formed(blocks)) return status::bad_shape;
  if (w.cols % Block::weights != 0) return status::bad_group;
  if (blocks.rows != w.rows || blocks.cols != w.cols / Block::weights) return status::bad_shape;
  return aligned(blocks.data) && aligned(w) ? status::ok : status::misaligned;
}

/// Launches what was checked.
template <bool Weighed, class Block, class T>
status launch_quantize_blocks(matrix<const T> w, matrix<Block> blocks, const float* importance, float* row_sigma2,
                              cudaStream_t stream) {
  return dispatch(tuning::quantize_blocks{}, [&](auto tuned) {
    constexpr index_t threads = tuned.value.threads, teams = threads / block_lanes<Block>;
    const bool wide = aligned(w, 16 / index_t{sizeof(T)});
    if (Weighed && Block::weights == 32) {
      const status launched = launch(row_sigma2_kernel<decltype(tuned), T>, ceil_div(w.rows, threads), threads, 0,
                                     stream, w, wide, row_sigma2);
      if (launched != status::ok) return launched;
    }
    if (blocks.cols > 9223372036854775807 / blocks.rows) return status::too_large;
    return launch(quantize_blocks_kernel<decltype(tuned), Weighed, Block, T>, ceil_div(blocks.size(), teams), threads,
                  0, stream, w, blocks, importance, static_cast<const float*>(row_sigma2), wide);
  });
}

}  // namespace detail

/// reference::quantize_blocks without importance on device pointers, asynchronous in `stream`. w (n, k) float, fp16 or bf16; blocks
/// (n, k / Block::weights); any strides; by 16-byte loads where w is 16-byte aligned, row for row.
/// @returns bad_group where a block's weights do not divide k, bad_shape, misaligned (blocks to less than 2 bytes, w to less than
/// an element), or what launch says.
template <class Block, class T>
status quantize_blocks(matrix<const T> w, matrix<Block> blocks, cudaStream_t stream) {
  const status checked = detail::check_blocks<Block>(w, blocks);
  if (checked != status::ok || w.empty()) return checked;
  return detail::launch_quantize_blocks<false>(w, blocks, nullptr, nullptr, stream);
}

/// The same with importance (k) of columns. @returns the same, bad_shape also for no importance, or workspace_too_small.
template <class Block, class T>
status quantize_blocks(matrix<const T> w, matrix<Block> blocks, const float* importance, void* workspace,
                       index_t& workspace_bytes, cudaStream_t stream) {
  status checked = detail::check_blocks<Block>(w, blocks);
  if (checked != status::ok) return checked;
  if (importance == nullptr && !w.empty()) return status::bad_shape;
  if (!detail::aligned(importance)) return status::misaligned;
  const index_t needed = Block::weights == 32 ? w.rows * index_t{sizeof(float)} : 0;
  checked = detail::check_workspace(workspace, workspace_bytes, needed);
  if (checked != status::ok || workspace == nullptr || w.empty()) return checked;
  return detail::launch_quantize_blocks<true>(w, blocks, importance, static_cast<float*>(workspace), stream);
}

/// reference::dequantize_blocks on device pointers, asynchronous in `stream`. blocks (n, k / Block::weights), w (n, k) float, fp16 or
/// bf16; any strides; by 16-byte stores where w is 16-byte aligned, row for row.
/// @returns bad_group where a block's weights do not divide k, bad_shape, misaligned (blocks to less than 2 bytes, w to less than
/// an element), or what launch says.
template <class Block, class T>
status dequantize_blocks(matrix<const Block> blocks, matrix<T> w, cudaStream_t stream) {
  const status checked = detail::check_blocks<Block>(w, blocks);
  if (checked != status::ok || w.empty()) return checked;
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
