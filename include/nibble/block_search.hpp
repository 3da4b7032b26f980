// SPDX-License-Identifier: Apache-2.0
/// @file
/// The searches for a group's scale that ggml's encoders make, one text for a scalar and for vectors: V is lanes<N> (block/lane.hpp),
/// a lane a group. Weights w of a search are what an error counts.
///     centred           x ≈ s·l, l in [−n, n)        19 trials, each refitted: s = Σwxl / Σwl²
///     swept             the same, one trial, then levels moved one at a time
///     ranged            x ≈ s·l − m, l in [0, n]     trials, each refitted in s and m by least squares
///     unsigned_levels   x ≈ s·l, l in [0, n], x >= 0 9 trials, then levels moved one at a time
///     iq4_scale         x ≈ s·t, t of IQ4's table    16 trials, each refitted
/// Every sum is sequential and every product of three taken from the left: with IEEE arithmetic and nothing fused, ggml's bits. A
/// trial tells its levels by the inverse scale (and offset) that made them, so that only who needs them computes them again.
/// Sums of products are V's throughout, those of plain numbers too: nvcc would fuse them.
#pragma once

#include "nibble/block/lane.hpp"
#include "nibble/block_layout.hpp"
#include "nibble/core.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace block_search {

/// Groups whose largest weight is below this are zero.
inline constexpr float least_maximum = 1e-15f;

/// The element of largest magnitude, the first of equals; 0 for none.
template <int Size, class V>
NIBBLE_LANE V largest(const V* x) noexcept {
  V amax = V::zero(), max = V::zero();
  for (int i = 0; i < Size; ++i) {
    const V magnitude = abs(x[i]);
    const typename V::mask larger = magnitude > amax;
    amax = select(larger, magnitude, amax);
    max = select(larger, x[i], max);
  }
  return max;
}

/// Σ w·x·l and Σ w·l·l, as they are for one trial.
template <class V>
struct moments {
  V xl, ll;
  NIBBLE_LANE moments() noexcept : xl(V::zero()), ll(V::zero()) {}
  /// @param wx w · x.
  NIBBLE_LANE void add(const V& w, const V& wx, const V& l) noexcept {
    xl = xl + wx * l;
    ll = ll + w * l * l;
  }
  NIBBLE_LANE V scale() const noexcept { return select(ll > V::zero(), xl / ll, V::zero()); }
};

template <class V>
struct centred_fit {
  V scale, inverse;  ///< l = inverse · x, rounded and limited
  typename V::mask zero;
};

/// Code of x[i] under a fit: l + nmax; 0 in groups that are zero.
template <class V>
NIBBLE_LANE V centred_code(const centred_fit<V>& fit, const V& x, int nmax) noexcept {
  return select(fit.zero, V::zero(), level(fit.inverse * x, -nmax, nmax - 1) + V(static_cast<float>(nmax)));
}

/// The first trial maps the largest weight to −nmax, whatever its sign, the others near it.
template <int Size, class V>
NIBBLE_LANE void centred(const V* x, const V* w, int nmax, centred_fit<V>& fit) noexcept {
  const V max = largest<Size>(x);
  const auto n = static_cast<float>(nmax);
  fit.zero = abs(max) < V(least_maximum);
  fit.scale = fit.inverse = V::zero();
  V wx[Size], best = V::zero();
  for (int i = 0; i < Size; ++i) wx[i] = w[i] * x[i];
  for (int trial = 0; trial <= 18; ++trial) {  // 0, then −9 … −1, 1 … 9
    const int step = trial == 0 ? 0 : trial <= 9 ? trial - 10 : trial - 9;
    const V inverse = negated(V(n) + V(0.1f) * V(static_cast<float>(step))) / max;
    moments<V> sums;
    for (int i = 0; i < Size; ++i) sums.add(w[i], wx[i], level(inverse * x[i], -nmax, nmax - 1));
    if (trial == 0) {
      fit.scale = sums.scale();
      fit.inverse = inverse;
      best = fit.scale * sums.xl;
      continue;
    }
    const typename V::mask better = (sums.ll > V::zero()) & (sums.xl * sums.xl > best * sums.ll);
    const V scale = sums.xl / sums.ll;
    fit.scale = select(better, scale, fit.scale);
    fit.inverse = select(better, inverse, fit.inverse);
    best = select(better, scale * sums.xl, best);
  }
  fit.scale = select(fit.zero, V::zero(), fit.scale);
}

