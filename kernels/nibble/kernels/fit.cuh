// SPDX-License-Identifier: Apache-2.0
/// @file
/// nibble::fit over matrices on a GPU; equal to the reference bit for bit, but for powers as told below.
#pragma once

#include <type_traits>

#include "nibble/kernels/check.hpp"
#include "nibble/kernels/detail/fit.cuh"
#include "nibble/kernels/detail/percentile.cuh"
#include "nibble/kernels/detail/search.cuh"
#include "nibble/kernels/launch.cuh"
#include "nibble/kernels/tuning/fit.cuh"
#include "nibble/kernels/workspace.hpp"
#include "nibble/search.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

template <class T, class Scheme>
status check_fit(matrix<const T> w, matrix<params> p, group_shape g, Scheme s) noexcept {
  if (s.bits < 1 || s.bits > 8) return status::bad_bits;
  if (!well_formed(w)) return status::bad_shape;
  if (!aligned(w)) return status::misaligned;
  return check_groups(p, w.rows, w.cols, g);
}

template <class T, class Scheme>
status check_search(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, const float* importance) noexcept {
  const status checked = check_fit(w, p, g, s);
  if (checked != status::ok) return checked;
  return aligned(importance) ? status::ok : status::misaligned;
}

/// Whether every group's piece of every row can be read by 16-byte accesses from its start.
template <class T>
bool groups_aligned(matrix<const T> w, index_t width) noexcept {
  constexpr index_t step = 16 / sizeof(T);
  return aligned(w, step) && (width % step == 0 || width >= w.cols);
}

/// Where a group is `width` columns of a row: lanes that share it, Items columns each, at least `least`; 0 where a warp is too
/// few.
template <int Items>
int lanes_of_group(index_t width, int least) noexcept {
  if (width > 32 * Items) return 0;
  const auto lanes = static_cast<int>(power_of_two(ceil_div(width, Items), 32));
  return lanes < least ? least : lanes;
}

/// start(grid, block, blocks across) for teams of `lanes` threads, a group of one row each, blocks of `threads` threads and
/// `rows` rows a thread.
template <class F>
status launch_groups(index_t n, index_t groups_across, int lanes, int threads, int rows, F start) {
  const index_t wide = power_of_two(groups_across * lanes, threads), high = threads / wide;
  const index_t across = ceil_div(groups_across * lanes, wide), down = ceil_div(n, high * rows);
  if (across > 2147483647 / down) return status::too_large;
  return start(extent3(across * down), extent3(wide, high), static_cast<unsigned>(across));
}

/// How a group that is too large for one block is cut.
struct cut {
  index_t rows, cols, down, across;
  cut(index_t height, index_t width) noexcept {
    constexpr index_t piece = index_t{1} << 16;
    cols = width < piece ? width : piece;
    rows = piece / cols < height ? piece / cols : height;
    down = ceil_div(height, rows);
    across = ceil_div(width, cols);
  }
  bool whole() const noexcept { return down == 1 && across == 1; }
};

/// A group's range by several blocks, which meet in the memory of its parameters.
template <class Tuned, int Items, class Scheme, class T>
status fit_pieces(matrix<const T> w, matrix<params> p, group_shape g, bool wide, cut pieces, Scheme s,
                  cudaStream_t stream) {
  constexpr int threads = Tuned::value.threads;
  const index_t count = pieces.down * pieces.across;
  if (count > 2147483647 / p.size()) return status::too_large;
  const extent3 groups(ceil_div(p.size(), threads));
  status done = launch(fit_begin_kernel<Tuned>, groups, threads, 0, stream, p);
  if (done != status::ok) return done;
  done = launch(fit_pieces_kernel<Tuned, Items, T>, extent3(p.size() * count), threads, 0, stream, w, p, g, wide,
                pieces.rows, pieces.cols, pieces.down, pieces.across);
  if (done != status::ok) return done;
  return launch(fit_end_kernel<Tuned, Scheme>, groups, threads, 0, stream, p, s);
}

template <class Tuned, int Items, class Scheme, class T>
status fit_ranges(matrix<const T> w, matrix<params> p, group_shape g, bool wide, Scheme s, cudaStream_t stream) {
  constexpr int threads = Tuned::value.threads, rows = Tuned::value.in_flight;
  const index_t height = g.height(w.rows) < w.rows ? g.height(w.rows) : w.rows;
  const index_t width = g.width(w.cols) < w.cols ? g.width(w.cols) : w.cols;
  const int lanes = height == 1 ? lanes_of_group<Items>(width, rows) : 0;
  if (lanes > 0)
    return launch_groups(w.rows, p.cols, lanes, threads, rows, [&](extent3 grid, extent3 block, unsigned across) {
      return launch(fit_rows_kernel<Tuned, Items, Scheme, T>, grid, block, 0, stream, w, p, width, lanes, wide, s,
                    across);
    });
  const cut pieces(height, width);
  if (!pieces.whole()) return fit_pieces<Tuned, Items>(w, p, g, wide, pieces, s, stream);
  constexpr index_t of_warp = 1024;
  if (height * width > of_warp)
    return launch(fit_groups_kernel<Tuned, Items, true, Scheme, T>, p.size(), threads, 0, stream, w, p, g, wide, s);
  return launch(fit_groups_kernel<Tuned, Items, false, Scheme, T>, ceil_div(p.size(), threads / 32), threads, 0, stream,
                w, p, g, wide, s);
}

/// start(whether a block has a group, else a team of lanes; grid) for a search.
template <class Tuned, class T, class F>
status launch_search(matrix<const T> w, index_t groups, group_shape g, F start) {
  constexpr index_t most = team_lanes * team_terms;
  const index_t height = g.height(w.rows) < w.rows ? g.height(w.rows) : w.rows;
  const index_t width = g.width(w.cols) < w.cols ? g.width(w.cols) : w.cols;
  if (width > most || height > most / width) return start(std::true_type{}, groups);
  return start(std::false_type{}, ceil_div(groups, Tuned::value.threads / team_lanes));
}

