// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels of fit's searches, without their launchers: this much compiles under NVRTC.
#pragma once

#include "nibble/fit.hpp"
#include "nibble/kernels/detail/search_group.cuh"
#include "nibble/search.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// ends_search as search.hpp describes it.
template <class Group, class Scheme>
__device__ params search_ends(const Group& group, Scheme s, ends_search m) {
  const params start = fit(group.ends.low, group.ends.high, s);
  const float low = min(group.ends.low, 0.0f), high = max(group.ends.high, 0.0f);
  const int steps = s.symmetric ? 2 * m.steps : m.steps, side = steps + 1;
  const float step = device::divide(m.max_shrink, static_cast<float>(steps));
  const auto shrunk = [=](float end, int i) {
    return device::multiply(end, device::subtract(1.0f, device::multiply(static_cast<float>(i), step)));
  };
  params best = start;
  double at_start = 0.0, least = 0.0;
  const auto consider = [&](int i, params p, double error) {
    if (i == 0) at_start = least = error;
    if (!(error < least)) return;
    least = error;
    best = p;
  };
  const auto of_grid = [=](int i) {
    if (i == 0) return start;
    const int at_low = s.symmetric ? i - 1 : (i - 1) / side, at_high = s.symmetric ? i - 1 : (i - 1) % side;
    return fit(shrunk(low, at_low), shrunk(high, at_high), s);
  };
  group.try_all(1 + (s.symmetric ? side : side * side), of_grid, consider);
  float part = device::multiply(step, 0.5f);
  for (int round = 0; round < m.refinements; ++round, part = device::multiply(part, 0.5f)) {
    const params centre = best;
    const auto around = [=](int i) {
      const float factor = i == 0 ? device::subtract(1.0f, part) : device::add(1.0f, part);
      return params{stored_scale(device::multiply(centre.scale, factor), s), centre.zero};
    };
    group.try_all(2, around, [&](int i, params p, double error) { consider(i + 1, p, error); });
  }
  return least < device::multiply(at_start, 1.0 - 0x1p-16) ? best : start;
}

/// What mse_search fits at its step `i`.
template <class Scheme>
__device__ params grid_candidate(range ends, int i, int grid, Scheme s) {
  const double part = device::divide(static_cast<double>(i), static_cast<double>(grid));
  const auto shrink = static_cast<float>(device::subtract(1.0, part));
  return fit(round_to(s.compute_dtype, device::multiply(ends.low, shrink)),
             round_to(s.compute_dtype, device::multiply(ends.high, shrink)), s);
}

/// Steps of mse_search from a multiple of 32 on, at most 32, after those before. @returns a bit for each that won.
struct grid_best {
  params p;
  float error;

  template <class Group, class Scheme>
  __device__ uint32_t search(const Group& group, Scheme s, mse_search m, int first, int count) {
    uint32_t won = 0;
    const auto make = [&](int i) { return grid_candidate(group.ends, first + i, m.grid, s); };
    group.try_all(count, make, [&](int i, params tried, double total) {
      const float rounded = round_to(s.compute_dtype, static_cast<float>(total));
      if (!(rounded < error)) return;
      error = rounded;
      p = tried;
      won |= 1u << i;
    });
    return won;
  }
};

/// What mse_search remembers where patience may end it: patience counts for the whole matrix, so the end is known only when
/// every group has tried every step. Bit i % 32 of word i / 32 is step i.
struct grid_memory {
  uint32_t* any;  ///< (words): steps in which some group improved; null where patience cannot end the search
  uint32_t* won;  ///< (words, groups): steps in which this one did
  range* ends;    ///< (groups)
  index_t groups;
};

/// One group's search, written down.
template <int Threads, class Group, class Scheme>
__device__ void search_grid(const Group& group, bool there, bool leads, index_t i, params& out, Scheme s, mse_search m,
                            int steps, grid_memory memory) {
  NIBBLE_SHARED(uint32_t, of_block, 1);
  grid_best best{fit(group.ends.low, group.ends.high, s), largest(s.compute_dtype)};
  const bool writes = there && leads;
  for (int first = 0; first < steps; first += 32) {
    const uint32_t won = best.search(group, s, m, first, min(32, steps - first));
    if (memory.any == nullptr) continue;
    if (threadIdx.x == 0) of_block[0] = 0;
    device::barrier();
    if (writes) {
      memory.won[first / 32 * memory.groups + i] = won;
      device::atomic_or(of_block, won);
    }
    device::barrier();
    if (threadIdx.x == 0) device::atomic_or(memory.any + first / 32, of_block[0]);
  }
  if (!writes) return;
  if (memory.any != nullptr)
    memory.ends[i] = group.ends;
  else
    out = best.p;
}

