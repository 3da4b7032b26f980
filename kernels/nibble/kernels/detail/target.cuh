// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of drift and moved_target, without their launchers: this much compiles under NVRTC.
#pragma once

#include "nibble/kernels/detail/gptq.cuh"
#include "nibble/observe.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// clean (m, k) ← x, apart (m, k) ← x₀ − x, what is not finite as 0; the one that has no place is left out.
template <class Tuned, int Items, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    apart_kernel(matrix<const T> original, matrix<const T> x, matrix<float> clean, matrix<float> apart,
                 unsigned blocks_across) {
  const share<Items, 1> mine(x.cols, x.cols, blocks_across);
  if (mine.first_row >= x.rows) return;
  const auto a = load_some<T, Items>(original.row(mine.first_row) + mine.col, mine.count);
  const auto b = load_some<T, Items>(x.row(mine.first_row) + mine.col, mine.count);
#pragma unroll
  for (int j = 0; j < Items; ++j) {
    if (j >= mine.count) continue;
    const float now = observed(static_cast<float>(b.at[j]));
    if (clean.data != nullptr) clean(mine.first_row, mine.col + j) = now;
    if (apart.data != nullptr)
      apart(mine.first_row, mine.col + j) = device::subtract(observed(static_cast<float>(a.at[j])), now);
  }
}

/// out (k, k) ← diag(1/s)·E[(x₀ − x)·xᵀ]·diag(1/s), shrunk, in the factor's unit, columns in the order of solving; rounded as the host
/// rounds it. A block a row. @param per_token the share of the way over the tokens.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads)
    ordered_drift_kernel(matrix<const float> sum, const float* s, const index_t* column, double per_token,
                         float shrinkage, const factored* state, matrix<float> out) {
  const index_t row = blockIdx.x;
  const auto scale = [&](index_t at) { return s == nullptr ? 1.0 : static_cast<double>(s[at]); };
  const double of_row = device::divide(device::divide(per_token, state->unit), scale(row));
  for (index_t i = threadIdx.x; i < out.cols; i += Tuned::value.threads) {
    const index_t col = column == nullptr ? i : column[i];
    const double of_pair = device::divide(of_row, scale(col));
    const float shrunk = shrink(sum(row, col), row, col, shrinkage);
    out(row, i) = static_cast<float>(device::multiply(of_pair, static_cast<double>(shrunk)));
  }
}

/// out (rows, k) ← E[(r₀ − r)·xᵀ]·diag(1/s) in the factor's unit, columns in the order of solving; a block a row. @param column  by which s
/// is put in that order, @param own  by which sum (rows, k) is; null: it is in it.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads)
    ordered_residual_kernel(matrix<const float> sum, const float* s, const index_t* column, const index_t* own,
                            double per_token, const factored* state, matrix<float> out) {
  const index_t row = blockIdx.x;
  const double of_row = device::divide(per_token, state->unit);
  for (index_t i = threadIdx.x; i < out.cols; i += Tuned::value.threads) {
    const double scale = s == nullptr ? 1.0 : static_cast<double>(s[column == nullptr ? i : column[i]]);
    const float there = sum(row, own == nullptr ? i : own[i]);
    out(row, i) = static_cast<float>(device::multiply(device::divide(of_row, scale), static_cast<double>(there)));
  }
}

/// x (rows, count) ← y of y·Lᵀ = x, or with Backward of y·L = x, l (count, count) lower triangular, count ≤ 128; a warp a row.
template <class Tuned, bool Backward>
__global__ void __launch_bounds__(Tuned::value.threads) solve_kernel(matrix<const float> l, matrix<float> x) {
  constexpr int warps = Tuned::value.threads / 32;
  NIBBLE_SHARED(float, factor, triangle);
  const int count = static_cast<int>(l.cols), warp = static_cast<int>(threadIdx.x) / 32, lane = device::lane();
  const auto place = [](int i, int j) { return Backward ? below(i, j) : factor_place(j, i); };  // neighbours by j
  for (int row = warp; row < count; row += warps)
    for (int col = lane; col <= row; col += 32) factor[Backward ? place(row, col) : place(col, row)] = l(row, col);
  device::barrier();
  const index_t row = index_t{blockIdx.x} * warps + warp;
  if (row >= x.rows) return;
  float left[gptq_parts] = {};
#pragma unroll
  for (int part = 0; part < gptq_parts; ++part)
    if (part * 32 + lane < count) left[part] = x(row, part * 32 + lane);
#pragma unroll
  for (int step = 0; step < gptq_parts; ++step) {
    const int part = Backward ? gptq_parts - 1 - step : step;
    for (int turn = 0; turn < 32; ++turn) {
      const int i = part * 32 + (Backward ? 31 - turn : turn);
      if (i >= count) continue;
      if (lane == i % 32) left[part] = device::divide(left[part], factor[place(i, i)]);
      const float solved = device::shuffle(left[part], i % 32);
#pragma unroll
      for (int other = 0; other < gptq_parts; ++other) {
        const int j = other * 32 + lane;
        if (Backward ? j < i : j > i) left[other] = device::fused(-factor[place(i, j)], solved, left[other]);
      }
    }
  }
#pragma unroll
  for (int part = 0; part < gptq_parts; ++part)
    if (part * 32 + lane < count) x(row, part * 32 + lane) = left[part];
}

/// target (rows, k) ← w + moved, whose columns are in the order of solving; w where that is not finite, or where there was no factor.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads)
    move_kernel(matrix<const float> w, matrix<const float> moved, const index_t* column, const factored* state,
                matrix<float> target) {
  const index_t row = blockIdx.x;
  const bool failed = state->failed != 0;
  for (index_t i = threadIdx.x; i < w.cols; i += Tuned::value.threads) {
    const index_t col = column == nullptr ? i : column[i];
    const float own = w(row, col), there = device::add(own, moved(row, i));
    target(row, col) = !failed && is_finite(there) ? there : own;
  }
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