/// The sums without one level, and the level that is then best for its weight.
template <class V>
struct better_level {
  V xl, ll, to;
  NIBBLE_LANE better_level(const V& x, const V& w, const V& wx, int low, int high, const V& l,
                           const moments<V>& sums) noexcept
      : xl(sums.xl - wx * l), ll(sums.ll - w * l * l), to(level(x * ll / xl, low, high)) {}
};

/// A level that may move: it does where (Σwxl)² / Σwl² grows. Without the level Σwxl has to be positive, and Σwl² as well if Before; else
/// Σwl² with the new one. @returns not 0 where it moved.
template <bool Before, class V>
NIBBLE_LANE typename V::integers move_level(const V& x, const V& w, const V& wx, int low, int high, V& l,
                                            moments<V>& sums) noexcept {
  const better_level<V> other(x, w, wx, low, high, l, sums);
  const V xl = other.xl + wx * other.to, ll = other.ll + w * other.to * other.to;
  // three conditions one after another: gcc 12 takes masks that are combined apart into lanes
  const V now = select_less(V::zero(), other.xl, xl * xl * sums.ll, V::zero());
  const V before = select_less(V::zero(), Before ? other.ll : ll, sums.xl * sums.xl * ll, now);
  const V to = select_less(before, now, other.to, l);
  sums.xl = select_unequal(to, l, xl, sums.xl);
  sums.ll = select_unequal(to, l, ll, sums.ll);
  const typename V::integers moved = bits_of(to) - bits_of(l);
  l = to;
  return moved;
}

/// A group of `swept`: levels of its one trial, then moved.
template <int Size, class V>
struct swept_group {
  using I = typename V::integers;
  V w[Size], wx[Size], levels[Size], max;
  moments<V> sums;

  NIBBLE_LANE void start(const V* x, int nmax) noexcept {
    max = largest<Size>(x);
    const V inverse = V(static_cast<float>(-nmax)) / max;
    for (int i = 0; i < Size; ++i) {
      w[i] = x[i] * x[i];
      wx[i] = w[i] * x[i];
      levels[i] = level(inverse * x[i], -nmax, nmax - 1);
      sums.add(w[i], wx[i], levels[i]);
    }
  }
  NIBBLE_LANE I move(const V& x, int i, int nmax) noexcept {
    return move_level<false>(x, w[i], wx[i], -nmax, nmax - 1, levels[i], sums);
  }
  /// Not 0 where another level would be best for some weight, as things are. None moves where the largest weight is positive: every term of
  /// Σwxl has the scale's sign, and so has the sum without one of them.
  NIBBLE_LANE I may_move(const V* x, int nmax) const noexcept {
    I other(0);
    for (int i = 0; i < Size; ++i) {
      const better_level<V> best(x[i], w[i], wx[i], -nmax, nmax - 1, levels[i], sums);
      other = other | (bits_of(best.to) - bits_of(levels[i]));
    }
    return select_less(max, V::zero(), other, I(0));
  }
  /// Codes are levels + nmax.
  NIBBLE_LANE void finish(int nmax, V* codes, V& scale) noexcept {
    const typename V::mask zero = abs(max) < V(least_maximum);
    sums.xl = select(zero, V::zero(), sums.xl);
    scale = sums.scale();
    for (int i = 0; i < Size; ++i) codes[i] = select(zero, V::zero(), levels[i] + V(static_cast<float>(nmax)));
  }
};

