// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of smooth, without their launchers: this much compiles under NVRTC.
#pragma once

#include "nibble/kernels/detail/device.cuh"
#include "nibble/kernels/detail/quantize.cuh"
#include "nibble/kernels/detail/range.cuh"
#include "nibble/kernels/tuning/quantize.cuh"
#include "nibble/kernels/tuning/smooth.cuh"
#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"
#include "nibble/smooth.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads)
    smooth_scales_kernel(const float* activation, const float* weight, float alpha, index_t k, float* s) {
  const index_t j = index_t{blockIdx.x} * Tuned::value.threads + threadIdx.x;
  if (j < k) s[j] = smooth_scale(activation[j], weight[j], alpha);
}

/// scales (1, 1) or (m, 1), as g says.
template <class Tuned, int Items, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    quantize_activations_kernel(matrix<const T> x, matrix<const float> scales, matrix<uint8_t> q, group_shape g,
                                activation_rule rule, unsigned blocks_across) {
  const auto f = [=](T value, float scale) {
    return activation_code(static_cast<float>(value), activation_factor(scale, 0.0f, rule), rule);
  };
  map_groups<Items, Tuned::value.rows>(x, scales, q, g, blocks_across, f);
}

/// Codes of a thread's `count` activations, if any; by one access where `wide` says that they may be.
template <int Items, class T>
__device__ void store_activations(uint8_t* q, const items<T, Items>& x, int count, bool wide, float factor,
                                  activation_rule rule) {
  device::chunk<uint8_t, Items> codes;
#pragma unroll
  for (int i = 0; i < Items; ++i)
    codes.at[i] = i < count ? activation_code(static_cast<float>(x.at[i]), factor, rule) : uint8_t{0};
  if (wide && count == Items) return device::store_once(reinterpret_cast<device::chunk<uint8_t, Items>*>(q), codes);
#pragma unroll
  for (int i = 0; i < Items; ++i)
    if (i < count) q[i] = codes.at[i];
}

/// A token by a warp, or by a block. What the registers hold is read once, the rest of a longer one again.
template <class Tuned, int Items, bool Block, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    quantize_tokens_kernel(matrix<const T> x, matrix<float> scales, matrix<uint8_t> q, activation_rule rule,
                           bool wide) {
  constexpr int threads = Tuned::value.threads, team = Block ? threads : 32, held = Tuned::value.in_flight;
  const index_t token = (index_t{blockIdx.x} * threads + threadIdx.x) / team;
  const int me = static_cast<int>(threadIdx.x) % team;
  const index_t size = token < x.rows ? x.cols : 0;
  const T* const from = x.row(token);
  uint8_t* const to = q.row(token);
  const auto first = [=](index_t turn) { return min((turn * team + me) * Items, size); };
  const auto count = [=](index_t turn) {
    return static_cast<int>(clamp(size - first(turn), index_t{0}, index_t{Items}));
  };
  items<T, Items> some[held];
#pragma unroll
  for (int i = 0; i < held; ++i) some[i].load(from + first(i), count(i), wide);
  range seen = range::none();
#pragma unroll
  for (int i = 0; i < held; ++i) seen = some[i].widened(seen, count(i));
  for (index_t turn = held; count(turn) > 0; ++turn) {
    items<T, Items> more;
    more.load(from + first(turn), count(turn), wide);
    seen = more.widened(seen, count(turn));
  }
  if constexpr (Block) {
    seen = block_range<threads>(seen);
  } else {
    seen = warp_range(seen, 32);
  }
  seen = seen.or_zero();
  const float amax = max(abs(seen.low), abs(seen.high)), scale = activation_scale(amax);
  const float factor = activation_factor(scale, amax, rule);
  if (me == 0 && token < x.rows) scales(token, 0) = scale;
#pragma unroll
  for (int i = 0; i < held; ++i) store_activations(to + first(i), some[i], count(i), wide, factor, rule);
  for (index_t turn = held; count(turn) > 0; ++turn) {
    items<T, Items> more;
    more.load(from + first(turn), count(turn), wide);
    store_activations(to + first(turn), more, count(turn), wide, factor, rule);
  }
}

using sixteen_codes = device::chunk<uint8_t, 16>;

/// Starts to copy inputs [col, col + depth) of rows [row, row + Rows) of codes into a stage, rows Tile's stride apart. What lies
/// outside of the matrix becomes 128, which means 0.
/// @param wide  whether rows begin at multiples of 16 bytes.
template <class Tile, int Rows>
__device__ void fetch_codes(matrix<const uint8_t> codes, index_t row, index_t col, bool wide, uint8_t* stage) {
  constexpr int across = Tile::value.depth / 16, threads = threads_of(Tile::value);
  for (int i = static_cast<int>(threadIdx.x); i < Rows * across; i += threads) {
    const index_t from_row = row + i / across, from_col = col + i % across * 16;
    uint8_t* const to = stage + i / across * stride_of(Tile::value) + i % across * 16;
    if (wide && from_row < codes.rows && from_col + 16 <= codes.cols) {
      device::cp_async<16>(to, codes.row(from_row) + from_col);
      continue;
    }
    sixteen_codes some;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const bool there = from_row < codes.rows && from_col + j < codes.cols;
      some.at[j] = there ? codes(from_row, from_col + j) : uint8_t{128};
    }
    device::store(reinterpret_cast<sixteen_codes*>(to), some);
  }
}

