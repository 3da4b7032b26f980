// SPDX-License-Identifier: Apache-2.0
/// @file
/// A Gram matrix in device memory, for the benches of kernels.
#pragma once

#include "nibble/matrix.hpp"
#include "support/device.cuh"

namespace bench {

/// A symmetric matrix with a heavy diagonal, as inputs have.
template <class T>
__global__ void fill_gram_kernel(nibble::matrix<T> g) {
  const index_t row = blockIdx.x;
  for (index_t col = threadIdx.x; col < g.cols; col += blockDim.x) {
    const index_t low = nibble::min(row, col), high = nibble::max(row, col);
    const uint64_t random = mixed(static_cast<uint64_t>(low * g.cols + high));
    g(row, col) = T(row == col ? 1.0f : 1e-3f * (static_cast<float>(random >> 40) * 0x1p-24f - 0.5f));
  }
}
template <class T>
buffer<T> gram_of(index_t k) {
  buffer<T> g(k * k);
  need(nibble::launch(fill_gram_kernel<T>, k, 256, 0, device().stream, nibble::matrix<T>(g.data(), k, k)));
  return g;
}

}  // namespace bench