/// As `centred`, with w = x², for Together groups next to each other, whose moves are taken by turns: each waits for a division. At most 5
/// sweeps; a lane in which nothing moves stays as it is in further ones.
template <int Size, int Together, class V>
NIBBLE_LANE void swept(const V* x, int nmax, V* codes, V* scales) noexcept {
  using I = typename V::integers;
  swept_group<Size, V> groups[Together];
  for (int j = 0; j < Together; ++j) groups[j].start(x + Size * j, nmax);
  for (int sweep = 0; sweep < 5; ++sweep) {
    I moved(0);
    for (int i = 0; i < Size; ++i)
      for (int j = 0; j < Together; ++j) moved = moved | groups[j].move(x[Size * j + i], i, nmax);
    if (!any(moved)) break;
  }
  for (int j = 0; j < Together; ++j) groups[j].finish(nmax, codes + Size * j, scales[j]);
}

/// `swept` of Groups groups. In four of five no level moves, which a look at all levels tells without waiting; the others are
/// packed into full vectors, Together at a time.
template <int Size, int Groups, int Together, class V>
NIBBLE_LANE void swept_where_moving(const V* x, int nmax, V* codes, V* scales) noexcept {
  constexpr int lanes = V::count, at_once = Together * lanes;
  int waiting[Groups * lanes + 1], count = 0;  // group · lanes + lane
  for (int j = 0; j < Groups; ++j) {
    swept_group<Size, V> group;
    group.start(x + Size * j, nmax);
    const typename V::integers moving = group.may_move(x + Size * j, nmax);
    for (int lane = 0; lane < lanes; ++lane) {
      waiting[count] = j * lanes + lane;
      count += get_lane(moving, lane) != 0;
    }
    group.finish(nmax, codes + Size * j, scales[j]);
  }
  for (int first = 0; first < count; first += at_once) {
    V packed[Size * Together], found[Size * Together], found_scales[Together];
    const int* const these = waiting + first;
    const int some = count - first < at_once ? count - first : at_once;
    for (int k = 0; k < at_once; ++k) {
      const int from = these[k < some ? k : 0];
      for (int i = 0; i < Size; ++i)
        set_lane(packed[k / lanes * Size + i], k % lanes, get_lane(x[from / lanes * Size + i], from % lanes));
    }
    swept<Size, Together>(packed, nmax, found, found_scales);
    for (int k = 0; k < some; ++k) {
      const int to = these[k] / lanes, lane = these[k] % lanes;
      set_lane(scales[to], lane, get_lane(found_scales[k / lanes], k % lanes));
      for (int i = 0; i < Size; ++i)
        set_lane(codes[to * Size + i], lane, get_lane(found[k / lanes * Size + i], k % lanes));
    }
  }
}

/// Trial scales of `ranged`: (first + step·t + nmax) / (max − min) for t = 0 … last.
struct trials {
  float first, step;
  int last;
};

template <class V>
struct ranged_fit {
  V scale, minimum;  ///< x ≈ scale·l − minimum, minimum >= 0
  V inverse, low;    ///< l = inverse · (x − low), rounded and limited
};

/// Code of x[i] under a fit.
template <class V>
NIBBLE_LANE V ranged_code(const ranged_fit<V>& fit, const V& x, int nmax) noexcept {
  return level(fit.inverse * (x - fit.low), 0, nmax);
}

/// What a trial of `ranged` would have for scale and least value.
template <class V>
struct line {
  V scale, min;
  typename V::mask valid;
};

/// Weighted least squares over the levels l of a trial; a least value above 0 becomes 0.
template <int Size, class V>
NIBBLE_LANE void fit_line(const V* x, const V* w, const V* l, const V& sum_w, const V& sum_x, line<V>& to) noexcept {
  V sum_l = V::zero(), sum_ll = V::zero(), sum_xl = V::zero();
  for (int i = 0; i < Size; ++i) {
    const V wl = w[i] * l[i];
    sum_l = sum_l + wl;
    sum_ll = sum_ll + wl * l[i];
    sum_xl = sum_xl + wl * x[i];
  }
  const V determinant = sum_w * sum_ll - sum_l * sum_l;
  to.valid = determinant > V::zero();
  to.scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
  to.min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
  const typename V::mask positive = to.min > V::zero();
  if (!any(positive)) return;
  to.scale = select(positive, sum_xl / sum_ll, to.scale);
  to.min = select(positive, V::zero(), to.min);
}

