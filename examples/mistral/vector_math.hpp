// SPDX-License-Identifier: Apache-2.0
/// @file
/// exp in a form compilers vectorise, the marker of functions compiled for several instruction sets, and the activation
/// and softmax that the forward pass and decoding share.
#pragma once

#include "nibble/math.hpp"

/// Compiled once for each of these instruction sets; the loader picks one. Sanitizers and other compilers take one
/// body.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define NIBBLE_VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define NIBBLE_VECTORISED
#endif

namespace nibble::mistral {

/// e^x, relative error below 2e-7; arguments beyond ±87 saturate.
/// x = n·ln 2 + r with |r| <= ln 2 / 2, e^r by its Taylor series to r^7, 2^n put into the exponent.
__attribute__((always_inline)) inline float fast_exp(float x) {
  constexpr float magic = 12582912.0f;  // 1.5 · 2^23: adding it leaves the nearest integer in the low bits
  x = nibble::clamp(x, -87.0f, 88.0f);
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // n from the bits of shifted, not by conversion, which NaN does not have; p is NaN then.
  const std::uint32_t exponent =
      (nibble::bit_cast<std::uint32_t>(shifted) - nibble::bit_cast<std::uint32_t>(magic) + 127) << 23;
  return p * nibble::bit_cast<float>(exponent);
}

/// gate ← silu(gate) · up, n of each.
void swiglu(float* gate, const float* up, index_t n);

/// s[j] ← exp(s[j] − max) over [first, last); zero elsewhere in [0, n). @returns 1 / Σ.
float softmax_numerators(float* s, index_t first, index_t last, index_t n);

}  // namespace nibble::mistral
