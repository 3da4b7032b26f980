// SPDX-License-Identifier: Apache-2.0
/// @file
/// A symmetric matrix of inputs in the order in which they are solved, where groups are formed of inputs in that order.
#pragma once

#include "mistral/cuda/tuning.cuh"
#include "nibble/kernels/check.hpp"
#include "nibble/kernels/launch.cuh"
#include "pass/cuda/detail/order.cuh"

namespace nibble::mistral::cuda {

/// to (k, k) row i, column j = from row column[i], column column[j]; column (k) on the device.
/// @pre column is a permutation. @returns bad_shape, misaligned, or what launch says.
inline status reorder(matrix<const float> from, const index_t* column, matrix<float> to, cudaStream_t stream) {
  using kernels::detail::well_formed;
  if (!well_formed(from) || !well_formed(to) || from.rows != from.cols || to.rows != from.rows || to.cols != from.cols)
    return status::bad_shape;
  if (from.empty()) return status::ok;
  if (column == nullptr) return status::bad_shape;
  if (!kernels::detail::aligned(from) || !kernels::detail::aligned(to) ||
      reinterpret_cast<std::size_t>(column) % sizeof(index_t) != 0)
    return status::misaligned;
  return dispatch(tuning::rows{}, [&](auto tuned) {
    return launch(detail::reorder_kernel<decltype(tuned)>, to.rows, tuned.value.threads, 0, stream, from, column, to);
  });
}

}  // namespace nibble::mistral::cuda
