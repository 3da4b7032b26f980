// SPDX-License-Identifier: Apache-2.0
/// @file
/// Matrix products of floats rounded to bfloat16, summed in float: half the memory and, where a machine has an instruction for it, twice the
/// multiplications a cycle (AVX512_BF16 on a Zen 4) or sixteen times as many (AMX). Sums run over 512 factors at a time, which are then added.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "nibble/host/matmul/amx.hpp"
#include "nibble/host/matmul/avx512.hpp"
#include "nibble/host/matmul/plain.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/math.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Factors summed before they are added to what there is.
inline constexpr index_t product_depth = 512;

/// Room for pairs, at an address that vectors load from in one piece. Lost when it grows.
class pair_buffer {
 public:
  uint32_t* reserve(index_t count) {
    constexpr index_t line = 64 / sizeof(uint32_t);
    if (data_ == nullptr || count > size_) {
      data_.reset();  // first, so that its place can be had again
      data_.reset(new uint32_t[static_cast<size_t>(count + line)]);
      size_ = count;
    }
    const auto address = reinterpret_cast<std::uintptr_t>(data_.get());
    return data_.get() + (64 - address % 64) % 64 / sizeof(uint32_t);
  }

 private:
  std::unique_ptr<uint32_t[]> data_;
  index_t size_ = 0;
};

/// f(pairs), the fastest that this machine has of plain_pairs and its equals and of what is as plain_tiles.
template <class F>
void with_pairs(F&& f) {
#if defined(NIBBLE_AMX_KNOWN)
  if (has_amx_bf16()) return f(amx_tiles{});
#endif
#if defined(__GNUC__) && defined(__x86_64__)
  if (has_avx512_bf16()) return f(avx512_pairs{});
#endif
  f(plain_pairs{});
}

/// c (rows, 32 at most) ← the sums of all rows of a with a panel b, or c + those, in blocks of Pairs. Pair t of row i is
/// a[i · row + t · step]; what a block reads of a beyond its rows is there.
template <class Pairs>
void multiply_panel(const uint32_t* a, index_t row, index_t step, const uint32_t* b, index_t pairs, matrix<float> c,
                    bool add) {
  for (index_t first = 0; first < c.rows; first += Pairs::rows, a += Pairs::rows * row) {
    const index_t rows = min(Pairs::rows, c.rows - first);
    if (rows == Pairs::rows &&
        c.cols == block_cols) {  // numbers, not a view: that would come from memory, piece by piece
      Pairs::block(a, row, step, b, pairs, c.row(first), c.stride, add);
      continue;
    }
    alignas(64) float sums[Pairs::rows * block_cols];
    Pairs::block(a, row, step, b, pairs, sums, block_cols, false);
    for (index_t i = 0; i < rows; ++i)
      for (index_t j = 0; j < c.cols; ++j) {
        const float sum = sums[i * block_cols + j];
        c(first + i, j) = add ? c(first + i, j) + sum : sum;
      }
  }
}

/// out ← x less what rounding to bfloat16 makes of it, exactly. @pre no x rounds to an infinity
inline void rest_of(const float* x, index_t count, float* out) noexcept {
  vectorised([&] {
    for (index_t i = 0; i < count; ++i) out[i] = x[i] - first_of(bf16_bits(x[i]));
  });
}

/// The rows of x (m, k), packed for products whose first factors they are, in runs of product_depth.
class row_pairs {
 public:
  void pack(matrix<const float> x) {
    with_pairs([&](auto of) { pack<decltype(of)>(x); });
  }
  template <class Pairs>
  void pack(matrix<const float> x) {
    constexpr index_t tile = 64;
    rows_ = x.rows, cols_ = x.cols, padded_ = round_up(rows_, Pairs::rows);
    const index_t rest = cols_ % product_depth, stride_of_rest = rest > 0 ? stride_of<Pairs>(rest) : 0;
    data_ = buffer_.reserve(padded_ * (cols_ / product_depth * stride_of<Pairs>(product_depth) + stride_of_rest));
    parallel_for(ceil_div(padded_, tile), [&](index_t at_tile) {
      for (index_t first = 0; first < cols_; first += product_depth) {
        const index_t depth = min(product_depth, cols_ - first), stride = stride_of<Pairs>(depth);
        uint32_t* to = place<Pairs>(at_tile * tile, first);
        for (index_t row = at_tile * tile; row < min(padded_, (at_tile + 1) * tile); ++row, to += stride)
          if (row < rows_)
            Pairs::pack_row(x.row(row) + first, depth, to);
          else
            std::fill_n(to, stride, 0u);
      }
    });
  }
  index_t rows() const noexcept { return rows_; }
  index_t cols() const noexcept { return cols_; }
  /// Pairs of rows from `row` on, of the run that begins at column `first`. @pre multiples of Pairs::rows and of product_depth
  template <class Pairs>
  const uint32_t* at(index_t row, index_t first) const noexcept {
    return place<Pairs>(row, first);
  }
  /// From one row of a run of `depth` columns to the next.
  template <class Pairs>
  static constexpr index_t stride_of(index_t depth) noexcept {
    return packed_pairs<Pairs::depth>(depth) + Pairs::apart;
  }

