// SPDX-License-Identifier: Apache-2.0
/// @file
/// AWQ's pieces as plain loops in double: importance of weights, candidate scales, the loss under a Gram matrix, ranges
/// judged under it, and the sweep over the codes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "nibble/core.hpp"
#include "nibble/matrix.hpp"
#include "nibble/reference/fit.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {

/// sum (k) += Σ over the rows of w (n, k) of |w| / (max |w| of its group + 1e-6); NaN and ±inf count as 0. Divide by all
/// rows that share an input for the mean.
template <class T>
void weight_importance(matrix<const T> w, index_t group_size, double* sum) {
  const index_t width = group_size < 0 ? w.cols : group_size;
  const auto magnitude = [&](index_t row, index_t col) {
    const auto value = static_cast<double>(static_cast<float>(w(row, col)));
    return std::isfinite(value) ? std::fabs(value) : 0.0;
  };
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t first = 0; first < w.cols; first += width) {
      const index_t last = std::min(w.cols, first + width);
      double largest = 0;
      for (index_t col = first; col < last; ++col) largest = std::max(largest, magnitude(row, col));
      for (index_t col = first; col < last; ++col) sum[col] += magnitude(row, col) / (largest + 1e-6);
    }
}

/// s (k) of candidate exponent r: x̄^r, with duo / (w̄^(1−r) + 1e-4); at least 1e-4, 1 where that is no finite number;
/// then / √(max · min).
inline std::vector<double> candidate_scales(const std::vector<double>& activation, const std::vector<double>& weight,
                                            double r, bool duo) {
  std::vector<double> s(activation.size(), 1.0);
  if (s.empty() || (r == 0 && !duo)) return s;
  for (std::size_t j = 0; j < s.size(); ++j) {
    double value = std::pow(activation[j], r);
    if (duo) value /= std::pow(weight[j], 1 - r) + 1e-4;
    s[j] = std::isfinite(value) ? std::max(value, 1e-4) : 1.0;
  }
  const auto [low, high] = std::minmax_element(s.begin(), s.end());
  const double norm = std::sqrt(*low * *high);
  for (double& value : s) value /= norm;
  return s;
}

/// tr(D·G·Dᵀ), D (n, k), G (k, k) symmetric.
inline double gram_loss(matrix<const float> d, matrix<const double> g) {
  double loss = 0;
  for (index_t row = 0; row < d.rows; ++row)
    for (index_t i = 0; i < d.cols; ++i)
      for (index_t j = 0; j < d.cols; ++j)
        loss += static_cast<double>(d(row, i)) * g(i, j) * static_cast<double>(d(row, j));
  return loss;
}

namespace detail {

/// d·G·dᵀ of one group, d = (what w reads back as − w) / s; w (count), s (count), g (count, count).
template <class Scheme>
double group_loss(const float* w, const float* s, matrix<const double> g, params p, Scheme scheme) {
  std::vector<double> d(static_cast<std::size_t>(g.cols));
  for (std::size_t j = 0; j < d.size(); ++j)
    d[j] = (static_cast<double>(round_trip(w[j], p, scheme)) - static_cast<double>(w[j])) / static_cast<double>(s[j]);
  double loss = 0;
  for (std::size_t i = 0; i < d.size(); ++i)
    for (std::size_t j = 0; j < d.size(); ++j)
      loss += d[i] * g(static_cast<index_t>(i), static_cast<index_t>(j)) * d[j];
  return loss;
}

}  // namespace detail

/// p (n, ⌈k / group_size⌉) ← of w (n, k), already scaled by s (k), the range that loses least under the group's diagonal
/// block of G (k, k): p as given; both ends of [min(w, 0), max(w, 0)] by themselves times 1 − i/(2·steps), i = 0 … steps;
/// then the neighbours of the best by 1/(4·steps), and by 1/(8·steps), moving on at every better one. Symmetric schemes
/// have one end. The first of equals stays.
template <class Scheme>
void clip_under_gram(matrix<const float> w, const float* s, matrix<const double> g, index_t group_size, Scheme scheme,
                     matrix<params> p, int steps) {
  const index_t width = group_size < 0 ? w.cols : group_size;
  const float step = 0.5f / static_cast<float>(steps);
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t first = 0; first < w.cols; first += width) {
      const index_t count = std::min(width, w.cols - first);
      const float* const weights = w.row(row) + first;
      const auto block = g.rows_at(first, count).cols_at(first, count);
      const float low = std::min(0.0f, *std::min_element(weights, weights + count));
      const float high = std::max(0.0f, *std::max_element(weights, weights + count));
      params& best = p(row, first / width);
      double least = detail::group_loss(weights, s + first, block, best, scheme);
      float best_low = 1, best_high = 1;
      const auto attempt = [&](float at_low, float at_high) {
        const params tried = detail::fit(low * at_low, high * at_high, scheme);
        const double loss = detail::group_loss(weights, s + first, block, tried, scheme);
        if (loss < least) least = loss, best = tried, best_low = at_low, best_high = at_high;
      };
      for (int i = 0; i <= steps; ++i)
        for (int j = 0; j <= steps; ++j)
          if (!scheme.symmetric || i == j) attempt(1 - step * static_cast<float>(i), 1 - step * static_cast<float>(j));
      for (const float finer : {step / 2, step / 4})
        for (const float i : {-finer, 0.0f, finer})
          for (const float j : {-finer, 0.0f, finer})
            if (!scheme.symmetric || i == j) attempt(best_low + i, best_high + j);
    }
}

/// Sweeps over the codes q (n, k) of w (n, k), which is already scaled by s (k), under G (k, k) of the unscaled inputs,
/// columns in order: each code becomes the one nearest to the minimiser of its row's loss with the row's other codes fixed.
/// Weights are (q − zero)·scale.
template <class Scheme>
void sweep(matrix<const float> w, const float* s, matrix<const double> g, matrix<const params> p, index_t group_size,
           Scheme scheme, int rounds, matrix<std::uint8_t> q) {
  const index_t width = group_size < 0 ? w.cols : group_size;
  const double top = std::ldexp(1.0, scheme.bits) - 1;
  const auto difference = [&](index_t row, index_t col) {
    const params of = p(row, col / width);
    const double value = (static_cast<double>(q(row, col)) - of.zero) * static_cast<double>(of.scale);
    return (value - static_cast<double>(w(row, col))) / static_cast<double>(s[col]);
  };
  for (int round = 0; round < rounds; ++round)
    for (index_t row = 0; row < w.rows; ++row)
      for (index_t i = 0; i < w.cols; ++i) {
        if (!(g(i, i) > 0)) continue;
        double slope = 0;
        for (index_t j = 0; j < w.cols; ++j) slope += difference(row, j) * g(j, i);
        const double step = static_cast<double>(p(row, i / width).scale) / static_cast<double>(s[i]);
        const double wanted = static_cast<double>(q(row, i)) - slope / g(i, i) / step;
        q(row, i) = static_cast<std::uint8_t>(std::clamp(std::nearbyint(wanted), 0.0, top));
      }
}

}  // namespace reference
NIBBLE_NAMESPACE_END
