// SPDX-License-Identifier: Apache-2.0
/// @file
/// Codes improved one at a time under tr(ΔW·G'·ΔWᵀ): the rule is nibble::improved_code, in nibble/awq.hpp. Columns go in
/// order, in blocks of 64: inside a block each new code moves the slopes of the block only, then those of the span of 512 that the block lies in,
/// and at its end all others. Few codes change (a fiftieth), so their rows of G' are added one by one. Tiles of rows are independent.
#pragma once

#include <algorithm>
#include <vector>

#include "nibble/awq.hpp"
#include "nibble/host/matmul.hpp"
#include "nibble/host/observe.hpp"
#include "nibble/host/output_loss.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/matrix.hpp"
#include "nibble/quantize.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Columns of a block, and of a span, blocks between two updates of all slopes: what is beyond the caches then goes by less often.
inline constexpr index_t sweep_cols = 64, span_cols = 8 * sweep_cols;

/// D = (ŵ − w) / s of a tile of rows, and its products D·G', or D·Xᵀ where x keeps its tokens, both kept up to date.
class tile_residual {
 public:
  /// @param rest  what x.packed_gram() leaves of G' where products are to be taken so, or null
  template <class Scheme>
  tile_residual(matrix<const float> w, matrix<const uint8_t> q, matrix<const params> p, const float* s, group_shape g,
                Scheme scheme, const second_moment& x, const packed_panels* rest = nullptr)
      : x_(x),
        rest_(rest),
        difference_(tile_buffers::view(buffers().difference, w.rows, w.cols)),
        projected_(first_product(w, q, p, s, g, scheme)) {}

  index_t rows() const noexcept { return difference_.rows; }
  index_t cols() const noexcept { return difference_.cols; }
  float& operator()(index_t row, index_t col) const noexcept { return difference_(row, col); }

  /// out (rows, count) ← D·G' of columns [first, first + count).
  void slopes(index_t first, matrix<float> out) const {
    if (!x_.sampled()) {
      for (index_t row = 0; row < rows(); ++row)
        for (index_t j = 0; j < out.cols; ++j) out(row, j) = projected_(row, first + j);
      return;
    }
    sgemm(CblasNoTrans, CblasNoTrans, rows(), out.cols, x_.tokens(), projected_, x_.samples().cols_at(first, out.cols),
          0.0f, out);
    const float apart = x_.shrinkage(), kept = (1 - apart) / static_cast<float>(max(x_.tokens(), index_t(1)));
    for (index_t row = 0; row < rows(); ++row)
      for (index_t j = 0; j < out.cols; ++j)
        out(row, j) =
            kept * out(row, j) + apart * difference_(row, first + j) * x_.diagonal()[static_cast<size_t>(first + j)];
  }

  /// What the changes (rows, count) of D's columns [first, first + count), which it holds already, add to the products; they are 0 but in the
  /// rows `moved` (sorted), and lost.
  void spread(index_t first, const std::vector<index_t>& moved, matrix<float> change) const {
    const auto count = static_cast<index_t>(moved.size());
    const matrix<const float> other =
        x_.sampled() ? x_.samples().cols_at(first, change.cols) : x_.gram_matrix().rows_at(first, change.cols);
    const CBLAS_TRANSPOSE turned = x_.sampled() ? CblasTrans : CblasNoTrans;
    for (index_t i = 0; i < count; ++i)
      if (moved[static_cast<size_t>(i)] != i)
        std::copy_n(change.row(moved[static_cast<size_t>(i)]), change.cols, change.row(i));
    const auto part = tile_buffers::view(buffers().scaled, count, span_cols);
    const bool split = rest_ != nullptr && first % 32 == 0 && first % product_depth + change.cols <= product_depth;
    if (split) splits().pack(change.rows_at(0, count));
    for (index_t col = 0; col < projected_.cols; col += span_cols) {
      const index_t wide = min(span_cols, projected_.cols - col);
      const auto product = part.cols_at(0, wide);
      if (split)
        multiply_split(splits(), *x_.packed_gram(), *rest_, first, col, product);
      else
        sgemm(CblasNoTrans, turned, count, wide, change.cols, change,
              x_.sampled() ? other.rows_at(col, wide) : other.cols_at(col, wide), 0.0f, product);
      vectorised([&] {
        for (index_t i = 0; i < count; ++i) {
          const float* const from = product.row(i);
          float* const to = projected_.row(moved[static_cast<size_t>(i)]) + col;
          for (index_t j = 0; j < wide; ++j) to[j] += from[j];
        }
      });
    }
  }

  /// The products themselves, D·G'. @pre x keeps no tokens
  matrix<float> products() const noexcept { return projected_; }
  const second_moment& inputs() const noexcept { return x_; }

  double loss_of(index_t row) const { return row_loss(difference_.row(row), projected_.row(row), x_); }

