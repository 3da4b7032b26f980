// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a linear's codes and its rounded inputs are apart from what they stand for, on a GPU: the steps beside two products of
///     x'·W'ᵀ − x·Wᵀ = (x' − x)·W'ᵀ + x·(W' − W)ᵀ
/// whose factors are differences, so that bf16 takes a share of an error and not of an output.
#pragma once

#include "mistral/cuda/rows.cuh"
#include "nibble/kernels/check.hpp"
#include "pass/cuda/detail/apart.cuh"

namespace nibble::mistral::cuda {

/// rounded (n, k) = diag(of_row)·V and difference (n, k) = diag(of_row)·(V − w)·diag(s)⁻¹, V what codes q (n, k) stand for under
/// parameters p of groups g, in bf16; w (n, k) is scaled by s (k). @param of_row (n), or null for 1.
/// @returns bad_shape, bad_group, misaligned, or what launch says.
template <class P, class Scheme>
status apart(matrix<const float> w, matrix<const uint8_t> q, matrix<const P> p, group_shape g, Scheme how,
             const float* s, const float* of_row, matrix<bf16> rounded, matrix<bf16> difference, cudaStream_t stream) {
  if (!well_formed(w) || !well_formed(q) || q.rows != w.rows || q.cols != w.cols) return status::bad_shape;
  for (const matrix<bf16>& to : {rounded, difference})
    if (!well_formed(to) || to.rows != w.rows || to.cols != w.cols) return status::bad_shape;
  const status grouped = kernels::detail::check_groups(p, w.rows, w.cols, g);
  if (grouped != status::ok || w.empty()) return grouped;
  if (s == nullptr) return status::bad_shape;
  if (!aligned(w) || !aligned(rounded) || !aligned(difference) || !detail::aligned(s) || !detail::aligned(of_row))
    return status::misaligned;
  return dispatch(tuning::rows{}, [&](auto tuned) {
    return launch(detail::apart_kernel<decltype(tuned), P, Scheme>, w.rows, detail::row_threads(tuned, w.cols), 0,
                  stream, w, q, p, g, how, s, of_row, rounded, difference);
  });
}

/// sums (m) += the squares of y (m, n), row by row. @returns bad_shape, misaligned, or what launch says.
inline status add_squares(matrix<const float> y, double* sums, cudaStream_t stream) {
  if (!well_formed(y)) return status::bad_shape;
  if (y.empty()) return status::ok;
  if (sums == nullptr) return status::bad_shape;
  if (!aligned(y) || !detail::aligned(sums)) return status::misaligned;
  return dispatch(tuning::rows{}, [&](auto tuned) {
    return launch(detail::add_squares_kernel<decltype(tuned)>, y.rows, detail::row_threads(tuned, y.cols), 0, stream, y,
                  sums);
  });
}

/// costs (scales, m) = Σ_j importance_j·(v_j − rounded(v_j))², v = x (m, k) / by (k), rounded under each of scales (costs.rows), of which
/// each is positive. @returns bad_shape, misaligned, too_large, or what launch says.
inline status input_costs(matrix<const bf16> x, const float* by, const double* importance, bool integers,
                          const float* scales, matrix<double> costs, cudaStream_t stream) {
  if (!well_formed(x) || !well_formed(costs) || costs.cols != x.rows) return status::bad_shape;
  if (costs.empty()) return status::ok;
  if (scales == nullptr || (x.cols > 0 && (by == nullptr || importance == nullptr))) return status::bad_shape;
  if (!aligned(x) || !aligned(costs) || !detail::aligned(by) || !detail::aligned(importance) ||
      !detail::aligned(scales))
    return status::misaligned;
  if (costs.rows > 2147483647 / costs.cols) return status::too_large;
  return dispatch(tuning::rows{}, [&](auto tuned) {
    return launch(detail::input_costs_kernel<decltype(tuned)>, costs.size(), detail::row_threads(tuned, x.cols), 0,
                  stream, x, by, importance, integers, scales, costs);
  });
}

}  // namespace nibble::mistral::cuda
