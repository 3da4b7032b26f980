// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of awq, without their launchers: this much compiles under NVRTC.
#pragma once

#include "nibble/awq.hpp"
#include "nibble/fit.hpp"
#include "nibble/kernels/detail/device.cuh"
#include "nibble/kernels/detail/quantize.cuh"
#include "nibble/matrix.hpp"
#include "nibble/observe.hpp"
#include "nibble/quantize.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// A group of a row of W, shared by `lanes` lanes of a warp, a power of two. All lanes of a warp have one, some of them empty.
struct team {
  index_t row = 0, group = 0, first = 0, count = 0;
  int lane, lanes;

  __device__ team(index_t rows, index_t cols, index_t width, int lanes_) : lanes(lanes_) {
    const int thread = static_cast<int>(threadIdx.x), teams = static_cast<int>(blockDim.x) / lanes;
    const index_t groups = ceil_div(cols, width), own = index_t{blockIdx.x} * teams + thread / lanes;
    lane = thread % lanes;
    if (own >= rows * groups) return;
    row = own / groups;
    group = own % groups;
    first = group * width;
    count = min(width, cols - first);
  }
  template <class T, class F>
  __device__ T fold(T value, F f) const {
    for (int flip = lanes / 2; flip > 0; flip /= 2) value = f(value, device::shuffle_xor(value, flip));
    return value;
  }
};

/// Elements [0, count) of s, which is read by every row.
template <int Items>
__device__ device::chunk<float, Items> load_scales(const float* s, int count) {
  device::chunk<float, Items> some{};
  if constexpr (Items % 4 == 0) {
    if (count == Items) {
#pragma unroll
      for (int j = 0; j < Items; j += 4) {
        const auto four = device::load_constant(reinterpret_cast<const float4*>(s + j));
        some.at[j] = four.x, some.at[j + 1] = four.y, some.at[j + 2] = four.z, some.at[j + 3] = four.w;
      }
      return some;
    }
  }
  for (int j = 0; j < Items; ++j)
    if (j < count) some.at[j] = s[j];
  return some;
}

/// largest (n, groups) ← max |w| of every group; NaN and ±inf count as 0.
template <class Tuned, int Items, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    group_maximum_kernel(matrix<const T> w, index_t width, int lanes, matrix<float> largest) {
  const team mine(w.rows, w.cols, width, lanes);
  float most = 0;
  for (index_t i = mine.lane * Items; i < mine.count; i += index_t{lanes} * Items) {
    const int count = static_cast<int>(min(index_t{Items}, mine.count - i));
    const auto x = load_some<T, Items>(w.row(mine.row) + mine.first + i, count);
#pragma unroll
    for (int j = 0; j < Items; ++j) most = max(most, abs(observed(static_cast<float>(x.at[j]))));
  }
  most = mine.fold(most, [](float a, float b) { return max(a, b); });
  if (mine.lane == 0 && mine.count > 0) largest(mine.row, mine.group) = most;
}

/// partial (row tiles, k) ← Σ |w| / (largest + 1e-6) over a block's rows, a term rounded to float; sums as observe_kernel's.
template <class Tuned, int Items, class T>
__global__ void __launch_bounds__(Tuned::value.across* Tuned::value.down)
    importance_kernel(matrix<const T> w, matrix<const float> largest, index_t width, matrix<double> partial,
                      unsigned blocks_across) {
  constexpr int across = Tuned::value.across, down = Tuned::value.down;
  NIBBLE_SHARED(double, sums, across* down* Items);
  const int lane = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const index_t tile = blockIdx.x / blocks_across;
  const index_t col = (index_t{blockIdx.x % blocks_across} * across + lane) * Items, first_group = col / width;
  const int count = static_cast<int>(clamp(w.cols - col, index_t(0), index_t(Items)));
  const bool one_group = col + count <= (first_group + 1) * width;
  const index_t last = min(w.rows, (tile + 1) * Tuned::value.rows);
  double sum[Items] = {};
  for (index_t row = tile * Tuned::value.rows + y; row < last && count > 0; row += down) {
    const auto x = load_some<T, Items>(w.row(row) + col, count);
    float norm = device::add(largest(row, first_group), 1e-6f);
#pragma unroll
    for (int j = 0; j < Items; ++j) {
      if (!one_group && j < count) norm = device::add(largest(row, (col + j) / width), 1e-6f);
      const float term = device::divide(abs(observed(static_cast<float>(x.at[j]))), norm);
      sum[j] = device::add(sum[j], static_cast<double>(term));
    }
  }
#pragma unroll
  for (int j = 0; j < Items; ++j) sums[(y * Items + j) * across + lane] = sum[j];
  device::barrier();
  for (int j = y; j < count; j += down) {
    double total = 0;
    for (int i = 0; i < down; ++i) total = device::add(total, sums[(i * Items + j) * across + lane]);
    partial(tile, col + j) = total;
  }
}

/// out = w · diag(s), or w where s is null.
template <class Tuned, int Items, class T, class To>
__global__ void __launch_bounds__(Tuned::value.threads)
    scale_columns_kernel(matrix<const T> w, const float* s, matrix<To> out, unsigned blocks_across) {
  const share<Items, 1> mine(w.cols, w.cols, blocks_across);
  if (mine.count == 0 || mine.first_row >= w.rows) return;
  const auto x = load_some<T, Items>(w.row(mine.first_row) + mine.col, mine.count);
  device::chunk<float, Items> by;
  for (float& one : by.at) one = 1.0f;
  if (s != nullptr) by = load_scales<Items>(s + mine.col, mine.count);
  device::chunk<To, Items> y;
#pragma unroll
  for (int j = 0; j < Items; ++j) y.at[j] = To(device::multiply(static_cast<float>(x.at[j]), by.at[j]));
  store_some<To, Items>(out.row(mine.first_row) + mine.col, y, mine.count);
}