/// f(group, there, leads, number, params) for a thread's group: of a team or of a block.
template <class Tuned, bool Block, class Scheme, class T, class Term, class F>
__device__ void with_group(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, Term term,
                           const float* importance, F f) {
  constexpr int threads = Tuned::value.threads;
  const grouping groups(w.rows, w.cols, g);
  const auto thread = static_cast<int>(threadIdx.x);
  if constexpr (Block) {
    NIBBLE_SHARED(block_trial, trial, 1);
    const index_t i = blockIdx.x;
    const block_group<threads, Scheme, Term, T> group(w, groups.of(i), importance, trial, s, term);
    f(group, true, thread == 0, i, p(groups.row_of(i), groups.col_of(i)));
  } else {
    NIBBLE_SHARED(weighed, held, threads * team_terms);
    const index_t i = (index_t{blockIdx.x} * threads + thread) / team_lanes;
    const bool there = i < p.size();
    const index_t known = there ? i : 0;
    const team_group<threads, Scheme, Term> group(w, groups.of(known), there, importance, held + thread, s, term);
    f(group, there, thread % team_lanes == 0, known, p(groups.row_of(known), groups.col_of(known)));
  }
}

/// What to do with a group: ends_search.
template <class Scheme>
struct by_ends {
  Scheme s;
  ends_search m;
  template <class Group>
  __device__ void operator()(const Group& group, bool there, bool leads, index_t, params& out) const {
    const params found = search_ends(group, s, m);
    if (there && leads) out = found;
  }
};

/// mse_search.
template <int Threads, class Scheme>
struct by_grid {
  Scheme s;
  mse_search m;
  int steps;
  grid_memory memory;
  template <class Group>
  __device__ void operator()(const Group& group, bool there, bool leads, index_t i, params& out) const {
    search_grid<Threads>(group, there, leads, i, out, s, m, steps, memory);
  }
};

template <class Tuned, bool Block, class Scheme, class T>
__global__ void __launch_bounds__(Tuned::value.threads, Tuned::value.blocks)
    fit_ends_kernel(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, ends_search m,
                    const float* importance) {
  with_group<Tuned, Block>(w, p, g, s, squared{}, importance, by_ends<Scheme>{s, m});
}

template <class Tuned, bool Block, class Scheme, class T>
__global__ void __launch_bounds__(Tuned::value.threads, Tuned::value.blocks)
    fit_grid_kernel(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, mse_search m, int steps,
                    const float* importance, grid_memory memory) {
  const powered term{s.compute_dtype, round_to(s.compute_dtype, m.norm)};
  with_group<Tuned, Block>(w, p, g, s, term, importance, by_grid<Tuned::value.threads, Scheme>{s, m, steps, memory});
}

/// The best step before patience ended the search, a group a thread.
template <class Tuned, class Scheme>
__global__ void __launch_bounds__(Tuned::value.threads)
    fit_grid_choose_kernel(matrix<params> p, Scheme s, mse_search m, int steps, grid_memory memory) {
  const auto is_set = [](uint32_t word, int i) { return (word >> (i % 32) & 1u) != 0; };
  const index_t group = index_t{blockIdx.x} * Tuned::value.threads + threadIdx.x;
  if (group >= memory.groups) return;
  int won = -1, idle = 0;
  for (int i = 0; i < steps && idle < m.patience; ++i) {
    idle = is_set(memory.any[i / 32], i) ? 0 : idle + 1;
    if (is_set(memory.won[i / 32 * memory.groups + group], i)) won = i;
  }
  const range ends = memory.ends[group];
  p(group / p.cols, group % p.cols) = won < 0 ? fit(ends.low, ends.high, s) : grid_candidate(ends, won, m.grid, s);
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
