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
#include "nibble/observe.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Columns that are looked at together.
inline constexpr index_t observed_columns = 128;

/// f(first row, rows) for tiles of x of about 2^15 elements.
template <class T, class F>
void over_observed_tiles(matrix<const T> x, F f) {
  const index_t height = max(index_t(1), (index_t(1) << 15) / max(x.cols, index_t(1)));
  parallel_for(ceil_div(x.rows, height), [&](index_t tile) { f(tile * height, min(height, x.rows - tile * height)); });
}

/// Ranges of columns, low > high where nothing was seen, as loops that become vectors take them.
struct ends_of_columns {
  float low[observed_columns], high[observed_columns];

  ends_of_columns() {
    std::fill(low, low + observed_columns, std::numeric_limits<float>::infinity());
    std::fill(high, high + observed_columns, -std::numeric_limits<float>::infinity());
  }
  /// Sees `count` values, at most observed_columns, one a column.
  template <class T>
  void see(const T* values, index_t count) {
    for (index_t col = 0; col < count; ++col) {
      // By masks: written as choices they become branches.
      const auto value = static_cast<float>(values[col]);
      const uint32_t keep = 0u - static_cast<uint32_t>(is_finite(value));
      const uint32_t bits = bit_cast<uint32_t>(value + 0.0f) & keep;
      low[col] = min(low[col], bit_cast<float>(bits | (~keep & 0x7f800000u)));
      high[col] = max(high[col], bit_cast<float>(bits | (~keep & 0xff800000u)));
    }
  }
  value_range operator[](index_t col) const {
    return low[col] <= high[col] ? value_range{low[col], high[col], true} : value_range{};
  }
};

}  // namespace detail

/// Of all of x (m, k): float, fp16 or bf16; NaN and ±inf are not seen.
template <class T>
value_range range_of(matrix<const T> x) {
  value_range out;
  std::mutex lock;
  detail::over_observed_tiles(x, [&](index_t first, index_t rows) {
    constexpr index_t width = detail::observed_columns;
    detail::ends_of_columns ends;
    vectorised([&] {
      for (index_t row = first; row < first + rows; ++row)
        for (index_t col = 0; col < x.cols; col += width) ends.see(x.row(row) + col, min(width, x.cols - col));
    });
    value_range own;
    for (index_t col = 0; col < width; ++col) own = joined(own, ends[col]);
    const std::lock_guard<std::mutex> held(lock);
    out = joined(out, own);
  });
  return out;
}

/// Of each channel: ranges (k) are joined with those of the columns of x (m, k).
template <class T>
void channel_ranges(matrix<const T> x, value_range* ranges) {
  constexpr index_t width = detail::observed_columns;
  parallel_for(ceil_div(x.cols, width), [&](index_t tile) {
    const index_t first = tile * width, count = min(width, x.cols - first);
    detail::ends_of_columns ends;
    vectorised([&] {
      for (index_t row = 0; row < x.rows; ++row) ends.see(x.row(row) + first, count);
    });
    for (index_t col = 0; col < count; ++col) ranges[first + col] = joined(ranges[first + col], ends[col]);
  });
}

/// A histogram of |x|, to which chunks of activations are added.
class magnitude_histogram {
 public:
  magnitude_histogram() = default;
  /// What kernels counted.
  explicit magnitude_histogram(const histogram_counts& h)
      : counts_(h.counts, h.counts + histogram_bins), exponent_(exponent_of(h)), non_finite_(h.non_finite) {}

