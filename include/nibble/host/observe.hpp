// SPDX-License-Identifier: Apache-2.0
/// @file
/// Activation statistics at the speed of a BLAS. Fixed tiles: the same bytes whatever the number of threads.
#pragma once

#include <algorithm>
#include <iterator>
#include <memory>
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

/// Columns a thread goes down at a time, and rows it counts at a time.
inline constexpr index_t column_tile = 128, row_tile = 64;
/// Edge of a tile of the Gram matrix, columns that a BLAS call takes at most, so that it does not copy the tile's for each 128 of them,
/// and tokens it adds.
inline constexpr index_t gram_tile = 128, gram_columns = 512, gram_tokens = 512;
static_assert(gram_tokens <= product_depth && gram_tile % block_cols == 0 && gram_columns % block_cols == 0);

/// total (k) = the fold of term(x) down every column of x (m, k), beginning with total, in the order of the rows.
template <class Total, class Fold>
void fold_columns(matrix<const float> x, Total* total, Fold fold) {
  parallel_for(ceil_div(x.cols, column_tile), [&](index_t tile) {
    const index_t first = tile * column_tile, count = min(column_tile, x.cols - first);
    vectorised([&] {
      Total local[column_tile];
      for (index_t col = 0; col < count; ++col) local[col] = total[first + col];
      for (index_t row = 0; row < x.rows; ++row) {
        const float* const values = x.row(row) + first;
        for (index_t col = 0; col < count; ++col) local[col] = fold(local[col], observed(values[col]));
      }
      for (index_t col = 0; col < count; ++col) total[first + col] = local[col];
    });
  });
}

}  // namespace detail

/// reference::absolute_sum, bit for bit.
inline void absolute_sum(matrix<const float> x, double* sum) {
  detail::fold_columns(x, sum, [](double total, float value) { return total + static_cast<double>(abs(value)); });
}

/// reference::absolute_maximum.
inline void absolute_maximum(matrix<const float> x, float* maximum) {
  detail::fold_columns(x, maximum, [](float most, float value) { return max(most, abs(value)); });
}

/// How many elements of x (m, k) are NaN or ±inf.
inline index_t count_non_finite(matrix<const float> x) {
  std::vector<index_t> counts(static_cast<size_t>(ceil_div(x.rows, detail::row_tile)), 0);
  parallel_for(static_cast<index_t>(counts.size()), [&](index_t tile) {
    vectorised([&] {
      int32_t bad = 0;
      for (index_t row = tile * detail::row_tile; row < min(x.rows, (tile + 1) * detail::row_tile); ++row)
        for (index_t col = 0; col < x.cols; ++col) bad += is_finite(x(row, col)) ? 0 : 1;
      counts[static_cast<size_t>(tile)] = bad;
    });
  });
  index_t total = 0;
  for (const index_t count : counts) total += count;
  return total;
}

