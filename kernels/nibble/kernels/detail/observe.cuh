// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of observe, without their launchers: this much compiles under NVRTC.
#pragma once

#include "nibble/kernels/detail/device.cuh"
#include "nibble/kernels/detail/quantize.cuh"
#include "nibble/matrix.hpp"
#include "nibble/observe.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// What one thread has seen of its columns.
template <int Items>
struct seen {
  double sum[Items] = {};
  float most[Items] = {};
  uint32_t non_finite = 0;

  /// @param x 0 where the thread has no column.
  template <class T>
  __device__ void add(device::chunk<T, Items> x) {
#pragma unroll
    for (int j = 0; j < Items; ++j) {
      const float value = static_cast<float>(x.at[j]), magnitude = abs(observed(value));
      sum[j] = device::add(sum[j], static_cast<double>(magnitude));
      most[j] = max(most[j], magnitude);
      non_finite += is_finite(value) ? 0u : 1u;
    }
  }
};

template <class T, int Items>
__device__ device::chunk<T, Items> cleaned(device::chunk<T, Items> x) {
#pragma unroll
  for (int j = 0; j < Items; ++j)
    if (!is_finite(static_cast<float>(x.at[j]))) x.at[j] = T(0.0f);
  return x;
}

/// One pass over x (m, k) for all statistics; null pointers are not wanted. A block has Tuned::value.across · Items columns and
/// Tuned::value.tokens tokens. partial (row tiles, k) ← Σ |x| of a block: thread (·, y) adds tokens y, y + down, … in order, and the
/// block adds its threads' sums by rising y. maximum (k) and non_finite (1) do not depend on an order.
template <class Tuned, int Items, class T>
__global__ void __launch_bounds__(Tuned::value.across* Tuned::value.down)
    observe_kernel(matrix<const T> x, matrix<double> partial, float* maximum, uint64_t* non_finite, matrix<T> clean,
                   unsigned blocks_across) {
  constexpr int across = Tuned::value.across, down = Tuned::value.down, ahead = Tuned::value.ahead;
  NIBBLE_SHARED(double, sums, across* down* Items);
  NIBBLE_SHARED(float, most, across* down* Items);
  const int lane = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const index_t tile = blockIdx.x / blocks_across;
  const index_t block_col = index_t{blockIdx.x % blocks_across} * across * Items, col = block_col + lane * Items;
  const int count = static_cast<int>(clamp(x.cols - col, index_t(0), index_t(Items)));
  const index_t last = min(x.rows, (tile + 1) * Tuned::value.tokens);
  seen<Items> mine;
  for (index_t first = tile * Tuned::value.tokens + y; first < last && count > 0; first += ahead * down) {
    device::chunk<T, Items> some[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i)
      if (first + i * down < last) some[i] = load_some<T, Items>(x.row(first + i * down) + col, count);
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      const index_t row = first + i * down;
      if (row >= last) break;
      mine.add(some[i]);
      if (clean.data != nullptr) store_some<T, Items>(clean.row(row) + col, cleaned(some[i]), count);
    }
  }
  if (non_finite != nullptr && mine.non_finite > 0) device::atomic_add(non_finite, uint64_t{mine.non_finite});
#pragma unroll
  for (int j = 0; j < Items; ++j) {
    sums[(y * Items + j) * across + lane] = mine.sum[j];
    most[(y * Items + j) * across + lane] = mine.most[j];
  }
  device::barrier();
  for (int j = y; j < Items; j += down) {
    if (j >= count) break;
    double sum = 0;
    float largest = 0;
    for (int i = 0; i < down; ++i) {
      sum = device::add(sum, sums[(i * Items + j) * across + lane]);
      largest = max(largest, most[(i * Items + j) * across + lane]);
    }
    if (partial.data != nullptr) partial(tile, col + j) = sum;
    // Bits of floats that are not negative have their order.
    if (maximum != nullptr)
      device::atomic_max(reinterpret_cast<uint32_t*>(maximum + col + j), bit_cast<uint32_t>(largest));
  }
}

/// sum (k) += every row of partial (tiles, k), in order.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.across* Tuned::value.down)
    fold_kernel(matrix<const double> partial, double* sum) {
  const index_t col = index_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (col >= partial.cols) return;
  double total = sum[col];
  for (index_t tile = 0; tile < partial.rows; ++tile) total = device::add(total, partial(tile, col));
  sum[col] = total;
}

/// g (k, k) ← shrink(factor · g), its lower triangle from the upper; diagonal (k), unless null, ← its diagonal. A block has one
/// tile of the upper triangle and the tile that mirrors it.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.tile* Tuned::value.down)
    mirror_kernel(matrix<float> g, float factor, float shrinkage, float* diagonal, unsigned tiles) {
  constexpr int edge = Tuned::value.tile, down = Tuned::value.down;
  NIBBLE_SHARED(float, tile, edge*(edge + 1));
  const index_t row0 = index_t{blockIdx.x / tiles} * edge, col0 = index_t{blockIdx.x % tiles} * edge;
  if (row0 > col0) return;
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  for (int i = y; i < edge; i += down) {
    const index_t row = row0 + i, col = col0 + x;
    if (row > col || col >= g.cols) continue;
    const float value = shrink(device::multiply(g(row, col), factor), row, col, shrinkage);
    tile[i * (edge + 1) + x] = value;
    g(row, col) = value;
    if (row == col && diagonal != nullptr) diagonal[row] = value;
  }
  device::barrier();
  for (int i = y; i < edge; i += down) {
    const index_t row = col0 + i, col = row0 + x;
    if (row > col && row < g.rows) g(row, col) = tile[x * (edge + 1) + i];
  }
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
