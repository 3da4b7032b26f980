// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of distortion, without their launchers: this much compiles under NVRTC.
#pragma once

#include "nibble/distortion.hpp"
#include "nibble/kernels/detail/device.cuh"
#include "nibble/kernels/detail/quantize.cuh"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// distortion_sums without their initial values, which shared memory cannot have.
struct stored_sums {
  uint64_t words[sizeof(distortion_sums) / sizeof(uint64_t)];
};

/// f over the block's values, one a thread, by halves, so in one order; all threads get it. `values` has blockDim.x · blockDim.y of them, a
/// power of two.
template <class T, class F>
__device__ T fold_block(T value, T* values, F f) {
  const unsigned t = threadIdx.y * blockDim.x + threadIdx.x;
  values[t] = value;
  for (unsigned half = blockDim.x * blockDim.y / 2; half > 0; half /= 2) {
    device::barrier();
    if (t < half) values[t] = f(values[t], values[t + half]);
  }
  device::barrier();
  const T all = values[0];
  device::barrier();
  return all;
}

__device__ inline stored_sums joined(stored_sums a, stored_sums b) {
  auto sums = bit_cast<distortion_sums>(a);
  sums.add(bit_cast<distortion_sums>(b));
  return bit_cast<stored_sums>(sums);
}

template <class T>
__device__ double as_double(T x) {
  return static_cast<double>(static_cast<float>(x));
}

/// partial (blocks) ← the sums of each block's share of x and y (n, k).
template <class Tuned, int Items, class T, class U>
__global__ void __launch_bounds__(Tuned::value.threads)
    distortion_kernel(matrix<const T> x, matrix<const U> y, distortion_sums* partial, unsigned blocks_across) {
  constexpr int ahead = Tuned::value.ahead, rounds = Tuned::value.rounds;
  NIBBLE_SHARED(stored_sums, of_threads, Tuned::value.threads);
  const share<Items, ahead * rounds> mine(x.cols, x.cols, blocks_across);
  distortion_sums sums;
  for (int round = 0; round < rounds && mine.count > 0; ++round) {
    device::chunk<T, Items> from_x[ahead];
    device::chunk<U, Items> from_y[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      const index_t row = mine.row(round * ahead + i);
      if (row >= x.rows) continue;
      from_x[i] = load_some<T, Items>(x.row(row) + mine.col, mine.count);
      from_y[i] = load_some<U, Items>(y.row(row) + mine.col, mine.count);
    }
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      if (mine.row(round * ahead + i) >= x.rows) break;
#pragma unroll
      for (int j = 0; j < Items; ++j)
        if (j < mine.count) sums.add(as_double(from_x[i].at[j]), as_double(from_y[i].at[j]));
    }
  }
  const stored_sums all = fold_block(bit_cast<stored_sums>(sums), of_threads, joined);
  if (threadIdx.x == 0 && threadIdx.y == 0) partial[blockIdx.x] = bit_cast<distortion_sums>(all);
}

/// *total ← the sums of `count` parts, by one block.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads)
    join_kernel(const distortion_sums* parts, index_t count, distortion_sums* total) {
  NIBBLE_SHARED(stored_sums, of_threads, Tuned::value.threads);
  distortion_sums sums;
  for (index_t i = threadIdx.x; i < count; i += blockDim.x) sums.add(parts[i]);
  const stored_sums all = fold_block(bit_cast<stored_sums>(sums), of_threads, joined);
  if (threadIdx.x == 0) *total = bit_cast<distortion_sums>(all);
}

/// A number of each of two rows of logits.
struct of_two {
  double p, q;
};

/// The larger; NaN, once in, stays.
__device__ inline double top_of(double a, double b) {
  return b <= a ? a : a != a ? a : b;
}

/// divergence (m) ← KL(softmax(p) ‖ softmax(q)) of every row of p and q (m, vocabulary), a block a row: the largest logits, the sums of
/// exponentials relative to them, the divergence.
template <class Tuned, class T, class U>
__global__ void __launch_bounds__(Tuned::value.row_threads, Tuned::value.row_blocks)
    kl_divergence_kernel(matrix<const T> p, matrix<const U> q, double* divergence) {
  NIBBLE_SHARED(of_two, of_threads, Tuned::value.row_threads);
  const index_t row = blockIdx.x, first = threadIdx.x, step = blockDim.x, count = p.cols;
  const T* const of_p = p.row(row);
  const U* const of_q = q.row(row);
  const auto add = [](of_two a, of_two b) { return of_two{device::add(a.p, b.p), device::add(a.q, b.q)}; };

  of_two top{-nibble::detail::infinity, -nibble::detail::infinity};
  for (index_t i = first; i < count; i += step)
    top = {top_of(top.p, as_double(of_p[i])), top_of(top.q, as_double(of_q[i]))};
  top = fold_block(top, of_threads, [](of_two a, of_two b) { return of_two{top_of(a.p, b.p), top_of(a.q, b.q)}; });

  of_two sum{0.0, 0.0};
  for (index_t i = first; i < count; i += step) {
    sum.p = device::add(sum.p, fixed::exp(as_double(of_p[i]) - top.p));
    sum.q = device::add(sum.q, fixed::exp(as_double(of_q[i]) - top.q));
  }
  sum = fold_block(sum, of_threads, add);
  // Relative to the largest first: exact to a rounding of the difference, however large the logits are.
  const of_two norm{fixed::log(sum.p), fixed::log(sum.q)};
  of_two part{0.0, 0.0};
  for (index_t i = first; i < count; i += step) {
    const double log_p = device::subtract(as_double(of_p[i]) - top.p, norm.p), share = fixed::exp(log_p);
    const double apart = device::subtract(log_p, device::subtract(as_double(of_q[i]) - top.q, norm.q));
    if (share > 0.0) part.p = device::add(part.p, device::multiply(share, apart));
  }
  part = fold_block(part, of_threads, add);
  // Rows with NaN, with +inf, or of −inf only have no softmax; empty ones do not differ.
  const bool both = count == 0 || fixed::fabs(top.p) + fixed::fabs(top.q) < nibble::detail::infinity;
  if (threadIdx.x == 0) divergence[row] = both ? part.p : bit_cast<double>(uint64_t(0x7ff8000000000000));
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
