// SPDX-License-Identifier: Apache-2.0
/// @file
/// Blocks of weights to ggml's blocks, a lane a block (block/lane.hpp): scales, the integers they are stored as, codes. One text for a
/// scalar, which a thread can run, and for vectors. σ² is the mean square of what each says. Codes of blocks of 256 are chosen anew at
/// the end, under the scales as they are stored; groups whose stored scale is 0 keep what their search found.
///
/// Weights must be finite, small enough that every d is (at most 65504 in fp16), and importance finite and not negative. Other weights
/// make blocks of no stated bytes.
/// Source: ggml's quantize_row functions as of ggml 0.15, by comparison of bytes.
#pragma once

#include "nibble/block/lane.hpp"
#include "nibble/block/place.hpp"
#include "nibble/block_layout.hpp"
#include "nibble/block_search.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace block_search {

/// Σx², one after another.
template <int Size, class V>
NIBBLE_LANE V sum_of_squares(const V* x) noexcept {
  V sum = V::zero();
  for (int i = 0; i < Size; ++i) sum = sum + x[i] * x[i];
  return sum;
}

/// w_i = importance_i · √(σ² + x_i²).
template <int Size, class V>
NIBBLE_LANE void weigh(const V* x, const V* importance, const V& sigma2, V* w) noexcept {
  for (int i = 0; i < Size; ++i) w[i] = importance[i] * square_root(sigma2 + x[i] * x[i]);
}

template <int Size, class V>
NIBBLE_LANE V sum(const V* w) noexcept {
  V total = V::zero();
  for (int i = 0; i < Size; ++i) total = total + w[i];
  return total;
}

/// 1 / d, or 0 for 0.
template <class V>
NIBBLE_LANE V inverse_of(const V& d) noexcept {
  return select(d == V::zero(), V::zero(), V(1.0f) / d);
}

/// A code from a number that has been shifted to be positive: truncated to a byte with sign, no more than `most`.
template <class V>
NIBBLE_LANE typename V::integers truncated_code(const V& x, int most) noexcept {
  using I = typename V::integers;
  const I byte = truncated(x) & I(255), code = byte - ((byte & I(128)) << 1);
  return lesser(code, I(most)) & I(most);
}

/// What a block is made of: x (weights), importance (weights) or null, the mean square of the row.
template <class V>
struct block_input {
  const V* x;
  const V* importance;
  V row_sigma2;
};

/// q4_0 and q5_0. σ² is of the whole row.
template <class Block, class V>
NIBBLE_LANE void encode_centred(const block_input<V>& in, typename V::integers* units) noexcept {
  using I = typename V::integers;
  constexpr int half = 1 << (Block::bits - 1);
  I codes[32];
  if (in.importance != nullptr) {
    V w[32];
    weigh<32>(in.x, in.importance, in.row_sigma2, w);
    centred_fit<V> fit;
    centred<32>(in.x, w, half, fit);
    for (int i = 0; i < 32; ++i) codes[i] = integers(centred_code(fit, in.x[i], half));
    units[0] = half_bits(fit.scale);
  } else {
    const V d = largest<32>(in.x) / V(static_cast<float>(-half)), inverse = inverse_of(d);
    for (int i = 0; i < 32; ++i)
      codes[i] = truncated_code(in.x[i] * inverse + V(static_cast<float>(half) + 0.5f), 2 * half - 1);
    units[0] = half_bits(d);
  }
  if (Block::bits == 5) put_fifth_bits(codes, units + 1);
  put_nibbles_of_32(codes, units + (Block::bits == 5 ? 3 : 1));
}

