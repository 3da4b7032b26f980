// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of fit_quantize_pack, without their launchers: this much compiles under NVRTC.
/// Eight codes of b bits are b bytes, so that whoever has eight of a row can store them without knowing its neighbours; words
/// are little-endian.
#pragma once

#include "nibble/kernels/detail/fit.cuh"
#include "nibble/pack.hpp"
#include "nibble/quantize.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

inline constexpr int codes_at_once = 8;  ///< codes a thread packs at a time

/// Rows a thread works on at a time.
template <class Tuned, class Scheme>
inline constexpr int rows_at_once = Tuned::value.rows;
template <class Tuned>
inline constexpr int rows_at_once<Tuned, any_scheme> = Tuned::value.any_rows;

/// Scales (n, groups) as they are stored, zero points (n, groups) as codes or nothing.
template <class S>
struct stored_params {
  matrix<S> scales;
  matrix<uint8_t> zeros;

  /// @pre p.scale is one of S.
  __device__ void put(layout::extents scale_at, index_t row, index_t group, params p) const {
    scales(scale_at.rows, scale_at.cols) = S(p.scale);
    if (zeros.data != nullptr) zeros(row, group) = static_cast<uint8_t>(p.zero);
  }
  __device__ params get(index_t row, index_t group, int32_t symmetric_zero) const {
    return {static_cast<float>(scales(row, group)), zeros.data != nullptr ? zeros(row, group) : symmetric_zero};
  }
};

/// Eight codes in the low 8 · bits bits, the first lowest.
struct packed_run {
  uint32_t low = 0, high = 0;  ///< of four codes each

  __device__ void put(int at, uint8_t code, int bits) {
    if (at < codes_at_once / 2)
      low |= uint32_t{code} << (at * bits);
    else
      high |= uint32_t{code} << ((at - codes_at_once / 2) * bits);
  }
  __device__ uint64_t all(int bits) const { return low | uint64_t{high} << (codes_at_once / 2 * bits); }

  /// Stores the codes as bytes [chunk · bits, (chunk + 1) · bits) of a row of `row_bytes`, zeros from there on behind the last.
  __device__ void store(uint32_t* row, index_t row_bytes, index_t chunk, bool last, int bits) const {
    auto* const bytes = reinterpret_cast<uint8_t*>(row);
    const index_t at = chunk * bits, end = last ? row_bytes : at + bits;
    const uint64_t value = all(bits);
    if (end == at + bits && bits % 4 == 0) {
      device::store_once(row + at / 4, static_cast<uint32_t>(value));
      if (bits == 8) device::store_once(row + at / 4 + 1, static_cast<uint32_t>(value >> 32));
    } else if (end == at + bits && bits % 2 == 0) {
      for (int i = 0; i < bits; i += 2)
        device::store_once(reinterpret_cast<uint16_t*>(bytes + at + i), static_cast<uint16_t>(value >> (8 * i)));
    } else {
      for (index_t i = at; i < end; ++i)
        bytes[i] = static_cast<uint8_t>(i < at + 8 ? value >> (8 * static_cast<int>(i - at)) : 0);
    }
  }
};

/// @param bits that a code takes, at least the scheme's.
template <class Scheme, class T>
__device__ packed_run codes_of_run(const items<T, codes_at_once>& x, int count, params p, Scheme s, int bits) {
  packed_run codes;
#pragma unroll
  for (int j = 0; j < codes_at_once; ++j)
    if (j < count) codes.put(j, quantize(static_cast<float>(x.at[j]), p, s), bits);
  return codes;
}

/// compressed-tensors words of groups that begin at multiples of eight weights and that a warp's lanes hold whole.
template <class Tuned, class Scheme, class T, class S>
__global__ void __launch_bounds__(Tuned::value.threads)
    fit_quantize_pack_kernel(matrix<const T> w, matrix<uint32_t> words, stored_params<S> out, index_t width, int lanes,
                             bool wide, Scheme s, unsigned blocks_across) {
  constexpr int rows = rows_at_once<Tuned, Scheme>;
  const team_share<codes_at_once, rows> mine(w.cols, width, lanes, blocks_across);
  items<T, codes_at_once> x[rows];
  params p[rows];
  load_rows(w, mine, wide, x);
  fit_rows(x, mine, w.rows, lanes, s, p);
  const bool leads = mine.leads(w.cols, width), last = mine.col + codes_at_once >= w.cols;
#pragma unroll
  for (int i = 0; i < rows; ++i) {
    const index_t row = mine.row(i);
    if (row >= w.rows) return;
    if (leads) out.put({row, mine.group}, row, mine.group, p[i]);
    if (mine.count > 0)
      codes_of_run(x[i], mine.count, p[i], s, s.bits)
          .store(words.row(row), words.cols * 4, mine.col / codes_at_once, last, s.bits);
  }
}

