// SPDX-License-Identifier: Apache-2.0
/// @file
/// Scales and zero points refitted under tr(ΔW·G·ΔWᵀ), codes as they are, on a GPU; and codes and parameters improved by turns. The
/// rule is nibble::refitted. Needs cuBLAS.
#pragma once

#include "nibble/kernels/detail/refit.cuh"
#include "nibble/kernels/sweep.cuh"
#include "nibble/kernels/tuning/gptq.cuh"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// One round over the groups of some rows, whose slopes D·G (rows, k) it keeps up to date. steps, product (rows + 1, a group).
template <class Tuned, class Scheme>
status refit_once(matrix<const uint8_t> q, matrix<params> p, const float* s, matrix<const float> g,
                  matrix<float> slopes, matrix<float> steps, matrix<float> product, index_t width, Scheme scheme,
                  cublasHandle_t blas, cudaStream_t stream) {
  constexpr int threads = Tuned::value.threads, warps = threads / 32;
  status done = status::ok;
  for (index_t col = 0; col < q.cols && done == status::ok; col += width) {
    const index_t count = min(width, q.cols - col);
    const auto codes = q.cols_at(col, count);
    const auto of_group = p.cols_at(col / width, 1);
    const auto c = steps.cols_at(0, count), ch = product.cols_at(0, count);
    done = launch(steps_kernel<Tuned>, ceil_div(c.rows, warps), threads, 0, stream, codes,
                  matrix<const params>(of_group), s + col, c);
    if (done == status::ok)
      done = matmul(blas, matrix<const float>(c), reading::plain, g.rows_at(col, count).cols_at(col, count),
                    reading::plain, 0.0f, ch);
    if (done == status::ok)
      done = launch(refit_kernel<Tuned, Scheme>, ceil_div(q.rows, warps), threads, 0, stream, codes,
                    matrix<const float>(ch), matrix<const float>(slopes.cols_at(col, count)), s + col, scheme, c,
                    of_group);
    if (done == status::ok)
      done = matmul(blas, matrix<const float>(c.rows_at(0, q.rows)), reading::plain, g.rows_at(col, count),
                    reading::plain, 1.0f, slopes);
  }
  return done;
}

/// `rounds` times sweep(codes, parameters, slopes, changes), which returns a status, and a round of refit.
template <class Scheme, class Sweep>
status refit_rounds(matrix<const float> w, const float* s, matrix<const float> g, matrix<const uint8_t> q,
                    index_t group_size, Scheme scheme, int rounds, matrix<params> p, void* workspace,
                    index_t& workspace_bytes, cublasHandle_t blas, Sweep sweep) {
  index_t width = 0;
  if (scheme.bits < 1 || scheme.bits > 8) return status::bad_bits;
  const status grouped = check_width(group_size, w.cols, width);
  if (grouped != status::ok) return grouped;
  const status checked = check_scaled(w, s, q);
  if (checked != status::ok) return checked;
  if (!well_formed(g) || g.rows != w.cols || g.cols != w.cols || rounds < 0) return status::bad_shape;
  if (!aligned(g)) return status::misaligned;
  const status fits = check_groups(p, w.rows, w.cols, per_group(group_size));
  if (fits != status::ok) return fits;
  return dispatch(tuning::refit{}, [&](auto tuned) {
    const index_t rows = min(w.rows, index_t{tuned.value.rows}), stride = round_up(w.cols, 4);
    const index_t wide = round_up(min(width, w.cols), 4);
    const index_t floats = rows * (2 * stride + sweep_cols) + 2 * (rows + 1) * wide;
    const status enough = check_workspace(workspace, workspace_bytes, floats * index_t{sizeof(float)});
    if (enough != status::ok || workspace == nullptr || w.empty()) return enough;
    auto* const memory = static_cast<float*>(workspace);
    auto* const of_group = memory + rows * (2 * stride + sweep_cols);
    cudaStream_t stream = nullptr;
    status done = stream_of(blas, stream);
    for (index_t row = 0; row < w.rows && done == status::ok; row += rows) {
      const index_t count = min(rows, w.rows - row);
      const matrix<float> difference(memory, count, w.cols, stride),
          slopes(memory + rows * stride, count, w.cols, stride);
      const matrix<float> changes(memory + 2 * rows * stride, count, sweep_cols);
      const matrix<float> steps(of_group, count + 1, wide), product(of_group + (rows + 1) * wide, count + 1, wide);
      const auto codes = q.rows_at(row, count);
      const auto of_rows = p.rows_at(row, count);
      done = codes_error(w.rows_at(row, count), codes, matrix<const params>(of_rows), s, nullptr, difference,
                         group_size, scheme, stream);
      if (done == status::ok)
        done = matmul(blas, matrix<const float>(difference), reading::plain, g, reading::plain, 0.0f, slopes);
      for (int round = 0; round < rounds && done == status::ok; ++round) {
        done = sweep(row, matrix<const params>(of_rows), slopes, changes, width, stream);
        if (done == status::ok)
          done = refit_once<decltype(tuned)>(codes, of_rows, s, g, slopes, steps, product, width, scheme, blas, stream);
      }
    }
    return done;
  });
}

}  // namespace detail

/// reference::refit in the stream of `blas`: `rounds` rounds over the parameters p (n, ⌈k / group_size⌉) of w (n, k), which is already
/// scaled by s (k), under G (k, k), symmetric, of the inputs before scaling; codes q (n, k) stay. Sums of a group in double over
/// products in fp32. No row's loss rises, up to rounding in float. Statuses as sweep's. The workspace holds D, its product and two
/// matrices a group wide for 1024 rows.
template <class Scheme>
status refit(matrix<const float> w, const float* s, matrix<const float> g, matrix<const uint8_t> q, index_t group_size,
             Scheme scheme, int rounds, matrix<params> p, void* workspace, index_t& workspace_bytes,
             cublasHandle_t blas) {
  const auto nothing = [](index_t, matrix<const params>, matrix<float>, matrix<float>, index_t, cudaStream_t) {
    return status::ok;
  };
  return detail::refit_rounds(w, s, g, q, group_size, scheme, rounds, p, workspace, workspace_bytes, blas, nothing);
}

/// host::sweep_and_refit in the stream of `blas`: `rounds` times a sweep over the codes and a round over the parameters; a round that
/// changes nothing takes as long as any, for nobody waits to see. As refit otherwise.
template <class Scheme>
status sweep_and_refit(matrix<const float> w, const float* s, matrix<const float> g, index_t group_size, Scheme scheme,
                       int rounds, matrix<params> p, matrix<uint8_t> q, void* workspace, index_t& workspace_bytes,
                       cublasHandle_t blas) {
  const auto sweep = [&](index_t row, matrix<const params> of_rows, matrix<float> slopes, matrix<float> changes,
                         index_t width, cudaStream_t stream) {
    return dispatch(tuning::sweep{}, [&](auto tuned) {
      return detail::sweep_once<decltype(tuned)>(q.rows_at(row, of_rows.rows), of_rows, s, g, slopes, changes, width,
                                                 scheme, blas, stream);
    });
  };
  return detail::refit_rounds(w, s, g, matrix<const uint8_t>(q), group_size, scheme, rounds, p, workspace,
                              workspace_bytes, blas, sweep);
}

}  // namespace kernels
NIBBLE_NAMESPACE_END