/// Σ w · error of x under scale·l + min; errors squared, or absolute.
template <int Size, bool Absolute, class V>
NIBBLE_LANE V range_error(const V* x, const V* w, const V* l, const V& scale, const V& min) noexcept {
  V sum = V::zero();
  for (int i = 0; i < Size; ++i) {
    const V off = scale * l[i] + min - x[i];
    sum = sum + w[i] * (Absolute ? abs(off) : off * off);
  }
  return sum;
}

/// A trial that wins moves the range for those after it.
template <int Size, bool Absolute, class V>
NIBBLE_LANE void ranged(const V* x, const V* w, int nmax, trials t, ranged_fit<V>& fit) noexcept {
  V min = x[0], max = x[0], sum_w = w[0], sum_x = w[0] * x[0];
  for (int i = 1; i < Size; ++i) {
    min = select(x[i] < min, x[i], min);
    max = select(x[i] > max, x[i], max);
    sum_w = sum_w + w[i];
    sum_x = sum_x + w[i] * x[i];
  }
  min = select(min > V::zero(), V::zero(), min);
  const V first_min = min;
  const typename V::mask some = max > min;
  const auto n = static_cast<float>(nmax);
  V l[Size];
  fit.inverse = V(n) / (max - min);
  fit.scale = V(1.0f) / fit.inverse;
  fit.low = min;
  for (int i = 0; i < Size; ++i) l[i] = ranged_code(fit, x[i], nmax);
  V best = range_error<Size, Absolute>(x, w, l, fit.scale, min);
  for (int trial = 0; trial <= t.last; ++trial) {
    const V inverse = (V(t.first) + V(t.step) * V(static_cast<float>(trial)) + V(n)) / (max - min);
    for (int i = 0; i < Size; ++i) l[i] = level(inverse * (x[i] - min), 0, nmax);
    line<V> tried;
    fit_line<Size>(x, w, l, sum_w, sum_x, tried);
    const V error = range_error<Size, Absolute>(x, w, l, tried.scale, tried.min);
    const typename V::mask better = tried.valid & (error < best);
    best = select(better, error, best);
    fit.scale = select(better, tried.scale, fit.scale);
    fit.inverse = select(better, inverse, fit.inverse);
    fit.low = select(better, min, fit.low);
    min = select(better, tried.min, min);
  }
  fit.scale = select(some, fit.scale, V::zero());
  fit.minimum = negated(select(some, min, first_min));
  fit.inverse = select(some, fit.inverse, V::zero());
}

