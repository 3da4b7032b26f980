// SPDX-License-Identifier: Apache-2.0
/// @file
/// nibble::fit over whole matrices, threaded and vectorised; equal to reference::fit bit for bit.
/// A search gathers a group's weights once and tries every candidate on that copy with one loop, whose scheme is settled
/// outside. Groups of more than 2^18 elements (per tensor) are shared out over the threads piece by piece, others whole.
/// A search of a group takes 8 bytes of scratch per element.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "nibble/fit.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

constexpr index_t lanes = 16;        ///< partial sums of an error
constexpr index_t error_run = 1024;  ///< elements whose partial sums stay in float
constexpr index_t large_group = index_t(1) << 18;

/// Least and greatest finite value of a group; low > high when there is none.
struct range {
  float low = std::numeric_limits<float>::infinity(), high = -std::numeric_limits<float>::infinity();

  void widen(const range& other) noexcept {
    low = min(low, other.low);
    high = max(high, other.high);
  }
};

/// Least and greatest finite value, kept in lanes.
struct extent {
  float low[lanes], high[lanes];

  extent() noexcept {
    for (index_t j = 0; j < lanes; ++j) {
      low[j] = std::numeric_limits<float>::infinity();
      high[j] = -std::numeric_limits<float>::infinity();
    }
  }
  void add(float x, index_t lane) noexcept {
    const uint32_t bits = bit_cast<uint32_t>(x);
    const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    const float below = bit_cast<float>(select(finite, bits, 0x7f800000u));
    const float above = bit_cast<float>(select(finite, bits, 0xff800000u));
    low[lane] = below < low[lane] ? below : low[lane];
    high[lane] = above > high[lane] ? above : high[lane];
  }
  template <class T>
  void add(const T* x, index_t count) noexcept {
    extent local = *this;  // registers, whatever else points at us
    const index_t whole = count - count % lanes;
    for (index_t i = 0; i < whole; i += lanes)
      for (index_t j = 0; j < lanes; ++j) local.add(load(x[i + j]), j);
    for (index_t i = whole; i < count; ++i) local.add(load(x[i]), i - whole);
    *this = local;
  }
  range fold() noexcept {
    for (index_t half = lanes / 2; half > 0; half /= 2)
      for (index_t j = 0; j < half; ++j) {
        low[j] = min(low[j], low[j + half]);
        high[j] = max(high[j], high[j + half]);
      }
    return {low[0], high[0]};
  }
};

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

/// A group's weights as the searches read them: contiguous, padded to whole lanes; what is not finite has importance 0.
struct gathered {
  std::vector<float> w, importance;
  index_t count = 0;
  range ends;
  candidate_list list;

  void resize(index_t elements) {
    count = round_up(elements, lanes);
    const auto size = static_cast<std::size_t>(count);
    if (w.size() < size) w.resize(size), importance.resize(size);
    std::fill(w.begin() + elements, w.begin() + count, 0.0f);
    std::fill(importance.begin() + elements, importance.begin() + count, 0.0f);
    ends = {};
  }
  /// @param weight per element, or null for 1; what is not a positive number counts as 0.
  template <class T>
  void copy(const T* x, index_t elements, const float* weight, index_t at) noexcept {
    float* const to = w.data() + at;
    float* const share = importance.data() + at;
    for (index_t i = 0; i < elements; ++i) {
      const uint32_t bits = bit_cast<uint32_t>(load(x[i]));
      const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
      to[i] = bit_cast<float>(select(finite, bits, 0u));
      share[i] = bit_cast<float>(select(finite, 0x3f800000u, 0u));
    }
    if (weight == nullptr) return;
    for (index_t i = 0; i < elements; ++i) {
      const bool counts = weight[i] > 0.0f && weight[i] <= largest(dtype::f32);
      share[i] *= bit_cast<float>(select(counts, bit_cast<uint32_t>(weight[i]), 0u));
    }
  }
};

/// importance · d².
struct squared {
  static float term(float d, float importance) noexcept { return importance * d * d; }
};

/// importance · |d|^norm, rounded to the compute dtype after every operation.
template <dtype Compute>
struct powered {
  float norm;
  float term(float d, float importance) const noexcept {
    const float distance = abs(round_number<Compute>(d));
    const float power = norm == 2.0f ? distance * distance : std::pow(distance, norm);
    return round_number<Compute>(round_number<Compute>(power) * importance);
  }
};

