// SPDX-License-Identifier: Apache-2.0
/// @file
/// Ranges and histograms of activations (histogram.hpp), threaded, and the thresholds that follow from a histogram. Counts are
/// integers and searches take the first of equals, so results are the same bytes for any number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <vector>

#include "nibble/half.hpp"
#include "nibble/histogram.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Rows that a thread takes at a time: about 2^15 elements.
inline index_t observed_rows(index_t cols) noexcept {
  return max(index_t(1), (index_t(1) << 15) / max(cols, index_t(1)));
}

/// f(first row, rows) for tiles of x.
template <class T, class F>
void over_observed_tiles(matrix<const T> x, F f) {
  const index_t height = observed_rows(x.cols);
  parallel_for(ceil_div(x.rows, height), [&](index_t tile) { f(tile * height, min(height, x.rows - tile * height)); });
}

}  // namespace detail

/// Of all of x (m, k): float, fp16 or bf16; NaN and ±inf are not seen.
template <class T>
value_range range_of(matrix<const T> x) {
  value_range out;
  std::mutex lock;
  detail::over_observed_tiles(x, [&](index_t first, index_t rows) {
    value_range own;
    for (index_t row = first; row < first + rows; ++row)
      for (index_t col = 0; col < x.cols; ++col)
        if (const float value = static_cast<float>(x(row, col)); is_finite(value))
          own = joined(own, {value, value, true});
    const std::lock_guard<std::mutex> held(lock);
    out = joined(out, own);
  });
  return out;
}

/// Of each channel: ranges (k) are joined with those of the columns of x (m, k).
template <class T>
void channel_ranges(matrix<const T> x, value_range* ranges) {
  constexpr index_t width = 64;
  parallel_for(ceil_div(x.cols, width), [&](index_t tile) {
    for (index_t row = 0; row < x.rows; ++row)
      for (index_t col = tile * width; col < min(x.cols, (tile + 1) * width); ++col)
        if (const float value = static_cast<float>(x(row, col)); is_finite(value))
          ranges[col] = joined(ranges[col], {value, value, true});
  });
}

/// A histogram of |x|, to which chunks of activations are added.
class magnitude_histogram {
 public:
  /// x (m, k): float, fp16 or bf16.
  template <class T>
  void add(matrix<const T> x) {
    const value_range seen = range_of(x);
    if (seen.seen) widen(histogram_exponent(max(-seen.low, seen.high)));
    std::mutex lock;
    detail::over_observed_tiles(x, [&](index_t first, index_t rows) {
      std::vector<uint32_t> own(static_cast<size_t>(histogram_bins));
      uint64_t left_out = 0;
      for (index_t row = first; row < first + rows; ++row)
        for (index_t col = 0; col < x.cols; ++col) {
          const float value = static_cast<float>(x(row, col));
          if (is_finite(value))
            ++own[static_cast<size_t>(histogram_bin(value, exponent_))];
          else
            ++left_out;
        }
      const std::lock_guard<std::mutex> held(lock);
      for (size_t bin = 0; bin < own.size(); ++bin) counts_[bin] += own[bin];
      non_finite_ += left_out;
    });
  }

  /// Adds what another histogram counted.
  void add(const magnitude_histogram& other) {
    magnitude_histogram its = other;
    widen(its.exponent_);
    its.widen(exponent_);
    for (size_t bin = 0; bin < counts_.size(); ++bin) counts_[bin] += its.counts_[bin];
    non_finite_ += its.non_finite_;
  }

  const std::vector<uint64_t>& counts() const { return counts_; }
  float width() const { return histogram_width(exponent_); }
  uint64_t non_finite() const { return non_finite_; }
  /// Bins up to the last that has counts.
  index_t filled() const {
    index_t bins = histogram_bins;
    while (bins > 0 && counts_[static_cast<size_t>(bins - 1)] == 0) --bins;
    return bins;
  }

 private:
  void widen(int32_t exponent) {
    for (; exponent_ < exponent; ++exponent_) {
      for (size_t bin = 0; bin < counts_.size() / 2; ++bin) counts_[bin] = counts_[2 * bin] + counts_[2 * bin + 1];
      std::fill(counts_.begin() + histogram_bins / 2, counts_.end(), 0);
    }
  }

