// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of mxfp4 and nvfp4, without their launchers: this much compiles under NVRTC.
#pragma once

#include "nibble/fp4.hpp"
#include "nibble/kernels/detail/fit.cuh"
#include "nibble/kernels/detail/fp8.cuh"
#include "nibble/kernels/tuning/fp8.cuh"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// Codes of a lane's `count` numbers, if any, under `scale`, two a byte, to `packed`; by one access where `wide` says that they may be.
template <int Items, class T>
__device__ void store_packed(uint8_t* packed, const items<T, Items>& x, int count, bool wide, float scale) {
  device::chunk<uint8_t, Items / 2> bytes;
#pragma unroll
  for (int i = 0; i < Items; i += 2) {
    uint32_t low = 0, high = 0;
    if (i < count) low = fp4_code(static_cast<float>(x.at[i]), scale);
    if (i + 1 < count) high = fp4_code(static_cast<float>(x.at[i + 1]), scale);
    bytes.at[i / 2] = static_cast<uint8_t>(low | high << 4);
  }
  if (wide && count == Items)
    return device::store_once(reinterpret_cast<device::chunk<uint8_t, Items / 2>*>(packed), bytes);
#pragma unroll
  for (int i = 0; i < Items; i += 2)
    if (i < count) packed[i / 2] = bytes.at[i / 2];
}

/// A block of numbers is held by block / Items lanes of a warp, next to one another.
template <class Tuned, int Items, class BlockFormat, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    fit_quantize_pack_fp4_kernel(matrix<const T> w, matrix<uint8_t> packed, matrix<uint8_t> scales, bool wide,
                                 BlockFormat f, unsigned blocks_across) {
  constexpr int rows = Tuned::value.in_flight, lanes = static_cast<int>(BlockFormat::block) / Items;
  const team_share<Items, rows> mine(w.cols, BlockFormat::block, lanes, blocks_across);
  items<T, Items> x[rows];
  load_rows(w, mine, wide, x);
#pragma unroll
  for (int i = 0; i < rows; ++i) {
    const index_t row = mine.row(i);
    const range ends = warp_range(x[i].widened(range::none(), row < w.rows ? mine.count : 0), lanes);
    const uint8_t code = block_scale_code(amax_of(ends), f);
    if (row >= w.rows) continue;
    if (mine.leads(w.cols, BlockFormat::block)) scales(row, mine.group) = code;
    store_packed(packed.row(row) + mine.col / 2, x[i], mine.count, wide, block_scale(code, f));
  }
}

/// A thread has Items numbers of one block in every blockDim.y-th of some rows.
template <class Tuned, int Items, class BlockFormat, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    unpack_dequantize_fp4_kernel(matrix<const uint8_t> packed, matrix<const uint8_t> scales, matrix<T> w, bool wide,
                                 BlockFormat f, unsigned blocks_across) {
  constexpr int rows = Tuned::value.in_flight, bytes = Items / 2;
  const share<Items, rows> mine(w.cols, BlockFormat::block, blocks_across);
  if (mine.count == 0) return;
  const int whole = wide ? Items : 0;  // count at which one access takes all
  items<uint8_t, bytes> two[rows];
#pragma unroll
  for (int i = 0; i < rows; ++i)
    if (mine.row(i) < w.rows) {
      const uint8_t* const from = packed.row(mine.row(i)) + mine.col / 2;
      if (mine.count == whole) {
        const auto some = device::load_once(reinterpret_cast<const device::chunk<uint8_t, bytes>*>(from));
#pragma unroll
        for (int j = 0; j < bytes; ++j) two[i].at[j] = some.at[j];
      } else {
        two[i].load(from, (mine.count + 1) / 2, false);
      }
    }
#pragma unroll
  for (int i = 0; i < rows; ++i) {
    const index_t row = mine.row(i);
    if (row >= w.rows) return;
    const float scale = block_scale(scales(row, mine.first_group), f);
    device::chunk<T, Items> x;
#pragma unroll
    for (int j = 0; j < Items; ++j)
      if (j < mine.count) x.at[j] = static_cast<T>(fp4_value(two[i].at[j / 2] >> 4 * (j % 2) & 15, scale));
    T* const to = w.row(row) + mine.col;
    if (mine.count == whole) {
      device::store_once(reinterpret_cast<device::chunk<T, Items>*>(to), x);
    } else {
#pragma unroll
      for (int j = 0; j < Items; ++j)
        if (j < mine.count) to[j] = x.at[j];
    }
  }
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
