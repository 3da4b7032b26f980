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
  V amax(0.0f), max(0.0f);
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
  NIBBLE_LANE moments() noexcept : xl(0.0f), ll(0.0f) {}
  /// @param wx w · x.
  NIBBLE_LANE void add(const V& w, const V& wx, const V& l) noexcept {
    xl = xl + wx * l;
    ll = ll + w * l * l;
  }
  NIBBLE_LANE V scale() const noexcept { return select(ll > V(0.0f), xl / ll, V(0.0f)); }
};

template <class V>
struct centred_fit {
  V scale, inverse;  ///< l = inverse · x, rounded and limited
  typename V::mask zero;
};

/// Code of x[i] under a fit: l + nmax; 0 in groups that are zero.
template <class V>
NIBBLE_LANE V centred_code(const centred_fit<V>& fit, const V& x, int nmax) noexcept {
  return select(fit.zero, V(0.0f), level(fit.inverse * x, -nmax, nmax - 1) + V(static_cast<float>(nmax)));
}

/// The first trial maps the largest weight to −nmax, whatever its sign, the others near it.
template <int Size, class V>
NIBBLE_LANE void centred(const V* x, const V* w, int nmax, centred_fit<V>& fit) noexcept {
  const V max = largest<Size>(x);
  const auto n = static_cast<float>(nmax);
  fit.zero = abs(max) < V(least_maximum);
  fit.scale = fit.inverse = V(0.0f);
  V wx[Size], best(0.0f);
  for (int i = 0; i < Size; ++i) wx[i] = w[i] * x[i];
  for (int trial = 0; trial <= 18; ++trial) {  // 0, then −9 … −1, 1 … 9
    const int step = trial == 0 ? 0 : trial <= 9 ? trial - 10 : trial - 9;
    const float numerator = 0.1f * static_cast<float>(step);
    const V inverse = V(-(n + numerator)) / max;
    moments<V> sums;
    for (int i = 0; i < Size; ++i) sums.add(w[i], wx[i], level(inverse * x[i], -nmax, nmax - 1));
    if (trial == 0) {
      fit.scale = sums.scale();
      fit.inverse = inverse;
      best = fit.scale * sums.xl;
      continue;
    }
    const typename V::mask better = (sums.ll > V(0.0f)) & (sums.xl * sums.xl > best * sums.ll);
    const V scale = sums.xl / sums.ll;
    fit.scale = select(better, scale, fit.scale);
    fit.inverse = select(better, inverse, fit.inverse);
    best = select(better, scale * sums.xl, best);
  }
  fit.scale = select(fit.zero, V(0.0f), fit.scale);
}

/// Moves levels one at a time where (Σwxl)² / Σwl² grows by it, at most 5 times over all of them. Without the level Σwxl has to be
/// positive, and Σwl² as well if Before; else Σwl² with the new one. A lane in which nothing moves stays as it is in further sweeps.
template <int Size, bool Before, class V>
NIBBLE_LANE void sweep_levels(const V* x, const V* w, const V* wx, int low, int high, V* l, moments<V>& sums) noexcept {
  for (int sweep = 0; sweep < 5; ++sweep) {
    typename V::mask moved = V(0.0f) != V(0.0f);
    for (int i = 0; i < Size; ++i) {
      const V xl = sums.xl - wx[i] * l[i], ll = sums.ll - w[i] * l[i] * l[i];
      const V to = level(x[i] * ll / xl, low, high);
      const V new_xl = xl + wx[i] * to, new_ll = ll + w[i] * to * to;
      const typename V::mask better = (xl > V(0.0f)) & ((Before ? ll : new_ll) > V(0.0f)) & (to != l[i]) &
                                      (new_xl * new_xl * sums.ll > sums.xl * sums.xl * new_ll);
      l[i] = select(better, to, l[i]);
      sums.xl = select(better, new_xl, sums.xl);
      sums.ll = select(better, new_ll, sums.ll);
      moved = moved | better;
    }
    if (!any(moved)) break;
  }
}

/// As `centred`, with w = x²; returns the scale, and codes l + nmax. A level is moved only while Σwxl without it is positive, that is,
/// where the largest weight is negative: the scale has its sign reversed.
template <int Size, class V>
NIBBLE_LANE V swept(const V* x, int nmax, V* codes) noexcept {
  const V max = largest<Size>(x), inverse = V(static_cast<float>(-nmax)) / max;
  const typename V::mask zero = abs(max) < V(least_maximum);
  V w[Size], wx[Size];
  moments<V> sums;
  for (int i = 0; i < Size; ++i) {
    w[i] = x[i] * x[i];
    wx[i] = w[i] * x[i];
    codes[i] = level(inverse * x[i], -nmax, nmax - 1);
    sums.add(w[i], wx[i], codes[i]);
  }
  sweep_levels<Size, false>(x, w, wx, -nmax, nmax - 1, codes, sums);
  for (int i = 0; i < Size; ++i) codes[i] = select(zero, V(0.0f), codes[i] + V(static_cast<float>(nmax)));
  return select(zero, V(0.0f), sums.scale());
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
  V sum_l(0.0f), sum_ll(0.0f), sum_xl(0.0f);
  for (int i = 0; i < Size; ++i) {
    const V wl = w[i] * l[i];
    sum_l = sum_l + wl;
    sum_ll = sum_ll + wl * l[i];
    sum_xl = sum_xl + wl * x[i];
  }
  const V determinant = sum_w * sum_ll - sum_l * sum_l;
  to.valid = determinant > V(0.0f);
  to.scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
  to.min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
  const typename V::mask positive = to.min > V(0.0f);
  if (!any(positive)) return;
  to.scale = select(positive, sum_xl / sum_ll, to.scale);
  to.min = select(positive, V(0.0f), to.min);
}