/// difference = Q(w·s) / s − w, ranges from the least to the greatest finite w·s of a group; p, unless its data is null, ← their
/// parameters. A team a group: it keeps the group in registers where 16 bytes a lane hold it, else reads it a second time.
template <class Tuned, int Items, class Scheme, class T, class To>
__global__ void __launch_bounds__(Tuned::value.threads)
    scaled_error_kernel(matrix<const T> w, const float* s, matrix<To> difference, matrix<params> p, index_t width,
                        int lanes, Scheme scheme) {
  const team mine(w.rows, w.cols, width, lanes);
  const index_t step = index_t{lanes} * Items;
  const T* const weights = w.row(mine.row) + mine.first;
  device::chunk<T, Items> x{};
  float low = bit_cast<float>(0x7f800000u), high = -low;
  for (index_t i = mine.lane * Items; i < mine.count; i += step) {
    const int count = static_cast<int>(min(index_t{Items}, mine.count - i));
    x = load_some<T, Items>(weights + i, count);
    const auto by = load_scales<Items>(s + mine.first + i, count);
#pragma unroll
    for (int j = 0; j < Items; ++j) {
      const float value = device::multiply(static_cast<float>(x.at[j]), by.at[j]);
      if (j >= count || !is_finite(value)) continue;
      low = min(low, value);
      high = max(high, value);
    }
  }
  low = mine.fold(low, [](float a, float b) { return min(a, b); });
  high = mine.fold(high, [](float a, float b) { return max(a, b); });
  const params of = low <= high ? fit(low, high, scheme) : fit(0.0f, 0.0f, scheme);
  if (p.data != nullptr && mine.lane == 0 && mine.count > 0) p(mine.row, mine.group) = of;
  for (index_t i = mine.lane * Items; i < mine.count; i += step) {
    const int count = static_cast<int>(min(index_t{Items}, mine.count - i));
    if (mine.count > step) x = load_some<T, Items>(weights + i, count);
    const auto by = load_scales<Items>(s + mine.first + i, count);
    device::chunk<To, Items> y;
#pragma unroll
    for (int j = 0; j < Items; ++j) {
      const float weight = static_cast<float>(x.at[j]), scaled = device::multiply(weight, by.at[j]);
      const float back = dequantize(nibble::quantize(scaled, of, scheme), of, scheme);
      y.at[j] = To(device::subtract(device::divide(back, by.at[j]), weight));
    }
    store_some<To, Items>(difference.row(mine.row) + mine.first + i, y, count);
  }
}

/// difference = (what codes q stand for − w) / s · of_row, w already scaled by s.
template <class Tuned, int Items, class Scheme, class T, class To>
__global__ void __launch_bounds__(Tuned::value.threads)
    codes_error_kernel(matrix<const T> w, matrix<const uint8_t> q, matrix<const params> p, const float* s,
                       const float* of_row, matrix<To> difference, index_t width, Scheme scheme,
                       unsigned blocks_across) {
  const share<Items, 1> mine(w.cols, width, blocks_across);
  const index_t row = mine.first_row;
  if (mine.count == 0 || row >= w.rows) return;
  const auto x = load_some<T, Items>(w.row(row) + mine.col, mine.count);
  const auto codes = load_some<uint8_t, Items>(q.row(row) + mine.col, mine.count);
  const auto by = load_scales<Items>(s + mine.col, mine.count);
  const float times = of_row != nullptr ? of_row[row] : 1.0f;
  params of = p(row, mine.first_group);
  device::chunk<To, Items> y;
#pragma unroll
  for (int j = 0; j < Items; ++j) {
    if (!mine.one_group && j < mine.count) of = p(row, (mine.col + j) / width);
    const float apart = device::subtract(dequantize(codes.at[j], of, scheme), static_cast<float>(x.at[j]));
    y.at[j] = To(device::multiply(device::divide(apart, by.at[j]), times));
  }
  store_some<To, Items>(difference.row(row) + mine.col, y, mine.count);
}

/// The block's sum of a double each, thread 0's answer: by halves, so in one order. `sums` has blockDim.x doubles, a power of two.
__device__ inline double block_sum(double value, double* sums) {
  const unsigned t = threadIdx.x;
  sums[t] = value;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    device::barrier();
    if (t < half) sums[t] = device::add(sums[t], sums[t + half]);
  }
  return t == 0 ? sums[0] : 0.0;
}

/// sum (rows) ← Σ a∘b of every row, products and sums in double; a block a row.
template <class Tuned, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    row_dot_kernel(matrix<const float> a, matrix<const T> b, double* sum) {
  NIBBLE_SHARED(double, sums, Tuned::value.threads);
  const index_t row = blockIdx.x;
  double part = 0;
  for (index_t col = threadIdx.x; col < a.cols; col += blockDim.x)
    part = device::fused(static_cast<double>(a(row, col)), static_cast<double>(static_cast<float>(b(row, col))), part);
  const double total = block_sum(part, sums);
  if (threadIdx.x == 0) sum[row] = total;
}

/// *total ← Σ parts (count), by one block.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads) sum_kernel(const double* parts, index_t count, double* total) {
  NIBBLE_SHARED(double, sums, Tuned::value.threads);
  double part = 0;
  for (index_t i = threadIdx.x; i < count; i += blockDim.x) part = device::add(part, parts[i]);
  const double all = block_sum(part, sums);
  if (threadIdx.x == 0) *total = all;
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
