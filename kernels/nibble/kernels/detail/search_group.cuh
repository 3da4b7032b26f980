// SPDX-License-Identifier: Apache-2.0
/// @file
/// A group as fit's searches try candidates on it. Sixteen lanes are a team, one for each of the partial sums that search.hpp
/// states, so that every candidate's error has the reference's bits. A group of at most 256 weights has a team to itself, which
/// keeps its weights in shared memory and tries one candidate after another. A larger group has a block, whose teams take runs of
/// 1024 weights and candidates in turn and read the weights again from the caches: two candidates a read take some fifty
/// instructions, the read a few.
#pragma once

#include "nibble/fit.hpp"
#include "nibble/kernels/detail/range.cuh"
#include "nibble/quantize.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

inline constexpr int team_lanes = 16;
inline constexpr int team_terms = 16;     ///< of each lane, at most
inline constexpr int error_run = 1024;    ///< weights whose partial sums stay in float
inline constexpr int tried_at_once = 16;  ///< candidates of a block

/// importance · d², d = x' − x.
struct squared {
  __device__ float operator()(float d, float importance) const {
    return device::multiply(device::multiply(importance, d), d);
  }
};

/// importance · |d|^norm, rounded to the compute dtype after every operation.
struct powered {
  dtype type;
  float norm;
  __device__ float operator()(float d, float importance) const {
    const float distance = abs(round_to(type, d));
    const float power = norm == 2.0f ? device::multiply(distance, distance) : device::power(distance, norm);
    return round_to(type, device::multiply(round_to(type, power), importance));
  }
};

/// A weight as searches see it: what is not finite is 0 and has no importance, nor has what is not weighed by a positive number.
struct weighed {
  float x, importance;

  /// @param weight of importance, in global memory, or null for 1.
  template <class T>
  __device__ static weighed of(T stored, const float* weight) {
    const auto x = static_cast<float>(stored);
    if (!is_finite(x)) return {0.0f, 0.0f};
    const float given = weight == nullptr ? 1.0f : *weight;
    return {x, given > 0.0f && is_finite(given) ? given : 0.0f};
  }
  template <class Scheme, class Term>
  __device__ float error(params p, Scheme s, Term term) const {
    return term(device::subtract(dequantize(quantize(x, p, s), p, s), x), importance);
  }
};

/// The sum of a team's partial sums, folded 16 → 8 → 4 → 2 → 1; every lane of the warp takes part and learns its team's.
__device__ inline float folded(float sum) {
  for (int half = team_lanes / 2; half > 0; half /= 2) sum = device::add(sum, device::shuffle_xor(sum, half));
  return sum;
}

/// A group of at most team_lanes · team_terms weights, of which a lane holds every sixteenth.
template <int Threads, class Scheme, class Term>
struct team_group {
  Scheme s;
  Term term;
  range ends;
  int me, terms;
  const weighed* held;  ///< every Threads-th

  /// Gathers the group, or nothing where it is not `there`; the warp's two teams come together.
  template <class T>
  __device__ team_group(matrix<const T> w, rectangle at, bool there, const float* importance, weighed* to, Scheme s_,
                        Term term_)
      : s(s_), term(term_), held(to) {
    me = static_cast<int>(threadIdx.x) % team_lanes;
    const int cols = there ? static_cast<int>(at.cols) : 1, size = there ? static_cast<int>(at.size()) : 0;
    terms = (size + team_lanes - 1) / team_lanes;
    range seen = range::none();
    for (int i = 0; i < terms; ++i) {
      const int e = i * team_lanes + me;
      to[i * Threads] = {0.0f, 0.0f};
      if (e >= size) continue;
      const index_t row = at.row + e / cols, col = at.col + e % cols;
      const T x = w(row, col);
      to[i * Threads] = weighed::of(x, importance == nullptr ? nullptr : importance + col);
      seen.add(static_cast<float>(x));
    }
    ends = warp_range(seen, team_lanes).or_zero();
  }

  __device__ double error(params p) const {
    float sum = 0.0f;
    for (int i = 0; i < terms; ++i) sum = device::add(sum, held[i * Threads].error(p, s, term));
    return static_cast<double>(folded(sum));
  }