  std::vector<uint64_t> counts_ = std::vector<uint64_t>(static_cast<size_t>(histogram_bins));
  int32_t exponent_ = histogram_exponent(0.0f);
  uint64_t non_finite_ = 0;
};

namespace detail {

/// The threshold (bins + 1)·w of least cost, bins from `first` on; the first of equals; the whole range where none has a finite cost.
template <class F>
float cheapest_threshold(const magnitude_histogram& h, index_t first, F cost) {
  const index_t filled = h.filled();
  if (filled <= first) return static_cast<float>(filled) * h.width();
  std::vector<double> costs(static_cast<size_t>(filled - first));
  parallel_for(filled - first, [&](index_t i) { costs[static_cast<size_t>(i)] = cost(first + i + 1); });
  const auto least = std::min_element(costs.begin(), costs.end());
  const index_t kept = std::isfinite(*least) ? first + 1 + (least - costs.begin()) : filled;
  return static_cast<float>(kept) * h.width();
}

}  // namespace detail

/// The least end of a bin below which at least `share` of the activations lie; 0 where there are none.
inline float percentile_threshold(const magnitude_histogram& h, double share) {
  double all = 0, below = 0;
  for (const uint64_t count : h.counts()) all += static_cast<double>(count);
  index_t bins = 0;
  for (const index_t filled = h.filled(); bins < filled && (bins == 0 || below < share * all); ++bins)
    below += static_cast<double>(h.counts()[static_cast<size_t>(bins)]);
  return static_cast<float>(bins) * h.width();
}

/// The squared error that is expected of all activations counted, under a threshold.
inline double expected_squared_error(const magnitude_histogram& h, double threshold, int32_t levels) {
  const auto width = static_cast<double>(h.width());
  const double step = threshold / levels;
  double sum = 0, before = 0;
  for (index_t bin = 0, filled = h.filled(); bin < filled; ++bin) {
    const double here = rounding_cost(static_cast<double>(bin + 1) * width, step, levels);
    sum += static_cast<double>(h.counts()[static_cast<size_t>(bin)]) * ((here - before) / width);
    before = here;
  }
  return sum;
}

/// Of all ends of bins the one of least expected squared error for codes of `levels` steps a side, 127 for int8 (the "L2" of
/// calibrators; over float levels the rule is the caller's to choose).
inline float l2_threshold(const magnitude_histogram& h, int32_t levels = 127) {
  const auto width = static_cast<double>(h.width());
  return detail::cheapest_threshold(
      h, 0, [&](index_t kept) { return expected_squared_error(h, static_cast<double>(kept) * width, levels); });
}

/// Of all ends of bins from the `levels`-th on the one whose clipped and rounded histogram diverges least from the clipped one
/// (entropy calibration; Migacz, "8-bit inference with TensorRT", GTC 2017). A bin that nothing is left of rules an end out.
inline float kl_threshold(const magnitude_histogram& h, int32_t levels = 128) {
  const std::vector<uint64_t>& counts = h.counts();
  const index_t filled = h.filled();
  double all = 0;
  for (const uint64_t count : counts) all += static_cast<double>(count);
  return detail::cheapest_threshold(h, levels - 1, [&](index_t kept) {
    double inside = 0, kl = 0;
    for (index_t bin = 0; bin < kept; ++bin) inside += static_cast<double>(counts[static_cast<size_t>(bin)]);
    if (kept < filled && counts[static_cast<size_t>(kept - 1)] == 0) return std::numeric_limits<double>::infinity();
    for (index_t level = 0; level < levels; ++level) {
      const index_t first = ceil_div(level * kept, levels), last = ceil_div((level + 1) * kept, levels);
      double sum = 0, bins = 0;
      for (index_t bin = first; bin < last; ++bin) {
        sum += static_cast<double>(counts[static_cast<size_t>(bin)]);
        bins += counts[static_cast<size_t>(bin)] > 0 ? 1 : 0;
      }
      for (index_t bin = first; bin < last; ++bin) {
        const auto count = static_cast<double>(counts[static_cast<size_t>(bin)]);
        if (count == 0) continue;
        const double p = (bin == kept - 1 ? count + all - inside : count) / all;
        kl += p * std::log(p / (sum / bins / inside));
      }
    }
    return kl;
  });
}

}  // namespace host
NIBBLE_NAMESPACE_END
