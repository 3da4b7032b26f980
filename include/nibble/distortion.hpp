// SPDX-License-Identifier: Apache-2.0
/// @file
/// How far y is from x; one definition of error for everyone. All sums in double, elements in order.
///     mse         Σ (y − x)² / count
///     sqnr        10 · log10(Σ x² / Σ (y − x)²), in dB
///     cosine      Σ x·y / √(Σ x² · Σ y²)
///     max_error   max |y − x|
///     kl_divergence(p, q)   Σ softmax(p) · (log softmax(p) − log softmax(q)), in nats, of two rows of logits
/// NaN anywhere gives NaN, also in max_error. No elements: mse, max_error and KL are 0. x = y gives sqnr +inf, also
/// where both are 0; cosine is 1 for two zero vectors and 0 for one. A logit of −inf is a probability of 0: nothing
/// where p has it, +inf where only q has it; rows that are all −inf, or that hold +inf, have no softmax and give NaN.
#pragma once

#include "nibble/core.hpp"
#include "nibble/math.hpp"

#if defined(__CUDACC_RTC__)
#include <cuda/std/cmath>
#else
#include <cmath>
#endif

NIBBLE_NAMESPACE_BEGIN

namespace detail {
inline constexpr double infinity = bit_cast<double>(uint64_t(0x7ff0000000000000));
}

/// The sums that four of the measures are made of; add pairs, then ask.
struct distortion_sums {
  index_t count = 0;
  double xx = 0.0, yy = 0.0, xy = 0.0, noise = 0.0, most = 0.0;

  NIBBLE_HOST_DEVICE void add(double x, double y) noexcept {
    const double d = y - x;
    ++count;
    xx += x * x;
    yy += y * y;
    xy += x * y;
    noise += d * d;
    if (!(fixed::fabs(d) <= most)) most = most != most ? most : fixed::fabs(d);  // NaN, once in, stays
  }
  /// Appends the sums of elements that come after these.
  NIBBLE_HOST_DEVICE void add(const distortion_sums& next) noexcept {
    count += next.count;
    xx += next.xx;
    yy += next.yy;
    xy += next.xy;
    noise += next.noise;
    if (!(next.most <= most)) most = most != most ? most : next.most;
  }

  NIBBLE_HOST_DEVICE double mse() const noexcept { return count == 0 ? 0.0 : noise / static_cast<double>(count); }
  NIBBLE_HOST_DEVICE double sqnr() const noexcept {
    if (noise == 0.0) return detail::infinity;
    return 10.0 * fixed::log10(xx / noise);
  }
  NIBBLE_HOST_DEVICE double cosine() const noexcept {
    if (xx == 0.0 || yy == 0.0) return xx == yy ? 1.0 : xx + yy != xx + yy ? xx + yy : 0.0;
    return xy / (fixed::sqrt(xx) * fixed::sqrt(yy));
  }
  NIBBLE_HOST_DEVICE double max_error() const noexcept { return most; }
};

/// log Σ exp(logit) of a row, without overflow. −inf for a row of −inf, +inf where a logit is; NaN stays.
NIBBLE_HOST_DEVICE inline double log_sum_exp(const float* logits, index_t count) noexcept {
  double top = -detail::infinity;
  for (index_t i = 0; i < count; ++i)
    if (!(logits[i] <= top)) top = top != top ? top : static_cast<double>(logits[i]);
  if (!(fixed::fabs(top) < detail::infinity)) return top;
  double sum = 0.0;
  for (index_t i = 0; i < count; ++i) sum += fixed::exp(static_cast<double>(logits[i]) - top);
  return top + fixed::log(sum);
}

/// KL(softmax(p) ‖ softmax(q)) of two rows of `count` logits, in nats.
NIBBLE_HOST_DEVICE inline double kl_divergence(const float* p, const float* q, index_t count) noexcept {
  if (count == 0) return 0.0;
  const double p_norm = log_sum_exp(p, count), q_norm = log_sum_exp(q, count);
  if (!(fixed::fabs(p_norm) + fixed::fabs(q_norm) < detail::infinity))
    return bit_cast<double>(uint64_t(0x7ff8000000000000));
  double sum = 0.0;
  for (index_t i = 0; i < count; ++i) {
    const double log_p = static_cast<double>(p[i]) - p_norm;
    const double share = fixed::exp(log_p);
    if (share > 0.0) sum += share * (log_p - (static_cast<double>(q[i]) - q_norm));
  }
  return sum;
}

NIBBLE_NAMESPACE_END
