// SPDX-License-Identifier: Apache-2.0
/// @file
/// Ranges, a histogram of |x|, and where activations had best saturate, as plain loops over all that was seen.
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

/// Least and greatest finite value, 0 for −0; +inf and −inf where there is none.
struct ends {
  float low = std::numeric_limits<float>::infinity(), high = -std::numeric_limits<float>::infinity();
};

/// (k): of the columns of x (m, k).
template <class T>
std::vector<ends> channel_ranges(matrix<const T> x) {
  std::vector<ends> out(static_cast<std::size_t>(x.cols));
  for (index_t row = 0; row < x.rows; ++row)
    for (index_t col = 0; col < x.cols; ++col) {
      const auto value = static_cast<float>(x(row, col));
      if (!std::isfinite(value)) continue;
      ends& to = out[static_cast<std::size_t>(col)];
      to.low = std::min(to.low, value == 0.0f ? 0.0f : value);
      to.high = std::max(to.high, value == 0.0f ? 0.0f : value);
    }
  return out;
}

/// Of all of x.
template <class T>
ends range_of(matrix<const T> x) {
  ends all;
  for (const ends& channel : channel_ranges(x)) {
    all.low = std::min(all.low, channel.low);
    all.high = std::max(all.high, channel.high);
  }
  return all;
}

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

/// The same when codes stand for `levels`, rising from 0, times a scale under which the last of them is `threshold`.
inline double squared_error(const histogram& h, double threshold, const std::vector<double>& levels, int pieces) {
  const double scale = threshold / levels.back();
  double sum = 0;
  for (std::size_t bin = 0; bin < h.counts.size(); ++bin)
    for (int piece = 0; piece < pieces && h.counts[bin] > 0; ++piece) {
      const double x = (static_cast<double>(bin) + (piece + 0.5) / pieces) * h.width;
      const auto above = std::lower_bound(levels.begin(), levels.end(), x / scale);
      double off = above == levels.end() ? x - threshold : *above * scale - x;
      if (above != levels.begin()) off = std::min(std::fabs(off), x - above[-1] * scale);
      sum += static_cast<double>(h.counts[bin]) / pieces * off * off;
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
