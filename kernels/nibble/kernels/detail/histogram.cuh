// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of ranges, histograms and thresholds, without their launchers: this much compiles under NVRTC.
#pragma once

#include "nibble/histogram.hpp"
#include "nibble/kernels/detail/device.cuh"
#include "nibble/kernels/detail/distortion.cuh"
#include "nibble/kernels/detail/quantize.cuh"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// Least and greatest of finite values, low > high of none: a value_range without initial values, which shared memory cannot have.
struct range_ends {
  float low, high;
};
__device__ inline range_ends no_ends() {
  return {bit_cast<float>(0x7f800000u), bit_cast<float>(0xff800000u)};
}
__device__ inline range_ends joined_ends(range_ends a, range_ends b) {
  return {min(a.low, b.low), max(a.high, b.high)};
}
__device__ inline value_range as_range(range_ends e) {
  return e.low <= e.high ? value_range{e.low, e.high, true} : value_range{};
}

/// A block's share of x (m, k): Tuned::value.across · Items columns, Tuned::value.tokens tokens; blocks go along the columns first.
template <class Tuned, int Items>
struct observed_tile {
  index_t tile, col;  ///< which tokens, and the thread's first column
  int count;          ///< of its columns inside the matrix

  template <class T>
  __device__ observed_tile(matrix<const T> x, unsigned blocks_across) {
    tile = blockIdx.x / blocks_across;
    col = (index_t{blockIdx.x % blocks_across} * Tuned::value.across + threadIdx.x) * Items;
    count = static_cast<int>(clamp(x.cols - col, index_t(0), index_t(Items)));
  }
  /// f(j, x(·, col + j)) for the thread's elements, by tokens in order.
  template <class T, class F>
  __device__ void each(matrix<const T> x, F f) const {
    constexpr int down = Tuned::value.down, ahead = Tuned::value.ahead;
    const index_t last = min(x.rows, (tile + 1) * Tuned::value.tokens);
    for (index_t first = tile * Tuned::value.tokens + threadIdx.y; first < last && count > 0; first += ahead * down) {
      device::chunk<T, Items> some[ahead];
#pragma unroll
      for (int i = 0; i < ahead; ++i)
        if (first + i * down < last) some[i] = load_some<T, Items>(x.row(first + i * down) + col, count);
#pragma unroll
      for (int i = 0; i < ahead; ++i) {
        if (first + i * down >= last) break;
#pragma unroll
        for (int j = 0; j < Items; ++j)
          if (j < count) f(j, static_cast<float>(some[i].at[j]));
      }
    }
  }
};

/// partial (row tiles, k) ← ends of each column of a tile; if Whole, (row tiles, blocks across) ← of all of a block's columns.
template <class Tuned, int Items, bool Whole, class T>
__global__ void __launch_bounds__(Tuned::value.across* Tuned::value.down)
    range_kernel(matrix<const T> x, matrix<range_ends> partial, unsigned blocks_across) {
  constexpr int across = Tuned::value.across, down = Tuned::value.down, kept = Whole ? 1 : Items;
  NIBBLE_SHARED(range_ends, of_threads, across * down * kept);
  const observed_tile<Tuned, Items> mine(x, blocks_across);
  range_ends ends[kept];
#pragma unroll
  for (int j = 0; j < kept; ++j) ends[j] = no_ends();
  mine.each(x, [&](int j, float value) {
    const value_range one = range_of_value(value);
    range_ends& to = ends[Whole ? 0 : j];
    if (one.seen) to = joined_ends(to, {one.low, one.high});
  });
  const int lane = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  if constexpr (Whole) {
    const range_ends all = fold_block(ends[0], of_threads, joined_ends);
    if (lane == 0 && y == 0) partial(mine.tile, blockIdx.x % blocks_across) = all;
  } else {
#pragma unroll
    for (int j = 0; j < Items; ++j) of_threads[(y * Items + j) * across + lane] = ends[j];
    device::barrier();
    for (int j = y; j < mine.count; j += down) {
      range_ends all = no_ends();
      for (int i = 0; i < down; ++i) all = joined_ends(all, of_threads[(i * Items + j) * across + lane]);
      partial(mine.tile, mine.col + j) = all;
    }
  }
}

/// ranges (k) ← joined with every row of partial (tiles, k).
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.joining)
    join_channel_ranges_kernel(matrix<const range_ends> partial, value_range* ranges) {
  const index_t col = index_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (col >= partial.cols) return;
  range_ends all = no_ends();
  for (index_t tile = 0; tile < partial.rows; ++tile) all = joined_ends(all, partial(tile, col));
  ranges[col] = joined(ranges[col], as_range(all));
}

