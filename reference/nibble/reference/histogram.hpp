// SPDX-License-Identifier: Apache-2.0
/// @file
/// A histogram of |x|, and where activations had best saturate, as plain loops over all that was seen.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "nibble/core.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {

struct histogram {
  double width = 0;                   ///< of a bin
  std::vector<std::uint64_t> counts;  ///< 2048, of finite |x|
};

/// Of x (m, k), NaN and ±inf left out.
template <class T>
histogram count_magnitudes(matrix<const T> x) {
  double most = 0;
  std::vector<double> magnitudes;
  for (index_t row = 0; row < x.rows; ++row)
    for (index_t col = 0; col < x.cols; ++col) {
      const double value = std::fabs(static_cast<double>(static_cast<float>(x(row, col))));
      if (!std::isfinite(value)) continue;
      magnitudes.push_back(value);
      most = std::max(most, value);
    }
  double range = std::ldexp(1.0, -100);
  while (most >= range) range *= 2;
  histogram out{range / 2048, std::vector<std::uint64_t>(2048)};
  for (const double value : magnitudes) ++out.counts[static_cast<std::size_t>(std::floor(value / out.width))];
  return out;
}

/// The least end of a bin below which at least `share` of all counts lie; 0 where there are none.
inline double percentile_threshold(const histogram& h, double share) {
  double all = 0, below = 0;
  for (const std::uint64_t count : h.counts) all += static_cast<double>(count);
  if (all == 0) return 0;
  for (std::size_t bin = 0; bin < h.counts.size(); ++bin) {
    below += static_cast<double>(h.counts[bin]);
    if (below >= share * all) return static_cast<double>(bin + 1) * h.width;
  }
  return static_cast<double>(h.counts.size()) * h.width;
}

/// Σ (x − rounded x)² of the counts when codes of `levels` steps a side end at `threshold`, every bin cut into `pieces`.
inline double squared_error(const histogram& h, double threshold, int levels, int pieces) {
  const double step = threshold / levels;
  double sum = 0;
  for (std::size_t bin = 0; bin < h.counts.size(); ++bin)
    for (int piece = 0; piece < pieces && h.counts[bin] > 0; ++piece) {
      const double x = (static_cast<double>(bin) + (piece + 0.5) / pieces) * h.width;
      const double rounded = std::min(std::floor(x / step + 0.5), static_cast<double>(levels)) * step;
      sum += static_cast<double>(h.counts[bin]) / pieces * (x - rounded) * (x - rounded);
    }
  return sum;
}

/// Kullback-Leibler divergence of the first `kept` bins, all beyond counted into the last, from the same rounded to `levels` of
/// equal width, each level's counts spread evenly over its bins that have any. Infinite where a bin has nothing left.
/// Source: Migacz, "8-bit inference with TensorRT", GTC 2017.
inline double kl_of(const histogram& h, std::size_t kept, int levels) {
  std::vector<double> p(kept), q(kept), sums(static_cast<std::size_t>(levels)), filled(sums.size());
  const auto level_of = [&](std::size_t bin) { return bin * static_cast<std::size_t>(levels) / kept; };
  for (std::size_t bin = 0; bin < h.counts.size(); ++bin) {
    const auto count = static_cast<double>(h.counts[bin]);
    p[std::min(bin, kept - 1)] += count;
    if (bin >= kept || count == 0) continue;
    sums[level_of(bin)] += count;
    filled[level_of(bin)] += 1;
  }
  double all_p = 0, all_q = 0, kl = 0;
  for (std::size_t bin = 0; bin < kept; ++bin) {
    if (h.counts[bin] > 0) q[bin] = sums[level_of(bin)] / filled[level_of(bin)];
    all_p += p[bin];
    all_q += q[bin];
  }
  for (std::size_t bin = 0; bin < kept; ++bin) {
    if (p[bin] == 0) continue;
    if (q[bin] == 0) return std::numeric_limits<double>::infinity();
    kl += p[bin] / all_p * std::log(p[bin] / all_p / (q[bin] / all_q));
  }
  return kl;
}

}  // namespace reference
NIBBLE_NAMESPACE_END
