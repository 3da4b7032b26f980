// SPDX-License-Identifier: Apache-2.0
/// @file
/// ggml's blocks with less error than ggml's own searches leave, under the same layout, so that whatever reads ggml's blocks reads these.
/// What is minimised is
///     Σ w_i · (x_i − x̂_i)²
/// over a block, w the importance of columns, or 1 without, x̂ what block.hpp's decoder makes of the very bytes: scales rounded to fp16
/// and to the integers they are stored as are judged as they will be read. A lane is a block (block/lane.hpp).
///
/// 1. A group by itself: many trial scales (and offsets), each refitted by least squares.
/// 2. The block's d (and dmin): trial values around what fits the largest group. Under each, every group takes the integer scale (and
///    minimum) that loses least, of those next to what it would like; codes are the nearest. The best d stays.
/// 3. d and dmin refitted by least squares with all integers fixed, and 2 again around that, a few times.
///
/// Nothing here promises less error than ggml's block for every block: who wants that compares the two (host::refine_blocks).
#pragma once

#include "nibble/block/lane.hpp"
#include "nibble/block/place.hpp"
#include "nibble/block_layout.hpp"
#include "nibble/block_search.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace block_search {

/// Levels l in [low, high], evenly apart.
template <int Low, int High>
struct even_levels {
  static constexpr int low = Low, high = High;
  /// Trial scales map the largest weight to these sizes.
  static constexpr float least = static_cast<float>(High) - 0.5f, step = 0.1f;
  static constexpr int trials = High < 10 ? 40 : 30;
  template <class V>
  NIBBLE_LANE static V nearest(const V& y) noexcept {
    return level(y, Low, High);
  }
};

/// Those of IQ4's table.
struct iq4_levels {
  static constexpr int low = -127, high = 113;
  static constexpr float least = 100.0f, step = 1.5f;
  static constexpr int trials = 40;
  template <class V>
  NIBBLE_LANE static V nearest(const V& y) noexcept {
    return nearest_iq4(y);
  }
};

/// 1 / scale, or 0 for 0, where every level is that of 0.
template <class V>
NIBBLE_LANE V inverse_or_zero(const V& scale) noexcept {
  return select(scale == V(0.0f), V(0.0f), V(1.0f) / scale);
}

/// Σ w·(x − scale·l)², l nearest.
template <class Levels, int Size, class V>
NIBBLE_LANE V scaled_error(const V* x, const V* w, const V& scale) noexcept {
  const V inverse = inverse_or_zero(scale);
  V sum(0.0f);
  for (int i = 0; i < Size; ++i) {
    const V off = x[i] - scale * Levels::nearest(inverse * x[i]);
    sum = sum + w[i] * off * off;
  }
  return sum;
}

/// The scale of least squares for the levels nearest under `scale`, and what it explains: (Σwxl)² / Σwl².
template <class Levels, int Size, class V>
NIBBLE_LANE V refitted_scale(const V* x, const V* w, const V& scale, V& explained) noexcept {
  const V inverse = inverse_or_zero(scale);
  moments<V> sums;
  for (int i = 0; i < Size; ++i) sums.add(w[i], w[i] * x[i], Levels::nearest(inverse * x[i]));
  const V refitted = sums.scale();
  explained = refitted * sums.xl;
  return refitted;
}

/// The best scale of a group that need not be stored: trials on both sides of 0, then refitted three times.
template <class Levels, int Size, class V>
NIBBLE_LANE V best_scale(const V* x, const V* w) noexcept {
  const V max = largest<Size>(x);
  V best(0.0f), scale(0.0f);
  for (int trial = 0; trial < 2 * Levels::trials; ++trial) {
    const float size = Levels::least + Levels::step * static_cast<float>(trial / 2);
    V explained;
    const V tried = refitted_scale<Levels, Size>(x, w, max / V(trial % 2 == 0 ? size : -size), explained);
    const typename V::mask better = explained > best;
    best = select(better, explained, best);
    scale = select(better, tried, scale);
  }
  for (int again = 0; again < 3; ++again) {
    V explained;
    const V tried = refitted_scale<Levels, Size>(x, w, scale, explained);
    const typename V::mask better = explained > best;
    best = select(better, explained, best);
    scale = select(better, tried, scale);
  }
  return scale;
}

