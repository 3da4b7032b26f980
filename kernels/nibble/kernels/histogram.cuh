// SPDX-License-Identifier: Apache-2.0
/// @file
/// Row observe on a GPU, what fixed scales of activations are chosen by: ranges, histograms and thresholds. Ranges and counts are the
/// host's bits, whatever the chunks and the order of blocks. What is added to begins as bytes of 0.
#pragma once

#include "nibble/kernels/check.hpp"
#include "nibble/kernels/detail/histogram.cuh"
#include "nibble/kernels/launch.cuh"
#include "nibble/kernels/tuning/histogram.cuh"
#include "nibble/kernels/workspace.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// f(items, blocks across, tiles) for x (m, k), not empty: by 16-byte accesses where it is aligned for them.
template <class Tuned, class T, class F>
status over_observed(matrix<const T> x, F f) {
  constexpr auto policy = Tuned::value;
  const index_t tiles = ceil_div(x.rows, policy.tokens);
  const auto by = [&](auto items) {
    const index_t across = ceil_div(x.cols, policy.across * items.value);
    return across > 2147483647 / tiles ? status::too_large : f(items, across, tiles);
  };
  constexpr int wide = 16 / int{sizeof(T)};
  return aligned(x, wide) ? by(constant<wide>{}) : by(constant<1>{});
}

/// Launches both passes of a range, or asks for the workspace. @param ranges (k), or (1) if Whole.
template <bool Whole, class T>
status launch_ranges(matrix<const T> x, value_range* ranges, void* workspace, index_t& bytes, cudaStream_t stream) {
  if (!well_formed(x) || (ranges == nullptr && (Whole || x.cols > 0))) return status::bad_shape;
  if (!aligned(x) || !aligned(ranges)) return status::misaligned;
  return dispatch(tuning::histogram{}, [&](auto tuned) {
    using policy = decltype(tuned);
    constexpr auto value = policy::value;
    constexpr auto size = static_cast<index_t>(sizeof(range_ends));
    const index_t tiles = ceil_div(x.rows, value.tokens), wide = Whole ? ceil_div(x.cols, value.across) : x.cols;
    if (tiles > 0 && wide > 2147483647 / tiles) return status::too_large;
    const status checked = check_workspace(workspace, bytes, tiles * wide * size);
    if (checked != status::ok || workspace == nullptr || x.empty()) return checked;
    return over_observed<policy>(x, [&](auto items, index_t across, index_t down) {
      const matrix<range_ends> partial(static_cast<range_ends*>(workspace), down, Whole ? across : x.cols);
      const status done =
          launch(range_kernel<policy, items.value, Whole, T>, across * down, extent3(value.across, value.down), 0,
                 stream, x, partial, static_cast<unsigned>(across));
      if (done != status::ok) return done;
      const matrix<const range_ends> parts = partial;
      if constexpr (Whole)
        return launch(join_range_kernel<policy>, 1, value.joining, 0, stream, parts.data, parts.size(), ranges);
      else
        return launch(join_channel_ranges_kernel<policy>, ceil_div(x.cols, value.joining), value.joining, 0, stream,
                      parts, ranges);
    });
  });
}

/// Launches a search over `count` histograms, or asks for the workspace.
template <class Rule>
status launch_search(const histogram_counts* h, index_t count, Rule rule, float* thresholds, void* workspace,
                     index_t& bytes, cudaStream_t stream) {
  return dispatch(tuning::histogram{}, [&](auto tuned) {
    using policy = decltype(tuned);
    constexpr index_t tiles = histogram_bins / policy::value.candidates;
    if (count > 2147483647 / tiles) return status::too_large;
    const status checked =
        check_workspace(workspace, bytes, count * histogram_bins * static_cast<index_t>(sizeof(double)));
    if (checked != status::ok || workspace == nullptr) return checked;
    const matrix<double> costs(static_cast<double*>(workspace), count, histogram_bins);
    const status done = launch(threshold_costs_kernel<policy, Rule>, count * tiles, policy::value.candidates, 0, stream,
                               h, rule, costs);
    if (done != status::ok) return done;
    return launch(least_cost_kernel<policy>, count, policy::value.joining, 0, stream, h, matrix<const double>(costs),
                  thresholds);
  });
}

inline status check_histograms(const histogram_counts* h, index_t count, const float* thresholds) noexcept {
  if (count < 0 || (count > 0 && (h == nullptr || thresholds == nullptr))) return status::bad_shape;
  return aligned(h) && aligned(thresholds) ? status::ok : status::misaligned;
}

}  // namespace detail