/// reference::gram in float, or of x rounded to bfloat16, on and above the diagonal: g (k, k) += xᵀ x, summed over 512 tokens, then added.
/// Below the diagonal, whole tiles of 128 stay untouched; mirror() fills them.
inline void gram(matrix<const float> x, matrix<float> g, matmul_precision how = matmul_precision::float32) {
  std::vector<float> clean;
  if (count_non_finite(x) > 0) {
    clean.reserve(static_cast<size_t>(x.size()));
    for (index_t row = 0; row < x.rows; ++row)
      std::transform(x.row(row), x.row(row) + x.cols, std::back_inserter(clean), observed);
    x = {clean.data(), x.rows, x.cols};
  }
  const index_t edge = detail::gram_tile, wide = detail::gram_columns;
  std::vector<std::pair<index_t, index_t>> upper;
  for (index_t i = 0; i < x.cols; i += edge)
    for (index_t j = i; j < x.cols; j += wide) upper.emplace_back(i, j);
  // f(i, j, tile of g), once for each
  const auto over_upper = [&](auto&& f) {
    parallel_for(static_cast<index_t>(upper.size()), [&](index_t tile) {
      const auto [i, j] = upper[static_cast<size_t>(tile)];
      f(i, j, g.rows_at(i, min(edge, x.cols - i)).cols_at(j, min(wide, x.cols - j)));
    });
  };
  const index_t tokens = detail::gram_tokens;
  const auto part = [&](index_t token) { return x.rows_at(token, min(tokens, x.rows - token)); };
  if (how == matmul_precision::bfloat16) {
    thread_local detail::packed_columns packing;
    auto& columns = packing;  // this thread's, for all threads
    for (index_t token = 0; token < x.rows; token += tokens) {
      columns.pack(part(token));
      over_upper(
          [&](index_t i, index_t j, matrix<float> to) { detail::add_columns_product(columns, i, columns, j, to); });
    }
    return;
  }
  detail::single_threaded_blas();
  over_upper([&](index_t i, index_t j, matrix<float> to) {
    for (index_t token = 0; token < x.rows; token += tokens)
      detail::sgemm(CblasTrans, CblasNoTrans, to.rows, to.cols, part(token).rows, part(token).cols_at(i, to.rows),
                    part(token).cols_at(j, to.cols), 1.0f, to);
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
  /// @param tokens how many will be added. @param shrinkage λ of the shrunk Gram matrix. @param how its products are taken; where the
  /// tokens are kept, they stay floats.
  second_moment(index_t inputs, index_t tokens, float shrinkage, matmul_precision how = matmul_precision::float32)
      : inputs_(inputs),
        announced_(tokens),
        shrinkage_(shrinkage),
        how_(how),
        absolute_(static_cast<size_t>(inputs), 0.0) {
    data_.assign(static_cast<size_t>(sampled() ? tokens * inputs : inputs * inputs), 0.0f);
  }

  /// Adds tokens x (m, k). NaN and ±inf become 0 and are counted. @pre no more tokens than announced.
  void add(matrix<const float> x) {
    non_finite_ += count_non_finite(x);
    absolute_sum(x, absolute_.data());
    if (sampled())
      for (index_t row = 0; row < x.rows; ++row)
        std::transform(x.row(row), x.row(row) + inputs_, data_.data() + (tokens_ + row) * inputs_, observed);
    else
      gram(x, {data_.data(), inputs_, inputs_}, how_);
    tokens_ += x.rows;
  }

  /// Divides by the tokens and shrinks. Call once, after the last add().
  void finish() {
    const auto k = static_cast<size_t>(inputs_);
    const auto m = static_cast<double>(max(tokens_, index_t(1)));
    diagonal_.resize(k);
    mean_.resize(k);
    for (size_t j = 0; j < k; ++j) mean_[j] = static_cast<float>(absolute_[j] / m);
    if (sampled()) {
      std::vector<double> squares(k, 0.0);
      detail::fold_columns(samples(), squares.data(), [](double sum, float value) {
        return sum + static_cast<double>(value) * static_cast<double>(value);
      });
      for (size_t j = 0; j < k; ++j) diagonal_[j] = static_cast<float>(squares[j] / m);
      return;
    }
    const matrix<float> g(data_.data(), inputs_, inputs_);
    mirror(g, static_cast<float>(1.0 / m));
    parallel_for(inputs_, [&](index_t i) {
      for (index_t j = 0; j < inputs_; ++j) g(i, j) = shrink(g(i, j), i, j, shrinkage_);
      diagonal_[static_cast<size_t>(i)] = g(i, i);
    });
    pack();
  }

  /// The same of the inputs in another order: input i is what column[i] (k, a permutation) was. @pre finish() was called.
  second_moment reordered(const std::vector<index_t>& column) const {
    second_moment out(inputs_, announced_, shrinkage_, how_);
    out.tokens_ = tokens_, out.non_finite_ = non_finite_;
    for (const index_t from : column) {
      out.mean_.push_back(mean_[static_cast<size_t>(from)]);
      out.diagonal_.push_back(diagonal_[static_cast<size_t>(from)]);
    }
    for (size_t j = 0; j < column.size(); ++j) out.absolute_[j] = absolute_[static_cast<size_t>(column[j])];
    parallel_for(sampled() ? tokens_ : inputs_, [&](index_t row) {
      const float* const from = data_.data() + (sampled() ? row : column[static_cast<size_t>(row)]) * inputs_;
      float* const to = out.data_.data() + row * inputs_;
      for (index_t j = 0; j < inputs_; ++j) to[j] = from[column[static_cast<size_t>(j)]];
    });
    out.pack();
    return out;
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t tokens() const noexcept { return tokens_; }
  index_t non_finite() const noexcept { return non_finite_; }
  float shrinkage() const noexcept { return shrinkage_; }
  /// Whether the tokens are kept instead of the Gram matrix.
  bool sampled() const noexcept { return announced_ < inputs_; }
  /// x̄ (k).
  const std::vector<float>& absolute_mean() const noexcept { return mean_; }
  /// E[x_j²] (k): the Gram matrix's diagonal.
  const std::vector<float>& diagonal() const noexcept { return diagonal_; }
  /// The shrunk Gram matrix (k, k). @pre !sampled()
  matrix<const float> gram_matrix() const noexcept { return {data_.data(), inputs_, inputs_}; }
  /// The same rounded to bfloat16, for losses that candidates are judged by; null where products are taken of floats, or sampled().
  const detail::packed_panels* packed_gram() const noexcept { return packed_.get(); }
  /// How products are taken that only choose.
  matmul_precision precision() const noexcept { return sampled() ? matmul_precision::float32 : how_; }
  /// The tokens (m, k), not shrunk, not divided. @pre sampled()
  matrix<const float> samples() const noexcept { return {data_.data(), tokens_, inputs_}; }

  /// out (k, k) ← the shrunk Gram matrix, both triangles, also where the tokens are kept.
  void whole(matrix<float> out) const {
    if (!sampled()) {
      parallel_for(inputs_, [&](index_t i) { std::copy_n(gram_matrix().row(i), inputs_, out.row(i)); });
      return;
    }
    parallel_for(inputs_, [&](index_t i) { std::fill_n(out.row(i), inputs_, 0.0f); });
    gram(samples(), out);
    mirror(out, 1.0f / static_cast<float>(max(tokens_, index_t(1))));
    parallel_for(inputs_, [&](index_t i) {
      for (index_t j = 0; j < inputs_; ++j)
        out(i, j) = i == j ? diagonal_[static_cast<size_t>(i)] : shrink(out(i, j), i, j, shrinkage_);
    });
  }

  /// out (count, count) ← the shrunk Gram matrix's diagonal block that begins at `first`.
  void block(index_t first, index_t count, matrix<float> out) const {
    if (!sampled()) {
      const auto g = gram_matrix().rows_at(first, count).cols_at(first, count);
      for (index_t i = 0; i < count; ++i) std::copy(g.row(i), g.row(i) + count, out.row(i));
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
  void pack() {
    if (precision() != matmul_precision::bfloat16) return;
    const auto packed = std::make_shared<detail::packed_panels>();
    packed->pack(gram_matrix());
    packed_ = packed;
  }

  index_t inputs_ = 0, announced_ = 0, tokens_ = 0, non_finite_ = 0;
  float shrinkage_ = 0;
  matmul_precision how_ = matmul_precision::float32;
  std::vector<float> data_, mean_, diagonal_;
  std::vector<double> absolute_;
  std::shared_ptr<const detail::packed_panels> packed_;
};

/// The diagonal blocks of the shrunk Gram matrix, `width` wide, the last one perhaps narrower, for readers that come back
/// to them: views where the Gram matrix is kept, computed once where the tokens are.
class diagonal_blocks {
 public:
  diagonal_blocks(const second_moment& x, index_t width) : x_(x), width_(width) {
    if (!x.sampled()) return;
    data_.resize(static_cast<size_t>(ceil_div(x.inputs(), width) * width * width));
    parallel_for(ceil_div(x.inputs(), width), [&](index_t i) {
      x.block(i * width, size(i), {data_.data() + i * width * width, size(i), size(i)});
    });
  }

  /// (size, size), size = min(width, inputs − i · width).
  matrix<const float> operator()(index_t i) const noexcept {
    if (!x_.sampled()) return x_.gram_matrix().rows_at(i * width_, size(i)).cols_at(i * width_, size(i));
    return {data_.data() + i * width_ * width_, size(i), size(i)};
  }

 private:
  index_t size(index_t i) const noexcept { return min(width_, x_.inputs() - i * width_); }

  const second_moment& x_;
  index_t width_;
  std::vector<float> data_;
};

}  // namespace host
NIBBLE_NAMESPACE_END