 private:
  template <class Pairs>
  uint32_t* place(index_t row, index_t first) const noexcept {
    return data_ + padded_ * stride_of<Pairs>(product_depth) * (first / product_depth) +
           row * stride_of<Pairs>(min(product_depth, cols_ - first));
  }

  pair_buffer buffer_;
  uint32_t* data_ = nullptr;
  index_t rows_ = 0, cols_ = 0, padded_ = 0;
};

/// y (m, n) = x's rows from `row` on · w (n, k)ᵀ, or · w (k, n) where `Rows` is false, on the thread that calls. @pre k > 0
template <class Pairs, bool Rows>
void multiply_pairs(const row_pairs& x, index_t row, matrix<const float> w, matrix<float> y) {
  thread_local pair_buffer of_w;
  thread_local std::vector<float> of_y;
  [[maybe_unused]] const typename Pairs::session within;
  // Sums that are added to often are kept together, panel by panel: y's rows may all want the same lines of a cache.
  const bool together = x.cols() > 2 * product_depth;
  if (together) of_y.resize(static_cast<size_t>(y.rows * round_up(y.cols, block_cols)));
  for (index_t first = 0; first < x.cols(); first += product_depth) {
    const index_t depth = min(product_depth, x.cols() - first), pairs = packed_pairs<Pairs::depth>(depth);
    const uint32_t* const a = x.at<Pairs>(row, first);
    uint32_t* const b = of_w.reserve(pairs * block_cols);
    for (index_t col = 0; col < y.cols; col += block_cols) {
      const index_t cols = min(block_cols, y.cols - col);
      if constexpr (Rows)
        Pairs::pack_rows(w.rows_at(col, cols).cols_at(first, depth), b);
      else
        Pairs::pack_columns(w.rows_at(first, depth).cols_at(col, cols), b);
      const matrix<float> sums =
          together ? matrix<float>(of_y.data() + y.rows * col, y.rows, cols, block_cols) : y.cols_at(col, cols);
      multiply_panel<Pairs>(a, row_pairs::stride_of<Pairs>(depth), 1, b, pairs, sums, first > 0);
      if (together && first + depth == x.cols())
        for (index_t i = 0; i < y.rows; ++i) std::copy_n(sums.row(i), cols, y.row(i) + col);
    }
  }
}

/// As multiply_pairs, by the fastest there are; a product over no factors is 0.
template <bool Rows>
void multiply_rounded(const row_pairs& x, index_t first, matrix<const float> w, matrix<float> y) {
  if (x.cols() > 0) return with_pairs([&](auto of) { multiply_pairs<decltype(of), Rows>(x, first, w, y); });
  for (index_t row = 0; row < y.rows; ++row) std::fill_n(y.row(row), y.cols, 0.0f);
}

/// The same of rows that are not packed yet.
template <bool Rows>
void multiply_rounded(matrix<const float> x, matrix<const float> w, matrix<float> y) {
  thread_local row_pairs packing;
  packing.pack(x);
  multiply_rounded<Rows>(packing, 0, w, y);
}