/// A block as integers, before they are placed: d and dmin (or m) in bits of fp16, scales and minima of groups as stored, codes.
template <class Block, class V>
struct block_integers {
  using I = typename V::integers;
  static constexpr int groups = Block::weights / Block::group;
  I d, dmin, scales[groups], minima[groups], codes[Block::weights];
  V error;

  NIBBLE_LANE void none() noexcept {
    d = dmin = I(0);
    for (int j = 0; j < groups; ++j) scales[j] = minima[j] = I(0);
    error = V(3.4028235e38f);
  }
};

/// One scale: q4_0, q5_0, q8_0 and iq4_nl.
template <class Block, class Levels, class V>
NIBBLE_LANE void refine_scale(const V* x, const V* w, block_integers<Block, V>& b) noexcept {
  constexpr int size = Block::weights;
  b.none();
  const auto attempt = [&](const V& scale) {
    const typename V::integers bits = half_bits(scale);
    const V error = scaled_error<Levels, size>(x, w, half_value(bits));
    const typename V::mask better = error < b.error;
    b.error = select(better, error, b.error);
    b.d = select(better, bits, b.d);
  };
  attempt(V(0.0f));
  const V max = largest<size>(x);
  for (int trial = 0; trial < 2 * Levels::trials; ++trial) {
    const float most = Levels::least + Levels::step * static_cast<float>(trial / 2);
    V explained;
    attempt(refitted_scale<Levels, size>(x, w, max / V(trial % 2 == 0 ? most : -most), explained));
  }
  for (int again = 0; again < 3; ++again) {
    V explained;
    attempt(refitted_scale<Levels, size>(x, w, half_value(b.d), explained));
  }
}

/// Many groups under one d: q3_k, q6_k and iq4_xs. Integer scales lie in [−Most, Most), or one less.
template <class Block, class Levels, int Most, class V>
struct scaled_groups {
  using I = typename V::integers;
  static constexpr int groups = Block::weights / Block::group, size = Block::group;
  const V *x, *w;
  V wanted[groups];
  block_integers<Block, V>& best;

  /// All groups under d, which is rounded first; kept if it is better.
  NIBBLE_LANE void attempt(const V& exact) noexcept {
    const I bits = half_bits(exact);
    const V d = half_value(bits), inverse = inverse_or_zero(d);
    I scales[groups];
    V total(0.0f);
    for (int j = 0; j < groups; ++j) {
      const V middle = level(inverse * wanted[j], -Most, Most - 1);
      V least(3.4028235e38f), chosen(0.0f);
      for (int off = -1; off <= 1; ++off) {
        const V scale = level(middle + V(static_cast<float>(off)), -Most, Most - 1);
        const V error = scaled_error<Levels, size>(x + size * j, w + size * j, d * scale);
        const typename V::mask better = error < least;
        least = select(better, error, least);
        chosen = select(better, scale, chosen);
      }
      total = total + least;
      scales[j] = integers(chosen);
    }
    const typename V::mask better = total < best.error;
    best.error = select(better, total, best.error);
    best.d = select(better, bits, best.d);
    for (int j = 0; j < groups; ++j) best.scales[j] = select(better, scales[j], best.scales[j]);
  }

  /// d of least squares for the integers that are best.
  NIBBLE_LANE V refitted() const noexcept {
    const V d = half_value(best.d);
    moments<V> sums;
    for (int j = 0; j < groups; ++j) {
      const V s = numbers(best.scales[j]), inverse = inverse_or_zero(d * s);
      for (int i = size * j; i < size * (j + 1); ++i) sums.add(w[i], w[i] * x[i], s * Levels::nearest(inverse * x[i]));
    }
    return sums.scale();
  }
};

template <class Block, class Levels, int Most, class V>
NIBBLE_LANE void refine_scales(const V* x, const V* w, block_integers<Block, V>& b) noexcept {
  using G = scaled_groups<Block, Levels, Most, V>;
  b.none();
  G all{x, w, {}, b};
  for (int j = 0; j < G::groups; ++j) all.wanted[j] = best_scale<Levels, G::size>(x + G::size * j, w + G::size * j);
  const V max = largest<G::groups>(all.wanted);
  all.attempt(V(0.0f));
  for (int trial = 0; trial < 26; ++trial) {
    const float most = static_cast<float>(Most) - 3.0f + 0.5f * static_cast<float>(trial / 2);
    all.attempt(max / V(trial % 2 == 0 ? -most : most));
  }
  for (int again = 0; again < 3; ++again) all.attempt(all.refitted());
}