/// A warp's sums: 16·Down tokens by 8·Across outputs.
template <class Tile>
struct warp_sums {
  static constexpr int down = Tile::value.tokens / Tile::value.down / 16;
  static constexpr int across = Tile::value.outputs / Tile::value.across / 8;
  static_assert(across % 2 == 0, "outputs are loaded by sixteens");
  int32_t d[down][across][4] = {};

  /// Unsigned codes, four a register, as the signed bytes that they mean.
  __device__ static void make_signed(uint32_t (&r)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) r[i] ^= 0x80808080u;
  }

  /// d += x · wᵀ over a stage. @param x, w  the warp's first rows in it.
  __device__ void add(const uint8_t* x, const uint8_t* w) {
    constexpr int stride = stride_of(Tile::value);
    const int lane = device::lane();
#pragma unroll
    for (int k = 0; k < Tile::value.depth; k += 32) {
      uint32_t of_w[across / 2][4];
#pragma unroll
      for (int n = 0; n < across / 2; ++n) {
        device::load_matrices(of_w[n], w + (n * 16 + lane % 8 + lane / 16 * 8) * stride + k + lane / 8 % 2 * 16);
        make_signed(of_w[n]);
      }
#pragma unroll
      for (int m = 0; m < down; ++m) {
        uint32_t of_x[4];
        device::load_matrices(of_x, x + (m * 16 + lane % 16) * stride + k + lane / 16 * 16);
        make_signed(of_x);
#pragma unroll
        for (int n = 0; n < across; ++n) {
          const uint32_t pair[2] = {of_w[n / 2][n % 2 * 2], of_w[n / 2][n % 2 * 2 + 1]};
          device::mma_m16n8k32(d[m][n], of_x, pair);
        }
      }
    }
  }

  /// y ← the sums, scaled back. @param token, output  the warp's first.
  template <class To>
  __device__ void store(matrix<const float> scales, matrix<const params> p, matrix<To> y, index_t token,
                        index_t output) const {
    const int lane = device::lane();
#pragma unroll
    for (int m = 0; m < down; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const index_t row = token + m * 16 + half * 8 + lane / 4;
        if (row >= y.rows) continue;
        const float scale = scales(scales.rows == 1 ? 0 : row, 0);
#pragma unroll
        for (int n = 0; n < across; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const index_t col = output + n * 8 + lane % 4 * 2 + i;
            if (col < y.cols) y(row, col) = To(int8_output(d[m][n][half * 2 + i], scale, p(col, 0).scale));
          }
      }
  }
};

/// y (m, n) of codes x (m, k) and w (n, k): a block a tile, stages of inputs by turns in shared memory. Blocks go along the tokens
/// first, so that those that read the same weights follow each other.
template <class Tile, class To>
__global__ void __launch_bounds__(threads_of(Tile::value))
    int8_matmul_kernel(matrix<const uint8_t> x, matrix<const float> scales, matrix<const uint8_t> w,
                       matrix<const params> p, matrix<To> y, bool x_wide, bool w_wide, unsigned blocks_down) {
  constexpr tuning::int8_tile tile = Tile::value;
  constexpr int stride = stride_of(tile), stages = tile.stages;
  NIBBLE_DYNAMIC_SHARED(uint8_t, shared);
  const index_t token = index_t{blockIdx.x % blocks_down} * tile.tokens;
  const index_t output = index_t{blockIdx.x / blocks_down} * tile.outputs;
  const int steps = static_cast<int>(ceil_div(x.cols, index_t{tile.depth}));
  const auto fetch = [=](int step) {
    if (step < steps) {
      uint8_t* const stage = shared + step % stages * stage_bytes(tile);
      fetch_codes<Tile, tile.tokens>(x, token, index_t{step} * tile.depth, x_wide, stage);
      fetch_codes<Tile, tile.outputs>(w, output, index_t{step} * tile.depth, w_wide, stage + tile.tokens * stride);
    }
    device::cp_async_commit();
  };
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first_token = warp / tile.across * (tile.tokens / tile.down);
  const int first_output = warp % tile.across * (tile.outputs / tile.across);
  warp_sums<Tile> sums;
  for (int step = 0; step < stages - 1; ++step) fetch(step);
  for (int step = 0; step < steps; ++step) {
    device::cp_async_wait<stages - 2>();
    device::barrier();  // the stage is there for all, and nobody reads the one before it any more
    fetch(step + stages - 1);
    const uint8_t* const stage = shared + step % stages * stage_bytes(tile);
    sums.add(stage + first_token * stride, stage + (tile.tokens + first_output) * stride);
  }
  sums.store(scales, p, y, token + first_token, output + first_output);
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
