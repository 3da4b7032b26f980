// SPDX-License-Identifier: Apache-2.0
/// @file
/// GPTQ as published, by plain loops in double: the inverse of the damped Hessian, its upper triangular factor, and each
/// column's error spread over the columns after it. And the weights that are left to give way, by Gaussian elimination.
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

/// g (k, k) + λ·mean(diag g)·I, the mean over channels that ever fired; 1 on the diagonal of the others.
inline void damp(matrix<double> g, double damping) {
  double sum = 0, fired = 0;
  for (index_t i = 0; i < g.rows; ++i)
    if (g(i, i) > 0) sum += g(i, i), fired += 1;
  const double mean = fired > 0 ? sum / fired : 1;
  for (index_t i = 0; i < g.rows; ++i) g(i, i) = g(i, i) > 0 ? g(i, i) + damping * mean : mean;
}

/// out (k, m) ← h⁻¹·b, h (k, k) symmetric and positive definite, b (k, m).
inline void solve(matrix<const double> h, matrix<const double> b, matrix<double> out) {
  const index_t k = h.rows;
  std::vector<double> data;
  for (index_t i = 0; i < k; ++i) data.insert(data.end(), h.row(i), h.row(i) + k);
  const matrix<double> a(data.data(), k, k);
  for (index_t i = 0; i < k; ++i) std::copy(b.row(i), b.row(i) + b.cols, out.row(i));
  for (index_t i = 0; i < k; ++i)
    for (index_t row = 0; row < k; ++row) {
      if (row == i) continue;
      const double factor = a(row, i) / a(i, i);
      for (index_t col = i; col < k; ++col) a(row, col) -= factor * a(i, col);
      for (index_t col = 0; col < b.cols; ++col) out(row, col) -= factor * out(i, col);
    }
  for (index_t i = 0; i < k; ++i)
    for (index_t col = 0; col < b.cols; ++col) out(i, col) /= a(i, i);
}

/// u (k, k) ← the upper triangular U with h⁻¹ = Uᵀ·U.
inline void inverse_factor(matrix<const double> h, matrix<double> u) {
  const index_t k = h.rows;
  std::vector<double> one(static_cast<std::size_t>(k * k), 0.0), inverse(one.size());
  for (index_t i = 0; i < k; ++i) one[static_cast<std::size_t>(i * k + i)] = 1;
  const matrix<double> a(inverse.data(), k, k);
  solve(h, matrix<const double>(one.data(), k, k), a);
  for (index_t i = 0; i < k; ++i)
    for (index_t j = 0; j < k; ++j) {
      double sum = a(i, j);
      for (index_t before = 0; before < std::min(i, j); ++before) sum -= u(before, i) * u(before, j);
      u(i, j) = j < i ? 0 : j == i ? std::sqrt(sum) : sum / u(i, i);
    }
}

/// q (n, k) ← codes of w (n, k), columns in order, by the factor U of h⁻¹. p (n, ⌈k / group⌉) is given, or, with `fit`, is the
/// min-max range of each group's weights when its first column's turn comes.
/// @returns Σ ((w_i − ŵ_i) / U_ii)², the loss tr(ΔW·H·ΔWᵀ).
template <class Scheme>
double gptq(matrix<const float> w, matrix<const double> u, index_t group_size, Scheme scheme, bool fit,
            matrix<params> p, matrix<std::uint8_t> q) {
  const index_t k = w.cols, width = group_size < 0 ? k : group_size;
  double loss = 0;
  std::vector<double> left(static_cast<std::size_t>(k));
  const auto at = [&](index_t col) -> double& { return left[static_cast<std::size_t>(col)]; };
  for (index_t row = 0; row < w.rows; ++row) {
    std::copy(w.row(row), w.row(row) + k, left.begin());
    for (index_t i = 0; i < k; ++i) {
      params& of = p(row, i / width);
      if (fit && i % width == 0) {
        const auto [low, high] = std::minmax_element(left.begin() + i, left.begin() + std::min(k, i + width));
        of = detail::fit(static_cast<float>(*low), static_cast<float>(*high), scheme);
      }
      const float value = detail::round_trip(static_cast<float>(at(i)), of, scheme);
      q(row, i) = static_cast<std::uint8_t>(std::lround(value / of.scale) + of.zero);
      const double error = (at(i) - static_cast<double>(value)) / u(i, i);
      for (index_t j = i; j < k; ++j) at(j) -= error * u(i, j);
      loss += error * error;
    }
  }
  return loss;
}