/// Error of at most error_run elements under one candidate. @pre count a multiple of `lanes`.
template <bool ZeroFirst, dtype Compute, class Term>
inline float run_error(const float* w, const float* importance, index_t count, rounding r, Term term) noexcept {
  float sum[lanes] = {};
  for (index_t i = 0; i < count; i += lanes)
    for (index_t j = 0; j < lanes; ++j) {
      const float x = w[i + j];
      const float steps = (rounded_steps<ZeroFirst, Compute>(x, r) - 12582912.0f) - r.shift;
      const float distance = round_number<Compute>(steps * r.scale) - x;
      sum[j] += term.term(distance, importance[i + j]);
    }
  for (index_t half = lanes / 2; half > 0; half /= 2)
    for (index_t j = 0; j < half; ++j) sum[j] += sum[j + half];
  return sum[0];
}

/// Errors of a whole group under several candidates. Large groups' runs are computed by all threads and added up in order.
template <bool ZeroFirst, dtype Compute, class Term, class Scheme>
void group_errors(const gathered& group, const params* candidates, index_t count, double* errors, Term term, Scheme s) {
  const float* const w = group.w.data();
  const float* const importance = group.importance.data();
  const index_t size = group.count;
  const auto run = [=](index_t first, const rounding& r) {
    return run_error<ZeroFirst, Compute>(w + first, importance + first, min(error_run, size - first), r, term);
  };
  if (size <= large_group) {
    vectorised([=] {
      for (index_t i = 0; i < count; ++i) {
        const rounding r = rounding_of<ZeroFirst>(candidates[i], s);
        double total = 0.0;
        for (index_t first = 0; first < size; first += error_run) total += run(first, r);
        errors[i] = total;
      }
    });
    return;
  }
  const index_t runs = ceil_div(size, error_run), step = 64;
  std::vector<float> run_errors(static_cast<std::size_t>(runs));
  for (index_t i = 0; i < count; ++i) {
    const rounding r = rounding_of<ZeroFirst>(candidates[i], s);
    float* const of_run = run_errors.data();
    parallel_for(ceil_div(runs, step), [=](index_t tile) {
      vectorised([=] {
        for (index_t j = tile * step; j < min(runs, (tile + 1) * step); ++j) of_run[j] = run(j * error_run, r);
      });
    });
    errors[i] = 0.0;
    for (const float error : run_errors) errors[i] += error;
  }
}

/// The best candidate so far.
struct choice {
  params p;
  double error;
  void consider(const candidate_list& list) noexcept {
    for (index_t i = 0; i < list.size(); ++i)
      if (list.errors[i] < error) *this = {list.candidates[i], list.errors[i]};
  }
};

/// The search that search.hpp describes. `errors_of(candidates, count, errors)` must tell the group's errors.
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
  // The margin is above the sums' rounding error, so that exact arithmetic agrees that this is no worse.
  return best.error < at_start * (1.0 - 0x1p-16) ? best.p : start;
}

/// The best of the first `steps` steps of m; `improved[i]` is set for every step that beat all before it.
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

/// f(zero first, compute dtype), both as constants, for a scheme.
template <class Scheme, class F>
void with_rule(Scheme s, F&& f) {
  with_dtype(s.compute_dtype, [&](auto compute) {
    if (s.rule == convention::compressed_tensors)
      f(std::true_type{}, compute);
    else
      f(std::false_type{}, compute);
  });
}

/// A group's rectangle in the weight matrix.
struct rectangle {
  index_t row, rows, col, cols;
  index_t size() const noexcept { return rows * cols; }
};

/// f(rectangle, params&, scratch) for every group. Small groups are shared out over the pool.
template <class F>
void for_groups(index_t n, index_t k, matrix<params> p, group_shape g, F f) {
  const index_t height = g.height(n), width = g.width(k), across = g.across(k);
  const auto run = [&](index_t first, index_t last) {
    gathered scratch;
    for (index_t i = first; i < last; ++i) {
      const index_t row = i / across * height, col = i % across * width;
      f(rectangle{row, min(height, n - row), col, min(width, k - col)}, p(i / across, i % across), scratch);
    }
  };
  const index_t groups = n > 0 && k > 0 ? g.down(n) * across : 0, size = min(height, n) * min(width, k);
  if (size > large_group) return run(0, groups);
  const index_t step = size > 0 ? ceil_div(65536, size) : 1;
  parallel_for(ceil_div(groups, step), [&](index_t tile) { run(tile * step, min(groups, (tile + 1) * step)); });
}

