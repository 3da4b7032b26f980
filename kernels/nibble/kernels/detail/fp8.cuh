// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of floating-point codes, without their launchers: this much compiles under NVRTC.
#pragma once

#include "nibble/float_scheme.hpp"
#include "nibble/fp8.hpp"
#include "nibble/kernels/detail/fit.cuh"
#include "nibble/kernels/detail/float_conversion.cuh"
#include "nibble/kernels/detail/quantize.cuh"
#include "nibble/kernels/detail/range.cuh"
#include "nibble/kernels/tuning/fp8.cuh"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

template <>
NIBBLE_HOST_DEVICE constexpr int rows_of<any_float_scheme>(tuning::quantize_policy policy) {
  return policy.any_rows;
}

/// nibble::quantize, by the device's conversion.
template <class Scheme>
__device__ uint8_t float_code_of(float x, float scale, Scheme s) {
  return device::float_code(round_to(s.compute_dtype, x / scale), s.format);
}

template <class Tuned, int Items, class Scheme, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    quantize_fp8_kernel(matrix<const T> w, matrix<const float> scales, matrix<uint8_t> q, group_shape g, Scheme s,
                        unsigned blocks_across) {
  const auto f = [=](T x, float scale) { return float_code_of(static_cast<float>(x), scale, s); };
  map_groups<Items, rows_of<Scheme>(Tuned::value)>(w, scales, q, g, blocks_across, f);
}

template <class Tuned, int Items, class Scheme, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    dequantize_fp8_kernel(matrix<const uint8_t> q, matrix<const float> scales, matrix<T> w, group_shape g, Scheme s,
                          unsigned blocks_across) {
  const auto f = [=](uint8_t code, float scale) { return static_cast<T>(nibble::dequantize(code, scale, s)); };
  map_groups<Items, rows_of<Scheme>(Tuned::value)>(q, scales, w, g, blocks_across, f);
}

/// Greatest |x| of a range, +0 of nothing.
__device__ inline float amax_of(range ends) {
  ends = ends.or_zero();
  return max(abs(ends.low), abs(ends.high));
}

/// Codes of a lane's `count` numbers, if any, to q; by one access where `wide` says that they may be.
template <int Items, class T, class Scheme>
__device__ void store_codes(uint8_t* q, const items<T, Items>& x, int count, bool wide, float scale, Scheme s) {
  device::chunk<uint8_t, Items> codes;
#pragma unroll
  for (int i = 0; i < Items; ++i)
    if (i < count) codes.at[i] = float_code_of(static_cast<float>(x.at[i]), scale, s);
  if (wide && count == Items) return device::store_once(reinterpret_cast<device::chunk<uint8_t, Items>*>(q), codes);
#pragma unroll
  for (int i = 0; i < Items; ++i)
    if (i < count) q[i] = codes.at[i];
}

/// Groups that are pieces of rows, each held by `lanes` lanes of a warp; the codes too where `Codes`.
template <class Tuned, int Items, bool Codes, class Scheme, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    fit_rows_fp8_kernel(matrix<const T> w, matrix<float> scales, matrix<uint8_t> q, index_t width, int lanes, bool wide,
                        Scheme s, unsigned blocks_across) {
  constexpr int rows = Tuned::value.in_flight;
  const team_share<Items, rows> mine(w.cols, width, lanes, blocks_across);
  items<T, Items> x[rows];
  load_rows(w, mine, wide, x);
#pragma unroll
  for (int i = 0; i < rows; ++i) {
    const index_t row = mine.row(i);
    const range ends = warp_range(x[i].widened(range::none(), row < w.rows ? mine.count : 0), lanes);
    const float scale = nibble::fit(amax_of(ends), s);
    if (row >= w.rows) continue;
    if (mine.leads(w.cols, width)) scales(row, mine.group) = scale;
    if constexpr (Codes) store_codes(q.row(row) + mine.col, x[i], mine.count, wide, scale, s);
  }
}

