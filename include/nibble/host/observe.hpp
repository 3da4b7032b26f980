// SPDX-License-Identifier: Apache-2.0
/// @file
/// Activation statistics at the speed of a BLAS. Fixed tiles: the same bytes whatever the number of threads.
#pragma once

#include <utility>
#include <vector>

#include "nibble/host/matmul.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/matrix.hpp"
#include "nibble/observe.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Columns a thread sums at a time, and tokens summed in float before they join the double sums.
inline constexpr index_t column_tile = 64, token_tile = 64;
/// Edge of a tile of the Gram matrix, and tokens a BLAS call adds to it.
inline constexpr index_t gram_tile = 128, gram_tokens = 512;

template <class F>
void over_columns(index_t cols, F&& f) {
  parallel_for(ceil_div(cols, column_tile), [&](index_t tile) {
    const index_t first = tile * column_tile;
    vectorised([&] { f(first, min(column_tile, cols - first)); });
  });
}

}  // namespace detail

/// reference::absolute_sum; float partial sums over 64 tokens, double from there on.
inline void absolute_sum(matrix<const float> x, double* sum) {
  detail::over_columns(x.cols, [&](index_t first, index_t count) {
    float partial[detail::column_tile];
    for (index_t row = 0; row < x.rows; row += detail::token_tile) {
      for (float& value : partial) value = 0.0f;
      for (index_t r = row; r < min(x.rows, row + detail::token_tile); ++r) {
        const float* const values = x.row(r) + first;
        for (index_t col = 0; col < count; ++col) partial[col] += abs(observed(values[col]));
      }
      for (index_t col = 0; col < count; ++col) sum[first + col] += static_cast<double>(partial[col]);
    }
  });
}

/// reference::absolute_maximum.
inline void absolute_maximum(matrix<const float> x, float* maximum) {
  detail::over_columns(x.cols, [&](index_t first, index_t count) {
    for (index_t row = 0; row < x.rows; ++row) {
      const float* const values = x.row(row) + first;
      for (index_t col = 0; col < count; ++col)
        maximum[first + col] = max(maximum[first + col], abs(observed(values[col])));
    }
  });
}

/// g (k, k) += xᵀ x on and above the diagonal; below it, whole tiles of 128 stay untouched (mirror() fills them).
/// @pre x is finite: see second_moment::add.
inline void gram(matrix<const float> x, matrix<float> g) {
  const index_t edge = detail::gram_tile, tiles = ceil_div(x.cols, edge);
  std::vector<std::pair<index_t, index_t>> upper;
  for (index_t i = 0; i < tiles; ++i)
    for (index_t j = i; j < tiles; ++j) upper.emplace_back(i * edge, j * edge);
  detail::single_threaded_blas();
  parallel_for(static_cast<index_t>(upper.size()), [&](index_t tile) {
    const auto [i, j] = upper[static_cast<size_t>(tile)];
    const index_t rows = min(edge, x.cols - i), cols = min(edge, x.cols - j);
    for (index_t token = 0; token < x.rows; token += detail::gram_tokens) {
      const auto part = x.rows_at(token, min(detail::gram_tokens, x.rows - token));
      detail::sgemm(CblasTrans, CblasNoTrans, rows, cols, part.rows, part.cols_at(i, rows), part.cols_at(j, cols), 1.0f,
                    g.rows_at(i, rows).cols_at(j, cols));
    }
  });
}

/// g ← factor · g, the lower triangle copied from the upper.
inline void mirror(matrix<float> g, float factor) {
  const index_t edge = detail::gram_tile;
  parallel_for(ceil_div(g.rows, edge), [&](index_t tile) {
    for (index_t i = tile * edge; i < min(g.rows, (tile + 1) * edge); ++i)
      for (index_t j = i; j < g.cols; ++j) g(i, j) *= factor;
  });
  parallel_for(ceil_div(g.rows, edge), [&](index_t tile) {
    for (index_t block = 0; block <= tile; ++block)
      for (index_t i = tile * edge; i < min(g.rows, (tile + 1) * edge); ++i)
        for (index_t j = block * edge; j < min(i, (block + 1) * edge); ++j) g(i, j) = g(j, i);
  });
}

/// What a linear's loss needs of its inputs, whichever is smaller: the shrunk Gram matrix (k, k), or, with fewer tokens
/// than channels, the tokens themselves (m, k), since ‖ΔW·Xᵀ‖² then costs less than tr(ΔW·G·ΔWᵀ).
class second_moment {
 public:
  second_moment() = default;
  /// @param tokens how many will be added. @param shrinkage λ of the shrunk Gram matrix.
  second_moment(index_t inputs, index_t tokens, float shrinkage)
      : inputs_(inputs), expected_(tokens), shrinkage_(shrinkage), absolute_(static_cast<size_t>(inputs), 0.0) {
    data_.assign(static_cast<size_t>(sampled() ? tokens * inputs : inputs * inputs), 0.0f);
  }

