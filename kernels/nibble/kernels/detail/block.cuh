// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernel that reads ggml's blocks, without its launcher: this much compiles under NVRTC.
#pragma once

#include "nibble/block.hpp"
#include "nibble/kernels/detail/device.cuh"
#include "nibble/kernels/tuning/block.cuh"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// nibble::block_value, no two operations fused.
template <class Block>
__device__ float weight_of(block_scales s, int level) {
  const float product = device::multiply(s.scale, static_cast<float>(level));
  return has_offset<Block> ? device::add(product, s.offset) : product;
}

/// A thread makes Items weights of one group, next to one another; a row of threads goes along a row of w.
template <class Tuned, int Items, class Block, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    dequantize_blocks_kernel(matrix<const Block> blocks, matrix<T> w, bool wide, unsigned blocks_across) {
  static_assert(Block::group % Items == 0, "a thread's weights share a scale");
  const index_t chunk = index_t{blockIdx.x % blocks_across} * blockDim.x + threadIdx.x;
  const index_t row = index_t{blockIdx.x / blocks_across} * blockDim.y + threadIdx.y;
  constexpr int chunks = Block::weights / Items;
  if (row >= w.rows || chunk >= blocks.cols * chunks) return;
  const Block& b = blocks.row(row)[chunk / chunks];
  const int first = static_cast<int>(chunk % chunks) * Items;
  const block_scales s = block_group(b, first / Block::group);
  device::chunk<T, Items> x;
#pragma unroll
  for (int i = 0; i < Items; ++i)
    x.at[i] = static_cast<T>(weight_of<Block>(s, block_level<Block>(block_code(b, first + i))));
  T* const to = w.row(row) + chunk * Items;
  if (wide) return device::store_once(reinterpret_cast<device::chunk<T, Items>*>(to), x);
#pragma unroll
  for (int i = 0; i < Items; ++i) to[i] = x.at[i];
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