/// The best line x ≈ scale·l + min of a group that need not be stored: each end of the range moved by steps of 0.2 levels,
/// each trial refitted. With Below min is at most 0.
template <int Size, bool Below, class V>
NIBBLE_LANE void best_line(const V* x, const V* w, int most, line<V>& best) noexcept {
  V min = x[0], max = x[0], sum_w = w[0], sum_x = w[0] * x[0];
  for (int i = 1; i < Size; ++i) {
    min = select(x[i] < min, x[i], min);
    max = select(x[i] > max, x[i], max);
    sum_w = sum_w + w[i];
    sum_x = sum_x + w[i] * x[i];
  }
  if (Below) min = select(min > V(0.0f), V(0.0f), min);
  const auto n = static_cast<float>(most);
  const V range = max - min;
  best.scale = range / V(n);
  best.min = min;
  V l[Size], least(3.4028235e38f);
  for (int trial = 0; trial < 103; ++trial) {
    V scale = best.scale, low = best.min;
    if (trial < 100) {
      const float under = 0.2f * static_cast<float>(trial / 10 - 4), over = 0.2f * static_cast<float>(trial % 10 - 4);
      low = min + range * V(under / n);
      scale = (range - range * V((under + over) / n)) / V(n);
    }
    const V inverse = inverse_or_zero(scale);
    for (int i = 0; i < Size; ++i) l[i] = level(inverse * (x[i] - low), 0, most);
    V sum_l(0.0f), sum_ll(0.0f), sum_xl(0.0f);
    for (int i = 0; i < Size; ++i) {
      const V wl = w[i] * l[i];
      sum_l = sum_l + wl;
      sum_ll = sum_ll + wl * l[i];
      sum_xl = sum_xl + wl * x[i];
    }
    const V determinant = sum_w * sum_ll - sum_l * sum_l;
    line<V> tried;
    tried.scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    tried.min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
    if (Below) {
      const typename V::mask positive = tried.min > V(0.0f);
      tried.scale = select(positive, sum_xl / sum_ll, tried.scale);
      tried.min = select(positive, V(0.0f), tried.min);
    }
    const typename V::mask valid = determinant > V(0.0f);
    tried.scale = select(valid, tried.scale, scale);
    tried.min = select(valid, tried.min, low);
    const V error = range_error<Size, false>(x, w, l, tried.scale, tried.min);
    const typename V::mask better = error < least;
    least = select(better, error, least);
    best.scale = select(better, tried.scale, best.scale);
    best.min = select(better, tried.min, best.min);
  }
}

/// Σ w·(x − scale·l − min)², l nearest.
template <int Size, class V>
NIBBLE_LANE V line_error(const V* x, const V* w, int most, const V& scale, const V& min) noexcept {
  const V inverse = inverse_or_zero(scale);
  V sum(0.0f);
  for (int i = 0; i < Size; ++i) {
    const V from = x[i] - min, off = from - scale * level(inverse * from, 0, most);
    sum = sum + w[i] * off * off;
  }
  return sum;
}

/// One scale and one offset: q4_1 and q5_1.
template <class Block, class V>
NIBBLE_LANE void refine_line(const V* x, const V* w, block_integers<Block, V>& b) noexcept {
  constexpr int size = Block::weights, most = (1 << Block::bits) - 1;
  using I = typename V::integers;
  b.none();
  line<V> found;
  best_line<size, false>(x, w, most, found);
  const I d = half_bits(found.scale), m = half_bits(found.min);
  for (int step = 0; step < 25; ++step) {  // neighbours in fp16, which are those of the bits
    const I near_d = d + I(step / 5 - 2), near_m = m + I(step % 5 - 2);
    const V error = line_error<size>(x, w, most, half_value(near_d & I(0xffff)), half_value(near_m & I(0xffff)));
    const typename V::mask better = error < b.error;
    b.error = select(better, error, b.error);
    b.d = select(better, near_d & I(0xffff), b.d);
    b.dmin = select(better, near_m & I(0xffff), b.dmin);
  }
}

