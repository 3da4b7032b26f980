// SPDX-License-Identifier: Apache-2.0
/// @file
/// One block of weights to a block of each type, as ggml's encoders choose: with importance (of columns) and without they search
/// differently. σ² is the mean square of what each says. Codes of blocks of 256 are chosen anew at the end, under the scales as
/// they are stored; groups whose stored scale is 0 keep what their search found.
#pragma once

#include <algorithm>
#include <cmath>

#include "nibble/block_layout.hpp"
#include "nibble/half.hpp"
#include "nibble/reference/block/search.hpp"
#include "nibble/reference/block/unpacked.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {
namespace ggml {

/// Σx², one after another.
inline float sum_of_squares(const float* x, index_t n) {
  float sum = 0.0f;
  for (index_t i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

/// w_i = importance_i · √(σ² + x_i²).
inline void weigh(int n, const float* x, const float* importance, float sigma2, float* w) {
  for (int i = 0; i < n; ++i) w[i] = importance[i] * std::sqrt(sigma2 + x[i] * x[i]);
}

inline float sum(const float* w, int n) {
  float total = 0.0f;
  for (int i = 0; i < n; ++i) total += w[i];
  return total;
}

/// 1 / d, or 0 for 0.
inline float inverse_of(float d) {
  return d != 0.0f ? 1.0f / d : 0.0f;
}

/// A code from a number that has been shifted to be positive: truncated to a byte with sign, no more than `most`.
inline int truncated_code(float x, int most) {
  return std::min(most, static_cast<int>(static_cast<int8_t>(truncated(x) & 255)));
}

/// q4_0 and q5_0. σ² is of the whole row.
template <class Block>
void encode_centred(const float* x, const float* importance, float row_sigma2, unpacked& u) {
  constexpr int half = 1 << (Block::bits - 1);
  if (importance != nullptr) {
    float w[32];
    weigh(32, x, importance, row_sigma2, w);
    u.d = fp16(centred(32, half, x, w, u.codes));
    return;
  }
  const float d = largest(x, 32) / static_cast<float>(-half), inverse = inverse_of(d);
  u.d = fp16(d);
  for (int i = 0; i < 32; ++i)
    u.codes[i] = truncated_code(x[i] * inverse + (static_cast<float>(half) + 0.5f), 2 * half - 1);
}

/// q4_1 and q5_1. σ² is of the whole row.
template <class Block>
void encode_ranged(const float* x, const float* importance, float row_sigma2, unpacked& u) {
  constexpr int most = (1 << Block::bits) - 1;
  if (importance != nullptr) {
    float w[32], minimum = 0.0f;
    weigh(32, x, importance, row_sigma2, w);
    u.d = fp16(ranged(32, most, x, w, {-0.9f, 0.05f, 36}, u.codes, &minimum));
    u.minimum_d = fp16(-minimum);
    return;
  }
  const float min = *std::min_element(x, x + 32), max = *std::max_element(x, x + 32);
  const float d = (max - min) / static_cast<float>(most), inverse = inverse_of(d);
  u.d = fp16(d);
  u.minimum_d = fp16(min);
  for (int i = 0; i < 32; ++i) u.codes[i] = truncated_code((x[i] - min) * inverse + 0.5f, most);
}

inline void encode(const float* x, const float* importance, float row_sigma2, unpacked& u, block_tag<q4_0>) {
  encode_centred<q4_0>(x, importance, row_sigma2, u);
}
inline void encode(const float* x, const float* importance, float row_sigma2, unpacked& u, block_tag<q5_0>) {
  encode_centred<q5_0>(x, importance, row_sigma2, u);
}
inline void encode(const float* x, const float* importance, float row_sigma2, unpacked& u, block_tag<q4_1>) {
  encode_ranged<q4_1>(x, importance, row_sigma2, u);
}
inline void encode(const float* x, const float* importance, float row_sigma2, unpacked& u, block_tag<q5_1>) {
  encode_ranged<q5_1>(x, importance, row_sigma2, u);
}

/// Ties go away from zero here. Importance changes nothing.
inline void encode(const float* x, const float*, float, unpacked& u, block_tag<q8_0>) {
  const float d = std::fabs(largest(x, 32)) / 127.0f, inverse = inverse_of(d);
  u.d = fp16(d);
  for (int i = 0; i < 32; ++i) u.codes[i] = static_cast<int8_t>(truncated(std::round(x[i] * inverse)) & 255) + 128;
}

/// Codes of x under the stored scales and minima, clamped.
template <class Block>
void choose_codes(const float* x, unpacked& u) {
  constexpr int shift = minima_of_groups<Block> ? 0 : 1 << (Block::bits - 1), most = (1 << Block::bits) - 1;
  for (int i = 0; i < 256; ++i) {
    const int group = i / Block::group;
    const float d = static_cast<float>(u.d) * static_cast<float>(u.scales[group]);
    if (d == 0.0f) continue;
    const float m = static_cast<float>(u.minimum_d) * static_cast<float>(u.minima[group]);
    u.codes[i] = limited(nearest((minima_of_groups<Block> ? x[i] + m : x[i]) / d) + shift, 0, most);
  }
}

/// q2_k, q4_k and q5_k: ranges of groups; scales and minima of up to `most` under d and dmin.
/// Without importance w is |x|, for groups of 32 |x| + the group's root mean square, and the largest scale gets `most`.
template <class Block>
void encode_ranges(const float* x, const float* importance, trials plain, unpacked& u) {
  constexpr int groups = 256 / Block::group, size = Block::group, most = size == 16 ? 15 : 63;
  const float mean = (size == 16 ? 1.0f : 2.0f) * sum_of_squares(x, 256) / 256.0f;
  float scales[groups], minima[groups], weights[groups];
  for (int j = 0; j < groups; ++j) {
    const float* const group = x + size * j;
    float w[size];
    if (importance != nullptr) {
      weigh(size, group, importance + size * j, mean, w);
    } else {
      const float rms = size == 16 ? 0.0f : std::sqrt(sum_of_squares(group, size) / static_cast<float>(size));
      for (int i = 0; i < size; ++i) w[i] = rms + std::fabs(group[i]);
    }
    weights[j] = sum(w, size);
    scales[j] = ranged(size, (1 << Block::bits) - 1, group, w, importance != nullptr ? trials{-0.9f, 0.05f, 36} : plain,
                       u.codes + size * j, minima + j);
  }
  if (importance != nullptr) {
    u.d = fp16(unsigned_levels(groups, most, scales, weights, u.scales));
    u.minimum_d = fp16(unsigned_levels(groups, most, minima, weights, u.minima));
  } else {
    const auto of_largest = [&](const float* values, int* integers) {
      const float max = std::max(0.0f, *std::max_element(values, values + groups));
      const float inverse = max > 0.0f ? static_cast<float>(most) / max : 0.0f;
      for (int j = 0; j < groups; ++j) integers[j] = std::min(most, nearest(inverse * values[j]));
      return fp16(max / static_cast<float>(most));
    };
    u.d = of_largest(scales, u.scales);
    u.minimum_d = of_largest(minima, u.minima);
  }
  choose_codes<Block>(x, u);
}

inline void encode(const float* x, const float* importance, float, unpacked& u, block_tag<q2_k>) {
  encode_ranges<q2_k>(x, importance, {-0.5f, 0.1f, 15, true}, u);
}
inline void encode(const float* x, const float* importance, float, unpacked& u, block_tag<q4_k>) {
  encode_ranges<q4_k>(x, importance, {-1.0f, 0.1f, 20}, u);
}
inline void encode(const float* x, const float* importance, float, unpacked& u, block_tag<q5_k>) {
  encode_ranges<q5_k>(x, importance, {-0.5f, 0.1f, 15}, u);
}

/// Scales of q3_k under d: the largest gets −32, or, with importance, the search of codes over again with a group's Σw.
inline void encode(const float* x, const float* importance, float, unpacked& u, block_tag<q3_k>) {
  const float sigma2 = 2.0f * sum_of_squares(x, 256) / 256.0f;
  float scales[16], weights[16];
  for (int j = 0; j < 16; ++j) {
    const float* const group = x + 16 * j;
    if (importance == nullptr) {
      scales[j] = swept(16, 4, group, u.codes + 16 * j);
      continue;
    }
    float w[16];
    weigh(16, group, importance + 16 * j, sigma2, w);
    weights[j] = sum(w, 16);
    scales[j] = centred(16, 4, group, w, u.codes + 16 * j);
  }
  if (importance != nullptr) {
    u.d = fp16(centred(16, 32, scales, weights, u.scales));
    for (int& s : u.scales) s -= 32;
  } else if (const float max = largest(scales, 16); max != 0.0f) {
    const float inverse = -32.0f / max;
    u.d = fp16(1.0f / inverse);
    for (int j = 0; j < 16; ++j)
      u.scales[j] = limited(static_cast<int8_t>(nearest(inverse * scales[j]) & 255), -32, 31);
  } else {
    for (int& s : u.scales) s = -32;
  }
  choose_codes<q3_k>(x, u);
}

/// A block whose largest scale is below least_maximum is zero in all its bytes. w is x², or the importance as it is.
inline void encode(const float* x, const float* importance, float, unpacked& u, block_tag<q6_k>) {
  float scales[16];
  for (int j = 0; j < 16; ++j) {
    float w[16];
    for (int i = 0; i < 16; ++i) {
      const float weight = x[16 * j + i];
      w[i] = importance != nullptr ? importance[16 * j + i] : weight * weight;
    }
    scales[j] = centred(16, 32, x + 16 * j, w, u.codes + 16 * j);
  }
  const float max = largest(scales, 16);
  if (std::fabs(max) < least_maximum) {
    for (int& code : u.codes) code = 0;
    return;
  }
  const float inverse = -128.0f / max;
  u.d = fp16(1.0f / inverse);
  for (int j = 0; j < 16; ++j) u.scales[j] = std::min(127, nearest(inverse * scales[j]));
  choose_codes<q6_k>(x, u);
}

/// w of a group of 32 for IQ4: x², or importance · √(2·mean + x²), the mean of x² over the block.
inline void iq4_weights(const float* x, const float* importance, float sigma2, float* w) {
  if (importance != nullptr) return weigh(32, x, importance, sigma2, w);
  for (int i = 0; i < 32; ++i) w[i] = x[i] * x[i];
}

/// Codes are of the scale before it was rounded.
inline void encode(const float* x, const float* importance, float, unpacked& u, block_tag<iq4_nl>) {
  float w[32];
  iq4_weights(x, importance, sum_of_squares(x, 32) * (2.0f / 32.0f), w);
  const float d = iq4_scale(32, x, w), inverse = inverse_of(d);
  u.d = fp16(d);
  for (int i = 0; i < 32; ++i) u.codes[i] = nearest_iq4(inverse * x[i]);
}

/// Here too: codes are of d before it was rounded, times the integer scale.
inline void encode(const float* x, const float* importance, float, unpacked& u, block_tag<iq4_xs>) {
  const float sigma2 = sum_of_squares(x, 256) * (2.0f / 256.0f);
  float scales[8];
  for (int j = 0; j < 8; ++j) {
    float w[32];
    iq4_weights(x + 32 * j, importance != nullptr ? importance + 32 * j : nullptr, sigma2, w);
    scales[j] = iq4_scale(32, x + 32 * j, w);
  }
  const float d = -largest(scales, 8) / 32.0f, inverse = inverse_of(d);
  u.d = fp16(d);
  for (int j = 0; j < 8; ++j) {
    u.scales[j] = limited(nearest(inverse * scales[j]), -32, 31);
    const float group_inverse = inverse_of(d * static_cast<float>(u.scales[j]));
    for (int i = 32 * j; i < 32 * j + 32; ++i) u.codes[i] = nearest_iq4(group_inverse * x[i]);
  }
}

}  // namespace ggml
}  // namespace reference
NIBBLE_NAMESPACE_END
