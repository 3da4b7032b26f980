// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernel of order.cuh: a block has a row.
#pragma once

#include "nibble/kernels/detail/device.cuh"
#include "nibble/matrix.hpp"

namespace nibble::mistral::cuda::detail {

/// A row by a block.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads)
    reorder_kernel(matrix<const float> from, const index_t* column, matrix<float> to) {
  const index_t row = blockIdx.x;
  const float* const source = from.row(column[row]);
  for (index_t i = threadIdx.x; i < to.cols; i += Tuned::value.threads) to(row, i) = source[column[i]];
}

}  // namespace nibble::mistral::cuda::detail
