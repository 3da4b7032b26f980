// SPDX-License-Identifier: Apache-2.0
/// @file
/// Range → (scale, zero), as each convention has it. L = 2^bits − 1 steps, mid = 2^(bits−1), a = max(|low|, |high|); R
/// rounds to the compute dtype, S to the dtype the scale is stored in. The scale is rounded first: zero points and
/// codes see what will be stored.
///     convention          range        scale, symmetric   scale, asymmetric
///     compressed-tensors  includes 0   S(R(a / (L/2)))    S(R(R(high − low) / L))
///     AutoAWQ             as it is     S(R(a / (mid−1)))  S(R(max(R(high − low), 1e-5) / L))
///     GPTQ                includes 0   S(R(R(2a) / L))    S(R(R(high − low) / L))
///     torchao             includes 0   S(R(a / (L/2)))    S(R(R(high − low) / L))
///     zero, asymmetric: round(R(−mid − R(low / scale))) + mid in compressed-tensors, else −round(R(low / scale))
/// Zeros are clamped to [0, L]; a symmetric zero is mid. Where nothing is left of the scale, compressed-tensors takes
/// the epsilon of the scale's dtype (zero = mid when the range is 0), torchao at least the least normal number of the
/// compute dtype, AutoAWQ a range (or a) of at least 1e-5, GPTQ the range [−1, 1] for 0 and the least normal number
/// otherwise. Ours, where theirs breaks: a range too wide for the dtype saturates instead of giving inf, and GPTQ's
/// symmetric scale is 2a / L also for groups without negatives (theirs keeps low = 0 there, so that 1.5 reads back as
/// 0.7). Sources: compressed-tensors 0.19, AutoAWQ 0.2.9, GPTQModel 7.7, torchao 0.18 (choose_qparams_affine).
#pragma once

#include "nibble/core.hpp"
#include "nibble/half.hpp"
#include "nibble/math.hpp"
#include "nibble/scheme.hpp"
#include "nibble/search.hpp"

NIBBLE_NAMESPACE_BEGIN

/// Largest finite value of `type`.
NIBBLE_HOST_DEVICE constexpr float largest(dtype type) noexcept {
  return type == dtype::f32 ? 0x1.fffffep127f : type == dtype::f16 ? 65504.0f : 0x1.fep127f;
}

/// Least normal value of `type`.
NIBBLE_HOST_DEVICE constexpr float least_normal(dtype type) noexcept {
  return type == dtype::f16 ? 0x1p-14f : 0x1p-126f;
}

/// Distance from 1 to the next value of `type`.
NIBBLE_HOST_DEVICE constexpr float epsilon(dtype type) noexcept {
  return type == dtype::f32 ? 0x1p-23f : type == dtype::f16 ? 0x1p-10f : 0x1p-7f;
}

namespace detail {

/// R(R(high − low) / steps) in `type`; where the difference overflows, the same of half the range, twice.
NIBBLE_HOST_DEVICE constexpr float step_of(dtype type, float low, float high, float least_range, float steps) noexcept {
  const float range = round_to(type, high - low);
  if (is_finite(range)) return round_to(type, max(range, least_range) / steps);
  return (0.5f * high - 0.5f * low) / steps * 2.0f;
}

/// The scale before it is stored. @pre low <= high, finite, already widened to 0 where the convention does.
template <class Scheme>
NIBBLE_HOST_DEVICE constexpr float exact_scale(float low, float high, Scheme s) noexcept {
  const auto levels = static_cast<float>(max_code(s));
  const float amplitude = max(abs(low), abs(high));
  switch (s.rule) {
    case convention::autoawq: {
      const float least = round_to(s.compute_dtype, 1e-5f);
      if (!s.symmetric) return step_of(s.compute_dtype, low, high, least, levels);
      return round_to(s.compute_dtype, max(amplitude, least) / static_cast<float>(max(mid_code(s) - 1, int32_t(1))));
    }
    case convention::gptq:
      return s.symmetric ? step_of(s.compute_dtype, -amplitude, amplitude, 0.0f, levels)
                         : step_of(s.compute_dtype, low, high, 0.0f, levels);
    case convention::compressed_tensors:
    case convention::torchao:
      break;
  }
  const float scale = s.symmetric ? round_to(s.compute_dtype, amplitude / (levels / 2))
                                  : step_of(s.compute_dtype, low, high, 0.0f, levels);
  return s.rule == convention::torchao ? max(scale, least_normal(s.compute_dtype)) : scale;
}

}  // namespace detail

/// `scale` as it is stored: rounded to the scale's dtype, kept finite and above 0.
template <class Scheme>
NIBBLE_HOST_DEVICE constexpr float stored_scale(float scale, Scheme s) noexcept {
  const float stored = round_to(s.scale_dtype, min(scale, largest(s.scale_dtype)));
  if (stored > 0.0f) return stored;
  return s.rule == convention::compressed_tensors ? epsilon(s.scale_dtype) : least_normal(s.scale_dtype);
}

/// Scale and zero point of the range [low, high]; NaN counts as 0, ±inf as the largest float.
/// @returns scale > 0 and finite, zero in [0, 2^bits).
template <class Scheme>
NIBBLE_HOST_DEVICE constexpr params fit(float low, float high, Scheme s = {}) noexcept {
  const float most = largest(dtype::f32);
  low = is_nan(low) ? 0.0f : clamp(low, -most, most);
  high = is_nan(high) ? 0.0f : clamp(high, -most, most);
  if (s.rule != convention::autoawq) {
    low = min(low, 0.0f);
    high = max(high, 0.0f);
  }
  const int32_t mid = mid_code(s);
  const bool nothing = low == 0.0f && high == 0.0f;
  if (nothing && s.rule == convention::gptq) {
    low = -1.0f;
    high = 1.0f;
  }
  const float scale = stored_scale(detail::exact_scale(low, high, s), s);
  if (s.symmetric || (nothing && s.rule == convention::compressed_tensors)) return params{scale, mid};
  const float steps = round_to(s.compute_dtype, low / scale);
  const auto top = static_cast<float>(max_code(s));
  if (s.rule == convention::compressed_tensors) {
    const auto middle = static_cast<float>(mid);
    const float zero = clamp(round_to(s.compute_dtype, -middle - steps), -middle, top - middle);
    return params{scale, static_cast<int32_t>(round_even(zero)) + mid};
  }
  return params{scale, static_cast<int32_t>(clamp(-round_even(steps), 0.0f, top))};
}

NIBBLE_NAMESPACE_END
