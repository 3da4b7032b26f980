// SPDX-License-Identifier: Apache-2.0
/// @file
/// Row observe, what calibration knows of a whole tensor's activations: their range, its moving average, and a histogram of |x|.
///     histogram    c_b = number of finite x with b·w <= |x| < (b + 1)·w,  w = 2^e / 2048,  e the least with max |x| < 2^e
/// A power of two scales without rounding, so a bin is exact, and a histogram whose range has to double adds neighbours:
/// floor(floor(y) / 2) = floor(y / 2). Counts are those of one look at all activations, whatever the chunks, order and threads.
///     moving range  low ← low + a·(low of this batch − low), high likewise; the first batch's as they are
///                   (Jacob et al., CVPR 2018, arXiv 1712.05877, section 3.1; torch's and llm-compressor's constant a is 0.01)
/// A threshold T is where activations begin to saturate: what the largest code stands for. With
///     cost(y) = ∫₀^y (t − rounded(t))² dt
/// a bin whose activations lie evenly in it is expected to lose (cost((b + 1)·w) − cost(b·w)) / w an activation. Integers of `levels`
/// steps on either side of 0 have steps of s = T / levels, and cost(y) = n·s³/12 + (y − n·s)³/3, n = min(round(y / s), levels). Codes of
/// a float format have steps that double from octave to octave; a gap g between neighbours costs g³/12 as well.
#pragma once

#include "nibble/core.hpp"
#include "nibble/float_code.hpp"
#include "nibble/math.hpp"

#if defined(__CUDACC_RTC__)
#include <cuda/std/cmath>
#else
#include <cmath>
#endif

NIBBLE_NAMESPACE_BEGIN

inline constexpr int32_t histogram_bins = 2048;

/// e of a histogram whose largest |x| is `amax`: the least with amax < 2^e, from −100 to 128. @pre amax is finite, and −0 is 0.
NIBBLE_HOST_DEVICE constexpr int32_t histogram_exponent(float amax) noexcept {
  return max(static_cast<int32_t>(bit_cast<uint32_t>(abs(amax)) >> 23) - 126, -100);
}

/// w of a histogram.
NIBBLE_HOST_DEVICE constexpr float histogram_width(int32_t exponent) noexcept {
  return two_to(exponent - 11);
}

/// bins·w; the largest float where that is 2^128. @pre bins in [0, 2048].
NIBBLE_HOST_DEVICE constexpr float histogram_end(int32_t bins, int32_t exponent) noexcept {
  return min(static_cast<float>(bins) * histogram_width(exponent), bit_cast<float>(0x7f7fffffu));
}

/// The bin of x. @pre |x| < 2^exponent, and exponent is from histogram_exponent.
NIBBLE_HOST_DEVICE constexpr int32_t histogram_bin(float x, int32_t exponent) noexcept {
  return static_cast<int32_t>(abs(x) * two_to(11 - exponent));
}

/// Least and greatest of what was seen.
struct value_range {
  float low = 0, high = 0;
  bool seen = false;  ///< any finite value
};

/// The range of one value: of nothing where it is NaN or ±inf. −0 becomes 0, or the sign of an end would depend on an order.
NIBBLE_HOST_DEVICE constexpr value_range range_of_value(float x) noexcept {
  return is_finite(x) ? value_range{x + 0.0f, x + 0.0f, true} : value_range{};
}

/// The range of what either has.
NIBBLE_HOST_DEVICE constexpr value_range joined(value_range a, value_range b) noexcept {
  if (!a.seen || !b.seen) return a.seen ? a : b;
  return {min(a.low, b.low), max(a.high, b.high), true};
}

/// The moving range after a batch. @param constant a, in (0, 1].
NIBBLE_HOST_DEVICE constexpr value_range moved(value_range average, value_range batch, float constant) noexcept {
  if (!average.seen || !batch.seen) return average.seen ? average : batch;
  return {average.low + constant * (batch.low - average.low), average.high + constant * (batch.high - average.high),
          true};
}

/// What a histogram is while activations are added to it by kernels. All bytes 0: of nothing.
struct histogram_counts {
  uint64_t counts[histogram_bins];
  uint64_t non_finite;  ///< how many NaN and ±inf were left out
  uint32_t most;        ///< bits of the largest finite |x|
  int32_t above_least;  ///< e + 100
};

NIBBLE_HOST_DEVICE constexpr int32_t exponent_of(const histogram_counts& h) noexcept {
  return h.above_least + histogram_exponent(0.0f);
}