/// *range ← joined with all `count` parts, by one block.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.joining)
    join_range_kernel(const range_ends* parts, index_t count, value_range* range) {
  NIBBLE_SHARED(range_ends, of_threads, Tuned::value.joining);
  range_ends all = no_ends();
  for (index_t i = threadIdx.x; i < count; i += blockDim.x) all = joined_ends(all, parts[i]);
  all = fold_block(all, of_threads, joined_ends);
  if (threadIdx.x == 0) *range = joined(*range, as_range(all));
}

/// h->most ← the largest finite |x| too, h->non_finite += how many are not finite.
template <class Tuned, int Items, class T>
__global__ void __launch_bounds__(Tuned::value.across* Tuned::value.down)
    magnitude_kernel(matrix<const T> x, histogram_counts* h, unsigned blocks_across) {
  NIBBLE_SHARED(uint32_t, of_threads, Tuned::value.across * Tuned::value.down);
  const observed_tile<Tuned, Items> mine(x, blocks_across);
  uint32_t most = 0, left_out = 0;
  mine.each(x, [&](int, float value) {
    // Bits of floats that are not negative have their order.
    if (is_finite(value))
      most = max(most, bit_cast<uint32_t>(abs(value)));
    else
      ++left_out;
  });
  most = fold_block(most, of_threads, [](uint32_t a, uint32_t b) { return max(a, b); });
  if (threadIdx.x == 0 && threadIdx.y == 0) device::atomic_max(&h->most, most);
  if (left_out > 0) device::atomic_add(&h->non_finite, uint64_t{left_out});
}

/// Doubles the range of *h until h->most lies in it, by one block.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.joining) widen_kernel(histogram_counts* h) {
  constexpr int32_t everything = 11;  // doublings that leave one bin of 2048
  NIBBLE_SHARED(uint64_t, before, histogram_bins);
  const int32_t wanted = histogram_exponent(bit_cast<float>(h->most)), doublings = wanted - exponent_of(*h);
  if (doublings <= 0) return;
  const auto me = static_cast<int32_t>(threadIdx.x), threads = static_cast<int32_t>(blockDim.x);
  for (int32_t bin = me; bin < histogram_bins; bin += threads) before[bin] = h->counts[bin];
  device::barrier();
  const int32_t by = min(doublings, everything);
  for (int32_t bin = me; bin < histogram_bins; bin += threads) {
    uint64_t sum = 0;
    for (int32_t from = bin << by; from < min((bin + 1) << by, histogram_bins); ++from) sum += before[from];
    h->counts[bin] = sum;
  }
  if (me == 0) h->above_least += doublings;
}

/// h->counts += those of x, whose finite |x| are at most h->most. Each block counts in shared memory first.
template <class Tuned, int Items, class T>
__global__ void __launch_bounds__(Tuned::value.across* Tuned::value.down)
    count_kernel(matrix<const T> x, histogram_counts* h, unsigned blocks_across) {
  constexpr int32_t threads = Tuned::value.across * Tuned::value.down;
  NIBBLE_SHARED(uint32_t, own, histogram_bins);
  const auto me = static_cast<int32_t>(threadIdx.y * blockDim.x + threadIdx.x), exponent = exponent_of(*h);
  for (int32_t bin = me; bin < histogram_bins; bin += threads) own[bin] = 0;
  device::barrier();
  const observed_tile<Tuned, Items> mine(x, blocks_across);
  mine.each(x, [&](int, float value) {
    if (is_finite(value)) device::atomic_add(own + histogram_bin(value, exponent), 1u);
  });
  device::barrier();
  for (int32_t bin = me; bin < histogram_bins; bin += threads)
    if (own[bin] > 0) device::atomic_add(h->counts + bin, uint64_t{own[bin]});
}

/// counts (2048, shared) ← those of h; every thread gets how many bins there are up to the last that has any.
__device__ inline int32_t load_counts(const histogram_counts& h, uint64_t* counts, int32_t* filled) {
  if (threadIdx.x == 0) *filled = 0;
  device::barrier();
  int32_t mine = 0;
  for (auto bin = static_cast<int32_t>(threadIdx.x); bin < histogram_bins; bin += static_cast<int32_t>(blockDim.x)) {
    counts[bin] = h.counts[bin];
    if (counts[bin] > 0) mine = bin + 1;
  }
  device::atomic_max(filled, mine);
  device::barrier();
  return *filled;
}

