// SPDX-License-Identifier: Apache-2.0
/// @file
/// The searches for a group's scale that ggml's encoders make, as plain loops over floats; every sum is sequential, every product of
/// three is taken from the left, nothing is fused. Weights w of a search are what an error counts.
///     centred     x ≈ s·l, l in [−n, n)        19 trial scales, each refitted: Σwxl / Σwl²
///     swept       the same, one trial, then l moved one at a time
///     ranged      x ≈ s·l − m, l in [0, n]      trial scales, each refitted in s and m by least squares
///     unsigned    x ≈ s·l, l in [0, n], x >= 0  9 trial scales, then l moved one at a time
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "nibble/block_layout.hpp"
#include "nibble/core.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {
namespace ggml {

/// Groups whose largest weight is below this are zero.
inline constexpr float least_maximum = 1e-15f;

/// The nearest integer, ties to even, for |x| < 2^22; beyond, and for NaN (0), what is left in the mantissa of x + 1.5·2^23.
inline int nearest(float x) {
  const auto bits = bit_cast<uint32_t>(x + 12582912.0f);
  return static_cast<int>(bits & 0x7fffffu) - 0x400000;
}

/// x without its fraction; INT_MIN where no int has it, as x86-64 converts.
inline int truncated(float x) {
  return x >= -2147483648.0f && x < 2147483648.0f ? static_cast<int>(x) : std::numeric_limits<int>::min();
}

inline int limited(int l, int low, int high) {
  return l < low ? low : l > high ? high : l;
}

/// The element of largest magnitude, the first of equals; 0 for none.
inline float largest(const float* x, int n) {
  float amax = 0.0f, max = 0.0f;
  for (int i = 0; i < n; ++i)
    if (std::fabs(x[i]) > amax) {
      amax = std::fabs(x[i]);
      max = x[i];
    }
  return max;
}

/// Σ w·x·l and Σ w·l·l.
struct moments {
  float xl = 0.0f, ll = 0.0f;
  void add(float w, float x, int l) {
    const auto level = static_cast<float>(l);
    xl += w * x * level;
    ll += w * level * level;
  }
  float scale() const { return ll > 0.0f ? xl / ll : 0.0f; }
};

/// codes l + nmax of x under the scale that is returned. The first trial maps the largest weight to −nmax, whatever its sign.
inline float centred(int n, int nmax, const float* x, const float* w, int* codes) {
  const float max = largest(x, n);
  if (std::fabs(max) < least_maximum) {
    for (int i = 0; i < n; ++i) codes[i] = 0;
    return 0.0f;
  }
  const auto level = [&](float inverse, int i) { return limited(nearest(inverse * x[i]), -nmax, nmax - 1); };
  float scale = 0.0f, best = 0.0f;
  for (int trial = 0; trial <= 18; ++trial) {  // 0, then −9 … −1, 1 … 9
    const int step = trial == 0 ? 0 : trial <= 9 ? trial - 10 : trial - 9;
    const float inverse = trial == 0 ? static_cast<float>(-nmax) / max
                                     : -(static_cast<float>(nmax) + 0.1f * static_cast<float>(step)) / max;
    moments sums;
    for (int i = 0; i < n; ++i) sums.add(w[i], x[i], level(inverse, i));
    if (trial == 0 || (sums.ll > 0.0f && sums.xl * sums.xl > best * sums.ll)) {
      for (int i = 0; i < n; ++i) codes[i] = level(inverse, i) + nmax;
      scale = sums.scale();
      best = scale * sums.xl;
    }
  }
  return scale;
}

/// As `centred`, with w = x². A level is moved only while Σwxl without it is positive, that is, where the largest weight is
/// negative: the scale has its sign reversed.
inline float swept(int n, int nmax, const float* x, int* codes) {
  const float max = largest(x, n);
  if (std::fabs(max) < least_maximum) {
    for (int i = 0; i < n; ++i) codes[i] = 0;
    return 0.0f;
  }
  const float inverse = static_cast<float>(-nmax) / max;
  moments sums;
  for (int i = 0; i < n; ++i) {
    codes[i] = limited(nearest(inverse * x[i]), -nmax, nmax - 1);
    sums.add(x[i] * x[i], x[i], codes[i]);
  }
  for (int sweep = 0, moved = 1; sweep < 5 && moved > 0; ++sweep) {
    moved = 0;
    for (int i = 0; i < n; ++i) {
      const float w = x[i] * x[i];
      const auto level = static_cast<float>(codes[i]);
      moments other;
      other.xl = sums.xl - w * x[i] * level;
      if (!(other.xl > 0.0f)) continue;
      other.ll = sums.ll - w * level * level;
      const int l = limited(nearest(x[i] * other.ll / other.xl), -nmax, nmax - 1);
      if (l == codes[i]) continue;
      other.add(w, x[i], l);
      if (other.ll > 0.0f && other.xl * other.xl * sums.ll > sums.xl * sums.xl * other.ll) {
        codes[i] = l;
        sums = other;
        ++moved;
      }
    }
  }
  for (int i = 0; i < n; ++i) codes[i] += nmax;
  return sums.scale();
}

/// Trial scales of `ranged`: (first + step·t + nmax) / (max − min) for t = 0 … last. Errors are squared, or absolute.
struct trials {
  float first, step;
  int last;
  bool absolute = false;
};

/// Σ of errors of x under scale·l + min.
inline float range_error(int n, const float* x, const float* w, const int* codes, float scale, float min,
                         bool absolute) {
  float sum = 0.0f;
  for (int i = 0; i < n; ++i) {
    const float off = scale * static_cast<float>(codes[i]) + min - x[i];
    sum += w[i] * (absolute ? std::fabs(off) : off * off);
  }
  return sum;
}

/// codes of x ≈ scale·l − minimum; returns the scale. minimum >= 0. A trial that wins moves the range for those after it.
inline float ranged(int n, int nmax, const float* x, const float* w, trials t, int* codes, float* minimum) {
  float min = x[0], max = x[0], sum_w = w[0], sum_x = w[0] * x[0];
  for (int i = 1; i < n; ++i) {
    if (x[i] < min) min = x[i];
    if (x[i] > max) max = x[i];
    sum_w += w[i];
    sum_x += w[i] * x[i];
  }
  if (min > 0.0f) min = 0.0f;
  for (int i = 0; i < n; ++i) codes[i] = 0;
  *minimum = -min;
  if (max <= min) return 0.0f;

  const auto levels = [&](float inverse, int* out) {
    for (int i = 0; i < n; ++i) out[i] = limited(nearest(inverse * (x[i] - min)), 0, nmax);
  };
  const float whole = static_cast<float>(nmax) / (max - min);
  float scale = 1.0f / whole;
  levels(whole, codes);
  float best = range_error(n, x, w, codes, scale, min, t.absolute);
  for (int trial = 0; trial <= t.last; ++trial) {
    int tried[32];
    levels((t.first + t.step * static_cast<float>(trial) + static_cast<float>(nmax)) / (max - min), tried);
    float sum_l = 0.0f, sum_ll = 0.0f, sum_xl = 0.0f;
    for (int i = 0; i < n; ++i) {
      const auto l = static_cast<float>(tried[i]);
      sum_l += w[i] * l;
      sum_ll += w[i] * l * l;
      sum_xl += w[i] * l * x[i];
    }
    const float determinant = sum_w * sum_ll - sum_l * sum_l;
    if (!(determinant > 0.0f)) continue;
    float this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    float this_min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
    if (this_min > 0.0f) {
      this_min = 0.0f;
      this_scale = sum_xl / sum_ll;
    }
    const float error = range_error(n, x, w, tried, this_scale, this_min, t.absolute);
    if (error < best) {
      for (int i = 0; i < n; ++i) codes[i] = tried[i];
      best = error;
      scale = this_scale;
      min = this_min;
    }
  }
  *minimum = -min;
  return scale;
}

/// codes of x ≈ scale·l; returns the scale. The search is by squared error under scale = 1 / trial, the result refitted.
inline float unsigned_levels(int n, int nmax, const float* x, const float* w, int* codes) {
  float max = 0.0f;
  for (int i = 0; i < n; ++i)
    if (x[i] > max) max = x[i];
  for (int i = 0; i < n; ++i) codes[i] = 0;
  if (max < least_maximum) return 0.0f;

  const auto level = [&](float inverse, int i) { return nearest(inverse * x[i]); };
  float chosen = static_cast<float>(nmax) / max, best = 0.0f;
  for (int trial = 0; trial <= 8; ++trial) {  // 0, then −4 … −1, 1 … 4
    const int step = trial == 0 ? 0 : trial <= 4 ? trial - 5 : trial - 4;
    const float inverse = (0.1f * static_cast<float>(step) + static_cast<float>(nmax)) / max, scale = 1.0f / inverse;
    float error = 0.0f;
    for (int i = 0; i < n; ++i) {
      const int l = trial == 0 ? level(inverse, i) : std::min(nmax, level(inverse, i));
      const float off = x[i] - scale * static_cast<float>(l);
      error += w[i] * off * off;
    }
    if (trial == 0 || error < best) {
      best = error;
      chosen = inverse;
    }
  }
  moments sums;
  for (int i = 0; i < n; ++i) {
    codes[i] = std::min(nmax, level(chosen, i));
    sums.add(w[i], x[i], codes[i]);
  }
  for (int sweep = 0, moved = 1; sweep < 5 && moved > 0; ++sweep) {
    moved = 0;
    for (int i = 0; i < n; ++i) {
      const auto old = static_cast<float>(codes[i]);
      moments other;
      other.xl = sums.xl - w[i] * x[i] * old;
      other.ll = sums.ll - w[i] * old * old;
      if (!(other.xl > 0.0f && other.ll > 0.0f)) continue;
      const int l = std::min(nmax, nearest(x[i] * other.ll / other.xl));
      if (l == codes[i]) continue;
      other.add(w[i], x[i], l);
      if (other.xl * other.xl * sums.ll > sums.xl * sums.xl * other.ll) {
        codes[i] = l;
        sums = other;
        ++moved;
      }
    }
  }
  return sums.scale();
}

/// Index of the nearest of IQ4's numbers; the larger of two that are as near.
inline int nearest_iq4(float x) {
  if (x <= static_cast<float>(iq4_values[0])) return 0;
  if (x >= static_cast<float>(iq4_values[15])) return 15;
  int above = 1;
  while (above < 15 && !(x < static_cast<float>(iq4_values[above]))) ++above;
  const float down = x - static_cast<float>(iq4_values[above - 1]), up = static_cast<float>(iq4_values[above]) - x;
  return down < up ? above - 1 : above;
}

/// The scale d of x ≈ d·iq4: that which maps the largest weight to 127 by the table's ends, then (t − 127) / max for t = −7 … 7,
/// each refitted.
inline float iq4_scale(int n, const float* x, const float* w) {
  const float max = largest(x, n);
  if (std::fabs(max) < least_maximum) return 0.0f;
  float scale = 0.0f, best = 0.0f;
  for (int trial = -8; trial <= 7; ++trial) {
    const float inverse = trial == -8 ? 1.0f / (-max / -127.0f) : (static_cast<float>(trial) + -127.0f) / max;
    float qx = 0.0f, qq = 0.0f;
    for (int i = 0; i < n; ++i) {
      const auto q = static_cast<float>(iq4_values[nearest_iq4(inverse * x[i])]);
      qx += w[i] * q * x[i];
      qq += w[i] * q * q;
    }
    if (trial == -8 || (qq > 0.0f && qx * qx > best * qq)) {
      scale = qx / qq;
      best = scale * qx;
    }
  }
  return scale;
}

}  // namespace ggml
}  // namespace reference
NIBBLE_NAMESPACE_END
