// SPDX-License-Identifier: Apache-2.0
/// @file
/// nibble::fit over whole matrices, threaded and vectorised; equal to
/// reference::fit bit for bit. A search gathers a group's weights once (8 bytes
/// of scratch per weight) and tries every candidate on that copy with one loop,
/// whose scheme is settled outside.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "nibble/fit.hpp"
#include "nibble/host/group.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Candidates whose errors are asked for together.
struct candidate_list {
  std::vector<params> candidates;
  std::vector<double> errors;

  void clear() noexcept { candidates.clear(); }
  void add(params p) {
    if (candidates.empty() || p.scale != candidates.back().scale || p.zero != candidates.back().zero)
      candidates.push_back(p);
  }
  index_t size() const noexcept { return static_cast<index_t>(candidates.size()); }
  template <class Errors>
  void evaluate(Errors errors_of) {
    errors.resize(candidates.size());
    errors_of(candidates.data(), size(), errors.data());
  }
};

/// What a search keeps from one group to the next.
struct search_scratch {
  gathered group;
  candidate_list list;
};
struct no_scratch {};

/// The best candidate so far.
struct choice {
  params p;
  double error;
  void consider(const candidate_list& list) noexcept {
    for (std::size_t i = 0; i < list.candidates.size(); ++i)
      if (list.errors[i] < error) *this = {list.candidates[i], list.errors[i]};
  }
};

/// The search that search.hpp describes. `errors_of(candidates, count, errors)`
/// must tell the group's errors.
template <class Scheme, class Errors>
params search_ends(range ends, Scheme s, const ends_search& m, candidate_list& list, Errors errors_of) {
  const params start = nibble::fit(ends.low, ends.high, s);
  list.clear();
  list.add(start);
  const float low = min(ends.low, 0.0f), high = max(ends.high, 0.0f);
  const int finer = s.symmetric ? 2 : 1;
  const int rows = s.symmetric || low == 0.0f ? 0 : m.steps;
  const int cols = s.symmetric || high != 0.0f ? finer * m.steps : 0;
  const float step = m.max_shrink / static_cast<float>(finer * m.steps);
  for (int i = 0; i <= rows; ++i)
    for (int j = 0; j <= cols; ++j) {
      const float at_high = 1.0f - static_cast<float>(j) * step;
      const float at_low = s.symmetric ? at_high : 1.0f - static_cast<float>(i) * step;
      list.add(nibble::fit(low * at_low, high * at_high, s));
    }
  list.evaluate(errors_of);
  const double at_start = list.errors[0];
  choice best{start, at_start};
  best.consider(list);
  float part = step / 2;
  for (int round = 0; round < m.refinements; ++round, part /= 2) {
    list.clear();
    list.add({stored_scale(best.p.scale * (1.0f - part), s), best.p.zero});
    list.add({stored_scale(best.p.scale * (1.0f + part), s), best.p.zero});
    list.evaluate(errors_of);
    best.consider(list);
  }
  // The margin is above the sums' rounding error, so that exact arithmetic
  // agrees that this is no worse.
  return best.error < at_start * (1.0 - 0x1p-16) ? best.p : start;
}

/// The best of the first `steps` steps of m; `improved[i]` is set for every
/// step that beat all before it.
template <class Scheme, class Errors>
params search_grid(range ends, Scheme s, const mse_search& m, int steps, std::atomic<bool>* improved,
                   Errors errors_of) {
  choice best{nibble::fit(ends.low, ends.high, s), static_cast<double>(largest(s.compute_dtype))};
  for (int i = 0; i < steps; ++i) {
    const auto shrink = static_cast<float>(1.0 - i / static_cast<double>(m.grid));
    const float low = round_to(s.compute_dtype, ends.low * shrink);
    const float high = round_to(s.compute_dtype, ends.high * shrink);
    const params p = nibble::fit(low, high, s);
    double error = 0.0;
    errors_of(&p, index_t(1), &error);
    error = round_to(s.compute_dtype, static_cast<float>(error));
    if (!(error < best.error)) continue;
    best = {p, error};
    if (!improved[i].load(std::memory_order_relaxed)) improved[i].store(true, std::memory_order_relaxed);
  }
  return best.p;
}

/// Steps after which the patience of m is spent.
inline int patient_steps(const mse_search& m, int steps, const std::atomic<bool>* improved) noexcept {
  for (int i = 0, idle = 0; m.patience > 0 && i < steps; ++i) {
    idle = improved[i].load(std::memory_order_relaxed) ? 0 : idle + 1;
    if (idle >= m.patience) return i + 1;
  }
  return steps;
}

/// The value below which a share `p` of the sorted values lies, interpolated
/// linearly between neighbours.
inline float quantile(std::vector<float>& values, double p) {
  const double place = p * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::ptrdiff_t>(place);
  std::nth_element(values.begin(), values.begin() + below, values.end());
  const double low = values[static_cast<std::size_t>(below)];
  if (below + 1 == static_cast<std::ptrdiff_t>(values.size())) return static_cast<float>(low);
  const double high = *std::min_element(values.begin() + below + 1, values.end());
  return static_cast<float>(low + (place - static_cast<double>(below)) * (high - low));
}

}  // namespace detail

