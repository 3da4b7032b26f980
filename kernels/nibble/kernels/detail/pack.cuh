// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of pack, unpack and repack, without their launchers: this much compiles under NVRTC.
#pragma once

#include "nibble/kernels/detail/device.cuh"
#include "nibble/kernels/detail/pack_sides.cuh"
#include "nibble/matrix.hpp"
#include "nibble/pack.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// A matrix of words, and whether its rows suit the widest access that divides a piece's rows.
template <class T>
struct stored_words {
  matrix<T> words;
  bool wide;
};

/// Units of one access to a piece's row of `units`.
NIBBLE_HOST_DEVICE constexpr int access_units(int units) noexcept {
  return units % 4 == 0 ? 4 : units % 2 == 0 ? 2 : 1;
}

/// 32 bits of words (row, col…); `blank` stands for words outside.
template <class Word>
__device__ uint32_t load_unit(matrix<const Word> m, index_t row, index_t col, uint32_t blank) {
  constexpr int words = 4 / int{sizeof(Word)}, bits = 32 / words;
  if (row >= m.rows) return blank;
  uint32_t unit = 0;
  for (int w = 0; w < words; ++w) {
    const uint32_t word = col + w < m.cols ? uint32_t{m(row, col + w)} : blank >> (32 - bits);
    unit |= word << bits * w;
  }
  return unit;
}
template <class Word>
__device__ void store_unit(matrix<Word> m, index_t row, index_t col, uint32_t unit) {
  constexpr int words = 4 / int{sizeof(Word)}, bits = 32 / words;
  for (int w = 0; w < words; ++w)
    if (col + w < m.cols) m(row, col + w) = static_cast<Word>(unit >> bits * w);
}

/// The units of a piece, `Whole` when all its words are known to be there and wide.
template <bool Whole, class Side>
__device__ void load_piece(stored_words<const typename Side::word> from, layout::extents first, uint32_t blank,
                           uint32_t (&piece)[Side::rows][Side::units]) {
  constexpr int step = access_units(Side::units), words = 4 / int{sizeof(typename Side::word)};
  using access = device::chunk<uint32_t, step>;
#pragma unroll
  for (int r = 0; r < Side::rows; ++r)
#pragma unroll
    for (int u = 0; u < Side::units; u += step) {
      const index_t row = first.rows + r, col = first.cols + u * words;
      if (Whole || (from.wide && row < from.words.rows && col + step * words <= from.words.cols)) {
        const auto all = device::load_once(reinterpret_cast<const access*>(from.words.row(row) + col));
#pragma unroll
        for (int i = 0; i < step; ++i) piece[r][u + i] = all.at[i];
      } else {
#pragma unroll
        for (int i = 0; i < step; ++i) piece[r][u + i] = load_unit(from.words, row, col + i * words, blank);
      }
    }
}
template <class Side>
__device__ void store_piece(stored_words<typename Side::word> to, layout::extents first,
                            const uint32_t (&piece)[Side::rows][Side::units]) {
  constexpr int step = access_units(Side::units), words = 4 / int{sizeof(typename Side::word)};
  using access = device::chunk<uint32_t, step>;
#pragma unroll
  for (int r = 0; r < Side::rows; ++r) {
    const index_t row = first.rows + r;
    if (row >= to.words.rows) return;
#pragma unroll
    for (int u = 0; u < Side::units; u += step) {
      const index_t col = first.cols + u * words;
      if (to.wide && col + step * words <= to.words.cols) {
        access all;
#pragma unroll
        for (int i = 0; i < step; ++i) all.at[i] = piece[r][u + i];
        device::store_once(reinterpret_cast<access*>(to.words.row(row) + col), all);
      } else {
#pragma unroll
        for (int i = 0; i < step; ++i) store_unit(to.words, row, col + i * words, piece[r][u + i]);
      }
    }
  }
}

/// The word at which a piece of the tile begins.
template <class Side, class Tile>
__device__ layout::extents first_word(layout::extents origin, int piece) {
  const spot at = Side::template at<Tile>(piece);
  return {origin.rows + at.row, origin.cols + at.col};
}

