// SPDX-License-Identifier: Apache-2.0
/// @file
/// Ranges of scaled weights judged under the Gram matrix's diagonal blocks, on a GPU.
#pragma once

#include "nibble/kernels/check.hpp"
#include "nibble/kernels/detail/clip.cuh"
#include "nibble/kernels/launch.cuh"
#include "nibble/kernels/tuning/awq.cuh"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {

/// reference::clip_under_gram on device pointers, asynchronous in `stream`: p (n, ⌈k / group_size⌉), a fit to begin with, ← better ranges
/// of w (n, k), which is already scaled by s (k), under G (k, k) of the inputs before scaling. The reference's choices, in its order,
/// but for losses summed in float, where two that are within (2·g + 20)·2⁻²⁴·(Σ|d_i|√G_ii)² of each other may change places.
/// G's block stays in shared memory for groups of up to 128.
/// @pre w finite, s positive. @returns bad_bits, bad_group, bad_shape, also for steps < 1, misaligned, or what launch says.
template <class Scheme>
status clip_under_gram(matrix<const float> w, const float* s, matrix<const float> g, index_t group_size, Scheme scheme,
                       matrix<params> p, int steps, cudaStream_t stream) {
  if (scheme.bits < 1 || scheme.bits > 8) return status::bad_bits;
  const status grouped = detail::check_groups(p, w.rows, w.cols, per_group(group_size));
  if (grouped != status::ok) return grouped;
  if (!detail::well_formed(w) || !detail::well_formed(g) || g.rows != w.cols || g.cols != w.cols || steps < 1)
    return status::bad_shape;
  if (s == nullptr && !w.empty()) return status::bad_shape;
  if (!detail::aligned(w) || !detail::aligned(g) || !detail::aligned(s)) return status::misaligned;
  if (w.empty()) return status::ok;
  return dispatch(tuning::clip{}, [&](auto tuned) {
    constexpr auto policy = tuned.value;
    const index_t width = per_group(group_size).width(w.cols), g_cols = min(width, w.cols);
    detail::clip_shape shape;
    shape.across = static_cast<int>(max(index_t{4}, detail::power_of_two(ceil_div(g_cols, 8), 16)));
    shape.depth = g_cols <= shape.cols() ? shape.cols() : policy.depth;
    const index_t down = ceil_div(w.rows, shape.rows(policy.threads));
    if (p.cols > 2147483647 / down) return status::too_large;
    return launch(detail::clip_kernel<decltype(tuned), Scheme>, down * p.cols, policy.threads,
                  shape.bytes(policy.threads), stream, w, s, g, width, steps, scheme, shape, p);
  });
}

}  // namespace kernels
NIBBLE_NAMESPACE_END
