// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of factor, without their launcher: this much compiles under NVRTC.
#pragma once

#include "nibble/gptq.hpp"
#include "nibble/kernels/detail/awq.cuh"
#include "nibble/kernels/detail/device.cuh"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {

/// What factor tells, in device memory.
struct factored {
  double unit;      ///< what the factor's H was divided by
  uint32_t failed;  ///< not 0: H is not positive definite in float, or not finite
};

namespace detail {

/// Rows that are factorised at a time.
inline constexpr int factor_block = 128;

/// Where element (row, col) of a lower triangle lies that is stored without gaps, rows one after another.
NIBBLE_HOST_DEVICE constexpr int below(int row, int col) noexcept {
  return row * (row + 1) / 2 + col;
}
inline constexpr int triangle = below(factor_block, 0);

/// H before damping: diag(1/s)·G·diag(1/s) in the order of solving. Both triangles of G are the same.
struct ordered_gram {
  matrix<const float> g;
  const float* s;         ///< (k), or null for 1
  const index_t* column;  ///< (k), or null: as they lie

  __device__ index_t place(index_t i) const { return column == nullptr ? i : column[i]; }
  __device__ double diagonal(index_t i) const {
    const index_t at = place(i);
    const double scale = s == nullptr ? 1.0 : static_cast<double>(s[at]);
    return device::divide(static_cast<double>(g(at, at)), device::multiply(scale, scale));
  }
  __device__ float factor(index_t at) const { return s == nullptr ? 1.0f : device::divide(1.0f, s[at]); }
  /// What is beside the diagonal, in units; rounded as host::hessian rounds it.
  __device__ float beside(index_t i, index_t j, float per_unit) const {
    const index_t row = place(min(i, j)), col = place(max(i, j));
    return device::multiply(g(place(i), place(j)),
                            device::multiply(device::multiply(per_unit, factor(row)), factor(col)));
  }
};

__device__ inline bool finite(double x) {
  constexpr double most = 0x1.fffffffffffffp1023;
  return x >= -most && x <= most;
}

/// state ← the mean of the diagonal over channels that fired; failed where it is not finite. One block.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads) unit_kernel(ordered_gram h, factored* state) {
  NIBBLE_SHARED(double, sums, Tuned::value.threads);
  double sum = 0, fired = 0;
  for (index_t i = threadIdx.x; i < h.g.rows; i += Tuned::value.threads) {
    const double own = h.diagonal(i);
    sum = device::add(sum, own);
    fired = device::add(fired, own > 0 ? 1.0 : 0.0);
  }
  const double all = block_sum(sum, sums);
  device::barrier();
  const double live = block_sum(fired, sums);
  if (threadIdx.x != 0) return;
  const bool usable = finite(all);
  *state = {usable && live > 0 ? device::divide(all, live) : 1.0, usable ? 0u : 1u};
}

/// Row i of l, up to the diagonal, ← the damped H in units; with `floored` the diagonal is at least the sum of what is beside it.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads)
    damp_kernel(ordered_gram h, double damping, bool floored, const factored* state, matrix<float> l) {
  NIBBLE_SHARED(double, sums, Tuned::value.threads);
  const index_t i = blockIdx.x;
  const double unit = state->unit;
  const auto per_unit = static_cast<float>(device::divide(1.0, unit));
  double sum = 0;
  for (index_t j = threadIdx.x; j < (floored ? l.cols : i); j += Tuned::value.threads) {
    if (j == i) continue;
    const float value = h.beside(i, j, per_unit);
    if (j < i) l(i, j) = value;
    sum = device::add(sum, static_cast<double>(abs(value)));
  }
  const double beside = floored ? block_sum(sum, sums) : 0.0;
  if (threadIdx.x != 0) return;
  const double own = device::divide(h.diagonal(i), unit);
  const auto damped = static_cast<float>(own > 0 ? device::add(own, damping) : 1.0);
  l(i, i) = floored ? static_cast<float>(floored_diagonal(static_cast<double>(damped), beside)) : damped;
}

