// SPDX-License-Identifier: Apache-2.0
/// @file
/// The groups of a weight matrix as searches for parameters see them: which
/// rectangle each is, its finite weights in one piece, their range, and the
/// errors of candidates in the order of summation that search.hpp states.
/// Groups of more than 2^18 elements (per tensor) are shared out over the
/// threads piece by piece, others whole.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "nibble/fit.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/host/simd.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

constexpr index_t partial_sums = 16;  ///< partial sums of an error
constexpr index_t error_run = 1024;   ///< elements whose partial sums stay in float
constexpr index_t large_group = index_t(1) << 18;

/// Least and greatest finite value of a group; low > high when there is none.
struct range {
  float low = std::numeric_limits<float>::infinity(), high = -std::numeric_limits<float>::infinity();

  void widen(const range& other) noexcept {
    low = min(low, other.low);
    high = max(high, other.high);
  }
};

/// Least and greatest finite value, kept in partial_sums.
struct extent {
  float low[partial_sums], high[partial_sums];

  extent() noexcept {
    for (index_t j = 0; j < partial_sums; ++j) {
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
    const index_t whole = count - count % partial_sums;
    for (index_t i = 0; i < whole; i += partial_sums)
      for (index_t j = 0; j < partial_sums; ++j) local.add(load(x[i + j]), j);
    for (index_t i = whole; i < count; ++i) local.add(load(x[i]), i - whole);
    *this = local;
  }
  range fold() noexcept {
    for (index_t half = partial_sums / 2; half > 0; half /= 2)
      for (index_t j = 0; j < half; ++j) {
        low[j] = min(low[j], low[j + half]);
        high[j] = max(high[j], high[j + half]);
      }
    return {low[0], high[0]};
  }
};

/// A group's weights as the searches read them: contiguous, padded to whole
/// partial_sums; what is not finite has importance 0.
struct gathered {
  std::vector<float> w, importance;
  index_t count = 0;
  range ends;

  void resize(index_t elements) {
    count = round_up(elements, partial_sums);
    const auto size = static_cast<std::size_t>(count);
    if (w.size() < size) w.resize(size), importance.resize(size);
    std::fill(w.begin() + elements, w.begin() + count, 0.0f);
    std::fill(importance.begin() + elements, importance.begin() + count, 0.0f);
    ends = {};
  }
  /// @param weight per element, or null for 1; what is not a positive number
  /// counts as 0.
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

/// A group's rectangle in the weight matrix.
struct rectangle {
  index_t row, rows, col, cols;
  index_t size() const noexcept { return rows * cols; }
};

/// f(rectangle, parameters&, Scratch&) for every group. Small groups are shared
/// out over the pool, a Scratch a tile.
template <class Scratch, class P, class F>
void for_groups(index_t n, index_t k, matrix<P> p, group_shape g, F f) {
  const index_t height = g.height(n), width = g.width(k), across = g.across(k);
  const auto run = [&](index_t first, index_t last) {
    Scratch scratch;
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

/// f(row, rows) over all rows of a rectangle: in one call for small groups, by
/// the pool for large ones.
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
  to.ends = range_of(w, at);  // of the finite weights alone, not of the zeros in
                              // the others' places
}

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

/// Error of at most error_run elements under one candidate. @pre count a
/// multiple of `partial_sums`.
template <bool ZeroFirst, dtype Compute, class Term>
inline float run_error(const float* w, const float* importance, index_t count, rounding r, Term term) noexcept {
  float sum[partial_sums] = {};
  for (index_t i = 0; i < count; i += partial_sums)
    for (index_t j = 0; j < partial_sums; ++j) {
      const float x = w[i + j];
      const float steps = (rounded_steps<ZeroFirst, Compute>(x, r) - 12582912.0f) - r.shift;
      const float distance = round_number<Compute>(steps * r.scale) - x;
      sum[j] += term.term(distance, importance[i + j]);
    }
  for (index_t half = partial_sums / 2; half > 0; half /= 2)
    for (index_t j = 0; j < half; ++j) sum[j] += sum[j + half];
  return sum[0];
}

/// Errors of a whole group under several candidates. Large groups' runs are
/// computed by all threads and added up in order.
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

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END