 private:
  template <class Scheme>
  matrix<float> first_product(matrix<const float> w, matrix<const uint8_t> q, matrix<const params> p, const float* s,
                              group_shape g, Scheme scheme) const {
    codes_difference(w, q, p, s, nullptr, g, scheme, difference_);
    if (rest_ == nullptr) return project(difference_, x_, buffers().product);
    const auto out = tile_buffers::view(buffers().product, w.rows, w.cols);
    splits().pack(difference_);
    multiply_split(splits(), *x_.packed_gram(), *rest_, 0, 0, out);
    return out;
  }
  static split_rows& splits() {
    thread_local split_rows instance;
    return instance;
  }

  const second_moment& x_;
  const packed_panels* rest_;
  matrix<float> difference_, projected_;
};

/// Changes of a few of a span's codes in each row of a tile, to be spread.
class few_changes {
 public:
  explicit few_changes(index_t rows) : held_(static_cast<size_t>(rows * span_cols)), rows_(static_cast<size_t>(rows)) {}

  /// Of a span that begins at column `first`; none yet.
  void begin(index_t first, index_t count) {
    first_ = first, count_ = count;
    std::fill(rows_.begin(), rows_.end(), extent{});
  }
  void add(index_t row, index_t col, float step) {
    index_t& end = rows_[static_cast<size_t>(row)].end;
    held_[static_cast<size_t>(row * span_cols + end++)] = {col, step};
  }

  /// Adds to the products of the span's own columns what came since this was last called.
  void spread_within(const tile_residual& to) {
    const matrix<const float> g = to.inputs().gram_matrix();
    for (index_t row = 0; row < to.rows(); ++row) {
      extent& of = rows_[static_cast<size_t>(row)];
      for (index_t i = of.within; i < of.end; ++i) {
        const change& c = held_[static_cast<size_t>(row * span_cols + i)];
        add_row(to.products().row(row) + first_, c.step, g.row(c.col) + first_, count_);
      }
      of.within = of.end;
    }
  }
  /// Adds all to the products of all other columns.
  void spread_beyond(const tile_residual& to) {
    constexpr index_t few = 8;  // from there on products take less time, whatever k (docs/gptq.md)
    index_t changes = 0;
    for (const extent& of : rows_) changes += of.end;
    if (few * changes <= to.rows() * count_)
      spread_few(to);
    else
      spread_many(to);
  }

 private:
  void spread_few(const tile_residual& to) {
    constexpr index_t wide = 256;
    const matrix<const float> g = to.inputs().gram_matrix();
    for (index_t col = 0; col < g.cols; col += wide) {
      if (col >= first_ && col < first_ + count_) continue;  // spans are whole numbers of these
      const index_t cols = min(wide, g.cols - col);
      // Rows of G' may all want the same lines of a cache.
      const auto near = tile_buffers::view(near_, count_, wide);
      for (index_t j = 0; j < count_; ++j) std::copy_n(g.row(first_ + j) + col, cols, near.row(j));
      for (index_t row = 0; row < to.rows(); ++row) {
        float* const product = to.products().row(row) + col;
        for (index_t i = 0; i < rows_[static_cast<size_t>(row)].end; ++i) {
          const change& c = held_[static_cast<size_t>(row * span_cols + i)];
          add_row(product, c.step, near.row(c.col - first_), cols);
        }
      }
    }
  }

  /// By products.
  void spread_many(const tile_residual& to) {
    const matrix<const float> g = to.inputs().gram_matrix();
    const auto all = tile_buffers::view(near_, to.rows(), count_);
    std::fill_n(all.data, all.size(), 0.0f);
    for (index_t row = 0; row < to.rows(); ++row)
      for (index_t i = 0; i < rows_[static_cast<size_t>(row)].end; ++i) {
        const change& c = held_[static_cast<size_t>(row * span_cols + i)];
        all(row, c.col - first_) = c.step;
      }
    const auto add = [&](index_t col, index_t cols) {
      sgemm(CblasNoTrans, CblasNoTrans, to.rows(), cols, count_, all, g.rows_at(first_, count_).cols_at(col, cols),
            1.0f, to.products().cols_at(col, cols));
    };
    add(0, first_);
    add(first_ + count_, g.cols - first_ - count_);
  }

  struct change {
    index_t col;
    float step;
  };
  struct extent {
    index_t within = 0, end = 0;
  };
  static void add_row(float* to, float step, const float* from, index_t count) {
    vectorised([&] {
      for (index_t j = 0; j < count; ++j) to[j] += step * from[j];
    });
  }

  std::vector<change> held_;
  std::vector<extent> rows_;
  std::vector<float> near_;
  index_t first_ = 0, count_ = 0;
};