/// Σ w · error of x under scale·l + min; errors squared, or absolute.
template <int Size, bool Absolute, class V>
NIBBLE_LANE V range_error(const V* x, const V* w, const V* l, const V& scale, const V& min) noexcept {
  V sum(0.0f);
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
  min = select(min > V(0.0f), V(0.0f), min);
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
    const float share = t.step * static_cast<float>(trial), numerator = t.first + share + n;
    const V inverse = V(numerator) / (max - min);
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
  fit.scale = select(some, fit.scale, V(0.0f));
  fit.minimum = negated(select(some, min, first_min));
  fit.inverse = select(some, fit.inverse, V(0.0f));
}

/// x ≈ scale·l, l in [0, nmax]; returns the scale, and levels. The search is by squared error under scale = 1 / trial, the result
/// refitted.
template <int Size, class V>
NIBBLE_LANE V unsigned_levels(const V* x, const V* w, int nmax, V* l) noexcept {
  constexpr int lowest = -0x400000;
  V max(0.0f);
  for (int i = 0; i < Size; ++i) max = select(x[i] > max, x[i], max);
  const typename V::mask zero = max < V(least_maximum);
  const auto n = static_cast<float>(nmax);
  V chosen(0.0f), best(0.0f);
  for (int trial = 0; trial <= 8; ++trial) {  // 0, then −4 … −1, 1 … 4
    const int step = trial == 0 ? 0 : trial <= 4 ? trial - 5 : trial - 4;
    const float tenths = 0.1f * static_cast<float>(step);
    const V inverse = V(tenths + n) / max, scale = V(1.0f) / inverse;
    V error(0.0f);
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
  sweep_levels<Size, true>(x, w, wx, lowest, nmax, l, sums);
  for (int i = 0; i < Size; ++i) l[i] = select(zero, V(0.0f), l[i]);
  return select(zero, V(0.0f), sums.scale());
}

/// IQ4's number nearest to x; the larger of two that are as near. Midpoints of the table are exact in float, and so is the
/// comparison of distances to its numbers that this stands for.
template <class V>
NIBBLE_LANE V nearest_iq4(const V& x) noexcept {
  V nearest(static_cast<float>(iq4_value(0)));
  for (int i = 1; i < 16; ++i) {
    const float middle = 0.5f * static_cast<float>(iq4_value(i - 1) + iq4_value(i));
    nearest = select(x < V(middle), nearest, V(static_cast<float>(iq4_value(i))));
  }
  return nearest;
}

/// The code of that number.
template <class V>
NIBBLE_LANE typename V::integers nearest_iq4_code(const V& x) noexcept {
  using I = typename V::integers;
  I code(0);
  for (int i = 1; i < 16; ++i) {
    const float middle = 0.5f * static_cast<float>(iq4_value(i - 1) + iq4_value(i));
    code = select(x < V(middle), code, I(i));
  }
  return code;
}

/// The first trial maps the largest weight to 127, the others to (t − 127), t = −7 … 7, whatever its sign.
template <int Size, class V>
NIBBLE_LANE V iq4_scale(const V* x, const V* w) noexcept {
  const V max = largest<Size>(x);
  V scale(0.0f), best(0.0f);
  for (int trial = -8; trial <= 7; ++trial) {
    const V inverse = trial == -8 ? V(1.0f) / (negated(max) / V(-127.0f)) : V(static_cast<float>(trial - 127)) / max;
    V qx(0.0f), qq(0.0f);
    for (int i = 0; i < Size; ++i) {
      const V q = nearest_iq4(inverse * x[i]), wq = w[i] * q;
      qx = qx + wq * x[i];
      qq = qq + wq * q;
    }
    const V refitted = qx / qq;
    const typename V::mask better = (qq > V(0.0f)) & (qx * qx > best * qq);
    scale = trial == -8 ? refitted : select(better, refitted, scale);
    best = trial == -8 ? refitted * qx : select(better, refitted * qx, best);
  }
  return select(abs(max) < V(least_maximum), V(0.0f), scale);
}

}  // namespace block_search
NIBBLE_NAMESPACE_END