/// Groups that are longer pieces of rows, a block each, scales and codes. What the registers hold is read once, the rest again.
template <class Tuned, int Items, class Scheme, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    fit_quantize_row_fp8_kernel(matrix<const T> w, matrix<float> scales, matrix<uint8_t> q, index_t width, bool wide,
                                Scheme s) {
  constexpr int threads = Tuned::value.threads, held = Tuned::value.in_flight;
  const index_t row = index_t{blockIdx.x} / scales.cols, group = index_t{blockIdx.x} % scales.cols;
  const T* const from = w.row(row) + group * width;
  uint8_t* const to = q.row(row) + group * width;
  const index_t size = min(width, w.cols - group * width);
  const auto first = [](index_t turn) { return (turn * threads + threadIdx.x) * Items; };
  const auto count = [=](index_t turn) {
    const index_t left = size - first(turn);
    return static_cast<int>(left < 0 ? 0 : left < Items ? left : Items);
  };
  items<T, Items> x[held];
#pragma unroll
  for (int i = 0; i < held; ++i) x[i].load(from + first(i), count(i), wide);
  range seen = range::none();
#pragma unroll
  for (int i = 0; i < held; ++i) seen = x[i].widened(seen, count(i));
  for (index_t turn = held; count(turn) > 0; ++turn) {
    items<T, Items> more;
    more.load(from + first(turn), count(turn), wide);
    seen = more.widened(seen, count(turn));
  }
  const float scale = nibble::fit(amax_of(block_range<threads>(seen)), s);
  if (threadIdx.x == 0) scales(row, group) = scale;
#pragma unroll
  for (int i = 0; i < held; ++i) store_codes(to + first(i), x[i], count(i), wide, scale, s);
  for (index_t turn = held; count(turn) > 0; ++turn) {
    items<T, Items> more;
    more.load(from + first(turn), count(turn), wide);
    store_codes(to + first(turn), more, count(turn), wide, scale, s);
  }
}

/// Any group shape: a warp a group, or a block.
template <class Tuned, int Items, bool Block, class Scheme, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    fit_groups_fp8_kernel(matrix<const T> w, matrix<float> scales, group_shape g, bool wide, Scheme s) {
  constexpr int threads = Tuned::value.threads, team = Block ? threads : 32;
  const grouping groups(w.rows, w.cols, g);
  const index_t group = (index_t{blockIdx.x} * threads + threadIdx.x) / team;
  const int me = static_cast<int>(threadIdx.x) % team;
  const bool there = group < scales.size();
  range mine = range::none();
  if (there) mine = seen_range<Items, Tuned::value.in_flight>(w, groups.of(group), me, team, wide);
  if constexpr (Block) {
    mine = block_range<threads>(mine);
  } else {
    mine = warp_range(mine, 32);
  }
  if (there && me == 0) scales(groups.row_of(group), groups.col_of(group)) = nibble::fit(amax_of(mine), s);
}

/// While several blocks share a group, its scale's memory holds the bits of the greatest |x| yet, whose order is that of floats.
__device__ inline uint32_t& amax_in(float& scale) {
  return reinterpret_cast<uint32_t&>(scale);
}

template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads) amax_begin_kernel(matrix<float> scales) {
  const index_t i = index_t{blockIdx.x} * Tuned::value.threads + threadIdx.x;
  if (i < scales.size()) scales(i / scales.cols, i % scales.cols) = 0.0f;
}

/// A block a piece of `piece_rows` × `piece_cols` of a group; `down` × `across` pieces each.
template <class Tuned, int Items, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    amax_pieces_kernel(matrix<const T> w, matrix<float> scales, group_shape g, bool wide, index_t piece_rows,
                       index_t piece_cols, index_t down, index_t across) {
  constexpr int threads = Tuned::value.threads;
  const grouping groups(w.rows, w.cols, g);
  const index_t group = index_t{blockIdx.x} / (down * across), piece = index_t{blockIdx.x} % (down * across);
  const rectangle whole = groups.of(group);
  const index_t row = piece / across * piece_rows, col = piece % across * piece_cols;
  const rectangle part{whole.row + row, max(index_t{0}, min(piece_rows, whole.rows - row)), whole.col + col,
                       max(index_t{0}, min(piece_cols, whole.cols - col))};
  const int me = static_cast<int>(threadIdx.x);
  const range seen = block_range<threads>(seen_range<Items, Tuned::value.in_flight>(w, part, me, threads, wide));
  if (me == 0)
    device::atomic_max(&amax_in(scales(groups.row_of(group), groups.col_of(group))), bit_cast<uint32_t>(amax_of(seen)));
}

template <class Tuned, class Scheme>
__global__ void __launch_bounds__(Tuned::value.threads) amax_end_kernel(matrix<float> scales, Scheme s) {
  const index_t i = index_t{blockIdx.x} * Tuned::value.threads + threadIdx.x;
  if (i >= scales.size()) return;
  float& scale = scales(i / scales.cols, i % scales.cols);
  scale = nibble::fit(bit_cast<float>(amax_in(scale)), s);
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
