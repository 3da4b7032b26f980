// SPDX-License-Identifier: Apache-2.0
/// @file
/// Ranges, scales and zero points by plain loops, each convention written as its package states it: compressed-tensors
/// and torchao on signed codes, AutoAWQ and GPTQ on unsigned ones. Every operation is rounded to the
/// compute dtype. Searches evaluate every candidate by quantizing and dequantizing the whole group.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "nibble/half.hpp"
#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"
#include "nibble/search.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {
namespace detail {

/// What a tensor library calls finfo.
struct limits_of {
  float max, tiny, eps;
  explicit limits_of(dtype type)
      : max(type == dtype::f16 ? 65504.0f : std::ldexp(2.0f - std::ldexp(1.0f, type == dtype::f32 ? -23 : -7), 127)),
        tiny(std::ldexp(1.0f, type == dtype::f16 ? -14 : -126)),
        eps(std::ldexp(1.0f, type == dtype::f32   ? -23
                             : type == dtype::f16 ? -10
                                                  : -7)) {}
};

/// (high − low) / steps in tensors of `type`; in float, with the range halved, where `type` cannot hold it.
inline float divided(dtype type, float low, float high, float least, float steps) {
  const float range = round_to(type, high - low);
  if (std::isinf(range)) return (high / 2 - low / 2) / steps * 2;
  return round_to(type, std::max(range, least) / steps);
}

template <class Scheme>
params fit(float low, float high, Scheme s) {
  const dtype type = s.compute_dtype;
  const limits_of compute(type), stored(s.scale_dtype), single(dtype::f32);
  const int levels = 1 << s.bits;
  const auto steps = static_cast<float>(levels - 1);
  low = std::isnan(low) ? 0.0f : std::clamp(low, -single.max, single.max);
  high = std::isnan(high) ? 0.0f : std::clamp(high, -single.max, single.max);
  const bool signed_codes = s.rule == convention::compressed_tensors || s.rule == convention::torchao;
  if (s.rule != convention::autoawq) low = std::min(low, 0.0f), high = std::max(high, 0.0f);
  const bool empty = low == 0.0f && high == 0.0f;
  if (s.rule == convention::gptq && empty) low = -1.0f, high = 1.0f;
  const float amplitude = std::max(std::fabs(low), std::fabs(high));

  float scale = 0.0f;
  if (s.rule == convention::autoawq) {
    const float least = round_to(type, 1e-5f);
    const auto most_code = static_cast<float>(std::max(1, levels / 2 - 1));
    scale =
        s.symmetric ? round_to(type, std::max(amplitude, least) / most_code) : divided(type, low, high, least, steps);
  } else if (s.symmetric && s.rule == convention::gptq) {
    scale = divided(type, -amplitude, amplitude, 0.0f, steps);
  } else {
    scale = s.symmetric ? round_to(type, amplitude / (steps / 2)) : divided(type, low, high, 0.0f, steps);
  }
  if (s.rule == convention::torchao) scale = std::max(scale, compute.tiny);
  scale = round_to(s.scale_dtype, std::min(scale, stored.max));
  if (scale == 0.0f) scale = s.rule == convention::compressed_tensors ? stored.eps : stored.tiny;

  if (s.symmetric) return {scale, levels / 2};
  const float ratio = round_to(type, low / scale);
  if (signed_codes) {
    const float least_code = -static_cast<float>(levels / 2), most_code = least_code + steps;
    const float zero = s.rule == convention::torchao ? least_code - std::nearbyint(ratio)
                       : empty                       ? 0.0f
                                                     : round_to(type, least_code - ratio);
    return {scale, static_cast<int32_t>(std::nearbyint(std::clamp(zero, least_code, most_code))) + levels / 2};
  }
  return {scale, static_cast<int32_t>(std::clamp(-std::nearbyint(ratio), 0.0f, steps))};
}

/// What x reads back as.
template <class Scheme>
float round_trip(float x, params p, Scheme s) {
  const int levels = 1 << s.bits;
  const float ratio = round_to(s.compute_dtype, x / p.scale);
  float code = 0.0f;
  if (s.rule == convention::compressed_tensors) {
    const auto half = static_cast<float>(levels / 2);
    const float shifted = round_to(s.compute_dtype, ratio + (static_cast<float>(p.zero) - half));
    code = std::nearbyint(std::clamp(shifted, -half, half - 1)) + half;
  } else {
    code = std::clamp(std::nearbyint(ratio) + static_cast<float>(p.zero), 0.0f, static_cast<float>(levels - 1));
  }
  return round_to(s.compute_dtype, (code - static_cast<float>(p.zero)) * p.scale);
}

/// One group's finite weights in their places; what is not finite is 0 with importance 0.
struct group {
  std::vector<float> w, importance;
  float low = 0.0f, high = 0.0f;
};

template <class T>
group take(matrix<const T> w, const float* importance, group_shape g, index_t down, index_t across) {
  const index_t height = g.height(w.rows), width = g.width(w.cols);
  group out;
  bool any = false;
  for (index_t row = down * height; row < std::min(w.rows, (down + 1) * height); ++row)
    for (index_t col = across * width; col < std::min(w.cols, (across + 1) * width); ++col) {
      const auto x = static_cast<float>(w(row, col));
      const bool finite = std::isfinite(x);
      const float weight = importance == nullptr ? 1.0f : importance[col];
      out.w.push_back(finite ? x : 0.0f);
      out.importance.push_back(finite && weight > 0.0f && std::isfinite(weight) ? weight : 0.0f);
      if (!finite) continue;
      out.low = any ? std::min(out.low, x) : x;
      out.high = any ? std::max(out.high, x) : x;
      any = true;
    }
  return out;
}

/// Σ term(x, x', importance) in the order that search.hpp states.
template <class Scheme, class Term>
double error(const group& of, params p, Scheme s, Term term) {
  double total = 0.0;
  for (std::size_t first = 0; first < of.w.size(); first += 1024) {
    float sums[16] = {};
    for (std::size_t i = first; i < std::min(of.w.size(), first + 1024); ++i)
      sums[i % 16] += term(of.w[i], round_trip(of.w[i], p, s), of.importance[i]);
    for (int half = 8; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
    total += static_cast<double>(sums[0]);
  }
  return total;
}

inline float squared(float x, float read_back, float importance) {
  return importance * (read_back - x) * (read_back - x);
}

/// f(group, params&) for every group of w.
template <class T, class F>
void for_groups(matrix<const T> w, matrix<params> p, group_shape g, const float* importance, F f) {
  if (w.empty()) return;
  for (index_t down = 0; down < g.down(w.rows); ++down)
    for (index_t across = 0; across < g.across(w.cols); ++across)
      f(take(w, importance, g, down, across), p(down, across));
}

}  // namespace detail

/// w (n, k) row-major; p (g.down(n), g.across(k)).
template <class Scheme, class T>
void fit(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, minmax, const float* = nullptr) {
  detail::for_groups(w, p, g, nullptr,
                     [&](const detail::group& of, params& out) { out = detail::fit(of.low, of.high, s); });
}

/// @param importance (k) or null.
template <class Scheme, class T>
void fit(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, const mse_search& m,
         const float* importance = nullptr) {
  const dtype type = s.compute_dtype;
  std::vector<detail::group> groups;
  std::vector<params*> outs;
  detail::for_groups(w, p, g, importance, [&](detail::group of, params& out) {
    out = detail::fit(of.low, of.high, s);
    groups.push_back(std::move(of));
    outs.push_back(&out);
  });
  std::vector<float> best(groups.size(), detail::limits_of(type).max);
  const float norm = round_to(type, m.norm);
  const auto term = [&](float x, float read_back, float weight) {
    const float distance = std::fabs(round_to(type, read_back - x));
    const float power = norm == 2.0f ? distance * distance : std::pow(distance, norm);
    return round_to(type, round_to(type, power) * weight);
  };
  int idle = 0;
  for (int i = 0; i < static_cast<int>(m.max_shrink * m.grid); ++i) {
    const auto shrink = static_cast<float>(1.0 - i / static_cast<double>(m.grid));
    bool any = false;
    for (std::size_t j = 0; j < groups.size(); ++j) {
      const params tried =
          detail::fit(round_to(type, groups[j].low * shrink), round_to(type, groups[j].high * shrink), s);
      const float error = round_to(type, static_cast<float>(detail::error(groups[j], tried, s, term)));
      if (!(error < best[j])) continue;
      best[j] = error;
      *outs[j] = tried;
      any = true;
    }
    idle = any ? 0 : idle + 1;
    if (m.patience > 0 && idle >= m.patience) break;
  }
}

/// @param importance (k) or null.
template <class Scheme, class T>
void fit(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, const ends_search& m,
         const float* importance = nullptr) {
  detail::for_groups(w, p, g, importance, [&](const detail::group& of, params& out) {
    const params start = detail::fit(of.low, of.high, s);
    params best = start;
    const double at_start = detail::error(of, start, s, detail::squared);
    double least = at_start;
    const auto attempt = [&](params tried) {
      const double error = detail::error(of, tried, s, detail::squared);
      if (error < least) least = error, best = tried;
    };
    const float low = std::min(of.low, 0.0f), high = std::max(of.high, 0.0f);
    const int steps = s.symmetric ? 2 * m.steps : m.steps;
    const float step = m.max_shrink / static_cast<float>(steps);
    for (int i = 0; i <= steps; ++i)
      for (int j = 0; j <= steps; ++j) {
        if (s.symmetric && i != j) continue;
        const float at_low = 1.0f - static_cast<float>(i) * step, at_high = 1.0f - static_cast<float>(j) * step;
        attempt(detail::fit(low * at_low, high * at_high, s));
      }
    const detail::limits_of stored(s.scale_dtype);
    float part = step / 2;
    for (int round = 0; round < m.refinements; ++round) {
      const params centre = best;
      for (const float factor : {1.0f - part, 1.0f + part}) {
        const float scale = round_to(s.scale_dtype, std::min(centre.scale * factor, stored.max));
        const float least_scale = s.rule == convention::compressed_tensors ? stored.eps : stored.tiny;
        attempt({scale > 0.0f ? scale : least_scale, centre.zero});
      }
      part /= 2;
    }
    out = least < at_start * (1.0 - std::ldexp(1.0, -16)) ? best : start;
  });
}

template <class Scheme, class T>
void fit(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, const percentile& m, const float* = nullptr) {
  for (index_t down = 0; !w.empty() && down < g.down(w.rows); ++down)
    for (index_t across = 0; across < g.across(w.cols); ++across) {
      std::vector<float> sorted;
      const index_t height = g.height(w.rows), width = g.width(w.cols);
      for (index_t row = down * height; row < std::min(w.rows, (down + 1) * height); ++row)
        for (index_t col = across * width; col < std::min(w.cols, (across + 1) * width); ++col) {
          const auto x = static_cast<float>(w(row, col));
          if (std::isfinite(x)) sorted.push_back(s.symmetric ? std::fabs(x) : x);
        }
      std::sort(sorted.begin(), sorted.end());
      const auto quantile = [&](double share) {
        const double place = share * static_cast<double>(sorted.size() - 1);
        const auto below = static_cast<std::size_t>(place);
        const double low = sorted[below], high = sorted[std::min(below + 1, sorted.size() - 1)];
        return static_cast<float>(low + (place - static_cast<double>(below)) * (high - low));
      };
      const double share = static_cast<double>(m.p) / 100.0;
      const float high = sorted.empty() ? 0.0f : quantile(share);
      const float low = sorted.empty() ? 0.0f : s.symmetric ? -high : quantile(1.0 - share);
      p(down, across) = detail::fit(low, high, s);
    }
}

}  // namespace reference
NIBBLE_NAMESPACE_END