/// How a caller's workspace is divided: what may end the search, then every group's range, then what each group found.
struct grid_workspace {
  index_t words, groups;
  index_t bytes() const noexcept {
    return 4 * round_up(words, 2) + groups * (static_cast<index_t>(sizeof(range)) + 4 * words);
  }
  grid_memory at(void* base) const noexcept {
    auto* const any = static_cast<uint32_t*>(base);
    auto* const ends = reinterpret_cast<range*>(any + round_up(words, 2));
    return {any, reinterpret_cast<uint32_t*>(ends + groups), ends, groups};
  }
};

}  // namespace detail

/// reference::fit on device pointers, asynchronous in `stream`. w (n, k) float, fp16 or bf16, any stride; p (g.down(n),
/// g.across(k)). By 16-byte accesses where every group's rows start at a multiple of 16 bytes. Groups of more than 2^16
/// weights are read by several blocks each, which meet in p.
/// @returns bad_bits, bad_shape, bad_group, misaligned (to less than an element), or what launch says.
template <class Scheme, class T>
status fit(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, minmax, const float*, cudaStream_t stream) {
  const status checked = detail::check_fit(w, p, g, s);
  if (checked != status::ok || w.empty()) return checked;
  constexpr int items = 16 / static_cast<int>(sizeof(T));
  return dispatch(tuning::fit{}, [&](auto tuned) {
    const bool wide = detail::groups_aligned(w, g.width(w.cols));
    return detail::fit_ranges<decltype(tuned), items>(w, p, g, wide, s, stream);
  });
}

/// The same; @param importance (k) in device memory, or null for 1.
/// @pre m.steps in [1, 1000], m.max_shrink in [0, 1).
template <class Scheme, class T>
status fit(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, ends_search m, const float* importance,
           cudaStream_t stream) {
  const status checked = detail::check_search(w, p, g, s, importance);
  if (checked != status::ok || w.empty()) return checked;
  return dispatch(tuning::fit_search{}, [&](auto tuned) {
    return detail::launch_search<decltype(tuned)>(w, p.size(), g, [&](auto block, index_t grid) {
      return launch(detail::fit_ends_kernel<decltype(tuned), decltype(block)::value, Scheme, T>, grid,
                    tuned.value.threads, 0, stream, w, p, g, s, m, importance);
    });
  });
}

/// The same. Patience counts for the whole matrix, so what each group found is kept in the workspace until all are through. A
/// norm other than 2 takes powers, which a C library rounds a little otherwise: where two steps' errors are within 2^-16 of one
/// another, in float, the reference may prefer the other.
/// @returns workspace_too_small besides.
template <class Scheme, class T>
status fit(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, mse_search m, const float* importance,
           void* workspace, index_t& workspace_bytes, cudaStream_t stream) {
  const status checked = detail::check_search(w, p, g, s, importance);
  if (checked != status::ok) return checked;
  const int steps = m.max_shrink * m.grid < 1.0 ? 0 : static_cast<int>(m.max_shrink * m.grid);
  const bool may_end = m.patience > 0 && m.patience < steps;
  const detail::grid_workspace needed{ceil_div(steps, 32), p.size()};
  const status room = detail::check_workspace(workspace, workspace_bytes, may_end && !w.empty() ? needed.bytes() : 0);
  if (room != status::ok || workspace == nullptr || w.empty()) return room;
  detail::grid_memory memory{};
  if (may_end) {
    memory = needed.at(workspace);
    if (cudaMemsetAsync(memory.any, 0, static_cast<size_t>(4 * needed.words), stream) != cudaSuccess)
      return status::launch_failed;
  }
  return dispatch(tuning::fit_search{}, [&](auto tuned) {
    constexpr int threads = tuned.value.threads;
    const status searched = detail::launch_search<decltype(tuned)>(w, p.size(), g, [&](auto block, index_t grid) {
      return launch(detail::fit_grid_kernel<decltype(tuned), decltype(block)::value, Scheme, T>, grid, threads, 0,
                    stream, w, p, g, s, m, steps, importance, memory);
    });
    if (searched != status::ok || !may_end) return searched;
    return launch(detail::fit_grid_choose_kernel<decltype(tuned), Scheme>, ceil_div(p.size(), threads), threads, 0,
                  stream, p, s, m, steps, memory);
  });
}

/// The same; the importance has no part in a percentile.
/// @returns too_large also for groups of 2^32 weights or more. @pre m.p in [50, 100].
template <class Scheme, class T>
status fit(matrix<const T> w, matrix<params> p, group_shape g, Scheme s, percentile m, const float*,
           cudaStream_t stream) {
  const status checked = detail::check_fit(w, p, g, s);
  if (checked != status::ok || w.empty()) return checked;
  const index_t height = g.height(w.rows) < w.rows ? g.height(w.rows) : w.rows;
  const index_t width = g.width(w.cols) < w.cols ? g.width(w.cols) : w.cols;
  if (height > 4294967295 / width) return status::too_large;
  const double share = static_cast<double>(m.p) / 100.0;
  return dispatch(tuning::fit_search{}, [&](auto tuned) {
    const index_t wanted = ceil_div(height * width, 4), most = tuned.value.threads;
    const index_t threads = wanted < 32 ? 32 : detail::power_of_two(wanted, most);
    return launch(detail::fit_percentile_kernel<decltype(tuned), Scheme, T>, p.size(), threads, 0, stream, w, p, g, s,
                  share);
  });
}

}  // namespace kernels
NIBBLE_NAMESPACE_END