/// w (k, n), packed for products whose second factor it is, in runs of product_depth rows: for a factor that many products share.
class packed_panels {
 public:
  void pack(matrix<const float> w, bool rest = false) {
    with_pairs([&](auto of) { pack<decltype(of)>(w, rest); });
  }
  /// @param rest  what rounding to bfloat16 leaves of w, instead of w
  template <class Pairs>
  void pack(matrix<const float> w, bool rest = false) {
    rows_ = w.rows, width_ = round_up(w.cols, block_cols);
    data_ = buffer_.reserve(width_ * (rows_ / product_depth * packed_pairs<Pairs::depth>(product_depth) +
                                      packed_pairs<Pairs::depth>(rows_ % product_depth)));
    const index_t across = width_ / block_cols;
    parallel_for(ceil_div(rows_, product_depth) * across, [&](index_t panel) {
      thread_local std::vector<float> left;
      const index_t first = panel / across * product_depth, col = panel % across * block_cols;
      matrix<const float> from =
          w.rows_at(first, min(product_depth, rows_ - first)).cols_at(col, min(block_cols, w.cols - col));
      if (rest) {
        left.resize(static_cast<size_t>(from.size()));
        for (index_t row = 0; row < from.rows; ++row) rest_of(from.row(row), from.cols, left.data() + row * from.cols);
        from = {left.data(), from.rows, from.cols};
      }
      Pairs::pack_columns(from, place<Pairs>(first, col));
    });
  }
  /// Of the run that begins at row `first`, columns from `col` on. @pre multiples of product_depth and of block_cols
  template <class Pairs>
  const uint32_t* at(index_t first, index_t col) const noexcept {
    return place<Pairs>(first, col);
  }

 private:
  template <class Pairs>
  uint32_t* place(index_t first, index_t col) const noexcept {
    return data_ + width_ * (first / 2) + col * packed_pairs<Pairs::depth>(min(product_depth, rows_ - first));
  }

  pair_buffer buffer_;
  uint32_t* data_ = nullptr;
  index_t rows_ = 0, width_ = 0;
};

/// Rows of x (m, k) rounded to bfloat16, and what that leaves of them, also rounded.
struct split_rows {
  row_pairs high, low;
  std::vector<float> rest;

  void pack(matrix<const float> x) {
    with_pairs([&](auto of) { pack<decltype(of)>(x); });
  }
  template <class Pairs>
  void pack(matrix<const float> x) {
    rest.resize(static_cast<size_t>(x.size()));
    for (index_t row = 0; row < x.rows; ++row) rest_of(x.row(row), x.cols, rest.data() + row * x.cols);
    high.pack<Pairs>(x);
    low.pack<Pairs>({rest.data(), x.rows, x.cols});
  }
};

/// y (m, n) ← x · w, of w's rows from `first` on and its columns from `col` on, on the thread that calls: with both factors as a
/// sum of two bfloat16, three products of the four, which leaves an error of some 2⁻¹⁶ of |x|·|w| (Henry, Tang, Heinecke, arXiv 1904.06376).
/// @pre first is a multiple of product_depth, or of 32 where x has no more columns than are left of its run; col of block_cols
template <class Pairs>
void multiply_split(const split_rows& x, const packed_panels& high, const packed_panels& low, index_t first,
                    index_t col, matrix<float> y) {
  thread_local std::vector<float> sums;
  [[maybe_unused]] const typename Pairs::session within;
  const index_t k = x.high.cols();
  sums.resize(static_cast<size_t>(y.rows * block_cols));
  for (index_t panel = 0; panel < y.cols; panel += block_cols) {
    const index_t cols = min(block_cols, y.cols - panel);
    const matrix<float> to(sums.data(), y.rows, cols, block_cols);
    for (index_t run = 0; run < k; run += product_depth) {
      const index_t depth = min(product_depth, k - run), pairs = packed_pairs<Pairs::depth>(depth);
      const index_t begin = (first + run) / product_depth * product_depth, within_run = first + run - begin;
      const index_t stride = row_pairs::stride_of<Pairs>(depth);
      const auto* const of_high = high.at<Pairs>(begin, col + panel) + within_run / 2 * block_cols;
      const auto* const of_low = low.at<Pairs>(begin, col + panel) + within_run / 2 * block_cols;
      multiply_panel<Pairs>(x.low.at<Pairs>(0, run), stride, 1, of_high, pairs, to, run > 0);
      multiply_panel<Pairs>(x.high.at<Pairs>(0, run), stride, 1, of_low, pairs, to, true);
      multiply_panel<Pairs>(x.high.at<Pairs>(0, run), stride, 1, of_high, pairs, to, true);
    }
    for (index_t row = 0; row < y.rows; ++row) std::copy_n(to.row(row), cols, y.row(row) + panel);
  }
}
inline void multiply_split(const split_rows& x, const packed_panels& high, const packed_panels& low, index_t first,
                           index_t col, matrix<float> y) {
  with_pairs([&](auto of) { multiply_split<decltype(of)>(x, high, low, first, col, y); });
}