/// w (n, k) row-major; p (g.down(n), g.across(k)). Every group's least and
/// greatest weight.
template <class Scheme, class T>
void fit(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, minmax, const float* = nullptr) {
  using detail::rectangle;
  detail::for_groups<detail::no_scratch>(w.rows, w.cols, p, g, [&](const rectangle& at, params& of_group, auto&) {
    const auto ends = detail::range_of(w, at);
    of_group = nibble::fit(ends.low, ends.high, s);
  });
}

/// @param importance (k) weight of each input channel's error, or null for 1.
/// The range itself does not depend on it.
template <class Scheme, class T>
void fit(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, const ends_search& m,
         const float* importance = nullptr) {
  detail::with_rule(s, [&](auto zero_first, auto compute) {
    constexpr bool first = decltype(zero_first)::value;
    const auto one = [&](const detail::rectangle& at, params& of_group, detail::search_scratch& scratch) {
      detail::gather(w, at, importance, scratch.group);
      const auto errors_of = [&](const params* tried, index_t count, double* errors) {
        detail::group_errors<first, compute.value>(scratch.group, tried, count, errors, detail::squared{}, s);
      };
      of_group = detail::search_ends(scratch.group.ends, s, m, scratch.list, errors_of);
    };
    detail::for_groups<detail::search_scratch>(w.rows, w.cols, p, g, one);
  });
}

/// @param importance (k) as above.
template <class Scheme, class T>
void fit(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, const mse_search& m,
         const float* importance = nullptr) {
  const int steps = max(0, static_cast<int>(m.max_shrink * m.grid));
  const auto improved = std::make_unique<std::atomic<bool>[]>(static_cast<std::size_t>(steps));
  detail::with_rule(s, [&](auto zero_first, auto compute) {
    constexpr bool first = decltype(zero_first)::value;
    const detail::powered<compute.value> term{round_to(s.compute_dtype, m.norm)};
    const auto search = [&](int limit) {
      const auto one = [&](const detail::rectangle& at, params& of_group, detail::gathered& group) {
        detail::gather(w, at, importance, group);
        const auto errors_of = [&](const params* tried, index_t count, double* errors) {
          detail::group_errors<first, compute.value>(group, tried, count, errors, term, s);
        };
        of_group = detail::search_grid(group.ends, s, m, limit, improved.get(), errors_of);
      };
      detail::for_groups<detail::gathered>(w.rows, w.cols, p, g, one);
    };
    search(steps);
    const int limit = detail::patient_steps(m, steps, improved.get());
    if (std::any_of(improved.get() + limit, improved.get() + steps, [](const auto& set) { return set.load(); }))
      search(limit);
  });
}

/// The importance has no part in a percentile.
template <class Scheme, class T>
void fit(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, const percentile& m, const float* = nullptr) {
  const double share = static_cast<double>(m.p) / 100.0;
  using detail::rectangle;
  detail::for_groups<detail::no_scratch>(w.rows, w.cols, p, g, [&](const rectangle& at, params& of_group, auto&) {
    std::vector<float> values;
    values.reserve(static_cast<std::size_t>(at.size()));
    for (index_t row = at.row; row < at.row + at.rows; ++row)
      for (index_t col = at.col; col < at.col + at.cols; ++col) {
        const auto x = static_cast<float>(w(row, col));
        if (is_finite(x)) values.push_back(s.symmetric ? abs(x) : x);
      }
    const float high = values.empty() ? 0.0f : detail::quantile(values, share);
    const float low = values.empty() ? 0.0f : s.symmetric ? -high : detail::quantile(values, 1.0 - share);
    of_group = nibble::fit(low, high, s);
  });
}

/// One group of `count` weights. @param importance (count) or null.
template <class Scheme, class Method = ends_search>
params fit_group(const float* w, index_t count, const float* importance, Scheme s, Method m = {}) {
  params found{1.0f, 0};
  fit(matrix<const float>(w, 1, count), matrix<params>(&found, 1, 1), per_channel, s, m, importance);
  return found;
}

/// Σ importance · (x' − x)² over one group, in the order search.hpp gives; what
/// is not finite is left out.
template <class Scheme>
double group_error(const float* w, index_t count, const float* importance, params p, Scheme s) {
  detail::gathered group;
  detail::gather(matrix<const float>(w, 1, count), detail::rectangle{0, 1, 0, count}, importance, group);
  double error = 0.0;
  detail::with_rule(s, [&](auto zero_first, auto compute) {
    constexpr bool first = decltype(zero_first)::value;
    detail::group_errors<first, compute.value>(group, &p, 1, &error, detail::squared{}, s);
  });
  return error;
}

}  // namespace host
NIBBLE_NAMESPACE_END
