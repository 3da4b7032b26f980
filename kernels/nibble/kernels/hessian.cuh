// SPDX-License-Identifier: Apache-2.0
/// @file
/// What GPTQ solves with, on a GPU: the damped Hessian as H = Lᵀ·L, L lower triangular. Blocks of 128 rows from the last to the first: one
/// thread block factorises the diagonal block in double, warps solve the panel before it, cuBLAS takes it from all that is above.
/// Nobody waits: whether there is a factor stands in device memory. A caller's ladder, as host::hessian climbs it:
///
///     for (double damping = asked;; damping = raised_damping(damping)) {
///       factor(g, s, column, damping, false, l, state, blas);  // then read state->failed
///       if (there is one, or damping >= 1) break;
///     }
///     factor(g, s, column, 1, true, l, state, blas);           // where none did: always, for finite numbers
#pragma once

#include "nibble/kernels/blas.cuh"
#include "nibble/kernels/check.hpp"
#include "nibble/kernels/detail/hessian.cuh"
#include "nibble/kernels/launch.cuh"
#include "nibble/kernels/tuning/gptq.cuh"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// The lower triangle of h ← its factor, or state->failed.
template <class Tuned>
status factorise(matrix<float> h, factored* state, cublasHandle_t blas, cudaStream_t stream) {
  constexpr auto policy = Tuned::value;
  status done = status::ok;
  for (index_t end = h.rows; end > 0 && done == status::ok;) {
    const index_t first = (end - 1) / factor_block * factor_block, rows = end - first;
    const auto corner = h.rows_at(first, rows).cols_at(first, rows), panel = h.rows_at(first, rows).cols_at(0, first);
    done = launch(corner_kernel<Tuned>, 1, policy.threads, triangle * static_cast<index_t>(sizeof(double)), stream,
                  corner, state);
    if (done == status::ok)
      done = launch(panel_kernel<Tuned>, ceil_div(first, policy.threads / 32 * policy.cols), policy.threads, 0, stream,
                    matrix<const float>(corner), panel, static_cast<const factored*>(state));
    for (index_t col = 0; col < first && done == status::ok; col += policy.edge) {
      const index_t height = first - col, width = min(height, index_t{policy.edge});
      done = matmul(blas, matrix<const float>(panel.cols_at(col, height)), reading::transposed,
                    matrix<const float>(panel.cols_at(col, width)), reading::plain, 1.0f,
                    h.rows_at(col, height).cols_at(col, width), -1.0f);
    }
    end = first;
  }
  return done;
}

}  // namespace detail

/// The lower triangle of l (k, k) ← L of H = diag(1/s)·G·diag(1/s) + λ·mean(diag)·I in units of mean(diag), columns in the order of solving;
/// what is above the diagonal is of no meaning. As host::hessian, in the stream of `blas`: channels that never fired have H_ii = 1. G (k, k)
/// symmetric; s (k) positive, or null for 1; column (k) in device memory, the column of W that comes i-th, or null. With `floored` each
/// diagonal element is at least the sum of its row. *state, in device memory, ← the unit, and whether there is no factor: then l is the
/// identity, and codes chosen with it are the nearest.
/// @error |Lᵀ·L − H| ≤ (k + 8)·2⁻²⁴·√(H_ii·H_jj). @pre damping in [0, 1].
/// @returns bad_shape, misaligned, too_large, launch_failed, unsupported_device.
inline status factor(matrix<const float> g, const float* s, const index_t* column, double damping, bool floored,
                     matrix<float> l, factored* state, cublasHandle_t blas) {
  const index_t k = g.rows;
  if (!detail::well_formed(g) || !detail::well_formed(l) || g.cols != k || l.rows != k || l.cols != k)
    return status::bad_shape;
  if (state == nullptr) return status::bad_shape;
  if (!detail::aligned(g) || !detail::aligned(l) || !detail::aligned(s) || !detail::aligned(column) ||
      !detail::aligned(state))
    return status::misaligned;
  return dispatch(tuning::factor{}, [&](auto tuned) {
    using policy = decltype(tuned);
    constexpr int threads = tuned.value.threads;
    const detail::ordered_gram h{g, s, column};
    cudaStream_t stream = nullptr;
    status done = detail::stream_of(blas, stream);
    if (done == status::ok) done = launch(detail::unit_kernel<policy>, 1, threads, 0, stream, h, state);
    if (done == status::ok)
      done = launch(detail::damp_kernel<policy>, k, threads, 0, stream, h, damping, floored,
                    static_cast<const factored*>(state), l);
    if (done == status::ok) done = detail::factorise<policy>(l, state, blas, stream);
    if (done != status::ok) return done;
    return launch(detail::settle_kernel<policy>, k, threads, 0, stream, static_cast<const factored*>(state), l);
  });
}

}  // namespace kernels
NIBBLE_NAMESPACE_END