/// Fills the tile: all of a thread's words are under way before the first is used where the tile lies inside the matrix.
template <int Threads, class Side, class Tile>
__device__ void read_tile(stored_words<const typename Side::word> from, layout::extents origin, uint32_t blank,
                          Tile tile) {
  constexpr int pieces = Tile::rows * Tile::cols / Side::codes, a_thread = pieces / Threads;
  static_assert(a_thread * Threads == pieces, "threads share a tile's pieces evenly");
  const layout::extents last = first_word<Side, Tile>(origin, pieces - 1);
  const bool whole = from.wide && last.rows + Side::rows <= from.words.rows &&
                     last.cols + Side::units * (4 / int{sizeof(typename Side::word)}) <= from.words.cols;
  const int first = static_cast<int>(threadIdx.x);
  if (whole) {
    uint32_t piece[a_thread][Side::rows][Side::units];
#pragma unroll
    for (int p = 0; p < a_thread; ++p)
      load_piece<true, Side>(from, first_word<Side, Tile>(origin, first + p * Threads), blank, piece[p]);
#pragma unroll
    for (int p = 0; p < a_thread; ++p) Side::unpack(tile, first + p * Threads, piece[p]);
  } else {
#pragma unroll 1
    for (int p = first; p < pieces; p += Threads) {
      uint32_t piece[Side::rows][Side::units];
      load_piece<false, Side>(from, first_word<Side, Tile>(origin, p), blank, piece);
      Side::unpack(tile, p, piece);
    }
  }
}
template <int Threads, class Side, class Tile>
__device__ void write_tile(stored_words<typename Side::word> to, layout::extents origin, Tile tile) {
  constexpr int pieces = Tile::rows * Tile::cols / Side::codes;
#pragma unroll 1
  for (int p = static_cast<int>(threadIdx.x); p < pieces; p += Threads) {
    uint32_t piece[Side::rows][Side::units];
    Side::pack(tile, p, piece);
    store_piece<Side>(to, first_word<Side, Tile>(origin, p), piece);
  }
}

/// to = the codes of `from` in another layout, a tile a block, blocks along the inputs first.
/// @param blank stands for words that `from` lacks to fill a tile.
template <class Tuned, class Tile, class From, class To>
__global__ void __launch_bounds__(Tuned::value.threads)
    repack_kernel(stored_words<const typename From::word> from, stored_words<typename To::word> to,
                  unsigned blocks_across, uint32_t blank) {
  NIBBLE_SHARED(uint8_t, bytes, Tile::rows * Tile::cols);
  const Tile tile{bytes};
  const index_t i = index_t{blockIdx.x / blocks_across} * Tile::rows;
  const index_t j = index_t{blockIdx.x % blocks_across} * Tile::cols;
  read_tile<Tuned::value.threads, From>(from, From::origin(i, j), blank, tile);
  device::barrier();
  write_tile<Tuned::value.threads, To>(to, To::origin(i, j), tile);
}

/// One element (row, col) of a matrix a thread; a block is blockDim.x columns wide and blockDim.y rows high.
__device__ inline layout::extents own_element(unsigned blocks_across) {
  return {index_t{blockIdx.x / blocks_across} * blockDim.y + threadIdx.y,
          index_t{blockIdx.x % blocks_across} * blockDim.x + threadIdx.x};
}

/// Codes (n, k) as they lie in words.
template <class Layout>
struct packed_codes {
  Layout layout;
  matrix<const typename Layout::word> words;
  index_t n, k;
  NIBBLE_HOST_DEVICE uint8_t operator()(index_t i, index_t j) const { return code_at(layout, words, n, k, i, j); }
};

/// words = the packed codes (n, k), a word a thread. Codes: whatever is called codes(i, j).
template <class Tuned, class Layout, class Codes>
__global__ void __launch_bounds__(Tuned::value.threads)
    gather_words_kernel(Layout l, Codes codes, matrix<typename Layout::word> words, index_t n, index_t k,
                        unsigned blocks_across) {
  const layout::extents at = own_element(blocks_across);
  if (at.rows < words.rows && at.cols < words.cols) words(at.rows, at.cols) = word_of(l, codes, n, k, at.rows, at.cols);
}

