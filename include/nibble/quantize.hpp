// SPDX-License-Identifier: Apache-2.0
/// @file
/// The rounding rule, weight ↔ code. R rounds to the scheme's compute dtype, as a tensor library rounds every
/// operation:
///     code = round_even(clamp(R(R(x / scale) + zero − mid), −mid, mid − 1)) + mid   (compressed-tensors)
///     code = clamp(round_even(R(x / scale)) + zero, 0, 2^bits − 1)                  (AutoAWQ, GPTQ, torchao)
///     x'   = R((code − zero) · scale)                                               (all)
/// with mid = 2^(bits−1). The two differ at ties when zero − mid is odd, and where R moves a sum across a tie.
/// We divide; x · (1 / scale) gives other codes near ties, which is what torchao itself does.
/// NaN takes the zero point's code, so that it reads back as 0; ±inf saturates at the end its sign points to.
/// Sources: Jacob et al., CVPR 2018, eq. 1 (arXiv:1712.05877); compressed-tensors 0.19, AutoAWQ 0.2.9, GPTQModel 7.7.
#pragma once

#include "nibble/core.hpp"
#include "nibble/half.hpp"
#include "nibble/math.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN

/// Code of weight `x`, in [0, 2^bits). `x` itself is not rounded to the compute dtype: it is taken as stored.
/// @pre p.scale > 0 and finite, p.zero in [0, 2^bits).
template <class Scheme>
NIBBLE_HOST_DEVICE constexpr uint8_t quantize(float x, params p, Scheme s = {}) noexcept {
  if (is_nan(x)) return static_cast<uint8_t>(p.zero);
  const float ratio = round_to(s.compute_dtype, x / p.scale);
  const auto zero = static_cast<float>(p.zero);
  const auto top = static_cast<float>(max_code(s));
  if (s.rule == convention::compressed_tensors) {
    const auto mid = static_cast<float>(mid_code(s));
    const float shifted = round_to(s.compute_dtype, ratio + (zero - mid));
    return static_cast<uint8_t>(round_even(clamp(shifted, -mid, top - mid)) + mid);
  }
  // round_even(ratio) + zero needs no R: sums inside [0, 255] are exact in every dtype, and those outside are clamped.
  return static_cast<uint8_t>(clamp(round_even(ratio) + zero, 0.0f, top));
}

/// Weight that `code` stands for. The difference is exact, the product is rounded to float, then to the compute dtype.
/// @error at most scale / 2, and R's roundings, from the weight unless that was clamped.
template <class Scheme>
NIBBLE_HOST_DEVICE constexpr float dequantize(uint8_t code, params p, Scheme s = {}) noexcept {
  const auto steps = static_cast<float>(int32_t(code) - p.zero);
  return round_to(s.compute_dtype, steps * p.scale);
}

NIBBLE_NAMESPACE_END
