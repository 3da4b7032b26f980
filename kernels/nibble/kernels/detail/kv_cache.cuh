// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernel that writes keys and values to a cache of floating-point codes, without its launcher.
#pragma once

#include "nibble/kernels/detail/fp8.cuh"
#include "nibble/kv_cache.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// Items numbers of a token from `col` on, to its slot.
template <int Items, class T, class Scheme>
__device__ void write_slot(matrix<const T> from, matrix<const float> scales, matrix<uint8_t> cache, index_t token,
                           index_t slot, index_t col, Scheme s) {
  if (col >= from.cols || !has_slot(slot, cache.rows)) return;
  const index_t left = from.cols - col, head_dim = from.cols / scales.cols;
  const int count = static_cast<int>(left < Items ? left : Items);
  const auto x = load_some<T, Items>(from.row(token) + col, count);
  device::chunk<uint8_t, Items> codes;
#pragma unroll
  for (int i = 0; i < Items; ++i) {
    const index_t head = i < count ? (col + i) / head_dim : 0;
    codes.at[i] = float_code_of(static_cast<float>(x.at[i]), device::load_constant(scales.data + head), s);
  }
  store_some<uint8_t, Items>(cache.row(slot) + col, codes, count);
}

/// A block is blockDim.x · Items numbers wide, keys and then values, and blockDim.y tokens high; blocks go along the numbers first.
template <class Tuned, int Items, class Scheme, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    write_cache_kernel(keys_values<const T> from, const index_t* slots, keys_values<const float> scales,
                       keys_values<uint8_t> cache, Scheme s, index_t key_chunks, unsigned blocks_across) {
  const index_t chunk = index_t{blockIdx.x % blocks_across} * blockDim.x + threadIdx.x;
  const index_t token = index_t{blockIdx.x / blocks_across} * blockDim.y + threadIdx.y;
  if (token >= from.k.rows) return;
  const index_t slot = device::load_constant(slots + token);
  if (chunk < key_chunks)
    write_slot<Items>(from.k, scales.k, cache.k, token, slot, chunk * Items, s);
  else
    write_slot<Items>(from.v, scales.v, cache.v, token, slot, (chunk - key_chunks) * Items, s);
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