/// The same for any groups: a block a row, which finds the ranges first and reads the row again from the caches. `Block`: the
/// block finds each range together, else a warp.
template <class Tuned, bool Block, class Scheme, class T, class S>
__global__ void __launch_bounds__(Tuned::value.threads)
    fit_quantize_pack_row_kernel(matrix<const T> w, matrix<uint32_t> words, stored_params<S> out, index_t width,
                                 bool wide_groups, bool wide, Scheme s) {
  constexpr int threads = Tuned::value.threads, team = Block ? threads : 32;
  const index_t row = blockIdx.x, groups = ceil_div(w.cols, width);
  const int thread = static_cast<int>(threadIdx.x), me = thread % team;
  for (index_t first = 0; first < groups; first += threads / team) {
    const index_t group = first + thread / team;
    range mine = range::none();
    if (group < groups) {
      const rectangle at{row, 1, group * width, min(width, w.cols - group * width)};
      mine = seen_range<codes_at_once, Tuned::value.rows>(w, at, me, team, wide_groups);
    }
    if constexpr (Block) {
      mine = block_range<threads>(mine);
    } else {
      mine = warp_range(mine, 32);
    }
    mine = mine.or_zero();
    if (group < groups && me == 0) out.put({row, group}, row, group, fit(mine.low, mine.high, s));
  }
  device::barrier();
  const index_t chunks = ceil_div(w.cols, codes_at_once);
  for (index_t chunk = thread; chunk < chunks; chunk += threads) {
    const index_t col = chunk * codes_at_once, left = w.cols - col;
    const int count = static_cast<int>(min(left, index_t{codes_at_once}));
    items<T, codes_at_once> x;
    x.load(w.row(row) + col, count, wide);
    index_t group = col / width, end = (group + 1) * width;
    params p = out.get(row, group, mid_code(s));
    packed_run codes;
#pragma unroll
    for (int j = 0; j < codes_at_once; ++j) {
      if (j >= count) break;
      if (col + j == end) {
        p = out.get(row, ++group, mid_code(s));
        end += width;
      }
      codes.put(j, quantize(static_cast<float>(x.at[j]), p, s), s.bits);
    }
    codes.store(words.row(row), words.cols * 4, chunk, left <= codes_at_once, s.bits);
  }
}

/// Layouts whose words gather codes of several rows: a block has one group of some rows, and the codes meet in shared memory.
/// @pre blockDim.x == lanes; the words of the block's codes are a rectangle from l.packed(first row, first column) on.
template <class Tuned, class Layout, class Scheme, class T, class S>
__global__ void __launch_bounds__(Tuned::value.threads)
    fit_quantize_pack_tile_kernel(Layout l, matrix<const T> w, matrix<uint32_t> words, stored_params<S> out,
                                  index_t width, int lanes, bool wide, Scheme s, unsigned blocks_across) {
  constexpr int rows = rows_at_once<Tuned, Scheme>, threads = Tuned::value.threads, all_rows = Tuned::value.rows;
  static_assert(all_rows % rows == 0, "a block's rows are whole passes");
  // A word longer than a group, lest the codes of one column all lie in one bank.
  NIBBLE_SHARED(uint32_t, held, threads * all_rows * 3);
  const int stride = lanes * 2 + 1;
  const index_t groups = ceil_div(w.cols, width);
  team_share<codes_at_once, rows> mine(w.cols, width, lanes, blocks_across);
  const index_t first_row = index_t{blockIdx.x / blocks_across} * blockDim.y * all_rows;
  mine.first_row = first_row + threadIdx.y;
#pragma unroll 1
  for (int pass = 0; pass < all_rows; pass += rows, mine.first_row += index_t{blockDim.y} * rows) {
    items<T, codes_at_once> x[rows];
    params p[rows];
    load_rows(w, mine, wide, x);
    fit_rows(x, mine, w.rows, lanes, s, p);
#pragma unroll
    for (int i = 0; i < rows; ++i) {
      const index_t row = mine.row(i);
      if (row >= w.rows || mine.count == 0) continue;
      if (mine.me == 0) out.put(layout::where_scale(l.scales(), groups, row, mine.group), row, mine.group, p[i]);
      uint32_t* const to = held + (row - first_row) * stride + mine.me * 2;
      const packed_run codes = codes_of_run(x[i], mine.count, p[i], s, 8);
      to[0] = codes.low;
      to[1] = codes.high;
    }
  }
  device::barrier();
  const index_t first_col = mine.group * width;
  const matrix<const uint8_t> codes(reinterpret_cast<const uint8_t*>(held),
                                    min(index_t{blockDim.y} * all_rows, w.rows - first_row),
                                    min(width, w.cols - first_col), stride * 4);
  const layout::extents first = l.packed(first_row, first_col), size = l.packed(codes.rows, codes.cols);
  for (int i = static_cast<int>(threadIdx.y) * lanes + mine.me; i < size.rows * size.cols; i += threads) {
    const index_t row = i / size.cols, col = i % size.cols;
    words(first.rows + row, first.cols + col) = word_at(l, codes, row, col);
  }
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
