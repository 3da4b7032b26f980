// SPDX-License-Identifier: Apache-2.0
/// @file
/// Matrix products of floats rounded to bfloat16, summed in float: half the memory and, where a machine has the instruction, twice the
/// multiplications a cycle. Sums run over 512 factors at a time, which are then added.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

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

/// f(pairs), the fastest of plain_pairs and its equals that this machine has.
template <class F>
void with_pairs(F&& f) {
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
  for (index_t first = 0; first < c.rows; first += block_rows, a += block_rows * row) {
    const index_t rows = min(block_rows, c.rows - first);
    if (rows == block_rows &&
        c.cols == block_cols) {  // numbers, not a view: that would come from memory, piece by piece
      Pairs::block(a, row, step, b, pairs, c.row(first), c.stride, add);
      continue;
    }
    alignas(64) float sums[block_rows * block_cols];
    Pairs::block(a, row, step, b, pairs, sums, block_cols, false);
    for (index_t i = 0; i < rows; ++i)
      for (index_t j = 0; j < c.cols; ++j) {
        const float sum = sums[i * block_cols + j];
        c(first + i, j) = add ? c(first + i, j) + sum : sum;
      }
  }
}

/// y (m, n) = x (m, k) · w (n, k)ᵀ, or · w (k, n) where `Rows` is false, on the thread that calls. @pre k > 0
template <class Pairs, bool Rows>
void multiply_pairs(matrix<const float> x, matrix<const float> w, matrix<float> y) {
  thread_local pair_buffer of_x, of_w;
  const index_t tokens = round_up(x.rows, block_rows), panels = ceil_div(y.cols, block_cols);
  for (index_t first = 0; first < x.cols; first += product_depth) {
    const index_t depth = min(product_depth, x.cols - first), pairs = ceil_div(depth, index_t(2));
    uint32_t* const a = of_x.reserve(tokens * pairs);
    uint32_t* const b = of_w.reserve(panels * pairs * block_cols);
    for (index_t row = 0; row < x.rows; ++row) Pairs::pack_row(x.row(row) + first, depth, a + row * pairs);
    std::fill(a + x.rows * pairs, a + tokens * pairs, 0u);
    for (index_t panel = 0; panel < panels; ++panel) {
      const index_t col = panel * block_cols, cols = min(block_cols, y.cols - col);
      uint32_t* const own = b + panel * pairs * block_cols;
      if constexpr (Rows)
        Pairs::pack_rows(w.rows_at(col, cols).cols_at(first, depth), own);
      else
        Pairs::pack_columns(w.rows_at(first, depth).cols_at(col, cols), own);
      multiply_panel<Pairs>(a, pairs, 1, own, pairs, y.cols_at(col, cols), first > 0);
    }
  }
}

/// As multiply_pairs, by the fastest there are; a product over no factors is 0.
template <bool Rows>
void multiply_rounded(matrix<const float> x, matrix<const float> w, matrix<float> y) {
  if (x.cols > 0) return with_pairs([&](auto of) { multiply_pairs<decltype(of), Rows>(x, w, y); });
  for (index_t row = 0; row < y.rows; ++row) std::fill_n(y.row(row), y.cols, 0.0f);
}

/// The columns of x (m, k), packed in panels for sums over its rows. @pre m <= product_depth, of a sum's precision
class packed_columns {
 public:
  void pack(matrix<const float> x) {
    cols_ = x.cols, pairs_ = ceil_div(x.rows, index_t(2));
    panels_ = data_.reserve(ceil_div(cols_, block_cols) * panel_size());
    parallel_for(ceil_div(cols_, block_cols), [&](index_t panel) {
      const index_t col = panel * block_cols;
      with_pairs([&](auto of) {
        decltype(of)::pack_columns(x.cols_at(col, min(block_cols, cols_ - col)), panels_ + panel * panel_size());
      });
    });
  }
  index_t cols() const noexcept { return cols_; }
  index_t pairs() const noexcept { return pairs_; }
  const uint32_t* panel(index_t col) const noexcept { return panels_ + col / block_cols * panel_size(); }

 private:
  index_t panel_size() const noexcept { return pairs_ * block_cols; }
  pair_buffer data_;
  uint32_t* panels_ = nullptr;
  index_t cols_ = 0, pairs_ = 0;
};

/// c (rows, cols) += aᵀ·b of a's columns from `i` on and b's from `j` on, on the thread that calls. @pre i and j are multiples of 32
inline void add_columns_product(const packed_columns& a, index_t i, const packed_columns& b, index_t j,
                                matrix<float> c) {
  with_pairs([&](auto of) {
    for (index_t col = 0; col < c.cols; col += block_cols)
      for (index_t row = 0; row < c.rows; row += block_cols)
        multiply_panel<decltype(of)>(
            a.panel(i + row), 1, block_cols, b.panel(j + col), b.pairs(),
            c.rows_at(row, min(block_cols, c.rows - row)).cols_at(col, min(block_cols, c.cols - col)), true);
  });
}

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END