/// Many lines under one d and one dmin: q2_k, q4_k and q5_k. Scales and minima lie in [0, Most].
template <class Block, int Most, class V>
struct lined_groups {
  using I = typename V::integers;
  static constexpr int groups = Block::weights / Block::group, size = Block::group, most = (1 << Block::bits) - 1;
  const V *x, *w;
  V scale[groups], minimum[groups];  ///< wanted: x ≈ scale·l − minimum
  block_integers<Block, V>& best;

  /// All groups under d and dmin, which are rounded first; kept if it is better.
  NIBBLE_LANE void attempt(const V& exact_d, const V& exact_dmin) noexcept {
    const I bits = half_bits(exact_d), min_bits = half_bits(exact_dmin);
    const V d = half_value(bits), dmin = half_value(min_bits);
    const V inverse = inverse_or_zero(d), inverse_min = inverse_or_zero(dmin);
    I scales[groups], minima[groups];
    V total(0.0f);
    for (int j = 0; j < groups; ++j) {
      const V s = level(inverse * scale[j], 0, Most), m = level(inverse_min * minimum[j], 0, Most);
      V least(3.4028235e38f), chosen_s(0.0f), chosen_m(0.0f);
      for (int off = 0; off < 9; ++off) {
        const V s_near = level(s + V(static_cast<float>(off / 3 - 1)), 0, Most);
        const V m_near = level(m + V(static_cast<float>(off % 3 - 1)), 0, Most);
        const V error = line_error<size>(x + size * j, w + size * j, most, d * s_near, negated(dmin * m_near));
        const typename V::mask better = error < least;
        least = select(better, error, least);
        chosen_s = select(better, s_near, chosen_s);
        chosen_m = select(better, m_near, chosen_m);
      }
      total = total + least;
      scales[j] = integers(chosen_s);
      minima[j] = integers(chosen_m);
    }
    const typename V::mask better = total < best.error;
    best.error = select(better, total, best.error);
    best.d = select(better, bits, best.d);
    best.dmin = select(better, min_bits, best.dmin);
    for (int j = 0; j < groups; ++j) {
      best.scales[j] = select(better, scales[j], best.scales[j]);
      best.minima[j] = select(better, minima[j], best.minima[j]);
    }
  }

  /// d and dmin of least squares for the integers that are best: x ≈ d·(s·l) − dmin·m.
  NIBBLE_LANE void refit() noexcept {
    const V d = half_value(best.d), dmin = half_value(best.dmin);
    V ll(0.0f), lm(0.0f), mm(0.0f), xl(0.0f), xm(0.0f);
    for (int j = 0; j < groups; ++j) {
      const V s = numbers(best.scales[j]), m = negated(numbers(best.minima[j]));
      const V group = d * s, inverse = inverse_or_zero(group), offset = dmin * m;
      for (int i = size * j; i < size * (j + 1); ++i) {
        const V l = s * level(inverse * (x[i] - offset), 0, most), wl = w[i] * l, wm = w[i] * m;
        ll = ll + wl * l;
        lm = lm + wl * m;
        mm = mm + wm * m;
        xl = xl + wl * x[i];
        xm = xm + wm * x[i];
      }
    }
    const V determinant = ll * mm - lm * lm;
    const typename V::mask both = determinant > V(1e-6f) * ll * mm;
    const V new_d = select(both, (mm * xl - lm * xm) / determinant, select(ll > V(0.0f), (xl - dmin * lm) / ll, d));
    const V new_dmin = select(both, (ll * xm - lm * xl) / determinant, dmin);
    attempt(select(new_d > V(0.0f), new_d, d), select(new_dmin > V(0.0f), new_dmin, V(0.0f)));
  }
};