/// left (n, k − taken) ← the last columns of w (n, k) when the first `taken` are ŵ (n, taken) and the others make the least of
/// tr(ΔW·H·ΔWᵀ).
inline void give_way(matrix<const float> w, matrix<const double> values, matrix<const double> h, matrix<double> left) {
  const index_t taken = values.cols, rest = w.cols - taken;
  std::vector<double> slope(static_cast<std::size_t>(rest * w.rows)), moved(slope.size());
  const matrix<double> b(slope.data(), rest, w.rows), x(moved.data(), rest, w.rows);
  for (index_t i = 0; i < rest; ++i)
    for (index_t row = 0; row < w.rows; ++row) {
      double sum = 0;
      for (index_t j = 0; j < taken; ++j) sum += (static_cast<double>(w(row, j)) - values(row, j)) * h(j, taken + i);
      b(i, row) = sum;
    }
  solve(h.rows_at(taken, rest).cols_at(taken, rest), matrix<const double>(b), x);
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t i = 0; i < rest; ++i) left(row, i) = static_cast<double>(w(row, taken + i)) + x(i, row);
}

/// p (n, ⌈k / group⌉) ← group after group, for codes q (n, k) of w (n, k), already scaled by s (k), the stored scale nearest to
/// the best of its zero point and of that one's neighbours, under g (k, k) of the unscaled inputs; only where it loses less.
template <class Scheme>
void refit(matrix<const float> w, const float* s, matrix<const double> g, matrix<const std::uint8_t> q,
           index_t group_size, Scheme scheme, matrix<params> p) {
  const index_t k = w.cols, width = group_size < 0 ? k : group_size;
  const std::int32_t top = (std::int32_t(1) << scheme.bits) - 1;
  std::vector<double> d(static_cast<std::size_t>(k)), c(d.size());
  const auto times = [&](const std::vector<double>& a, const std::vector<double>& b) {
    double sum = 0;
    for (index_t i = 0; i < k; ++i)
      for (index_t j = 0; j < k; ++j) sum += a[static_cast<std::size_t>(i)] * g(i, j) * b[static_cast<std::size_t>(j)];
    return sum;
  };
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t first = 0; first < k; first += width) {
      const index_t last = std::min(k, first + width);
      params best = p(row, first / width);
      const params before = best;
      // D with the group's weights read back by `of`; the group's steps / s in c
      const auto difference = [&](params of, bool without_group) {
        for (index_t j = 0; j < k; ++j) {
          const bool inside = j >= first && j < last;
          const params other = inside ? of : p(row, j / width);
          const double steps = static_cast<double>(q(row, j)) - other.zero;
          const double value = inside && without_group ? 0 : steps * static_cast<double>(other.scale);
          const auto scale = static_cast<double>(s[j]);
          d[static_cast<std::size_t>(j)] = (value - static_cast<double>(w(row, j))) / scale;
          c[static_cast<std::size_t>(j)] = inside ? steps / scale : 0;
        }
      };
      difference(before, false);
      double least = times(d, d);
      for (std::int32_t zero = before.zero - 1; zero <= before.zero + 1; ++zero) {
        if (zero < 0 || zero > top || (scheme.symmetric && zero != before.zero)) continue;
        difference({1, zero}, true);
        const double curvature = times(c, c), wanted = -times(d, c) / curvature;
        const float stored = round_to(scheme.scale_dtype, static_cast<float>(wanted));
        if (!(curvature > 0) || !(stored > 0) || !std::isfinite(stored)) continue;
        difference({stored, zero}, false);
        const double loss = times(d, d);
        if (loss < least) least = loss, best = {stored, zero};
      }
      p(row, first / width) = best;
    }
}

}  // namespace reference
NIBBLE_NAMESPACE_END
