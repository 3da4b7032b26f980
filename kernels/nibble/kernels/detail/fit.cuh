// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of fit by the least and the greatest weight, without their launchers: this much compiles under NVRTC.
#pragma once

#include "nibble/fit.hpp"
#include "nibble/kernels/detail/range.cuh"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// What one thread does where groups are pieces of rows and a team of `lanes` lanes of one warp has a group to itself, Items
/// columns a lane, in every blockDim.y-th of some rows. A block is blockDim.x / lanes groups wide and blockDim.y · Rows rows
/// high; blocks go along the columns first.
template <int Items, int Rows>
struct team_share {
  int me;  ///< of the team, [0, lanes)
  index_t group, first_row, col;
  int count;  ///< of the lane's columns inside the group

  __device__ team_share(index_t k, index_t width, int lanes, unsigned blocks_across) {
    const index_t x = index_t{blockIdx.x % blocks_across} * blockDim.x + threadIdx.x;
    me = static_cast<int>(threadIdx.x % static_cast<unsigned>(lanes));
    group = x / lanes;
    first_row = index_t{blockIdx.x / blocks_across} * blockDim.y * Rows + threadIdx.y;
    col = group * width + me * Items;
    const index_t left = min((group + 1) * width, k) - col;
    count = static_cast<int>(left < 0 ? 0 : left < Items ? left : Items);
  }
  __device__ index_t row(int i) const { return first_row + index_t{blockDim.y} * i; }
  __device__ bool leads(index_t k, index_t width) const { return me == 0 && group * width < k; }
};

/// The weights of a lane in all its rows, loaded before the first is used.
template <int Items, int Rows, class T>
__device__ void load_rows(matrix<const T> w, const team_share<Items, Rows>& mine, bool wide,
                          items<T, Items> (&x)[Rows]) {
#pragma unroll
  for (int i = 0; i < Rows; ++i)
    if (mine.row(i) < w.rows && mine.count > 0) x[i].load(w.row(mine.row(i)) + mine.col, mine.count, wide);
}

/// The parameters of a team's group in each of its rows, known to all its lanes. Each row is fitted by another lane, for a fit
/// costs more than a lane's share of the rest. @pre lanes >= Rows.
template <int Items, int Rows, class T, class Scheme>
__device__ void fit_rows(const items<T, Items> (&x)[Rows], const team_share<Items, Rows>& mine, index_t rows, int lanes,
                         Scheme s, params (&p)[Rows]) {
  range of_lane = range::none();
#pragma unroll
  for (int i = 0; i < Rows; ++i) {
    const range ends = warp_range(x[i].widened(range::none(), mine.row(i) < rows ? mine.count : 0), lanes);
    if (mine.me % Rows == i) of_lane = ends;
  }
  of_lane = of_lane.or_zero();
  const params fitted = fit(of_lane.low, of_lane.high, s);
#pragma unroll
  for (int i = 0; i < Rows; ++i) p[i] = device::shuffle(fitted, device::lane() - mine.me + i);
}

template <class Tuned, int Items, class Scheme, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    fit_rows_kernel(matrix<const T> w, matrix<params> p, index_t width, int lanes, bool wide, Scheme s,
                    unsigned blocks_across) {
  constexpr int rows = Tuned::value.in_flight;
  const team_share<Items, rows> mine(w.cols, width, lanes, blocks_across);
  items<T, Items> x[rows];
  params fitted[rows];
  load_rows(w, mine, wide, x);
  fit_rows(x, mine, w.rows, lanes, s, fitted);
  if (!mine.leads(w.cols, width)) return;
#pragma unroll
  for (int i = 0; i < rows; ++i)
    if (mine.row(i) < w.rows) p(mine.row(i), mine.group) = fitted[i];
}

/// Any group shape: a warp a group, or a block.
template <class Tuned, int Items, bool Block, class Scheme, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    fit_groups_kernel(matrix<const T> w, matrix<params> p, group_shape g, bool wide, Scheme s) {
  constexpr int threads = Tuned::value.threads, team = Block ? threads : 32;
  const grouping groups(w.rows, w.cols, g);
  const index_t group = (index_t{blockIdx.x} * threads + threadIdx.x) / team;
  const int me = static_cast<int>(threadIdx.x) % team;
  const bool there = group < p.rows * p.cols;
  range mine = range::none();
  if (there) mine = seen_range<Items, Tuned::value.in_flight>(w, groups.of(group), me, team, wide);
  if constexpr (Block) {
    mine = block_range<threads>(mine);
  } else {
    mine = warp_range(mine, 32);
  }
  mine = mine.or_zero();
  if (there && me == 0) p(groups.row_of(group), groups.col_of(group)) = fit(mine.low, mine.high, s);
}

/// A number whose order among unsigned integers is that of x among floats.
__device__ inline uint32_t sort_key(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ inline float from_sort_key(uint32_t key) {
  return bit_cast<float>((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

/// What `params` hold while the blocks that share a group still widen its range.
struct range_keys {
  uint32_t low, high;
};
static_assert(sizeof(range_keys) == sizeof(params) && alignof(range_keys) == alignof(params), "in the place of params");
__device__ inline range_keys& keys_in(params& p) {
  return reinterpret_cast<range_keys&>(p);
}

template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads) fit_begin_kernel(matrix<params> p) {
  const index_t i = index_t{blockIdx.x} * Tuned::value.threads + threadIdx.x;
  if (i < p.size()) keys_in(p(i / p.cols, i % p.cols)) = {0xffffffffu, 0u};
}

/// A block a piece of `piece_rows` × `piece_cols` of a group; `down` × `across` pieces each.
template <class Tuned, int Items, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    fit_pieces_kernel(matrix<const T> w, matrix<params> p, group_shape g, bool wide, index_t piece_rows,
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
  if (me != 0 || seen.low > seen.high) return;
  range_keys& keys = keys_in(p(groups.row_of(group), groups.col_of(group)));
  device::atomic_min(&keys.low, sort_key(seen.low));
  device::atomic_max(&keys.high, sort_key(seen.high));
}

template <class Tuned, class Scheme>
__global__ void __launch_bounds__(Tuned::value.threads) fit_end_kernel(matrix<params> p, Scheme s) {
  const index_t i = index_t{blockIdx.x} * Tuned::value.threads + threadIdx.x;
  if (i >= p.size()) return;
  params& out = p(i / p.cols, i % p.cols);
  const range_keys keys = keys_in(out);
  const range ends =
      keys.low > keys.high ? range{0.0f, 0.0f} : range{from_sort_key(keys.low), from_sort_key(keys.high)};
  out = fit(ends.low, ends.high, s);
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