template <class Block, int Most, class V>
NIBBLE_LANE void refine_lines(const V* x, const V* w, block_integers<Block, V>& b) noexcept {
  using G = lined_groups<Block, Most, V>;
  b.none();
  G all{x, w, {}, {}, b};
  for (int j = 0; j < G::groups; ++j) {
    line<V> found;
    best_line<G::size, true>(x + G::size * j, w + G::size * j, G::most, found);
    all.scale[j] = found.scale;
    all.minimum[j] = negated(found.min);
  }
  constexpr float apart = Most > 15 ? 0.5f : 0.125f;
  const V largest_scale = abs(largest<G::groups>(all.scale)), largest_minimum = abs(largest<G::groups>(all.minimum));
  const V dmin = largest_minimum / V(static_cast<float>(Most));
  for (int trial = -6; trial <= 6; ++trial)
    all.attempt(largest_scale / V(static_cast<float>(Most) + apart * static_cast<float>(trial)), dmin);
  const V d = half_value(b.d);
  for (int trial = -6; trial <= 6; ++trial)
    all.attempt(d, largest_minimum / V(static_cast<float>(Most) + apart * static_cast<float>(trial)));
  for (int again = 0; again < 4; ++again) all.refit();
}

/// Codes nearest under a block's scales, shifted to be stored.
template <class Levels, class Block, class V>
NIBBLE_LANE void choose_codes(const V* x, bool grouped, block_integers<Block, V>& b) noexcept {
  const V d = half_value(b.d);
  for (int i = 0; i < Block::weights; ++i) {
    const V scale = grouped ? d * numbers(b.scales[i / Block::group]) : d;
    b.codes[i] =
        integers(level(inverse_or_zero(scale) * x[i], Levels::low, Levels::high)) - typename V::integers(Levels::low);
  }
}
template <class Block, class V>
NIBBLE_LANE void choose_iq4_codes(const V* x, bool grouped, block_integers<Block, V>& b) noexcept {
  const V d = half_value(b.d);
  for (int i = 0; i < Block::weights; ++i) {
    const V scale = grouped ? d * numbers(b.scales[i / Block::group]) : d;
    b.codes[i] = nearest_iq4_code(inverse_or_zero(scale) * x[i]);
  }
}
/// The same with offsets: m of q4_1 and q5_1, or −dmin·m of groups.
template <class Block, class V>
NIBBLE_LANE void choose_line_codes(const V* x, bool grouped, block_integers<Block, V>& b) noexcept {
  const V d = half_value(b.d), dmin = half_value(b.dmin);
  for (int i = 0; i < Block::weights; ++i) {
    const int j = i / Block::group;
    const V scale = grouped ? d * numbers(b.scales[j]) : d, min = grouped ? negated(dmin * numbers(b.minima[j])) : dmin;
    b.codes[i] = integers(level(inverse_or_zero(scale) * (x[i] - min), 0, (1 << Block::bits) - 1));
  }
}