/// What thresholds are searched by: the cost of one, and how many bins a threshold spans at least.
template <class Levels>
struct least_squared_error {
  Levels levels;
  __device__ int32_t least() const { return 1; }
  __device__ double operator()(const uint64_t* counts, int32_t filled, double width, double, int32_t kept) const {
    return nibble::expected_squared_error(counts, filled, width, static_cast<double>(kept) * width, levels);
  }
};
struct least_divergence {
  int32_t levels;
  __device__ int32_t least() const { return levels; }
  __device__ double operator()(const uint64_t* counts, int32_t filled, double, double all, int32_t kept) const {
    return rounding_divergence(counts, filled, all, kept, levels);
  }
};

/// costs (histograms, 2048) ← of the threshold at the end of each bin; +inf where a search does not look. A thread a threshold.
template <class Tuned, class Rule>
__global__ void __launch_bounds__(Tuned::value.candidates)
    threshold_costs_kernel(const histogram_counts* h, Rule rule, matrix<double> costs) {
  constexpr unsigned tiles = histogram_bins / Tuned::value.candidates;
  NIBBLE_SHARED(uint64_t, counts, histogram_bins);
  NIBBLE_SHARED(int32_t, last, 1);
  const index_t which = blockIdx.x / tiles;
  const auto kept = static_cast<int32_t>(blockIdx.x % tiles * blockDim.x + threadIdx.x) + 1;
  const int32_t filled = load_counts(h[which], counts, last);
  double all = 0;
  for (int32_t bin = 0; bin < filled; ++bin) all += static_cast<double>(counts[bin]);
  double cost = nibble::detail::infinity;
  if (kept >= rule.least() && kept <= filled)
    cost = rule(counts, filled, static_cast<double>(histogram_width(exponent_of(h[which]))), all, kept);
  costs(which, kept - 1) = cost;
}

/// A threshold's cost, and how many bins it spans.
struct candidate_cost {
  double cost;
  int64_t kept;
};

/// thresholds (histograms) ← the least of equal costs; all of the range where no cost is finite. A block a histogram.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.joining)
    least_cost_kernel(const histogram_counts* h, matrix<const double> costs, float* thresholds) {
  NIBBLE_SHARED(uint64_t, counts, histogram_bins);
  NIBBLE_SHARED(int32_t, last, 1);
  NIBBLE_SHARED(candidate_cost, of_threads, Tuned::value.joining);
  const index_t which = blockIdx.x;
  const int32_t filled = load_counts(h[which], counts, last);
  candidate_cost best{nibble::detail::infinity, filled};
  const auto better = [](candidate_cost a, candidate_cost b) {
    return b.cost < a.cost || (b.cost == a.cost && b.kept < a.kept) ? b : a;
  };
  for (index_t bin = threadIdx.x; bin < histogram_bins; bin += blockDim.x) {
    const double cost = costs(which, bin);
    if (cost < nibble::detail::infinity) best = better(best, {cost, bin + 1});
  }
  best = fold_block(best, of_threads, better);
  if (threadIdx.x == 0) thresholds[which] = histogram_end(static_cast<int32_t>(best.kept), exponent_of(h[which]));
}

/// thresholds (histograms) ← host::percentile_threshold of each. A block a histogram: its threads add up bins, one looks for the share.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.joining)
    percentile_threshold_kernel(const histogram_counts* h, double share, float* thresholds) {
  constexpr int32_t threads = Tuned::value.joining, each = histogram_bins / threads;
  NIBBLE_SHARED(uint64_t, counts, histogram_bins);
  NIBBLE_SHARED(int32_t, last, 1);
  NIBBLE_SHARED(uint64_t, sums, threads);
  const index_t which = blockIdx.x;
  const int32_t filled = load_counts(h[which], counts, last);
  const auto me = static_cast<int32_t>(threadIdx.x);
  uint64_t sum = 0;
  for (int32_t i = 0; i < each; ++i) sum += counts[me * each + i];
  sums[me] = sum;
  device::barrier();
  if (me != 0) return;
  uint64_t all = 0, below = 0;
#pragma unroll 1  // else sums stay in registers for the loop below
  for (int32_t i = 0; i < threads; ++i) all += sums[i];
  const double wanted = device::multiply(share, static_cast<double>(all));
  int32_t part = 0;
  while (part < threads && static_cast<double>(below + sums[part]) < wanted) below += sums[part++];
  int32_t bins = part * each;
  while (bins < filled && (bins == 0 || static_cast<double>(below) < wanted)) below += counts[bins++];
  thresholds[which] = histogram_end(min(bins, filled), exponent_of(h[which]));
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
