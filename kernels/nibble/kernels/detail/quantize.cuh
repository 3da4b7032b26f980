// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of quantize and dequantize, without their launchers: this much compiles under NVRTC.
#pragma once

#include "nibble/kernels/detail/device.cuh"
#include "nibble/kernels/tuning/quantize.cuh"
#include "nibble/matrix.hpp"
#include "nibble/quantize.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// Rows a thread works on.
template <class Scheme>
NIBBLE_HOST_DEVICE constexpr int rows_of(tuning::quantize_policy policy) {
  return policy.rows;
}
template <>
NIBBLE_HOST_DEVICE constexpr int rows_of<any_scheme>(tuning::quantize_policy policy) {
  return policy.any_rows;
}

/// One thread's share of a matrix (rows, cols): `Items` columns from `col` on, in every `blockDim.y`-th of some rows. A block is
/// blockDim.x · Items columns wide and blockDim.y · Rows rows high; blocks go along the columns first.
template <int Items, int Rows>
struct share {
  index_t first_row, col;
  int count;            ///< columns inside the matrix
  index_t first_group;  ///< of `col`
  bool one_group;       ///< for all of them

  __device__ share(index_t cols, index_t group_width, unsigned blocks_across) {
    col = (index_t{blockIdx.x % blocks_across} * blockDim.x + threadIdx.x) * Items;
    first_row = index_t{blockIdx.x / blocks_across} * blockDim.y * Rows + threadIdx.y;
    const index_t left = cols - col;
    count = static_cast<int>(left < 0 ? 0 : left < Items ? left : Items);
    first_group = col / group_width;
    one_group = Items == 1 || col + count <= (first_group + 1) * group_width;
  }
  __device__ index_t row(int i) const { return first_row + index_t{blockDim.y} * i; }
};

/// Elements [0, count) at p, by one access when all are there, and 0 for others.
template <class T, int Items>
__device__ device::chunk<T, Items> load_some(const T* p, int count) {
  using chunk = device::chunk<T, Items>;
  if (count == Items) return device::load_once(reinterpret_cast<const chunk*>(p));
  chunk some{};
  for (int j = 0; j < Items; ++j)
    if (j < count) some.at[j] = p[j];
  return some;
}
template <class T, int Items>
__device__ void store_some(T* p, device::chunk<T, Items> some, int count) {
  if (count == Items) return device::store_once(reinterpret_cast<device::chunk<T, Items>*>(p), some);
  for (int j = 0; j < Items; ++j)
    if (j < count) p[j] = some.at[j];
}

/// to(row, col) = f(from(row, col), parameters of its group) for all of a thread's elements.
template <int Items, int Rows, class From, class P, class To, class F>
__device__ void map_groups(matrix<const From> from, matrix<const P> p, matrix<To> to, group_shape g,
                           unsigned blocks_across, F f) {
  const index_t height = g.height(from.rows), width = g.width(from.cols);
  const share<Items, Rows> mine(from.cols, width, blocks_across);
  if (mine.count == 0) return;
  device::chunk<From, Items> x[Rows];
#pragma unroll
  for (int i = 0; i < Rows; ++i)
    if (mine.row(i) < from.rows) x[i] = load_some<From, Items>(from.row(mine.row(i)) + mine.col, mine.count);
#pragma unroll
  for (int i = 0; i < Rows; ++i) {
    const index_t row = mine.row(i);
    if (row >= from.rows) return;
    const P* const of_row = p.row(height == 1 ? row : row / height);
    P of_group = of_row[mine.first_group];
    device::chunk<To, Items> y;
#pragma unroll
    for (int j = 0; j < Items; ++j) {
      if (!mine.one_group && j < mine.count) of_group = of_row[(mine.col + j) / width];
      y.at[j] = f(x[i].at[j], of_group);
    }
    store_some<To, Items>(to.row(row) + mine.col, y, mine.count);
  }
}

template <class Tuned, int Items, class Scheme, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    quantize_kernel(matrix<const T> w, matrix<const params> p, matrix<uint8_t> q, group_shape g, Scheme s,
                    unsigned blocks_across) {
  const auto f = [=](T x, params of_group) { return nibble::quantize(static_cast<float>(x), of_group, s); };
  map_groups<Items, rows_of<Scheme>(Tuned::value)>(w, p, q, g, blocks_across, f);
}

template <class Tuned, int Items, class Scheme, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    dequantize_kernel(matrix<const uint8_t> q, matrix<const params> p, matrix<T> w, group_shape g, Scheme s,
                      unsigned blocks_across) {
  const auto f = [=](uint8_t code, params of_group) { return static_cast<T>(nibble::dequantize(code, of_group, s)); };
  map_groups<Items, rows_of<Scheme>(Tuned::value)>(q, p, w, g, blocks_across, f);
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