/// The largest number that codes stand for, in steps or as the format has it: what T is divided by for the scale.
NIBBLE_HOST_DEVICE constexpr double largest_level(int32_t levels) noexcept {
  return static_cast<double>(levels);
}
NIBBLE_HOST_DEVICE constexpr double largest_level(float_format format) noexcept {
  return static_cast<double>(largest(format));
}

/// cost(y) under integers. @pre y >= 0, step > 0, y / step < 2^53.
NIBBLE_HOST_DEVICE constexpr double rounding_cost(double y, double step, int32_t levels) noexcept {
  const double steps = static_cast<double>(static_cast<int64_t>(y / step + 0.5));
  const double n = steps < static_cast<double>(levels) ? steps : static_cast<double>(levels);
  const double off = y - n * step;
  return n * step * step * step / 12.0 + off * off * off / 3.0;
}

/// cost(y) under a float format's numbers times `scale`. With 2^E <= y / scale the octave, 2^e the least normal number, g a gap and
/// m bits of mantissa, 2^m gaps of 2^(e − m) lie below 2^e, and octaves e … E − 1 have 2^m gaps each: Σ 8^i = (8^E − 8^e) / 7.
/// @pre y >= 0, scale > 0.
NIBBLE_HOST_DEVICE constexpr double rounding_cost(double y, double scale, float_format format) noexcept {
  const int mantissa = mantissa_bits(format), least = 1 - exponent_bias(format);
  const double whole = y / scale, top = largest_level(format), u = whole < top ? whole : top;
  const int octave = max(static_cast<int>(bit_cast<uint64_t>(u) >> 52) - 1023, least);
  const double from = u < static_cast<double>(two_to(least)) ? 0.0 : static_cast<double>(two_to(octave));
  const double gap = static_cast<double>(two_to(octave - mantissa)), low = static_cast<double>(two_to(least));
  const double inverse = static_cast<double>(two_to(-2 * mantissa));  // 2^m · (2^−m)³
  const double octaves = from == 0.0 ? 0.0 : low * low * low + (from * from * from - low * low * low) / 7.0;
  const double gaps = static_cast<double>(static_cast<int64_t>((u - from) / gap)), off = u - from - gaps * gap;
  const double rest = gap - off,
               left = off < rest ? off * off * off / 3.0 : gap * gap * gap / 12.0 - rest * rest * rest / 3.0;
  const double over = whole - u;
  const double cost = inverse * octaves / 12.0 + gaps * gap * gap * gap / 12.0 + left + over * over * over / 3.0;
  return cost * scale * scale * scale;
}

/// The squared error that is expected of all activations counted, under a threshold.
/// @param counts of `filled` bins of width `width`. @param levels of an integer, or a float_format.
template <class Levels>
NIBBLE_HOST_DEVICE constexpr double expected_squared_error(const uint64_t* counts, int32_t filled, double width,
                                                           double threshold, Levels levels) noexcept {
  const double step = threshold / largest_level(levels);
  double sum = 0, before = 0;
  for (int32_t bin = 0; bin < filled; ++bin) {
    const double here = rounding_cost(static_cast<double>(bin + 1) * width, step, levels);
    sum += static_cast<double>(counts[bin]) * ((here - before) / width);
    before = here;
  }
  return sum;
}

/// Kullback-Leibler divergence, in nats, of the first `kept` bins, all beyond counted into the last, from the same rounded to `levels` of
/// equal width, a level's counts spread evenly over its bins that have any. Infinite where outliers meet an empty bin.
/// @param all Σ counts. @pre levels <= kept <= filled.
NIBBLE_HOST_DEVICE inline double rounding_divergence(const uint64_t* counts, int32_t filled, double all, int32_t kept,
                                                     int32_t levels) noexcept {
  if (kept < filled && counts[kept - 1] == 0) return bit_cast<double>(uint64_t(0x7ff0000000000000));
  double inside = 0, divergence = 0;
  for (int32_t bin = 0; bin < kept; ++bin) inside += static_cast<double>(counts[bin]);
  for (int32_t level = 0, first = 0; level < levels; ++level) {
    const auto end = static_cast<int32_t>(ceil_div(index_t{level + 1} * kept, levels));
    double sum = 0, bins = 0;
    for (int32_t bin = first; bin < end; ++bin) {
      sum += static_cast<double>(counts[bin]);
      bins += counts[bin] > 0 ? 1.0 : 0.0;
    }
    for (int32_t bin = first; bin < end; ++bin) {
      if (counts[bin] == 0) continue;
      const double beyond = bin == kept - 1 ? all - inside : 0.0;
      const double p = (static_cast<double>(counts[bin]) + beyond) / all;
      divergence += p * fixed::log(p / (sum / bins / inside));
    }
    first = end;
  }
  return divergence;
}

NIBBLE_NAMESPACE_END
