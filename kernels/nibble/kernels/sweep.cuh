// SPDX-License-Identifier: Apache-2.0
/// @file
/// Codes improved one at a time under tr(ΔW·G·ΔWᵀ), on a GPU. Needs cuBLAS.
#pragma once

#include "nibble/kernels/awq.cuh"
#include "nibble/kernels/detail/sweep.cuh"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// One sweep over the codes of some rows, whose slopes D·G (rows, k) it keeps up to date. changes (rows, 64).
template <class Tuned, class Scheme>
status sweep_once(matrix<uint8_t> codes, matrix<const params> p, const float* s, matrix<const float> g,
                  matrix<float> slopes, matrix<float> changes, index_t width, Scheme scheme, cublasHandle_t blas,
                  cudaStream_t stream) {
  constexpr auto policy = Tuned::value;
  status done = status::ok;
  for (index_t col = 0; col < codes.cols && done == status::ok; col += sweep_cols) {
    const index_t wide = min(index_t{sweep_cols}, codes.cols - col);
    const auto change = changes.cols_at(0, wide);
    done = launch(improve_kernel<Tuned, Scheme>, ceil_div(codes.rows, policy.warps), policy.warps * 32, 0, stream,
                  codes.cols_at(col, wide), p, s + col, g.rows_at(col, wide).cols_at(col, wide),
                  matrix<const float>(slopes.cols_at(col, wide)), change, col, width, scheme);
    if (done == status::ok)
      done =
          matmul(blas, matrix<const float>(change), reading::plain, g.rows_at(col, wide), reading::plain, 1.0f, slopes);
  }
  return done;
}

}  // namespace detail

/// reference::sweep in the stream of `blas`: `rounds` sweeps over the codes q (n, k) of w (n, k), which is already scaled by s (k), under
/// G (k, k), symmetric, of the inputs before scaling; p (n, ⌈k / group_size⌉) stays. Slopes D·G are in fp32, kept up to date by a product
/// every 64 columns. The reference's codes where float holds every product and sum; else a code within a slope's rounding of a tie
/// may go to its other side. No row's loss rises, up to that rounding. The workspace holds D, its product and its changes for 1024
/// rows. @returns bad_bits, bad_group, bad_shape, misaligned, too_large, workspace_too_small, launch_failed, unsupported_device.
template <class Scheme>
status sweep(matrix<const float> w, const float* s, matrix<const float> g, matrix<const params> p, index_t group_size,
             Scheme scheme, int rounds, matrix<uint8_t> q, void* workspace, index_t& workspace_bytes,
             cublasHandle_t blas) {
  index_t width = 0;
  if (scheme.bits < 1 || scheme.bits > 8) return status::bad_bits;
  const status grouped = detail::check_width(group_size, w.cols, width);
  if (grouped != status::ok) return grouped;
  const status checked = detail::check_scaled(w, s, q);
  if (checked != status::ok) return checked;
  if (!detail::well_formed(g) || g.rows != w.cols || g.cols != w.cols || rounds < 0) return status::bad_shape;
  if (!detail::aligned(g)) return status::misaligned;
  const status fits = detail::check_groups(p, w.rows, w.cols, per_group(group_size));
  if (fits != status::ok) return fits;
  return dispatch(tuning::sweep{}, [&](auto tuned) {
    constexpr auto policy = tuned.value;
    constexpr index_t block = detail::sweep_cols;
    const index_t rows = min(w.rows, index_t(policy.rows)), stride = round_up(w.cols, 4);
    const status enough = detail::check_workspace(workspace, workspace_bytes,
                                                  rows * (2 * stride + block) * static_cast<index_t>(sizeof(float)));
    if (enough != status::ok || workspace == nullptr || w.empty()) return enough;
    auto* const memory = static_cast<float*>(workspace);
    cudaStream_t stream = nullptr;
    status done = detail::stream_of(blas, stream);
    for (index_t row = 0; row < w.rows && done == status::ok; row += rows) {
      const index_t count = min(rows, w.rows - row);
      const matrix<float> difference(memory, count, w.cols, stride),
          slopes(memory + rows * stride, count, w.cols, stride);
      const matrix<float> changes(memory + 2 * rows * stride, count, block);
      const matrix<uint8_t> codes = q.rows_at(row, count);
      const auto of_rows = p.rows_at(row, count);
      done = codes_error(w.rows_at(row, count), matrix<const uint8_t>(codes), of_rows, s, nullptr, difference,
                         group_size, scheme, stream);
      if (done == status::ok)
        done = matmul(blas, matrix<const float>(difference), reading::plain, g, reading::plain, 0.0f, slopes);
      for (int round = 0; round < rounds && done == status::ok; ++round)
        done = detail::sweep_once<decltype(tuned)>(codes, of_rows, s, g, slopes, changes, width, scheme, blas, stream);
    }
    return done;
  });
}

}  // namespace kernels
NIBBLE_NAMESPACE_END
