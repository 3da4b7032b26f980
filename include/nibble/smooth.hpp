// SPDX-License-Identifier: Apache-2.0
/// @file
/// SmoothQuant: int8 weights and activations. Loud channels of activations X (m, k) hand their range to weights (n, k):
///     X·Wᵀ = (X·diag(s)⁻¹) · (W·diag(s))ᵀ,     s_j = max(1e-5, amaxX_j^α / max(1e-5, amaxW_j)^(1−α))
/// amaxX_j the largest |x_ij| that calibration saw, amaxW_j the largest |w_ij| over the rows of all linears reading X.
/// s is folded into those linears, 1/s into the norm's weight before them; awq_folded says which s its dtype can hold.
/// Source: Xiao et al., arXiv 2211.10438, eq. 4; the two floors are its authors' code's.
///
/// Activations become codes c, meaning c − 128, one scale a token (dynamic) or a tensor (static):
///     scale = max(amax / 127, 2⁻¹²⁶)     c = clamp(round_even(x / scale), −127, 127) + 128
/// Weights are rows quantize and fit with bits 8, symmetric, one scale an output: their c − 128 is in [−128, 127]. Then
///     y_ti = float(Σ_j (c_tj − 128)·(d_ij − 128)) · scale_t · scale_i
/// where the sum is an exact int32 in any order: 127·128·2^17 < 2^31. That is why activations leave out −128.
///
/// NaN and ±inf count as 0 in maxima, as in observe.hpp. A NaN's code means 0, ±inf's the end its sign points to.
#pragma once

#include "nibble/core.hpp"
#include "nibble/math.hpp"
#include "nibble/observe.hpp"

#if !defined(__CUDACC_RTC__)
#include <cmath>
#endif

NIBBLE_NAMESPACE_BEGIN

/// Most inputs of a sum that no int32 overflows on.
inline constexpr index_t int8_inputs = index_t(1) << 17;

/// s of one channel: finite and at least 1e-5 whatever comes in; 1 for an α that makes no number of it.
/// @param activation amaxX >= 0. @param weight amaxW >= 0.
/// @param alpha α, in [0, 1]: 0 looks at weights alone, 1 at activations alone.
NIBBLE_HOST_DEVICE inline float smooth_scale(float activation, float weight, float alpha) noexcept {
#if !defined(__CUDACC_RTC__)
  using std::pow;
#endif
  const float loudness = pow(abs(observed(activation)), alpha);
  const float scale = loudness / pow(max(abs(observed(weight)), 1e-5f), 1.0f - alpha);
  return is_finite(scale) ? max(scale, 1e-5f) : 1.0f;
}

/// The scale of a token, or of a tensor, whose largest |x| is `amax`; normal and finite.
NIBBLE_HOST_DEVICE constexpr float activation_scale(float amax) noexcept {
  return max(abs(observed(amax)) / 127.0f, 0x1p-126f);
}

/// Code of activation `x`, in [1, 255].
/// @error c − 128 times scale is at most scale · (1/2 + 2^-17) from x unless |x| > 127·scale: then ±127·scale.
/// @pre scale > 0 and finite.
NIBBLE_HOST_DEVICE constexpr uint8_t activation_code(float x, float scale) noexcept {
  if (is_nan(x)) return 128;
  return static_cast<uint8_t>(clamp(round_even(x / scale), -127.0f, 127.0f) + 128.0f);
}

/// How x is told in steps of its scale.
enum class activation_ratio : uint8_t {
  quotient,         ///< x / scale
  reciprocal,       ///< x · (1 / scale)
  steps_over_amax,  ///< x · (127 / amax); x / scale where amax is not known, under a static scale
};

/// How a system makes int8 of activations: scale = amax / 127 in all, code = clamp(round_even(ratio), least, 127) + 128. The ratios
/// differ near ties. With a least code of −128 the sums of int8_inputs inputs may be 2^31: one input less, and none is.
/// compressed-tensors' are no such rule: its int8 of a token is rows fit and quantize with 8 bits, symmetric, per_channel.
struct activation_rule {
  int32_t least = -127;  ///< −127 or −128
  activation_ratio ratio = activation_ratio::quotient;
};
/// What vLLM does on GPUs (scaled_quant.cu) and on CPUs (dnnl_kernels.cpp, held to it by golden codes).
inline constexpr activation_rule vllm_activations{-128, activation_ratio::steps_over_amax};
inline constexpr activation_rule vllm_cpu_activations{-128, activation_ratio::reciprocal};

/// The rule where only a scale is known.
NIBBLE_HOST_DEVICE constexpr activation_rule under_static_scale(activation_rule rule) noexcept {
  if (rule.ratio == activation_ratio::steps_over_amax) rule.ratio = activation_ratio::quotient;
  return rule;
}

/// What all activations of a token are divided by (quotient) or multiplied by. @pre scale = activation_scale(amax)
NIBBLE_HOST_DEVICE constexpr float activation_factor(float scale, float amax, activation_rule rule) noexcept {
  if (rule.ratio == activation_ratio::quotient) return scale;
  if (rule.ratio == activation_ratio::reciprocal) return 1.0f / scale;
  return 127.0f / max(abs(observed(amax)), 127.0f * 0x1p-126f);
}

/// Code of `x` under a rule, in [least + 128, 255]; with `factor` the scale and the default rule, activation_code(x, scale).
NIBBLE_HOST_DEVICE constexpr uint8_t activation_code(float x, float factor, activation_rule rule) noexcept {
  const float ratio = rule.ratio == activation_ratio::quotient ? x / factor : x * factor;
  if (is_nan(ratio)) return 128;
  return static_cast<uint8_t>(clamp(round_even(ratio), static_cast<float>(rule.least), 127.0f) + 128.0f);
}

/// y of an integer sum. @error three roundings, 3·2^-24 of it, unless a product over- or underflows.
NIBBLE_HOST_DEVICE constexpr float int8_output(int32_t sum, float x_scale, float w_scale) noexcept {
  return static_cast<float>(sum) * x_scale * w_scale;
}

NIBBLE_NAMESPACE_END