/// q4_1 and q5_1. σ² is of the whole row.
template <class Block, class V>
NIBBLE_LANE void encode_ranged(const block_input<V>& in, typename V::integers* units) noexcept {
  using I = typename V::integers;
  constexpr int most = (1 << Block::bits) - 1;
  I codes[32];
  if (in.importance != nullptr) {
    V w[32];
    weigh<32>(in.x, in.importance, in.row_sigma2, w);
    ranged_fit<V> fit;
    ranged<32, false>(in.x, w, most, trials{-0.9f, 0.05f, 36}, fit);
    for (int i = 0; i < 32; ++i) codes[i] = integers(ranged_code(fit, in.x[i], most));
    units[0] = half_bits(fit.scale);
    units[1] = half_bits(negated(fit.minimum));
  } else {
    V min = in.x[0], max = in.x[0];
    for (int i = 1; i < 32; ++i) {
      min = select(in.x[i] < min, in.x[i], min);
      max = select(in.x[i] > max, in.x[i], max);
    }
    const V d = (max - min) / V(static_cast<float>(most)), inverse = inverse_of(d);
    for (int i = 0; i < 32; ++i) codes[i] = truncated_code((in.x[i] - min) * inverse + V(0.5f), most);
    units[0] = half_bits(d);
    units[1] = half_bits(min);
  }
  if (Block::bits == 5) put_fifth_bits(codes, units + 2);
  put_nibbles_of_32(codes, units + (Block::bits == 5 ? 4 : 2));
}

/// Ties go away from zero here: what is added before the fraction is dropped is the float below a half. Importance changes nothing.
template <class V>
NIBBLE_LANE void encode(const block_input<V>& in, typename V::integers* units, block_tag<q8_0>) noexcept {
  using I = typename V::integers;
  const V d = abs(largest<32>(in.x)) / V(127.0f), inverse = inverse_of(d);
  units[0] = half_bits(d);
  I codes[32];
  for (int i = 0; i < 32; ++i) {
    const V ratio = in.x[i] * inverse;
    const V half = of_bits((bits_of(ratio) & I(-2147483647 - 1)) | I(0x3effffff));
    codes[i] = truncated(ratio + half) & I(255);
  }
  put_bytes<32>(codes, units + 1);
}

/// Scales and minima as integers up to `most`: the largest gets `most`. Returns their unit.
template <int Groups, class V>
NIBBLE_LANE V of_largest(const V* values, int most, typename V::integers* to) noexcept {
  using I = typename V::integers;
  V max = V::zero();
  for (int j = 0; j < Groups; ++j) max = select(values[j] > max, values[j], max);
  const auto n = static_cast<float>(most);
  const V inverse = select(max > V::zero(), V(n) / max, V::zero());
  for (int j = 0; j < Groups; ++j) to[j] = lesser(whole(inverse * values[j]), I(most));
  return max / V(n);
}

/// The same with importance: the best under the groups' weights.
template <int Groups, class V>
NIBBLE_LANE V of_weights(const V* values, const V* weights, int most, typename V::integers* to) noexcept {
  V levels[Groups];
  const V unit = unsigned_levels<Groups>(values, weights, most, levels);
  for (int j = 0; j < Groups; ++j) to[j] = integers(levels[j]);
  return unit;
}

/// Groups of q2_k, q4_k and q5_k as their searches leave them.
template <int Groups, class V>
struct ranged_groups {
  V scales[Groups], minima[Groups], weights[Groups], inverse[Groups], low[Groups];
};

/// Without importance w is |x|, for groups of 32 |x| + the group's root mean square.
template <class Block, class V, int Groups>
NIBBLE_LANE void search_ranges(const block_input<V>& in, trials plain, ranged_groups<Groups, V>& to) noexcept {
  constexpr int size = Block::group, most = (1 << Block::bits) - 1;
  constexpr bool absolute = size == 16;
  V sigma2 = V::zero();
  if (in.importance != nullptr) sigma2 = V(size == 16 ? 1.0f : 2.0f) * sum_of_squares<256>(in.x) / V(256.0f);
  for (int j = 0; j < Groups; ++j) {
    const V* const x = in.x + size * j;
    V w[size];
    ranged_fit<V> fit;
    if (in.importance != nullptr) {
      weigh<size>(x, in.importance + size * j, sigma2, w);
      to.weights[j] = sum<size>(w);
      if (absolute) ranged<size, false>(x, w, most, trials{-0.9f, 0.05f, 36}, fit);
    } else {
      V rms = V::zero();
      if (size == 32) rms = square_root(sum_of_squares<size>(x) / V(static_cast<float>(size)));
      for (int i = 0; i < size; ++i) w[i] = rms + abs(x[i]);
      if (absolute) ranged<size, absolute>(x, w, most, plain, fit);
    }
    if (!absolute) ranged<size, false>(x, w, most, in.importance != nullptr ? trials{-0.9f, 0.05f, 36} : plain, fit);
    to.scales[j] = fit.scale;
    to.minima[j] = fit.minimum;
    to.inverse[j] = fit.inverse;
    to.low[j] = fit.low;
  }
}