  /// x (m, k): float, fp16 or bf16.
  template <class T>
  void add(matrix<const T> x) {
    widen(histogram_exponent(largest(x)));
    std::mutex lock;
    detail::over_observed_tiles(x, [&](index_t first, index_t rows) {
      constexpr index_t width = detail::observed_columns;
      constexpr auto places = static_cast<size_t>(histogram_bins) + 1;  // the last is for what is not finite
      // Two sets, by turns: neighbours are often alike, and would wait for each other.
      std::vector<uint32_t> own(2 * places);
      for (index_t row = first; row < first + rows; ++row)
        for (index_t col = 0; col < x.cols; col += width) {
          const index_t count = min(width, x.cols - col);
          int32_t bins[width];
          vectorised([&] { bins_of(x.row(row) + col, count, bins); });
          for (index_t i = 0; i < count; ++i) ++own[static_cast<size_t>(i & 1) * places + static_cast<size_t>(bins[i])];
        }
      const std::lock_guard<std::mutex> held(lock);
      for (size_t bin = 0; bin < counts_.size(); ++bin) counts_[bin] += uint64_t{own[bin]} + own[places + bin];
      non_finite_ += uint64_t{own[places - 1]} + own[2 * places - 1];
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
  /// The upper end of so many bins.
  float end(index_t bins) const { return histogram_end(static_cast<int32_t>(bins), exponent_); }
  uint64_t non_finite() const { return non_finite_; }
  /// Bins up to the last that has counts.
  index_t filled() const {
    index_t bins = histogram_bins;
    while (bins > 0 && counts_[static_cast<size_t>(bins - 1)] == 0) --bins;
    return bins;
  }

 private:
  /// The largest finite |x|.
  template <class T>
  static float largest(matrix<const T> x) {
    int32_t most = 0;  // bits of floats that are not negative have their order
    std::mutex lock;
    detail::over_observed_tiles(x, [&](index_t first, index_t rows) {
      int32_t own = 0;
      vectorised([&] {
        for (index_t row = first; row < first + rows; ++row)
          for (index_t col = 0; col < x.cols; ++col)
            own = max(own, bit_cast<int32_t>(abs(observed(static_cast<float>(x(row, col))))));
      });
      const std::lock_guard<std::mutex> held(lock);
      most = max(most, own);
    });
    return bit_cast<float>(most);
  }

  /// bins (count) ← of the values; histogram_bins of those that are not finite.
  template <class T>
  void bins_of(const T* values, index_t count, int32_t* bins) const {
    for (index_t i = 0; i < count; ++i) {
      const auto value = static_cast<float>(values[i]);
      const int32_t bad = static_cast<int32_t>(is_finite(value)) - 1;  // all bits where it is not
      bins[i] = histogram_bin(observed(value), exponent_) | (bad & histogram_bins);
    }
  }

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

/// The threshold of least cost(bins) among `first` + 1 bins and more; the first of equals; the whole range where none has a finite cost.
template <class F>
float cheapest_threshold(const magnitude_histogram& h, index_t first, F cost) {
  const index_t filled = h.filled();
  if (filled <= first) return h.end(filled);
  std::vector<double> costs(static_cast<size_t>(filled - first));
  parallel_for(filled - first, [&](index_t i) { costs[static_cast<size_t>(i)] = cost(first + i + 1); });
  const auto least = std::min_element(costs.begin(), costs.end());
  const index_t kept = std::isfinite(*least) ? first + 1 + (least - costs.begin()) : filled;
  return h.end(kept);
}

}  // namespace detail

/// Of all ends of bins up to the loudest activation the one of least cost(T), double → double, called from many threads; the first of
/// equals. @pre cost is never NaN.
template <class F>
float least_cost_threshold(const magnitude_histogram& h, F cost) {
  return detail::cheapest_threshold(
      h, 0, [&](index_t kept) { return cost(static_cast<double>(kept) * static_cast<double>(h.width())); });
}

/// The least end of a bin below which at least `share` of the activations lie; 0 where there are none.
inline float percentile_threshold(const magnitude_histogram& h, double share) {
  double all = 0, below = 0;
  for (const uint64_t count : h.counts()) all += static_cast<double>(count);
  index_t bins = 0;
  for (const index_t filled = h.filled(); bins < filled && (bins == 0 || below < share * all); ++bins)
    below += static_cast<double>(h.counts()[static_cast<size_t>(bins)]);
  return h.end(bins);
}

/// The squared error that is expected of all activations counted, under a threshold.
/// @param levels steps of an integer on one side of 0, or a float_format.
template <class Levels>
double expected_squared_error(const magnitude_histogram& h, double threshold, Levels levels) {
  return nibble::expected_squared_error(h.counts().data(), static_cast<int32_t>(h.filled()),
                                        static_cast<double>(h.width()), threshold, levels);
}

/// Of all ends of bins the one of least expected squared error for codes of `levels` steps a side, 127 for int8, or of a float_format:
/// the "L2" or "MSE" of calibrators.
template <class Levels = int32_t>
float l2_threshold(const magnitude_histogram& h, Levels levels = 127) {
  return least_cost_threshold(h, [&](double threshold) { return expected_squared_error(h, threshold, levels); });
}

/// Of all ends of bins from the `levels`-th on the one whose clipped and rounded histogram diverges least from the clipped one
/// (entropy calibration; Migacz, "8-bit inference with TensorRT", GTC 2017). A bin that nothing is left of rules an end out.
inline float kl_threshold(const magnitude_histogram& h, int32_t levels = 128) {
  const auto filled = static_cast<int32_t>(h.filled());
  double all = 0;
  for (const uint64_t count : h.counts()) all += static_cast<double>(count);
  return detail::cheapest_threshold(h, levels - 1, [&](index_t kept) {
    return rounding_divergence(h.counts().data(), filled, all, static_cast<int32_t>(kept), levels);
  });
}

}  // namespace host
NIBBLE_NAMESPACE_END
