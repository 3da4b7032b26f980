// SPDX-License-Identifier: Apache-2.0
/// @file
/// What GPTQ solves with: a linear's second moment, damped, in the order in which columns are solved, as a triangular factor.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "nibble/gptq.hpp"
#include "nibble/host/cholesky.hpp"
#include "nibble/host/observe.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {

/// Columns as they are solved. Neighbours with the same parameters are a group whose parameters are found when it begins,
/// unless they were found beforehand.
struct column_order {
  std::vector<index_t> column;      ///< the column of w that comes i-th
  std::vector<index_t> parameters;  ///< the column of the parameter matrix that it takes

  index_t size() const noexcept { return static_cast<index_t>(column.size()); }
};

/// @param importance (k), the Hessian's diagonal. @param group_size −1: all inputs.
inline column_order order_columns(const std::vector<double>& importance, index_t group_size, activation_order how) {
  const auto k = static_cast<index_t>(importance.size());
  const index_t width = per_group(group_size).width(k);
  column_order order;
  order.column.resize(importance.size());
  std::iota(order.column.begin(), order.column.end(), index_t(0));
  const auto falling = [&](index_t a, index_t b) {
    return importance[static_cast<size_t>(a)] > importance[static_cast<size_t>(b)];
  };
  if (how == activation_order::static_groups || how == activation_order::descending) {
    std::stable_sort(order.column.begin(), order.column.end(), falling);
  } else if (how == activation_order::group_aware) {
    for (index_t first = 0; first < k; first += width)
      std::stable_sort(order.column.begin() + first, order.column.begin() + min(k, first + width), falling);
    std::vector<index_t> groups(static_cast<size_t>(ceil_div(k, width))), sorted;
    std::iota(groups.begin(), groups.end(), index_t(0));
    std::stable_sort(groups.begin(), groups.end(), [&](index_t a, index_t b) {
      return falling(order.column[static_cast<size_t>(a * width)], order.column[static_cast<size_t>(b * width)]);
    });
    for (const index_t group : groups)
      sorted.insert(sorted.end(), order.column.begin() + group * width,
                    order.column.begin() + min(k, (group + 1) * width));
    order.column = std::move(sorted);
  }
  order.parameters.resize(order.column.size());
  for (size_t i = 0; i < order.column.size(); ++i)
    order.parameters[i] = (how == activation_order::descending ? static_cast<index_t>(i) : order.column[i]) / width;
  return order;
}

/// The damped Hessian of a linear whose columns are scaled by s, H = diag(1/s)·G'·diag(1/s) + λ·mean(diag)·I in units of
/// mean(diag), as H = Lᵀ·L. Channels that never fired have H_ii = 1 and nothing beside the diagonal: their weights are
/// rounded to nearest.
class hessian {
 public:
  /// @param s (k), or null for 1. @param damping λ, in [0, 1].
  hessian(const second_moment& x, const float* s, index_t group_size, activation_order how, float damping) {
    const index_t k = x.inputs();
    std::vector<double> diagonal(static_cast<size_t>(k));
    double sum = 0, fired = 0;
    for (index_t j = 0; j < k; ++j) {
      const double scale = s == nullptr ? 1.0 : static_cast<double>(s[j]);
      const double value = static_cast<double>(x.diagonal()[static_cast<size_t>(j)]) / (scale * scale);
      diagonal[static_cast<size_t>(j)] = value;
      sum += value;
      fired += value > 0 ? 1.0 : 0.0;
    }
    order_ = order_columns(diagonal, group_size, how);
    if (!std::isfinite(sum)) return;
    unit_ = fired > 0 ? sum / fired : 1.0;
    data_.resize(static_cast<size_t>(k * k));
    fill(x, s);
    usable_ = climb(damping, diagonal);
    if (!usable_) data_ = {};
  }

  /// False where not even the last resort gave a factor, since something is not finite: round to nearest then.
  bool usable() const noexcept { return usable_; }
  /// The λ it was factorised with.
  double damping() const noexcept { return damping_; }
  /// Whether diagonal elements were raised to the sum of their row, since no λ up to 1 sufficed.
  bool floored() const noexcept { return floored_; }
  /// What the factor's H was divided by.
  double unit() const noexcept { return unit_; }
  const column_order& order() const noexcept { return order_; }
  /// L (k, k); what is above the diagonal is of no meaning. @pre usable()
  matrix<const float> factor() const noexcept { return {data_.data(), order_.size(), order_.size()}; }

 private:
  matrix<float> data() { return {data_.data(), order_.size(), order_.size()}; }

  /// Above the diagonal ← the Hessian in units, in order.
  void fill(const second_moment& x, const float* s) {
    const index_t k = x.inputs();
    std::vector<float> own;
    matrix<const float> g;
    if (x.sampled()) {
      own.resize(static_cast<size_t>(k * k));
      x.whole({own.data(), k, k});
      g = {own.data(), k, k};
    } else {
      g = x.gram_matrix();
    }
    const auto factor = [&](index_t col) { return s == nullptr ? 1.0f : 1.0f / s[col]; };
    const auto per_unit = static_cast<float>(1.0 / unit_);
    const matrix<float> h = data();
    parallel_for(k, [&](index_t i) {
      const index_t row = order_.column[static_cast<size_t>(i)];
      const float of_row = per_unit * factor(row);
      for (index_t j = i + 1; j < k; ++j) {
        const index_t col = order_.column[static_cast<size_t>(j)];
        h(i, j) = g(row, col) * (of_row * factor(col));
      }
    });
  }

  /// The lower triangle ← what is above the diagonal, and the diagonal.
  void restore(const std::vector<double>& diagonal, double added) {
    const matrix<float> h = data();
    parallel_for(order_.size(), [&](index_t i) {
      for (index_t j = 0; j < i; ++j) h(i, j) = h(j, i);
      const double own = diagonal[static_cast<size_t>(order_.column[static_cast<size_t>(i)])] / unit_;
      h(i, i) = static_cast<float>(own > 0 ? own + added : 1.0);
    });
  }

  bool climb(double damping, const std::vector<double>& diagonal) {
    for (damping_ = damping;; damping_ = raised_damping(damping_)) {
      restore(diagonal, damping_);
      if (factorise(data())) return true;
      if (damping_ >= 1.0) break;
    }
    floored_ = true;
    restore(diagonal, damping_);
    const matrix<float> h = data();
    parallel_for(order_.size(), [&](index_t i) {
      double beside = 0;
      for (index_t j = 0; j < order_.size(); ++j)
        if (j != i) beside += std::fabs(static_cast<double>(i < j ? h(i, j) : h(j, i)));
      h(i, i) = static_cast<float>(floored_diagonal(static_cast<double>(h(i, i)), beside));
    });
    return factorise(data());
  }

  column_order order_;
  std::vector<float> data_;
  double unit_ = 1, damping_ = 0;
  bool usable_ = false, floored_ = false;
};

}  // namespace host
NIBBLE_NAMESPACE_END
