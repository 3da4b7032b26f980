// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernel of fit by percentiles, without its launcher: this much compiles under NVRTC. A block selects a group's order
/// statistics eight bits at a time: a histogram of the keys that share the bits found so far tells the next eight.
#pragma once

#include "nibble/fit.hpp"
#include "nibble/kernels/detail/range.cuh"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

inline constexpr int digits = 256;

/// A number of sizeof(T) bytes whose order is that of the finite T, or of their magnitudes.
template <class T>
__device__ uint32_t order_key(T x, bool magnitude) {
  constexpr uint32_t sign = uint32_t{1} << (8 * sizeof(T) - 1), all = sign | (sign - 1);
  uint32_t bits = 0;
  if constexpr (sizeof(T) == 4)
    bits = bit_cast<uint32_t>(x);
  else
    bits = x.bits;
  if (magnitude) bits &= sign - 1;
  return (bits & sign) != 0 ? ~bits & all : bits | sign;
}
template <class T>
__device__ float of_order_key(uint32_t key) {
  constexpr uint32_t sign = uint32_t{1} << (8 * sizeof(T) - 1), all = sign | (sign - 1);
  const uint32_t bits = (key & sign) != 0 ? key & (sign - 1) : ~key & all;
  if constexpr (sizeof(T) == 4) {
    return bit_cast<float>(bits);
  } else {
    T x;
    x.bits = static_cast<uint16_t>(bits);
    return static_cast<float>(x);
  }
}

/// A statistic that is looked for: its rank among the keys that begin with `prefix`.
struct wanted {
  uint32_t prefix, rank;
};

/// The digit in which the rank lies and the rank within it, by one warp; every lane learns them.
__device__ inline wanted find_digit(const uint32_t* histogram, uint32_t rank) {
  constexpr int each = digits / 32;
  const int lane = device::lane();
  uint32_t mine = 0;
  for (int i = 0; i < each; ++i) mine += histogram[lane * each + i];
  uint32_t before = mine;
  for (int step = 1; step < 32; step *= 2) {
    const uint32_t other = device::shuffle_up(before, step);
    if (lane >= step) before += other;
  }
  before -= mine;
  const bool here = rank - before < mine;  // a rank that lies before wraps round
  uint32_t digit = static_cast<uint32_t>(lane * each), left = rank - before;
  while (here && left >= histogram[digit]) left -= histogram[digit++];
  int from = 0;
  const uint32_t who = device::ballot(here);
  while (from < 31 && (who >> from & 1u) == 0) ++from;
  return {device::shuffle(digit, from), device::shuffle(left, from)};
}

/// A share of the way through `count` sorted values, and how far it lies past the value below.
struct quantile_place {
  double past;
  uint32_t below, above;

  __device__ quantile_place(double share, uint32_t count) {
    const double place = device::multiply(share, static_cast<double>(count - 1));
    below = min(static_cast<uint32_t>(place), count - 1);
    above = min(below + 1, count - 1);
    past = device::subtract(place, static_cast<double>(below));
  }
  __device__ float between(float low, float high) const {
    const double step = device::subtract(static_cast<double>(high), static_cast<double>(low));
    return static_cast<float>(device::add(static_cast<double>(low), device::multiply(past, step)));
  }
};

/// f(element) for a thread's share of a rectangle.
template <class T, class F>
__device__ void each_element(matrix<const T> w, rectangle at, F f) {
  const auto me = static_cast<index_t>(threadIdx.x), step = static_cast<index_t>(blockDim.x);
  index_t row = me / at.cols, col = me % at.cols;
  while (row < at.rows) {
    f(w(at.row + row, at.col + col));
    for (col += step; col >= at.cols; col -= at.cols) ++row;
  }
}

/// A block a group, of whole warps. @param share of the weights, or of their magnitudes, below the upper end; the other end is
/// as far from the least weight, or the same below 0.
template <class Tuned, class Scheme, class T>
__global__ void __launch_bounds__(Tuned::value.threads, Tuned::value.blocks)
    fit_percentile_kernel(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, double share) {
  constexpr int statistics = 4, key_bits = 8 * static_cast<int>(sizeof(T));
  NIBBLE_SHARED(uint32_t, histogram, statistics * digits);
  NIBBLE_SHARED(wanted, found, statistics);
  NIBBLE_SHARED(uint32_t, counted, 1);
  const grouping groups(w.rows, w.cols, g);
  const index_t group = blockIdx.x;
  const rectangle at = groups.of(group);
  const int me = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int wants = s.symmetric ? 2 : statistics;

  if (me == 0) counted[0] = 0;
  device::barrier();
  uint32_t mine = 0;
  each_element(w, at, [&](T x) { mine += is_finite(static_cast<float>(x)) ? 1u : 0u; });
  device::atomic_add(counted, mine);
  device::barrier();
  const uint32_t count = counted[0];
  const quantile_place high(share, max(count, 1u)), low(device::subtract(1.0, share), max(count, 1u));
  if (me == 0) {
    found[0] = {0, high.below};
    found[1] = {0, high.above};
    found[2] = {0, low.below};
    found[3] = {0, low.above};
  }
  for (int shift = key_bits - 8; shift >= 0 && count > 0; shift -= 8) {
    for (int i = me; i < wants * digits; i += threads) histogram[i] = 0;
    device::barrier();
    each_element(w, at, [&](T x) {
      if (!is_finite(static_cast<float>(x))) return;
      const uint32_t key = order_key(x, s.symmetric);
      for (int i = 0; i < wants; ++i)
        if (found[i].prefix == key >> shift >> 8)
          device::atomic_add(histogram + i * digits + (key >> shift & (digits - 1)), 1u);
    });
    device::barrier();
    for (int i = me / 32; i < wants; i += threads / 32) {
      const wanted digit = find_digit(histogram + i * digits, found[i].rank);
      device::warp_barrier();
      if (me % 32 == 0) found[i] = {found[i].prefix << 8 | digit.prefix, digit.rank};
    }
    device::barrier();
  }
  if (me != 0) return;
  float top = 0.0f, bottom = 0.0f;
  if (count > 0) {
    const auto value = [&](int i) { return of_order_key<T>(found[i].prefix); };
    top = high.between(value(0), value(1));
    bottom = s.symmetric ? -top : low.between(value(2), value(3));
  }
  p(groups.row_of(group), groups.col_of(group)) = fit(bottom, top, s);
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