/// x, w (weights of a block) to the block's units.
template <class V>
NIBBLE_LANE void refine(const V* x, const V* w, typename V::integers* units, block_tag<q4_0>) noexcept {
  block_integers<q4_0, V> b;
  refine_scale<q4_0, even_levels<-8, 7>>(x, w, b);
  choose_codes<even_levels<-8, 7>>(x, false, b);
  units[0] = b.d;
  put_nibbles_of_32(b.codes, units + 1);
}
template <class V>
NIBBLE_LANE void refine(const V* x, const V* w, typename V::integers* units, block_tag<q5_0>) noexcept {
  block_integers<q5_0, V> b;
  refine_scale<q5_0, even_levels<-16, 15>>(x, w, b);
  choose_codes<even_levels<-16, 15>>(x, false, b);
  units[0] = b.d;
  put_fifth_bits(b.codes, units + 1);
  put_nibbles_of_32(b.codes, units + 3);
}
template <class V>
NIBBLE_LANE void refine(const V* x, const V* w, typename V::integers* units, block_tag<q8_0>) noexcept {
  using I = typename V::integers;
  block_integers<q8_0, V> b;
  refine_scale<q8_0, even_levels<-128, 127>>(x, w, b);
  choose_codes<even_levels<-128, 127>>(x, false, b);
  units[0] = b.d;
  for (int i = 0; i < 32; ++i) b.codes[i] = (b.codes[i] - I(128)) & I(255);
  put_bytes<32>(b.codes, units + 1);
}
template <class V>
NIBBLE_LANE void refine(const V* x, const V* w, typename V::integers* units, block_tag<iq4_nl>) noexcept {
  block_integers<iq4_nl, V> b;
  refine_scale<iq4_nl, iq4_levels>(x, w, b);
  choose_iq4_codes(x, false, b);
  units[0] = b.d;
  put_nibbles_of_32(b.codes, units + 1);
}
template <class V>
NIBBLE_LANE void refine(const V* x, const V* w, typename V::integers* units, block_tag<q4_1>) noexcept {
  block_integers<q4_1, V> b;
  refine_line(x, w, b);
  choose_line_codes(x, false, b);
  units[0] = b.d;
  units[1] = b.dmin;
  put_nibbles_of_32(b.codes, units + 2);
}
template <class V>
NIBBLE_LANE void refine(const V* x, const V* w, typename V::integers* units, block_tag<q5_1>) noexcept {
  block_integers<q5_1, V> b;
  refine_line(x, w, b);
  choose_line_codes(x, false, b);
  units[0] = b.d;
  units[1] = b.dmin;
  put_fifth_bits(b.codes, units + 2);
  put_nibbles_of_32(b.codes, units + 4);
}
template <class V>
NIBBLE_LANE void refine(const V* x, const V* w, typename V::integers* units, block_tag<q3_k>) noexcept {
  block_integers<q3_k, V> b;
  refine_scales<q3_k, even_levels<-4, 3>, 32>(x, w, b);
  choose_codes<even_levels<-4, 3>>(x, true, b);
  for (auto& scale : b.scales) scale = scale + typename V::integers(32);
  put_bit_of_256(b.codes, 2, units);
  put_two_bits_of_256(b.codes, 0, units + 16);
  put_scales_of_q3(b.scales, units + 48);
  units[54] = b.d;
}
template <class V>
NIBBLE_LANE void refine(const V* x, const V* w, typename V::integers* units, block_tag<q6_k>) noexcept {
  block_integers<q6_k, V> b;
  refine_scales<q6_k, even_levels<-32, 31>, 128>(x, w, b);
  choose_codes<even_levels<-32, 31>>(x, true, b);
  for (auto& scale : b.scales) scale = scale & typename V::integers(255);
  put_nibbles_of_q6(b.codes, units);
  put_two_bits_of_256(b.codes, 4, units + 64);
  put_bytes<16>(b.scales, units + 96);
  units[104] = b.d;
}
template <class V>
NIBBLE_LANE void refine(const V* x, const V* w, typename V::integers* units, block_tag<iq4_xs>) noexcept {
  block_integers<iq4_xs, V> b;
  refine_scales<iq4_xs, iq4_levels, 32>(x, w, b);
  choose_iq4_codes(x, true, b);
  for (auto& scale : b.scales) scale = scale + typename V::integers(32);
  units[0] = b.d;
  put_scales_of_iq4(b.scales, units + 1);
  for (int j = 0; j < 8; ++j) put_nibbles_of_32(b.codes + 32 * j, units + 4 + 8 * j);
}
template <class V>
NIBBLE_LANE void refine(const V* x, const V* w, typename V::integers* units, block_tag<q2_k>) noexcept {
  block_integers<q2_k, V> b;
  refine_lines<q2_k, 15>(x, w, b);
  choose_line_codes(x, true, b);
  for (int j = 0; j < 16; ++j) b.scales[j] = b.scales[j] | b.minima[j] << 4;
  put_bytes<16>(b.scales, units);
  put_two_bits_of_256(b.codes, 0, units + 8);
  units[40] = b.d;
  units[41] = b.dmin;
}
template <class V>
NIBBLE_LANE void refine(const V* x, const V* w, typename V::integers* units, block_tag<q4_k>) noexcept {
  block_integers<q4_k, V> b;
  refine_lines<q4_k, 63>(x, w, b);
  choose_line_codes(x, true, b);
  units[0] = b.d;
  units[1] = b.dmin;
  put_scales_of_12(b.scales, b.minima, units + 2);
  put_nibbles_of_256(b.codes, units + 8);
}
template <class V>
NIBBLE_LANE void refine(const V* x, const V* w, typename V::integers* units, block_tag<q5_k>) noexcept {
  block_integers<q5_k, V> b;
  refine_lines<q5_k, 63>(x, w, b);
  choose_line_codes(x, true, b);
  units[0] = b.d;
  units[1] = b.dmin;
  put_scales_of_12(b.scales, b.minima, units + 2);
  put_bit_of_256(b.codes, 4, units + 8);
  put_nibbles_of_256(b.codes, units + 24);
}

}  // namespace block_search
NIBBLE_NAMESPACE_END
