// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernel of clip_under_gram, without its launcher: this much compiles under NVRTC.
#pragma once

#include "nibble/fit.hpp"
#include "nibble/kernels/detail/device.cuh"
#include "nibble/matrix.hpp"
#include "nibble/observe.hpp"
#include "nibble/quantize.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// How a block of clip_kernel divides a group: `across` threads have 8 columns of a product each, and 4 of its rows. D and G are
/// multiplied `depth` channels at a time, all of them where the group has no more: then G stays in shared memory.
struct clip_shape {
  int across = 4, depth = 32;

  NIBBLE_HOST_DEVICE constexpr int cols() const { return across * 8; }
  NIBBLE_HOST_DEVICE constexpr int rows(int threads) const { return threads / across * 4; }
  /// Floats from one row of D to the next: 16 bytes more than it has, so that rows lie in different banks.
  NIBBLE_HOST_DEVICE constexpr int stride() const { return depth + 4; }
  NIBBLE_HOST_DEVICE constexpr int floats(int threads) const { return depth * cols() + rows(threads) * stride(); }
  NIBBLE_HOST_DEVICE constexpr int bytes(int threads) const {
    return floats(threads) * 4 + rows(threads) * int{2 * sizeof(float) + sizeof(params) + sizeof(double)};
  }
};

/// One group of columns in a block's rows of W.
template <int Threads, class Scheme>
struct clip_block {
  matrix<const float> w;  ///< (live rows, g)
  const float* s;         ///< (g)
  matrix<const float> g;  ///< (g, g)
  clip_shape shape;
  Scheme scheme;
  float *gram, *errors;  ///< (depth, cols), (rows, stride)
  double* losses;        ///< (rows)
  params* tried;         ///< (rows)
  float* ends;           ///< (rows) least, (rows) greatest weight, 0 included

  __device__ clip_block(matrix<const float> w_, const float* s_, matrix<const float> g_, clip_shape shape_,
                        Scheme scheme_, float* memory)
      : w(w_), s(s_), g(g_), shape(shape_), scheme(scheme_) {
    const int rows = shape.rows(Threads);
    gram = memory;
    errors = gram + shape.depth * shape.cols();
    losses = reinterpret_cast<double*>(memory + shape.floats(Threads));
    tried = reinterpret_cast<params*>(losses + rows);
    ends = reinterpret_cast<float*>(tried + rows);
  }

  /// ends ← of every row, a warp a row.
  __device__ void find_ends() const {
    for (index_t row = threadIdx.x / 32; row < w.rows; row += Threads / 32) {
      float low = 0, high = 0;
      for (index_t col = device::lane(); col < w.cols; col += 32) {
        low = min(low, observed(w(row, col)));
        high = max(high, observed(w(row, col)));
      }
      for (int flip = 16; flip > 0; flip /= 2) {
        low = min(low, device::shuffle_xor(low, flip));
        high = max(high, device::shuffle_xor(high, flip));
      }
      if (device::lane() == 0) {
        ends[row] = low;
        ends[shape.rows(Threads) + row] = high;
      }
    }
  }

  /// (what w reads back as − w) / s under what is tried.
  __device__ float error(index_t row, index_t col) const {
    const float x = w(row, col);
    const float back = dequantize(nibble::quantize(x, tried[row], scheme), tried[row], scheme);
    return device::divide(device::subtract(back, x), s[col]);
  }

  __device__ bool whole() const { return w.cols <= shape.depth; }

  /// errors ← D of channels [first, first + depth), 0 beyond the group and the rows.
  __device__ void stage_errors(index_t first) const {
    for (int i = static_cast<int>(threadIdx.x); i < shape.rows(Threads) * shape.depth; i += Threads) {
      const int row = i / shape.depth, at = i % shape.depth;
      const bool inside = row < w.rows && first + at < w.cols;
      errors[row * shape.stride() + at] = inside ? error(row, first + at) : 0.0f;
    }
  }
  /// gram ← rows [first, first + depth) by columns [col, col + cols) of G, 0 beyond the group.
  __device__ void stage_gram(index_t first, index_t col) const {
    for (int i = static_cast<int>(threadIdx.x); i < shape.depth * shape.cols(); i += Threads) {
      const index_t k = first + i / shape.cols(), j = col + i % shape.cols();
      gram[i] = k < w.cols && j < w.cols ? g(k, j) : 0.0f;
    }
  }

