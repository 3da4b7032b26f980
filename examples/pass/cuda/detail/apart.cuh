// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of apart.cuh: a block has a row of weights, of errors or of a token.
#pragma once

#include "mistral/cuda/detail/rounding.cuh"
#include "nibble/quantize.hpp"

namespace nibble::mistral::cuda::detail {

/// A row of weights by a block.
template <class Tuned, class P, class Scheme>
__global__ void __launch_bounds__(Tuned::value.threads)
    apart_kernel(matrix<const float> w, matrix<const uint8_t> q, matrix<const P> p, group_shape g, Scheme how,
                 const float* s, const float* of_row, matrix<bf16> rounded, matrix<bf16> difference) {
  const index_t row = blockIdx.x, width = g.width(w.cols);
  const P* const parameters = p.row(row / g.height(w.rows));
  const float times = of_row == nullptr ? 1.0f : of_row[row];
  over_columns<1>(w.cols, [&](index_t col) {
    const float value = nibble::dequantize(q(row, col), parameters[col / width], how);
    rounded(row, col) = bf16(device::multiply(value, times));
    const float off = device::divide(device::subtract(value, w(row, col)), s[col]);
    difference(row, col) = bf16(device::multiply(off, times));
  });
}

/// A row of y by a block.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads) add_squares_kernel(matrix<const float> y, double* sums) {
  NIBBLE_SHARED(double, of_warp, Tuned::value.threads / 32);
  double sum = 0;
  over_columns<1>(y.cols, [&](index_t col) {
    const double value = static_cast<double>(y(blockIdx.x, col));
    sum = device::fused(value, value, sum);
  });
  sum = block_sum(sum, of_warp);
  if (threadIdx.x == 0) sums[blockIdx.x] = device::add(sums[blockIdx.x], sum);
}

/// A token of x under a scale by a block.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads)
    input_costs_kernel(matrix<const bf16> x, const float* by, const double* importance, bool integers,
                       const float* scales, matrix<double> costs) {
  NIBBLE_SHARED(double, of_warp, Tuned::value.threads / 32);
  const index_t token = blockIdx.x % x.rows, which = blockIdx.x / x.rows;
  const float scale = scales[which];
  double sum = 0;
  over_columns<1>(x.cols, [&](index_t col) {
    const float value = device::divide(static_cast<float>(x(token, col)), by[col]);
    const double off = static_cast<double>(round_activation(value, scale, integers)) - static_cast<double>(value);
    sum = device::fused(device::multiply(importance[col], off), off, sum);
  });
  sum = block_sum(sum, of_warp);
  if (threadIdx.x == 0) costs(which, token) = sum;
}

}  // namespace nibble::mistral::cuda::detail
