// SPDX-License-Identifier: Apache-2.0
/// @file
/// Activation-aware weight quantization: a scale per input channel, searched so that
///     Q(W · diag(s)) · diag(s)⁻¹
/// loses least on the activations the linear reads; 1/s is folded into whatever produces them.
///     plain   s = x̄^r
///     duo     s = x̄^r / (w̄^(1−r) + 1e-4)
/// x̄ mean |activation| of the channel, w̄ mean of |w| / (group's max |w| + 1e-6) over all rows that read it; then
/// s ← s / √(max s · min s). r in [0, 1]; plain r = 0 is the identity, and every grid begins with it, so the search never
/// ends worse than no search. Source: Lin et al., arXiv 2306.00978, eq. 4–5; duo: AutoAWQ and llm-compressor.
///
/// Codes are then improved one at a time under the same loss, tr(ΔW·G·ΔWᵀ): the value of w_i that minimises it while
/// all other codes stay is
///     ŵ_i − r_i / G_ii,   r = (ŵ − w)·G,
/// and the code nearest to it never raises the loss, because the loss is a parabola in each ŵ_i, and p stays.
/// Source: coordinate descent as in QuantEase, Behdin et al., arXiv 2309.01885.
#pragma once

#include "nibble/core.hpp"
#include "nibble/half.hpp"
#include "nibble/math.hpp"
#include "nibble/scheme.hpp"

#if !defined(__CUDACC_RTC__)
#include <cmath>
#endif

NIBBLE_NAMESPACE_BEGIN

/// Which scales a search tries: x̄^r alone, divided by the weights' own, or half of either.
enum class duo_scaling : uint8_t { off, on, both };

/// One candidate scale.
struct awq_ratio {
  float exponent = 0.0f;  ///< r, in [0, 1]
  bool duo = false;

  NIBBLE_HOST_DEVICE constexpr bool identity() const noexcept { return exponent == 0.0f && !duo; }
};

/// Candidate `i` of `count` of the published grids; candidate 0 is the identity.
///     off    r = i / (count − 1)                               (llm-compressor; AutoAWQ has i / count)
///     on     identity, then duo r = (i − 1) / (count − 2)
///     both   h = count / 2: plain r = i / (h − 1) for i < h, then duo r = (i − h) / (count − h − 1)
/// @pre 0 <= i < count; count is 1 or at least 4.
NIBBLE_HOST_DEVICE constexpr awq_ratio awq_candidate(duo_scaling mode, int32_t i, int32_t count) noexcept {
  if (i == 0) return {};
  if (mode == duo_scaling::off) return {static_cast<float>(i) / static_cast<float>(count - 1), false};
  if (mode == duo_scaling::on) return {static_cast<float>(i - 1) / static_cast<float>(count - 2), true};
  const int32_t half = count / 2;
  if (i < half) return {static_cast<float>(i) / static_cast<float>(half - 1), false};
  return {static_cast<float>(i - half) / static_cast<float>(count - half - 1), true};
}

/// s of one channel before normalisation, at least 1e-4; 1 where it is not a finite number.
/// @param activation x̄ >= 0. @param weight w̄ >= 0.
NIBBLE_HOST_DEVICE inline float awq_scale(float activation, float weight, awq_ratio ratio) noexcept {
  if (ratio.identity()) return 1.0f;
#if !defined(__CUDACC_RTC__)
  using std::pow;
#endif
  float scale = pow(activation, ratio.exponent);
  if (ratio.duo) scale /= pow(weight, 1.0f - ratio.exponent) + 1e-4f;
  return is_finite(scale) ? max(scale, 1e-4f) : 1.0f;
}

/// The scale that is really applied when 1/s is folded into a norm weight stored as `type`: weight / stored. Taking it
/// instead of s makes the folding exact whatever the dtype. 1 where the folded weight would be 0 or not finite.
NIBBLE_HOST_DEVICE constexpr float awq_folded(float weight, float scale, dtype type) noexcept {
  const float stored = round_to(type, weight / scale);
  const float folded = weight / stored;
  return stored != 0.0f && is_finite(stored) && is_finite(folded) && folded > 0.0f ? folded : 1.0f;
}

/// The code nearest to the minimiser of its row's loss while the row's other codes stay; `code` itself where that
/// minimiser is not finite, and where the channel is dead.
/// @param slope r_i, of (ŵ − w)·G. @param curvature G_ii. @param s the channel's scale: p and ŵ are of w·s, G of x.
template <class Scheme>
NIBBLE_HOST_DEVICE constexpr uint8_t improved_code(uint8_t code, params p, float slope, float curvature, float s,
                                                   Scheme scheme = {}) noexcept {
  if (!(curvature > 0.0f)) return code;
  const float wanted = static_cast<float>(code) - slope / curvature * s / p.scale;
  if (!is_finite(wanted)) return code;
  return static_cast<uint8_t>(clamp(round_even(wanted), 0.0f, static_cast<float>(max_code(scheme))));
}

NIBBLE_NAMESPACE_END