/// The lower triangle of h (n, n), n ≤ 128 ← L, h = Lᵀ·L, in double, by one block; failed at a pivot that is not positive and finite.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads) corner_kernel(matrix<float> h, factored* state) {
  constexpr int warps = Tuned::value.threads / 32;
  NIBBLE_DYNAMIC_SHARED(double, l);
  NIBBLE_SHARED(double, roots, factor_block);
  if (state->failed != 0) return;
  const int n = static_cast<int>(h.rows), me = static_cast<int>(threadIdx.x), warp = me / 32, lane = me % 32;
  for (int i = warp; i < n; i += warps)
    for (int j = lane; j <= i; j += 32) l[below(i, j)] = static_cast<double>(h(i, j));
  device::barrier();
  bool fine = true;
  for (int last = n - 1; last >= 0; --last) {
    const double pivot = l[below(last, last)];
    fine = pivot > 0 && finite(pivot);
    if (!fine) break;
    const double root = device::square_root(pivot);
    if (me < last) l[below(last, me)] = device::divide(l[below(last, me)], root);
    if (me == last) roots[last] = root;
    device::barrier();
    for (int i = warp; i < last; i += warps) {
      const double of_row = -l[below(last, i)];
      for (int j = lane; j <= i; j += 32) l[below(i, j)] = device::fused(of_row, l[below(last, j)], l[below(i, j)]);
    }
    device::barrier();
  }
  for (int i = warp; i < n && fine; i += warps)
    for (int j = lane; j <= i; j += 32) {
      const auto value = static_cast<float>(i == j ? roots[i] : l[below(i, j)]);
      h(i, j) = value;
      fine = fine && is_finite(value);
    }
  if (device::barrier_any(!fine) && me == 0) state->failed = 1;
}

/// panel (n, cols) ← X of cornerᵀ·X = panel, corner (n, n) lower triangular, n ≤ 128, cols a multiple of 128: a warp has some columns,
/// its lanes four rows.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads)
    panel_kernel(matrix<const float> corner, matrix<float> panel, const factored* state) {
  constexpr int warps = Tuned::value.threads / 32, cols = Tuned::value.cols, parts = factor_block / 32;
  static_assert(factor_block % (warps * cols) == 0, "blocks share out whole panels");
  NIBBLE_SHARED(float, l, triangle);
  if (state->failed != 0) return;
  const int n = static_cast<int>(corner.rows), warp = static_cast<int>(threadIdx.x) / 32, lane = device::lane();
  for (int i = warp; i < n; i += warps)
    for (int j = lane; j <= i; j += 32) l[below(i, j)] = corner(i, j);
  device::barrier();
  const index_t col = (index_t{blockIdx.x} * warps + warp) * cols;
  float x[parts][cols];
#pragma unroll
  for (int part = 0; part < parts; ++part)
#pragma unroll
    for (int j = 0; j < cols; ++j) {
      const int at = part * 32 + lane;
      x[part][j] = at < n ? panel(at, col + j) : 0.0f;
    }
#pragma unroll
  for (int part = parts - 1; part >= 0; --part)
    for (int row = min(n, (part + 1) * 32) - 1; row >= part * 32; --row) {
      const float pivot = l[below(row, row)];
      float solved[cols];
#pragma unroll
      for (int j = 0; j < cols; ++j) {
        if (lane == row % 32) x[part][j] = device::divide(x[part][j], pivot);
        solved[j] = device::shuffle(x[part][j], row % 32);
      }
#pragma unroll
      for (int above = 0; above <= part; ++above) {
        const int at = above * 32 + lane;
        if (at >= row) continue;
        const float of_row = -l[below(row, at)];
#pragma unroll
        for (int j = 0; j < cols; ++j) x[above][j] = device::fused(of_row, solved[j], x[above][j]);
      }
    }
#pragma unroll
  for (int part = 0; part < parts; ++part)
#pragma unroll
    for (int j = 0; j < cols; ++j) {
      const int at = part * 32 + lane;
      if (at < n) panel(at, col + j) = x[part][j];
    }
}

/// Where it failed, the lower triangle of l ← I: whoever solves with it rounds to nearest.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads) settle_kernel(const factored* state, matrix<float> l) {
  if (state->failed == 0) return;
  const index_t i = blockIdx.x;
  for (index_t j = threadIdx.x; j <= i; j += Tuned::value.threads) l(i, j) = j == i ? 1.0f : 0.0f;
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