/// *range ← joined with host::range_of(x), x (m, k) float, fp16 or bf16, asynchronous in `stream`.
/// @returns bad_shape, misaligned (to less than an element), too_large, workspace_too_small, or what launch says.
template <class T>
status range_of(matrix<const T> x, value_range* range, void* workspace, index_t& workspace_bytes, cudaStream_t stream) {
  return detail::launch_ranges<true>(x, range, workspace, workspace_bytes, stream);
}

/// host::channel_ranges: ranges (k) are joined with those of the columns of x (m, k). Statuses as range_of's.
template <class T>
status channel_ranges(matrix<const T> x, value_range* ranges, void* workspace, index_t& workspace_bytes,
                      cudaStream_t stream) {
  return detail::launch_ranges<false>(x, ranges, workspace, workspace_bytes, stream);
}

/// *h ← with x (m, k) added, as host::magnitude_histogram has it: float, fp16 or bf16, asynchronous in `stream`, in two passes over x.
/// @pre no block of another stream adds to *h. @returns bad_shape, misaligned (to less than an element), too_large, or what launch says.
template <class T>
status add_to_histogram(matrix<const T> x, histogram_counts* h, cudaStream_t stream) {
  if (!detail::well_formed(x) || h == nullptr) return status::bad_shape;
  if (!detail::aligned(x) || !detail::aligned(h)) return status::misaligned;
  return dispatch(tuning::histogram{}, [&](auto tuned) {
    using policy = decltype(tuned);
    if (x.empty()) return status::ok;
    return detail::over_observed<policy>(x, [&](auto items, index_t across, index_t tiles) {
      const extent3 block(policy::value.across, policy::value.down);
      const auto width = static_cast<unsigned>(across);
      status done =
          launch(detail::magnitude_kernel<policy, items.value, T>, across * tiles, block, 0, stream, x, h, width);
      if (done == status::ok) done = launch(detail::widen_kernel<policy>, 1, policy::value.joining, 0, stream, h);
      if (done != status::ok) return done;
      return launch(detail::count_kernel<policy, items.value, T>, across * tiles, block, 0, stream, x, h, width);
    });
  });
}

/// thresholds (count) ← host::percentile_threshold of h (count), bit for bit. @param share in [0, 1], else bad_shape.
inline status percentile_thresholds(const histogram_counts* h, index_t count, double share, float* thresholds,
                                    cudaStream_t stream) {
  const status checked = detail::check_histograms(h, count, thresholds);
  if (checked != status::ok) return checked;
  if (!(share >= 0.0 && share <= 1.0)) return status::bad_shape;
  return dispatch(tuning::histogram{}, [&](auto tuned) {
    return launch(detail::percentile_threshold_kernel<decltype(tuned)>, count, tuned.value.joining, 0, stream, h, share,
                  thresholds);
  });
}

/// thresholds (count) ← host::l2_threshold of h (count), or an end whose cost is as little to 2⁻⁴⁰ of it, for nvcc may fuse products into
/// sums. @param levels steps of an integer on one side of 0, from 1 on, else bad_shape; or a float_format.
template <class Levels>
status l2_thresholds(const histogram_counts* h, index_t count, Levels levels, float* thresholds, void* workspace,
                     index_t& workspace_bytes, cudaStream_t stream) {
  const status checked = detail::check_histograms(h, count, thresholds);
  if (checked != status::ok) return checked;
  if (!(largest_level(levels) >= 1.0)) return status::bad_shape;
  return detail::launch_search(h, count, detail::least_squared_error<Levels>{levels}, thresholds, workspace,
                               workspace_bytes, stream);
}

/// thresholds (count) ← host::kl_threshold of h (count), or an end whose divergence is as little to 2⁻⁴⁰, for logarithms differ in their
/// last bits. @param levels in [1, 2048], else bad_shape.
inline status kl_thresholds(const histogram_counts* h, index_t count, int32_t levels, float* thresholds,
                            void* workspace, index_t& workspace_bytes, cudaStream_t stream) {
  const status checked = detail::check_histograms(h, count, thresholds);
  if (checked != status::ok) return checked;
  if (levels < 1 || levels > histogram_bins) return status::bad_shape;
  return detail::launch_search(h, count, detail::least_divergence{levels}, thresholds, workspace, workspace_bytes,
                               stream);
}

}  // namespace kernels
NIBBLE_NAMESPACE_END