/// Whether three products in bfloat16 take less time than one of floats.
inline bool splitting_pays() noexcept {
#if defined(NIBBLE_AMX_KNOWN)
  return has_amx_bf16();
#else
  return false;
#endif
}

/// y (m, n) ← the sum over factors [first, last) of all rows of x with columns of w from `col` on, on the thread that calls.
/// @pre first, and last where it is not all, multiples of product_depth, col of block_cols
template <class Pairs>
void multiply_pairs(const row_pairs& x, const packed_panels& w, index_t first, index_t last, index_t col,
                    matrix<float> y) {
  [[maybe_unused]] const typename Pairs::session within;
  for (index_t panel = 0; panel < y.cols; panel += block_cols) {
    const auto sums = y.cols_at(panel, min(block_cols, y.cols - panel));
    for (index_t run = first; run < last; run += product_depth) {
      const index_t depth = min(product_depth, last - run);
      multiply_panel<Pairs>(x.at<Pairs>(0, run), row_pairs::stride_of<Pairs>(depth), 1, w.at<Pairs>(run, col + panel),
                            packed_pairs<Pairs::depth>(depth), sums, run > first);
    }
    for (index_t row = 0; first == last && row < y.rows; ++row) std::fill_n(sums.row(row), sums.cols, 0.0f);
  }
}

/// The columns of x (m, k), packed for sums over its rows. @pre m <= product_depth, of a sum's precision
class packed_columns {
 public:
  /// @param first  whether products will take columns of it first, which Pairs may want as rows
  void pack(matrix<const float> x, bool first = true) {
    with_pairs([&](auto of) { pack<decltype(of)>(x, first); });
  }
  template <class Pairs>
  void pack(matrix<const float> x, bool first = true) {
    cols_ = x.cols, pairs_ = packed_pairs<Pairs::depth>(x.rows);
    const index_t panels = ceil_div(cols_, block_cols);
    panels_ = of_panels_.reserve(panels * block_cols * pairs_);
    if (!Pairs::takes_panels && first) rows_ = of_rows_.reserve(panels * block_cols * stride<Pairs>());
    parallel_for(panels, [&](index_t panel) {
      const index_t col = panel * block_cols;
      uint32_t* const own = panels_ + col * pairs_;
      Pairs::pack_columns(x.cols_at(col, min(block_cols, cols_ - col)), own);
      if constexpr (!Pairs::takes_panels)
        if (first) Pairs::turn(own, pairs_, rows_ + col * stride<Pairs>());
    });
  }
  index_t cols() const noexcept { return cols_; }
  index_t pairs() const noexcept { return pairs_; }
  /// Of columns from `col` on. @pre a multiple of 32
  const uint32_t* panel(index_t col) const noexcept { return panels_ + col * pairs_; }
  /// The same as a block takes them first: pair t of column i is at i · row + t · step.
  struct first_pairs {
    const uint32_t* data;
    index_t row, step;
  };
  template <class Pairs>
  first_pairs as_first(index_t col) const noexcept {
    if constexpr (Pairs::takes_panels)
      return {panel(col), 1, block_cols};
    else
      return {rows_ + col * stride<Pairs>(), stride<Pairs>(), 1};
  }

 private:
  template <class Pairs>
  index_t stride() const noexcept {
    return pairs_ + Pairs::apart;
  }

  pair_buffer of_panels_, of_rows_;
  uint32_t *panels_ = nullptr, *rows_ = nullptr;
  index_t cols_ = 0, pairs_ = 0;
};

/// c (rows, cols) += aᵀ·b of a's columns from `i` on and b's from `j` on, on the thread that calls. @pre i and j are multiples of 32
template <class Pairs>
void add_columns_product(const packed_columns& a, index_t i, const packed_columns& b, index_t j, matrix<float> c) {
  [[maybe_unused]] const typename Pairs::session within;
  for (index_t col = 0; col < c.cols; col += block_cols)
    for (index_t row = 0; row < c.rows; row += block_cols) {
      const auto [first, apart, step] = a.as_first<Pairs>(i + row);
      multiply_panel<Pairs>(first, apart, step, b.panel(j + col), b.pairs(),
                            c.rows_at(row, min(block_cols, c.rows - row)).cols_at(col, min(block_cols, c.cols - col)),
                            true);
    }
}
inline void add_columns_product(const packed_columns& a, index_t i, const packed_columns& b, index_t j,
                                matrix<float> c) {
  with_pairs([&](auto of) { add_columns_product<decltype(of)>(a, i, b, j, c); });
}

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END