/// Codes under the stored scales and minima, or the search's.
template <class Block, class V, int Groups>
NIBBLE_LANE void choose_ranged_codes(const V* x, const ranged_groups<Groups, V>& groups, const V& d, const V& dmin,
                                     const typename V::integers* scales, const typename V::integers* minima,
                                     typename V::integers* codes) noexcept {
  constexpr int size = Block::group, most = (1 << Block::bits) - 1;
  for (int j = 0; j < Groups; ++j) {
    const V scale = d * numbers(scales[j]), minimum = dmin * numbers(minima[j]);
    for (int i = size * j; i < size * (j + 1); ++i) codes[i] = integers(level((x[i] + minimum) / scale, 0, most));
    const typename V::mask zero = scale == V::zero();
    if (!any(zero)) continue;
    for (int i = size * j; i < size * (j + 1); ++i) {
      const V searched = level(groups.inverse[j] * (x[i] - groups.low[j]), 0, most);
      codes[i] = select(zero, integers(searched), codes[i]);
    }
  }
}

/// q2_k, q4_k and q5_k: integers of scales, of minima and of weights.
template <class Block, class V>
struct ranged_integers {
  using I = typename V::integers;
  static constexpr int groups = Block::weights / Block::group;
  I scales[groups], minima[groups], d, dmin, codes[Block::weights];
};

template <class Block, class V>
NIBBLE_LANE void encode_ranges(const block_input<V>& in, trials plain, ranged_integers<Block, V>& to) noexcept {
  constexpr int groups = Block::weights / Block::group, most = Block::group == 16 ? 15 : 63;
  ranged_groups<groups, V> found;
  search_ranges<Block>(in, plain, found);
  if (in.importance != nullptr) {
    to.d = half_bits(of_weights<groups>(found.scales, found.weights, most, to.scales));
    to.dmin = half_bits(of_weights<groups>(found.minima, found.weights, most, to.minima));
  } else {
    to.d = half_bits(of_largest<groups>(found.scales, most, to.scales));
    to.dmin = half_bits(of_largest<groups>(found.minima, most, to.minima));
  }
  choose_ranged_codes<Block>(in.x, found, half_value(to.d), half_value(to.dmin), to.scales, to.minima, to.codes);
}

template <class V>
NIBBLE_LANE void encode(const block_input<V>& in, typename V::integers* units, block_tag<q2_k>) noexcept {
  using I = typename V::integers;
  ranged_integers<q2_k, V> b;
  encode_ranges<q2_k>(in, trials{-0.5f, 0.1f, 15}, b);
  for (int j = 0; j < 16; ++j) b.scales[j] = (b.scales[j] & I(15)) | (b.minima[j] & I(15)) << 4;
  put_bytes<16>(b.scales, units);
  put_two_bits_of_256(b.codes, 0, units + 8);
  units[40] = b.d;
  units[41] = b.dmin;
}
template <class V>
NIBBLE_LANE void encode(const block_input<V>& in, typename V::integers* units, block_tag<q4_k>) noexcept {
  ranged_integers<q4_k, V> b;
  encode_ranges<q4_k>(in, trials{-1.0f, 0.1f, 20}, b);
  units[0] = b.d;
  units[1] = b.dmin;
  put_scales_of_12(b.scales, b.minima, units + 2);
  put_nibbles_of_256(b.codes, units + 8);
}
template <class V>
NIBBLE_LANE void encode(const block_input<V>& in, typename V::integers* units, block_tag<q5_k>) noexcept {
  ranged_integers<q5_k, V> b;
  encode_ranges<q5_k>(in, trials{-0.5f, 0.1f, 15}, b);
  units[0] = b.d;
  units[1] = b.dmin;
  put_scales_of_12(b.scales, b.minima, units + 2);
  put_bit_of_256(b.codes, 4, units + 8);
  put_nibbles_of_256(b.codes, units + 24);
}