/// codes = what words hold, a code a thread.
template <class Tuned, class Layout>
__global__ void __launch_bounds__(Tuned::value.threads)
    gather_codes_kernel(packed_codes<Layout> from, matrix<uint8_t> codes, unsigned blocks_across) {
  const layout::extents at = own_element(blocks_across);
  if (at.rows < codes.rows && at.cols < codes.cols) codes(at.rows, at.cols) = from(at.rows, at.cols);
}

/// A tile of scales (n, groups), turned: 64 outputs, as many as any layout permutes scales within, by 32 groups.
inline constexpr int scale_outputs = 64, scale_groups = 32;

/// stored = scales (n, groups) where a layout wants them, which is g down and i across, permuted within every 64; zero past
/// the groups. A tile a block, blocks along the outputs first.
template <class Tuned, class Layout, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    turn_scales_kernel(Layout l, matrix<const T> scales, matrix<T> stored, unsigned blocks_across) {
  NIBBLE_SHARED(T, turned, scale_outputs * (scale_groups + 1));
  const index_t i0 = index_t{blockIdx.x % blocks_across} * scale_outputs;
  const index_t g0 = index_t{blockIdx.x / blocks_across} * scale_groups;
  for (int e = static_cast<int>(threadIdx.x); e < scale_outputs * scale_groups; e += Tuned::value.threads) {
    const index_t i = i0 + e / scale_groups, g = g0 + e % scale_groups;
    const bool inside = i < scales.rows && g < scales.cols;
    const auto col = static_cast<int>(where_scale(l, scales.cols, i, g).cols - i0);
    turned[col * (scale_groups + 1) + e % scale_groups] = inside ? scales(i, g) : T{};
  }
  device::barrier();
  for (int e = static_cast<int>(threadIdx.x); e < scale_outputs * scale_groups; e += Tuned::value.threads) {
    const index_t g = g0 + e / scale_outputs, i = i0 + e % scale_outputs;
    if (g < stored.rows && i < stored.cols)
      stored(g, i) = turned[e % scale_outputs * (scale_groups + 1) + e / scale_outputs];
  }
}
/// The way back.
template <class Tuned, class Layout, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    turn_scales_back_kernel(Layout l, matrix<const T> stored, matrix<T> scales, unsigned blocks_across) {
  NIBBLE_SHARED(T, turned, scale_outputs * (scale_groups + 1));
  const index_t i0 = index_t{blockIdx.x % blocks_across} * scale_outputs;
  const index_t g0 = index_t{blockIdx.x / blocks_across} * scale_groups;
  for (int e = static_cast<int>(threadIdx.x); e < scale_outputs * scale_groups; e += Tuned::value.threads) {
    const index_t g = g0 + e / scale_outputs, i = i0 + e % scale_outputs;
    if (g < scales.cols && i < stored.cols)
      turned[e % scale_outputs * (scale_groups + 1) + e / scale_outputs] = stored(g, i);
  }
  device::barrier();
  for (int e = static_cast<int>(threadIdx.x); e < scale_outputs * scale_groups; e += Tuned::value.threads) {
    const index_t i = i0 + e / scale_groups, g = g0 + e % scale_groups;
    const auto col = static_cast<int>(where_scale(l, scales.cols, i, g).cols - i0);
    if (i < scales.rows && g < scales.cols) scales(i, g) = turned[col * (scale_groups + 1) + e % scale_groups];
  }
}

/// to = from where it has such an element, else zero; an element a thread.
template <class Tuned, class T>
__global__ void __launch_bounds__(Tuned::value.threads)
    copy_scales_kernel(matrix<const T> from, matrix<T> to, unsigned blocks_across) {
  const layout::extents at = own_element(blocks_across);
  if (at.rows < to.rows && at.cols < to.cols) to(at.rows, at.cols) = at.cols < from.cols ? from(at.rows, at.cols) : T{};
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
