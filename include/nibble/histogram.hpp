// SPDX-License-Identifier: Apache-2.0
/// @file
/// Row observe, what calibration knows of a whole tensor's activations: their range, its moving average, and a histogram of |x|.
///     histogram    c_b = number of finite x with b·w <= |x| < (b + 1)·w,  w = 2^e / 2048,  e the least with max |x| < 2^e
/// A power of two scales without rounding, so a bin is exact, and a histogram whose range has to double adds neighbours:
/// floor(floor(y) / 2) = floor(y / 2). Counts are those of one look at all activations, whatever the chunks, order and threads.
///     moving range  low ← low + a·(low of this batch − low), high likewise; the first batch's as they are
///                   (Jacob et al., CVPR 2018, arXiv 1712.05877, section 3.1; torch's and llm-compressor's constant a is 0.01)
/// A threshold T is where activations begin to saturate. With codes of `levels` steps on either side of 0 a step is s = T / levels, and
///     cost(y) = ∫₀^y (t − rounded(t))² dt = n·s³/12 + (y − n·s)³/3,   n = min(round(y / s), levels)
/// tells what is expected of a bin whose activations lie evenly in it.
#pragma once

#include "nibble/core.hpp"
#include "nibble/float_code.hpp"
#include "nibble/math.hpp"

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

/// The bin of x. @pre |x| < 2^exponent, and exponent is from histogram_exponent.
NIBBLE_HOST_DEVICE constexpr int32_t histogram_bin(float x, int32_t exponent) noexcept {
  return static_cast<int32_t>(abs(x) * two_to(11 - exponent));
}

/// Least and greatest of what was seen.
struct value_range {
  float low = 0, high = 0;
  bool seen = false;  ///< any finite value
};

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

/// cost(y). @pre y >= 0, step > 0, y / step < 2^53.
NIBBLE_HOST_DEVICE constexpr double rounding_cost(double y, double step, int32_t levels) noexcept {
  const double steps = static_cast<double>(static_cast<int64_t>(y / step + 0.5));
  const double n = steps < static_cast<double>(levels) ? steps : static_cast<double>(levels);
  const double off = y - n * step;
  return n * step * step * step / 12.0 + off * off * off / 3.0;
}

NIBBLE_NAMESPACE_END