/// Codes under a stored scale, shifted to be positive; where it is 0 they stay what they are.
template <int Size, class V>
NIBBLE_LANE void choose_centred_codes(const V* x, const V& scale, int nmax, typename V::integers* codes) noexcept {
  using I = typename V::integers;
  const typename V::mask zero = scale == V::zero();
  for (int i = 0; i < Size; ++i)
    codes[i] = select(zero, codes[i], integers(level(x[i] / scale, -nmax, nmax - 1)) + I(nmax));
}

/// Scales under d: the largest gets −32, or, with importance, the search of codes over again with a group's Σw.
template <class V>
NIBBLE_LANE void encode(const block_input<V>& in, typename V::integers* units, block_tag<q3_k>) noexcept {
  using I = typename V::integers;
  V scales[16];
  I codes[256], stored[16];
  if (in.importance != nullptr) {
    V weights[16];
    const V sigma2 = V(2.0f) * sum_of_squares<256>(in.x) / V(256.0f);
    centred_fit<V> fit;
    for (int j = 0; j < 16; ++j) {
      V w[16];
      weigh<16>(in.x + 16 * j, in.importance + 16 * j, sigma2, w);
      weights[j] = sum<16>(w);
      centred<16>(in.x + 16 * j, w, 4, fit);
      scales[j] = fit.scale;
      for (int i = 16 * j; i < 16 * j + 16; ++i) codes[i] = integers(centred_code(fit, in.x[i], 4));
    }
    centred<16>(scales, weights, 32, fit);
    units[54] = half_bits(fit.scale);
    for (int j = 0; j < 16; ++j) stored[j] = integers(centred_code(fit, scales[j], 32));
  } else {
    V found[256];
    swept_where_moving<16, 16, 4>(in.x, 4, found, scales);
    for (int i = 0; i < 256; ++i) codes[i] = integers(found[i]);
    const V max = largest<16>(scales), inverse = V(-32.0f) / max;
    const typename V::mask none = max == V::zero();
    units[54] = half_bits(select(none, V::zero(), V(1.0f) / inverse));
    for (int j = 0; j < 16; ++j) stored[j] = select(none, I(0), integers(level(inverse * scales[j], -32, 31)) + I(32));
  }
  const V d = half_value(units[54]);
  for (int j = 0; j < 16; ++j)
    choose_centred_codes<16>(in.x + 16 * j, d * numbers(stored[j] - I(32)), 4, codes + 16 * j);
  put_bit_of_256(codes, 2, units);
  put_two_bits_of_256(codes, 0, units + 16);
  put_scales_of_q3(stored, units + 48);
}

/// A block whose largest scale is below least_maximum is zero in all its bytes. w is x², or the importance as it is.
template <class V>
NIBBLE_LANE void encode(const block_input<V>& in, typename V::integers* units, block_tag<q6_k>) noexcept {
  using I = typename V::integers;
  V scales[16];
  I codes[256], stored[16];
  for (int j = 0; j < 16; ++j) {
    V w[16];
    for (int i = 0; i < 16; ++i) {
      const V x = in.x[16 * j + i];
      w[i] = in.importance != nullptr ? in.importance[16 * j + i] : x * x;
    }
    centred_fit<V> fit;
    centred<16>(in.x + 16 * j, w, 32, fit);
    scales[j] = fit.scale;
    for (int i = 16 * j; i < 16 * j + 16; ++i) codes[i] = integers(centred_code(fit, in.x[i], 32));
  }
  const V max = largest<16>(scales), inverse = V(-128.0f) / max;
  const typename V::mask none = abs(max) < V(least_maximum);
  units[104] = half_bits(V(1.0f) / inverse);
  const V d = half_value(units[104]);
  for (int j = 0; j < 16; ++j) {
    stored[j] = lesser(whole(inverse * scales[j]), I(127));
    choose_centred_codes<16>(in.x + 16 * j, d * numbers(stored[j]), 32, codes + 16 * j);
    stored[j] = stored[j] & I(255);
  }
  put_nibbles_of_q6(codes, units);
  put_two_bits_of_256(codes, 4, units + 64);
  put_bytes<16>(stored, units + 96);
  for (int i = 0; i < 105; ++i) units[i] = select(none, I(0), units[i]);
}

