// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of refit, without their launcher: this much compiles under NVRTC.
#pragma once

#include "nibble/gptq.hpp"
#include "nibble/kernels/detail/device.cuh"
#include "nibble/matrix.hpp"
#include "nibble/quantize.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// steps (rows + 1, count) ← c = (q − zero) / s of one group's columns, and in the last row e = 1 / s. q (rows, count), p (rows, 1),
/// s (count).
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads)
    steps_kernel(matrix<const uint8_t> q, matrix<const params> p, const float* s, matrix<float> steps) {
  const index_t row = index_t{blockIdx.x} * (Tuned::value.threads / 32) + threadIdx.x / 32;
  if (row >= steps.rows) return;
  const bool is_e = row == q.rows;
  const int32_t zero = is_e ? 0 : p(row, 0).zero;
  for (index_t col = device::lane(); col < steps.cols; col += 32) {
    const int32_t own = is_e ? 1 : int32_t(q(row, col)) - zero;
    steps(row, col) = device::divide(static_cast<float>(own), s[col]);
  }
}

/// The sum of a double of each of the warp's lanes, known to all, in one order.
__device__ inline double warp_sum(double value) {
  for (int flip = 16; flip > 0; flip /= 2) value = device::add(value, device::shuffle_xor(value, flip));
  return value;
}

/// Parameters p (rows, 1) of one group refitted, a warp a row, and steps (rows + 1, count), which holds c and e, ← what that adds to D.
/// product (rows + 1, count) is steps·G, slope (rows, count) D·G.
template <class Tuned, class Scheme>
__global__ void __launch_bounds__(Tuned::value.threads)
    refit_kernel(matrix<const uint8_t> q, matrix<const float> product, matrix<const float> slope, const float* s,
                 Scheme scheme, matrix<float> steps, matrix<params> p) {
  const index_t row = index_t{blockIdx.x} * (Tuned::value.threads / 32) + threadIdx.x / 32;
  if (row >= q.rows) return;
  const float *const c = steps.row(row), *const e = steps.row(q.rows), *const of_e = product.row(q.rows);
  group_products sums{0, 0, 0, 0, 0};
  for (index_t col = device::lane(); col < q.cols; col += 32) {
    const auto ch = static_cast<double>(product(row, col)), r = static_cast<double>(slope(row, col));
    const auto of_c = static_cast<double>(c[col]), one = static_cast<double>(e[col]);
    sums.cc = device::fused(ch, of_c, sums.cc);
    sums.ce = device::fused(ch, one, sums.ce);
    sums.ee = device::fused(static_cast<double>(of_e[col]), one, sums.ee);
    sums.rc = device::fused(r, of_c, sums.rc);
    sums.re = device::fused(r, one, sums.re);
  }
  sums = {warp_sum(sums.cc), warp_sum(sums.ce), warp_sum(sums.ee), warp_sum(sums.rc), warp_sum(sums.re)};
  const params before = p(row, 0), after = refitted(before, sums, scheme);
  device::warp_barrier();  // all lanes have read what one replaces
  if (device::lane() == 0) p(row, 0) = after;
  for (index_t col = device::lane(); col < q.cols; col += 32) {
    const uint8_t code = q(row, col);
    const float apart = device::subtract(dequantize(code, after, scheme), dequantize(code, before, scheme));
    steps(row, col) = device::divide(apart, s[col]);
  }
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