/// A tile of rows whose codes are being improved.
template <class Scheme>
class sweep_tile {
 public:
  sweep_tile(const tile_residual& residual, matrix<const params> p, const float* s, const diagonal_blocks& blocks,
             index_t width, Scheme scheme, matrix<uint8_t> q)
      : residual_(residual),
        p_(p),
        s_(s),
        blocks_(blocks),
        width_(width),
        scheme_(scheme),
        q_(q),
        slope_(static_cast<size_t>(q.rows * sweep_cols)),
        change_(slope_.size()),
        block_(static_cast<size_t>(sweep_cols * sweep_cols)),
        few_(residual.inputs().sampled() ? 0 : q.rows) {}

  /// One round over the codes; false when none changed.
  bool improve() {
    bool any = false;
    for (index_t first = 0; first < q_.cols; first += span_cols)
      any = improve_span(first, min(span_cols, q_.cols - first)) || any;
    return any;
  }

 private:
  bool improve_span(index_t first, index_t cols) {
    const bool sampled = residual_.inputs().sampled();
    bool any = false;
    if (!sampled) few_.begin(first, cols);
    for (index_t col = first; col < first + cols; col += sweep_cols) {
      const index_t count = min(sweep_cols, first + cols - col);
      const auto block = tile_buffers::view(block_, count, count);
      for (index_t i = 0; i < count; ++i)
        for (index_t j = 0; j < count; ++j) block(i, j) = blocks_(col / sweep_cols)(i, j);
      const auto slope = tile_buffers::view(slope_, q_.rows, count),
                 change = tile_buffers::view(change_, q_.rows, count);
      residual_.slopes(col, slope);
      moved_.resize(static_cast<size_t>(q_.rows));
      index_t moved = 0;
      vectorised([&] {
        for (index_t row = 0; row < q_.rows; ++row)
          if (improve_row(row, col, block, slope.row(row), change.row(row))) moved_[static_cast<size_t>(moved++)] = row;
      });
      if (moved == 0) continue;
      moved_.resize(static_cast<size_t>(moved));
      any = true;
      if (sampled) {
        residual_.spread(col, moved_, change);
        continue;
      }
      for (const index_t row : moved_)
        for (index_t j = 0; j < count; ++j)
          if (change(row, j) != 0) few_.add(row, col + j, change(row, j));
      few_.spread_within(residual_);
    }
    if (any && !sampled) few_.spread_beyond(residual_);
    return any;
  }

  /// change (block.cols) ← what each new code of the row adds to D.
  bool improve_row(index_t row, index_t col, matrix<const float> block, float* slope, float* change) {
    bool moved = false;
    for (index_t i = 0; i < block.rows; ++i) {
      change[i] = 0;
      const params p = p_(row, (col + i) / width_);
      const float s = s_[col + i];
      uint8_t& code = q_(row, col + i);
      const uint8_t better = improved_code(code, p, slope[i], block(i, i), s, scheme_);
      if (better == code) continue;
      const float step = (nibble::dequantize(better, p, scheme_) - nibble::dequantize(code, p, scheme_)) / s;
      code = better;
      change[i] = step;
      residual_(row, col + i) += step;
      moved = true;
      const float* const curvature = block.row(i);
      for (index_t j = 0; j < block.cols; ++j) slope[j] += step * curvature[j];
    }
    return moved;
  }

  const tile_residual& residual_;
  matrix<const params> p_;
  const float* s_;
  const diagonal_blocks& blocks_;
  index_t width_;
  Scheme scheme_;
  matrix<uint8_t> q_;
  std::vector<float> slope_, change_, block_;
  std::vector<index_t> moved_;
  few_changes few_;
};

}  // namespace detail

/// Up to `rounds` sweeps over the codes q (n, k) of w (n, k), which is already scaled by s (k), under G' of the unscaled
/// inputs x; fewer when a sweep changes nothing. p (n, ⌈k / group_size⌉) stays. No row's loss rises, up to rounding in
/// float.
template <class Scheme>
void sweep(matrix<const float> w, const float* s, const second_moment& x, matrix<const params> p, index_t group_size,
           Scheme scheme, int rounds, matrix<uint8_t> q) {
  const group_shape g = per_group(group_size);
  const diagonal_blocks blocks(x, detail::sweep_cols);
  detail::for_row_tiles(w.rows, [&](index_t first, index_t rows) {
    const auto of_tile = p.rows_at(first, rows);
    const auto codes = q.rows_at(first, rows);
    const detail::tile_residual residual(w.rows_at(first, rows), codes, of_tile, s, g, scheme, x);
    detail::sweep_tile<Scheme> tile(residual, of_tile, s, blocks, g.width(w.cols), scheme, codes);
    int round = 0;
    while (round < rounds && tile.improve()) ++round;
  });
}

}  // namespace host
NIBBLE_NAMESPACE_END