/// x ≈ scale·l, l in [0, nmax]; returns the scale, and levels. The search is by squared error under scale = 1 / trial, the result
/// refitted.
template <int Size, class V>
NIBBLE_LANE V unsigned_levels(const V* x, const V* w, int nmax, V* l) noexcept {
  constexpr int lowest = -0x400000;
  V max = V::zero();
  for (int i = 0; i < Size; ++i) max = select(x[i] > max, x[i], max);
  const typename V::mask zero = max < V(least_maximum);
  const auto n = static_cast<float>(nmax);
  V chosen = V::zero(), best = V::zero();
  for (int trial = 0; trial <= 8; ++trial) {  // 0, then −4 … −1, 1 … 4
    const int step = trial == 0 ? 0 : trial <= 4 ? trial - 5 : trial - 4;
    const V inverse = (V(0.1f) * V(static_cast<float>(step)) + V(n)) / max, scale = V(1.0f) / inverse;
    V error = V::zero();
    for (int i = 0; i < Size; ++i) {
      const V off = x[i] - scale * level(inverse * x[i], lowest, trial == 0 ? 0x3fffff : nmax);
      error = error + w[i] * off * off;
    }
    const typename V::mask better = error < best;
    best = trial == 0 ? error : select(better, error, best);
    chosen = trial == 0 ? inverse : select(better, inverse, chosen);
  }
  V wx[Size];
  moments<V> sums;
  for (int i = 0; i < Size; ++i) {
    wx[i] = w[i] * x[i];
    l[i] = level(chosen * x[i], lowest, nmax);
    sums.add(w[i], wx[i], l[i]);
  }
  for (int sweep = 0; sweep < 5; ++sweep) {
    typename V::integers moved(0);
    for (int i = 0; i < Size; ++i) moved = moved | move_level<true>(x[i], w[i], wx[i], lowest, nmax, l[i], sums);
    if (!any(moved)) break;
  }
  for (int i = 0; i < Size; ++i) l[i] = select(zero, V::zero(), l[i]);
  return select(zero, V::zero(), sums.scale());
}

/// What stands between IQ4's numbers i − 1 and i. Midpoints are exact in float, and so is a comparison with them in the place of
/// one of distances.
NIBBLE_HOST_DEVICE constexpr float iq4_middle(int i) noexcept {
  return 0.5f * static_cast<float>(iq4_value(i - 1) + iq4_value(i));
}

/// `nearest` if x is below the midpoint that `First` is above, else a number of First … 15.
template <int First, class V>
NIBBLE_LANE V nearest_iq4_from(const V& x, const V& nearest) noexcept {
  constexpr float middle = iq4_middle(First), value = static_cast<float>(iq4_value(First));
  const V next = select_less(x, V(middle), nearest, V(value));
  if constexpr (First < 15)
    return nearest_iq4_from<First + 1>(x, next);
  else
    return next;
}
template <int First, class V>
NIBBLE_LANE typename V::integers nearest_iq4_code_from(const V& x, const typename V::integers& code) noexcept {
  using I = typename V::integers;
  constexpr float middle = iq4_middle(First);
  const I next = select_less(x, V(middle), code, I(First));
  if constexpr (First < 15)
    return nearest_iq4_code_from<First + 1>(x, next);
  else
    return next;
}

/// IQ4's number nearest to x; the larger of two that are as near. And its code.
template <class V>
NIBBLE_LANE V nearest_iq4(const V& x) noexcept {
  constexpr float first = static_cast<float>(iq4_value(0));
  return nearest_iq4_from<1>(x, V(first));
}
template <class V>
NIBBLE_LANE typename V::integers nearest_iq4_code(const V& x) noexcept {
  using I = typename V::integers;
  return nearest_iq4_code_from<1>(x, I(0));
}

/// The first trial maps the largest weight to 127, the others to (t − 127), t = −7 … 7, whatever its sign.
template <int Size, class V>
NIBBLE_LANE V iq4_scale(const V* x, const V* w) noexcept {
  const V max = largest<Size>(x);
  V scale = V::zero(), best = V::zero();
  for (int trial = -8; trial <= 7; ++trial) {
    const V inverse = trial == -8 ? V(1.0f) / (negated(max) / V(-127.0f)) : V(static_cast<float>(trial - 127)) / max;
    V qx = V::zero(), qq = V::zero();
    for (int i = 0; i < Size; ++i) {
      const V q = nearest_iq4(inverse * x[i]), wq = w[i] * q;
      qx = qx + wq * x[i];
      qq = qq + wq * q;
    }
    const V refitted = qx / qq;
    const typename V::mask better = (qq > V::zero()) & (qx * qx > best * qq);
    scale = trial == -8 ? refitted : select(better, refitted, scale);
    best = trial == -8 ? refitted * qx : select(better, refitted * qx, best);
  }
  return select(abs(max) < V(least_maximum), V::zero(), scale);
}

}  // namespace block_search
NIBBLE_NAMESPACE_END