  /// product += errors · gram, this thread's 4 × 8 of it, channels in order.
  __device__ void multiply(float (&product)[4][8], int channels) const {
    const int part = static_cast<int>(threadIdx.x) % shape.across, first = static_cast<int>(threadIdx.x) / shape.across;
    const int apart = Threads / shape.across;
#pragma unroll 1
    for (int k = 0; k < channels; k += 4) {
      float4 d[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        d[i] = device::load(reinterpret_cast<const float4*>(errors + (first + i * apart) * shape.stride() + k));
#pragma unroll
      for (int l = 0; l < 4; ++l) {
        const float* const row = gram + (k + l) * shape.cols() + part * 4;
        const auto left = device::load(reinterpret_cast<const float4*>(row));
        const auto right = device::load(reinterpret_cast<const float4*>(row + shape.across * 4));
        const float of_g[8] = {left.x, left.y, left.z, left.w, right.x, right.y, right.z, right.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float of_d = l == 0 ? d[i].x : l == 1 ? d[i].y : l == 2 ? d[i].z : d[i].w;
#pragma unroll
          for (int j = 0; j < 8; ++j) product[i][j] = device::fused(of_d, of_g[j], product[i][j]);
        }
      }
    }
  }

  /// losses ← d·G·dᵀ of every row under what is tried, which all threads see when it begins; all see the losses when it ends.
  /// Products of a row are added in float by eights, these in double.
  __device__ void judge(bool first_time) const {
    const int part = static_cast<int>(threadIdx.x) % shape.across, first = static_cast<int>(threadIdx.x) / shape.across;
    const int apart = Threads / shape.across;
    double loss[4] = {};
    for (index_t col = 0; col < w.cols; col += shape.cols()) {
      float product[4][8] = {};
      for (index_t k = 0; k < w.cols; k += shape.depth) {
        stage_errors(k);
        if (first_time || !whole()) stage_gram(k, col);
        device::barrier();
        multiply(product, shape.depth);
        if (!whole()) device::barrier();
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = first + i * apart;
        float sum = 0;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const int at = part * 4 + j % 4 + j / 4 * shape.across * 4;
          if (row >= w.rows || col + at >= w.cols) continue;
          const float d = whole() ? errors[row * shape.stride() + at] : error(row, col + at);
          sum = device::fused(product[i][j], d, sum);
        }
        loss[i] = device::add(loss[i], static_cast<double>(sum));
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      for (int flip = shape.across / 2; flip > 0; flip /= 2)
        loss[i] = device::add(loss[i], device::shuffle_xor(loss[i], flip));
      if (part == 0) losses[first + i * apart] = loss[i];
    }
    device::barrier();
  }
};

/// What the thread of a row knows of it.
struct clip_row {
  float low = 0, high = 0;        ///< of its weights, 0 included
  float at_low = 1, at_high = 1;  ///< what is left of them in the best range
  double least = 0;
  params best{1.0f, 0};
};

/// p (n, groups) ← better ranges: a block has one group of its rows, and thread i what is known of row i.
template <class Tuned, class Scheme>
__global__ void __launch_bounds__(Tuned::value.threads)
    clip_kernel(matrix<const float> w, const float* s, matrix<const float> g, index_t width, int steps, Scheme scheme,
                clip_shape shape, matrix<params> p) {
  constexpr int threads = Tuned::value.threads;
  NIBBLE_DYNAMIC_SHARED(float, memory);
  const index_t group = blockIdx.x % p.cols, row = index_t{blockIdx.x / p.cols} * shape.rows(threads);
  const index_t col = group * width, count = min(width, w.cols - col);
  const index_t rows = min(index_t{shape.rows(threads)}, w.rows - row);
  const clip_block<threads, Scheme> block(w.rows_at(row, rows).cols_at(col, count), s + col,
                                          g.rows_at(col, count).cols_at(col, count), shape, scheme, memory);
  const int own = static_cast<int>(threadIdx.x);
  const bool has_row = own < rows;
  block.find_ends();
  clip_row mine;
  if (has_row) block.tried[own] = mine.best = p(row + own, group);
  device::barrier();
  if (has_row) mine.low = block.ends[own], mine.high = block.ends[shape.rows(threads) + own];
  block.judge(true);
  if (has_row) mine.least = block.losses[own];

  const auto attempt = [&](float at_low, float at_high) {
    if (has_row)
      block.tried[own] = fit(device::multiply(mine.low, at_low), device::multiply(mine.high, at_high), scheme);
    device::barrier();
    block.judge(false);
    if (!has_row || !(block.losses[own] < mine.least)) return;
    mine = {mine.low, mine.high, at_low, at_high, block.losses[own], block.tried[own]};
  };
  const float step = device::divide(0.5f, static_cast<float>(steps));
  const auto left = [&](int i) { return device::subtract(1.0f, device::multiply(step, static_cast<float>(i))); };
  for (int i = 0; i <= steps; ++i)
    for (int j = 0; j <= steps; ++j)
      if (!scheme.symmetric || i == j) attempt(left(i), left(j));
  for (float finer = step / 2; finer >= step / 4; finer /= 2)
    for (int i = -1; i <= 1; ++i)
      for (int j = -1; j <= 1; ++j)
        if ((i != 0 || j != 0) && (!scheme.symmetric || i == j))
          attempt(device::add(mine.at_low, finer * static_cast<float>(i)),
                  device::add(mine.at_high, finer * static_cast<float>(j)));
  if (has_row) p(row + own, group) = mine.best;
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