  /// Adds tokens x (m, k). NaN and ±inf become 0 and are counted. @pre no more tokens than announced.
  void add(matrix<const float> x) {
    std::vector<float> clean;
    const index_t bad = count_non_finite(x);
    if (bad > 0) {
      non_finite_ += bad;
      clean.resize(static_cast<size_t>(x.size()));
      for (index_t row = 0; row < x.rows; ++row)
        for (index_t col = 0; col < x.cols; ++col)
          clean[static_cast<size_t>(row * x.cols + col)] = observed(x(row, col));
      x = {clean.data(), x.rows, x.cols};
    }
    absolute_sum(x, absolute_.data());
    if (sampled())
      for (index_t row = 0; row < x.rows; ++row)
        for (index_t col = 0; col < inputs_; ++col)
          data_[static_cast<size_t>((tokens_ + row) * inputs_ + col)] = x(row, col);
    else
      gram(x, {data_.data(), inputs_, inputs_});
    tokens_ += x.rows;
  }

  /// Divides by the tokens and shrinks. Call once, after the last add().
  void finish() {
    const auto m = static_cast<float>(max(tokens_, index_t(1)));
    diagonal_.assign(static_cast<size_t>(inputs_), 0.0f);
    mean_.assign(static_cast<size_t>(inputs_), 0.0f);
    for (index_t j = 0; j < inputs_; ++j)
      mean_[static_cast<size_t>(j)] = static_cast<float>(absolute_[static_cast<size_t>(j)] / static_cast<double>(m));
    if (sampled()) {
      std::vector<double> squares(static_cast<size_t>(inputs_), 0.0);
      for (index_t row = 0; row < tokens_; ++row)
        for (index_t j = 0; j < inputs_; ++j) {
          const auto x = static_cast<double>(data_[static_cast<size_t>(row * inputs_ + j)]);
          squares[static_cast<size_t>(j)] += x * x;
        }
      for (index_t j = 0; j < inputs_; ++j)
        diagonal_[static_cast<size_t>(j)] =
            static_cast<float>(squares[static_cast<size_t>(j)] / static_cast<double>(m));
      return;
    }
    const matrix<float> g(data_.data(), inputs_, inputs_);
    mirror(g, 1.0f / m);
    parallel_for(ceil_div(inputs_, detail::gram_tile), [&](index_t tile) {
      for (index_t i = tile * detail::gram_tile; i < min(inputs_, (tile + 1) * detail::gram_tile); ++i) {
        for (index_t j = 0; j < inputs_; ++j) g(i, j) = shrink(g(i, j), i, j, shrinkage_);
        diagonal_[static_cast<size_t>(i)] = g(i, i);
      }
    });
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t tokens() const noexcept { return tokens_; }
  index_t non_finite() const noexcept { return non_finite_; }
  float shrinkage() const noexcept { return shrinkage_; }
  /// Whether the tokens are kept instead of the Gram matrix.
  bool sampled() const noexcept { return expected_ < inputs_; }
  /// x̄ (k).
  const std::vector<float>& absolute_mean() const noexcept { return mean_; }
  /// E[x_j²] (k): the Gram matrix's diagonal.
  const std::vector<float>& diagonal() const noexcept { return diagonal_; }
  /// The shrunk Gram matrix (k, k). @pre !sampled()
  matrix<const float> gram_matrix() const noexcept { return {data_.data(), inputs_, inputs_}; }
  /// The tokens (m, k), not shrunk, not divided. @pre sampled()
  matrix<const float> samples() const noexcept { return {data_.data(), tokens_, inputs_}; }

  /// out (count, count) ← the shrunk Gram matrix's diagonal block that begins at `first`.
  void block(index_t first, index_t count, matrix<float> out) const {
    if (!sampled()) {
      for (index_t i = 0; i < count; ++i)
        for (index_t j = 0; j < count; ++j) out(i, j) = gram_matrix()(first + i, first + j);
      return;
    }
    detail::single_threaded_blas();
    const auto x = samples().cols_at(first, count);
    detail::sgemm(CblasTrans, CblasNoTrans, count, count, tokens_, x, x, 0.0f, out);
    const float scale = 1.0f / static_cast<float>(max(tokens_, index_t(1)));
    for (index_t i = 0; i < count; ++i)
      for (index_t j = 0; j < count; ++j)
        out(i, j) = i == j ? diagonal_[static_cast<size_t>(first + i)] : shrink(out(i, j) * scale, i, j, shrinkage_);
  }

 private:
  static index_t count_non_finite(matrix<const float> x) {
    std::vector<index_t> counts(static_cast<size_t>(ceil_div(x.rows, detail::token_tile)), 0);
    parallel_for(static_cast<index_t>(counts.size()), [&](index_t tile) {
      vectorised([&] {
        int32_t bad = 0;
        for (index_t row = tile * detail::token_tile; row < min(x.rows, (tile + 1) * detail::token_tile); ++row)
          for (index_t col = 0; col < x.cols; ++col) bad += is_finite(x(row, col)) ? 0 : 1;
        counts[static_cast<size_t>(tile)] = bad;
      });
    });
    index_t total = 0;
    for (const index_t count : counts) total += count;
    return total;
  }

  index_t inputs_ = 0, expected_ = 0, tokens_ = 0, non_finite_ = 0;
  float shrinkage_ = 0;
  std::vector<float> data_, mean_, diagonal_;
  std::vector<double> absolute_;
};

}  // namespace host
NIBBLE_NAMESPACE_END
