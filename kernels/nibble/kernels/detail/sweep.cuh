// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernel of sweep, without its launcher: this much compiles under NVRTC.
#pragma once

#include "nibble/awq.hpp"
#include "nibble/kernels/detail/device.cuh"
#include "nibble/matrix.hpp"
#include "nibble/quantize.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// Columns between two updates of all slopes; a lane has two of them.
inline constexpr int sweep_cols = 64;

/// Improves the codes of up to 64 columns, in their order, a warp a row: each new code moves the slopes of its row's later columns.
/// q, slope, change (rows, count): codes, D·G, and what each new code adds to D; p (rows, groups of the matrix), s (count), g (count,
/// count) the diagonal block; the first column is `col` of the matrix, whose groups are `width` wide.
template <class Tuned, class Scheme>
__global__ void __launch_bounds__(Tuned::value.warps * 32)
    improve_kernel(matrix<uint8_t> q, matrix<const params> p, const float* s, matrix<const float> g,
                   matrix<const float> slope, matrix<float> change, index_t col, index_t width, Scheme scheme) {
  NIBBLE_SHARED(float, block, sweep_cols* sweep_cols);
  const int count = static_cast<int>(g.cols);
  for (int i = static_cast<int>(threadIdx.x); i < sweep_cols * sweep_cols; i += Tuned::value.warps * 32) {
    const int row = i / sweep_cols, at = i % sweep_cols;
    block[i] = row < count && at < count ? g(row, at) : 0.0f;
  }
  device::barrier();
  const index_t row = index_t{blockIdx.x} * Tuned::value.warps + threadIdx.x / 32;
  if (row >= q.rows) return;
  const int lane = device::lane();
  uint8_t code[2] = {};
  params of[2] = {{1.0f, 0}, {1.0f, 0}};
  float by[2] = {1.0f, 1.0f}, curvature[2] = {}, steep[2] = {}, moved[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = half * 32 + lane;
    if (at >= count) continue;
    code[half] = q(row, at);
    of[half] = p(row, (col + at) / width);
    by[half] = s[at];
    curvature[half] = block[at * sweep_cols + at];
    steep[half] = slope(row, at);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half)
    for (int turn = 0; turn < 32 && half * 32 + turn < count; ++turn) {
      const uint8_t better = improved_code(code[half], of[half], steep[half], curvature[half], by[half], scheme);
      const float apart =
          device::subtract(dequantize(better, of[half], scheme), dequantize(code[half], of[half], scheme));
      const float own = better == code[half] ? 0.0f : device::divide(apart, by[half]);
      const float step = device::shuffle(own, turn);
      if (step == 0.0f) continue;
      if (lane == turn) {
        code[half] = better;
        moved[half] = step;
      }
      const float* const of_step = block + (half * 32 + turn) * sweep_cols;
      steep[0] = device::fused(step, of_step[lane], steep[0]);
      steep[1] = device::fused(step, of_step[32 + lane], steep[1]);
    }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = half * 32 + lane;
    if (at >= count) continue;
    q(row, at) = code[half];
    change(row, at) = moved[half];
  }
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