/// w of a group of 32 for IQ4: x², or importance · √(2·mean + x²), the mean of x² over the block.
template <class V>
NIBBLE_LANE void iq4_weights(const V* x, const V* importance, const V& sigma2, V* w) noexcept {
  if (importance != nullptr)
    weigh<32>(x, importance, sigma2, w);
  else
    for (int i = 0; i < 32; ++i) w[i] = x[i] * x[i];
}

/// Codes are of the scale before it was rounded.
template <class V>
NIBBLE_LANE void encode(const block_input<V>& in, typename V::integers* units, block_tag<iq4_nl>) noexcept {
  V w[32];
  iq4_weights(in.x, in.importance, sum_of_squares<32>(in.x) * V(2.0f / 32.0f), w);
  const V d = iq4_scale<32>(in.x, w), inverse = inverse_of(d);
  units[0] = half_bits(d);
  typename V::integers codes[32];
  for (int i = 0; i < 32; ++i) codes[i] = nearest_iq4_code(inverse * in.x[i]);
  put_nibbles_of_32(codes, units + 1);
}

/// Here too: codes are of d before it was rounded, times the integer scale.
template <class V>
NIBBLE_LANE void encode(const block_input<V>& in, typename V::integers* units, block_tag<iq4_xs>) noexcept {
  using I = typename V::integers;
  const V sigma2 = sum_of_squares<256>(in.x) * V(2.0f / 256.0f);
  V scales[8];
  for (int j = 0; j < 8; ++j) {
    V w[32];
    iq4_weights(in.x + 32 * j, in.importance != nullptr ? in.importance + 32 * j : nullptr, sigma2, w);
    scales[j] = iq4_scale<32>(in.x + 32 * j, w);
  }
  const V d = negated(largest<8>(scales)) / V(32.0f), inverse = inverse_of(d);
  units[0] = half_bits(d);
  I stored[8];
  for (int j = 0; j < 8; ++j) {
    const V scale = level(inverse * scales[j], -32, 31), group_inverse = inverse_of(d * scale);
    stored[j] = integers(scale) + I(32);
    I codes[32];
    for (int i = 0; i < 32; ++i) codes[i] = nearest_iq4_code(group_inverse * in.x[32 * j + i]);
    put_nibbles_of_32(codes, units + 4 + 8 * j);
  }
  put_scales_of_iq4(stored, units + 1);
}

template <class V>
NIBBLE_LANE void encode(const block_input<V>& in, typename V::integers* units, block_tag<q4_0>) noexcept {
  encode_centred<q4_0>(in, units);
}
template <class V>
NIBBLE_LANE void encode(const block_input<V>& in, typename V::integers* units, block_tag<q5_0>) noexcept {
  encode_centred<q5_0>(in, units);
}
template <class V>
NIBBLE_LANE void encode(const block_input<V>& in, typename V::integers* units, block_tag<q4_1>) noexcept {
  encode_ranged<q4_1>(in, units);
}
template <class V>
NIBBLE_LANE void encode(const block_input<V>& in, typename V::integers* units, block_tag<q5_1>) noexcept {
  encode_ranged<q5_1>(in, units);
}

}  // namespace block_search

/// x (Block::weights) as a block. @param importance (Block::weights) or null. @param row_sigma2 mean square of the row, which Q4_0 to
/// Q5_1 look at where there is importance. V is lanes<1>, or what stands for it.
template <class Block, class V = lanes<1>>
NIBBLE_HOST_DEVICE inline Block encoded(const float* x, const float* importance, float row_sigma2) noexcept {
  V in[Block::weights], weights[Block::weights];
  typename V::integers units[sizeof(Block) / 2];
  for (int i = 0; i < Block::weights; ++i) {
    in[i] = V(x[i]);
    weights[i] = V(importance != nullptr ? importance[i] : 0.0f);
  }
  block_search::encode(block_search::block_input<V>{in, importance != nullptr ? weights : nullptr, V(row_sigma2)},
                       units, block_tag<Block>{});
  Block b;
  auto* const bytes = reinterpret_cast<uint8_t*>(&b);
  for (int i = 0; i < int(sizeof(Block)); ++i) bytes[i] = static_cast<uint8_t>(units[i / 2].v >> i % 2 * 8 & 255);
  return b;
}

NIBBLE_NAMESPACE_END