  /// consider(i, candidate, error) of candidates make(i), i = 0 … count − 1, in order and in all lanes alike. Each lane makes
  /// another one, for a fit costs as much as a few terms of an error.
  template <class Make, class Consider>
  __device__ void try_all(int count, Make make, Consider consider) const {
    for (int first = 0; first < count; first += team_lanes) {
      const params made = make(min(first + me, count - 1));
      for (int i = first; i < min(first + team_lanes, count); ++i) {
        const params p = device::shuffle(made, device::lane() - me + i - first);
        consider(i, p, error(p));
      }
    }
  }
};

/// What the threads of a block tell one another about candidates.
struct block_trial {
  double total[tried_at_once];
  params p[tried_at_once];
  float of_run[tried_at_once][tried_at_once + 1];  ///< run, candidate
};

/// A group of any size, of which a block's teams read runs.
template <int Threads, class Scheme, class Term, class T>
struct block_group {
  Scheme s;
  Term term;
  range ends;
  matrix<const T> w;        ///< the group
  const float* importance;  ///< of its columns
  block_trial* trial;

  __device__ block_group(matrix<const T> of, rectangle at, const float* importance_, block_trial* trial_, Scheme s_,
                         Term term_)
      : s(s_),
        term(term_),
        w(of.rows_at(at.row, at.rows).cols_at(at.col, at.cols)),
        importance(importance_ == nullptr ? nullptr : importance_ + at.col),
        trial(trial_) {
    const rectangle all{0, at.rows, 0, at.cols};
    ends = block_range<Threads>(seen_range<1, 4>(w, all, static_cast<int>(threadIdx.x), Threads, false)).or_zero();
  }

  /// Partial sums of a run under two candidates.
  __device__ void add_run(index_t run, params a, params b, float (&sum)[2]) const {
    const index_t first = run * error_run + threadIdx.x % team_lanes, left = w.size() - first;
    const int count = static_cast<int>(min(index_t{error_run}, left));
    const T* row = w.row(first / w.cols);
    index_t col = first % w.cols;
#pragma unroll 1
    for (int i = 0; i < count; i += team_lanes) {
      const weighed x = weighed::of(row[col], importance == nullptr ? nullptr : importance + col);
      sum[0] = device::add(sum[0], x.error(a, s, term));
      sum[1] = device::add(sum[1], x.error(b, s, term));
      for (col += team_lanes; col >= w.cols; col -= w.cols) row += w.stride;
    }
  }

  /// Errors of `count` candidates in at most tried_at_once runs from `first_run` on.
  __device__ void try_runs(index_t first_run, int runs, int count) const {
    constexpr int teams = Threads / team_lanes;
    const int team = static_cast<int>(threadIdx.x) / team_lanes, pairs = (count + 1) / 2;
    for (int first = 0; first < runs * pairs; first += teams) {
      const int i = first + team, run = i / pairs, a = i % pairs * 2;
      const int b = min(a + 1, count - 1);  // or a again, with the same sum
      float sum[2] = {};
      if (run < runs) add_run(first_run + run, trial->p[a], trial->p[b], sum);
      const float of_a = folded(sum[0]), of_b = folded(sum[1]);
      if (run >= runs || threadIdx.x % team_lanes != 0) continue;
      trial->of_run[run][a] = of_a;
      trial->of_run[run][b] = of_b;
    }
  }

  /// As team_group's, in all threads of the block alike.
  template <class Make, class Consider>
  __device__ void try_all(int count, Make make, Consider consider) const {
    const int me = static_cast<int>(threadIdx.x);
    const index_t runs = ceil_div(w.size(), error_run);
    for (int first = 0; first < count; first += tried_at_once) {
      const int now = min(tried_at_once, count - first);
      if (me < now) {
        trial->p[me] = make(first + me);
        trial->total[me] = 0.0;
      }
      for (index_t run = 0; run < runs; run += tried_at_once) {
        const int at_once = static_cast<int>(min(index_t{tried_at_once}, runs - run));
        device::barrier();
        try_runs(run, at_once, now);
        device::barrier();
        for (int i = 0; i < at_once && me < now; ++i)
          trial->total[me] = device::add(trial->total[me], static_cast<double>(trial->of_run[i][me]));
      }
      device::barrier();
      for (int i = 0; i < now; ++i) consider(first + i, trial->p[i], trial->total[i]);
      device::barrier();
    }
  }
};

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
