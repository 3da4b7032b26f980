// SPDX-License-Identifier: Apache-2.0
/// @file
/// Least and greatest finite weight of a group: what a thread sees, what a warp or a block makes of that. Neither the order nor
/// the sign of a zero matters to what is fitted.
#pragma once

#include "nibble/kernels/detail/device.cuh"
#include "nibble/math.hpp"
#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// low > high while nothing finite was seen.
struct range {
  float low, high;

  __device__ static range none() { return {bit_cast<float>(0x7f800000u), bit_cast<float>(0xff800000u)}; }
  __device__ void add(float x) {
    if (is_finite(x)) widen({x, x});
  }
  __device__ void widen(range other) {
    low = min(low, other.low);
    high = max(high, other.high);
  }
  /// [0, 0] of nothing.
  __device__ range or_zero() const { return low > high ? range{0.0f, 0.0f} : *this; }
};

/// The range of `lanes` lanes, a power of two, next to one another; every lane of the warp takes part and learns its own.
__device__ inline range warp_range(range mine, int lanes) {
  for (int flip = lanes / 2; flip > 0; flip /= 2) mine.widen(device::shuffle_xor(mine, flip));
  return mine;
}

/// The range of a block of `Threads` threads, known to all of them.
template <int Threads>
__device__ range block_range(range mine) {
  NIBBLE_SHARED(range, of_warp, Threads / 32);
  mine = warp_range(mine, 32);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = mine;
  device::barrier();
  for (int i = 0; i < Threads / 32; ++i) mine.widen(of_warp[i]);
  device::barrier();
  return mine;
}

/// Items elements as 16-byte accesses, or one by one where they are not so aligned or not all there.
template <class T, int Items>
struct items {
  T at[Items];

  /// Elements [0, count) at p. @pre `wide`: p is 16-byte aligned, and Items elements are a multiple of that.
  __device__ void load(const T* p, int count, bool wide) {
    constexpr int step = 16 / static_cast<int>(sizeof(T));
    if constexpr (Items % step == 0) {
      if (wide && count == Items) {
#pragma unroll
        for (int i = 0; i < Items; i += step) {
          const auto some = device::load_once(reinterpret_cast<const device::chunk<T, step>*>(p + i));
#pragma unroll
          for (int j = 0; j < step; ++j) at[i + j] = some.at[j];
        }
        return;
      }
    }
#pragma unroll
    for (int i = 0; i < Items; ++i)
      if (i < count) at[i] = p[i];
  }
  __device__ range widened(range r, int count) const {
#pragma unroll
    for (int i = 0; i < Items; ++i)
      if (i < count) r.add(static_cast<float>(at[i]));
    return r;
  }
};

/// A rectangle of a matrix.
struct rectangle {
  index_t row, rows, col, cols;
  __device__ index_t size() const { return rows * cols; }
};

/// The rectangle of group `i`, counted along the columns first, in an (n, k) matrix of groups height × width.
struct grouping {
  index_t n, k, height, width, across;

  __device__ grouping(index_t n_, index_t k_, group_shape g)
      : n(n_), k(k_), height(g.height(n_)), width(g.width(k_)), across(g.across(k_)) {}
  __device__ index_t row_of(index_t i) const { return i / across; }
  __device__ index_t col_of(index_t i) const { return i % across; }
  __device__ rectangle of(index_t i) const {
    const index_t row = row_of(i) * height, col = col_of(i) * width;
    return {row, min(height, n - row), col, min(width, k - col)};
  }
};

/// What thread `me` of a team of `team`, a power of two, sees of a rectangle that the team reads together, `InFlight` accesses
/// at a time.
template <int Items, int InFlight, class T>
__device__ range seen_range(matrix<const T> w, rectangle at, int me, int team, bool wide) {
  const index_t chunks = ceil_div(at.cols, Items);
  int across = 1;
  while (across < chunks && across < team) across *= 2;
  const int down = team / across;
  index_t row = me / across, chunk = me % across;
  range seen = range::none();
  while (row < at.rows) {
    items<T, Items> x[InFlight];
    int count[InFlight];
#pragma unroll
    for (int i = 0; i < InFlight; ++i) {
      const index_t left = row < at.rows ? at.cols - chunk * Items : 0;
      count[i] = static_cast<int>(left < 0 ? 0 : left < Items ? left : Items);
      if (count[i] > 0) x[i].load(w.row(at.row + row) + at.col + chunk * Items, count[i], wide);
      chunk += across;
      if (chunk >= chunks) {
        chunk = me % across;
        row += down;
      }
    }
#pragma unroll
    for (int i = 0; i < InFlight; ++i) seen = x[i].widened(seen, count[i]);
  }
  return seen;
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
