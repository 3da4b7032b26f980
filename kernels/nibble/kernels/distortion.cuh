// SPDX-License-Identifier: Apache-2.0
/// @file
/// The measures of nibble/distortion.hpp between matrices on a GPU, in double, in one order: the same bytes in every run.
#pragma once

#include "nibble/kernels/check.hpp"
#include "nibble/kernels/detail/distortion.cuh"
#include "nibble/kernels/launch.cuh"
#include "nibble/kernels/tuning/distortion.cuh"
#include "nibble/kernels/workspace.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// Whether two matrices have one shape.
template <class T, class U>
status check_pair(matrix<const T> x, matrix<const U> y) noexcept {
  if (!well_formed(x) || !well_formed(y) || x.rows != y.rows || x.cols != y.cols) return status::bad_shape;
  return aligned(x) && aligned(y) ? status::ok : status::misaligned;
}

/// Launches what distortion() checked, by chunks of Items, or only asks for the workspace.
template <class Tuned, int Items, class T, class U>
status launch_distortion(matrix<const T> x, matrix<const U> y, distortion_sums* sums, void* workspace,
                         index_t& workspace_bytes, cudaStream_t stream) {
  constexpr index_t threads = Tuned::value.threads, rows = Tuned::value.ahead * Tuned::value.rounds;
  const index_t chunks = ceil_div(x.cols, Items), across_threads = power_of_two(chunks, threads);
  const index_t down_threads = threads / across_threads;
  const index_t across = ceil_div(chunks, across_threads), down = x.empty() ? 0 : ceil_div(x.rows, down_threads * rows);
  if (down > 0 && across > 2147483647 / down) return status::too_large;
  const index_t blocks = across * down;
  const status checked =
      check_workspace(workspace, workspace_bytes, blocks * static_cast<index_t>(sizeof(distortion_sums)));
  if (checked != status::ok || workspace == nullptr) return checked;
  auto* const parts = static_cast<distortion_sums*>(workspace);
  const status done = launch(distortion_kernel<Tuned, Items, T, U>, blocks, extent3(across_threads, down_threads), 0,
                             stream, x, y, parts, static_cast<unsigned>(across));
  if (done != status::ok) return done;
  return launch(join_kernel<Tuned>, 1, threads, 0, stream, static_cast<const distortion_sums*>(parts), blocks, sums);
}

}  // namespace detail

/// *sums ← host::distortion of x and y (n, k), each float, fp16 or bf16, asynchronous in `stream`; mse, sqnr, cosine and max_error are its
/// members. By 16-byte accesses of the wider where both are aligned for them.
/// @error (n·k + 2)·2⁻⁵³ of the sum of the terms' magnitudes; max_error is exact, NaN anywhere gives NaN.
/// @returns bad_shape, misaligned (to less than an element), workspace_too_small, or what launch says.
template <class T, class U>
status distortion(matrix<const T> x, matrix<const U> y, distortion_sums* sums, void* workspace,
                  index_t& workspace_bytes, cudaStream_t stream) {
  const status paired = detail::check_pair(x, y);
  if (paired != status::ok) return paired;
  if (sums == nullptr) return status::bad_shape;
  if (!detail::aligned(sums)) return status::misaligned;
  return dispatch(tuning::distortion{}, [&](auto tuned) {
    constexpr int wide = 16 / int{sizeof(T) < sizeof(U) ? sizeof(U) : sizeof(T)};
    const auto by = [&](auto items) {
      return detail::launch_distortion<decltype(tuned), items.value>(x, y, sums, workspace, workspace_bytes, stream);
    };
    return detail::aligned(x, wide) && detail::aligned(y, wide) ? by(constant<wide>{}) : by(constant<1>{});
  });
}

/// reference::kl_divergence on device pointers, asynchronous in `stream`: divergence (m) ← of every row of logits p and q (m, vocabulary),
/// each float, fp16 or bf16, in nats.
/// @error (2·vocabulary + 2400)·2⁻⁵³·(1 + Σ softmax(p)·(|log softmax(p)| + |log softmax(q)|)), however large the logits.
/// @returns bad_shape, misaligned (to less than an element), or what launch says.
template <class T, class U>
status kl_divergence(matrix<const T> p, matrix<const U> q, double* divergence, cudaStream_t stream) {
  const status paired = detail::check_pair(p, q);
  if (paired != status::ok) return paired;
  if (divergence == nullptr && p.rows > 0) return status::bad_shape;
  if (!detail::aligned(divergence)) return status::misaligned;
  return dispatch(tuning::distortion{}, [&](auto tuned) {
    return launch(detail::kl_divergence_kernel<decltype(tuned), T, U>, p.rows, tuned.value.row_threads, 0, stream, p, q,
                  divergence);
  });
}

}  // namespace kernels
NIBBLE_NAMESPACE_END