/// f(row, rows) over all rows of a rectangle: in one call for small groups, by the pool for large ones.
template <class F>
void for_rows(const rectangle& at, F f) {
  if (at.size() <= large_group) return f(index_t(0), at.rows);
  const index_t step = rows_at_once(at.cols);
  parallel_for(ceil_div(at.rows, step), [&](index_t tile) { f(tile * step, min(step, at.rows - tile * step)); });
}

/// [0, 0] when there is no finite value.
template <class T>
range range_of(matrix<const T> w, const rectangle& at) {
  const index_t step = at.size() > large_group ? rows_at_once(at.cols) : at.rows;
  const auto piece = [&](index_t first) {
    range found;
    vectorised([&] {
      extent lanes_of;
      for (index_t row = first; row < min(at.rows, first + step); ++row)
        lanes_of.add(w.row(at.row + row) + at.col, at.cols);
      found = lanes_of.fold();
    });
    return found;
  };
  range whole;
  if (step >= at.rows) {
    whole = piece(0);
  } else {
    std::vector<range> pieces(static_cast<std::size_t>(ceil_div(at.rows, step)));
    parallel_for(static_cast<index_t>(pieces.size()), [&](index_t i) { pieces[i] = piece(i * step); });
    for (const range& part : pieces) whole.widen(part);
  }
  return whole.low > whole.high ? range{0.0f, 0.0f} : whole;
}

template <class T>
void gather(matrix<const T> w, const rectangle& at, const float* importance, gathered& to) {
  to.resize(at.size());
  const float* const weight = importance == nullptr ? nullptr : importance + at.col;
  for_rows(at, [&](index_t first, index_t rows) {
    vectorised([&] {
      for (index_t row = first; row < first + rows; ++row)
        to.copy(w.row(at.row + row) + at.col, at.cols, weight, row * at.cols);
    });
  });
  to.ends = range_of(w, at);  // of the finite weights alone, not of the zeros in the others' places
}

/// The value below which a share `p` of the sorted values lies, interpolated linearly between neighbours.
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

/// w (n, k) row-major; p (g.down(n), g.across(k)). Every group's least and greatest weight.
template <class Scheme, class T>
void fit(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, minmax, const float* = nullptr) {
  detail::for_groups(w.rows, w.cols, p, g, [&](const detail::rectangle& at, params& of_group, detail::gathered&) {
    const auto ends = detail::range_of(w, at);
    of_group = nibble::fit(ends.low, ends.high, s);
  });
}

/// @param importance (k) weight of each input channel's error, or null for 1. The range itself does not depend on it.
template <class Scheme, class T>
void fit(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, const ends_search& m,
         const float* importance = nullptr) {
  detail::with_rule(s, [&](auto zero_first, auto compute) {
    constexpr bool first = decltype(zero_first)::value;
    detail::for_groups(w.rows, w.cols, p, g, [&](const detail::rectangle& at, params& of_group, detail::gathered& to) {
      detail::gather(w, at, importance, to);
      of_group = detail::search_ends(to.ends, s, m, to.list, [&](const params* tried, index_t count, double* errors) {
        detail::group_errors<first, compute.value>(to, tried, count, errors, detail::squared{}, s);
      });
    });
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
      detail::for_groups(
          w.rows, w.cols, p, g, [&](const detail::rectangle& at, params& of_group, detail::gathered& to) {
            detail::gather(w, at, importance, to);
            of_group = detail::search_grid(
                to.ends, s, m, limit, improved.get(), [&](const params* tried, index_t count, double* errors) {
                  detail::group_errors<first, compute.value>(to, tried, count, errors, term, s);
                });
          });
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
  detail::for_groups(w.rows, w.cols, p, g, [&](const detail::rectangle& at, params& of_group, detail::gathered&) {
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

/// Σ importance · (x' − x)² over one group, in the order search.hpp gives; what is not finite is left out.
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
