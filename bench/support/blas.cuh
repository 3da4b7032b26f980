// SPDX-License-Identifier: Apache-2.0
/// @file
/// The yardstick of benches that multiply: a product of the same factors by cuBLAS, by turns with what is measured.
#pragma once

#include "nibble/kernels/blas.cuh"
#include "support/device.cuh"

namespace bench {

/// The cuBLAS handle of all benches, in their stream; with a workspace of its own, so that graphs hold no allocations.
inline cublasHandle_t blas() {
  static const buffer<unsigned char> workspace(index_t{64} << 20);
  static const cublasHandle_t only = [] {
    cublasHandle_t handle = nullptr;
    const bool made =
        cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS &&
        cublasSetStream(handle, device().stream) == CUBLAS_STATUS_SUCCESS &&
        cublasSetWorkspace(handle, workspace.data(), static_cast<size_t>(workspace.bytes())) == CUBLAS_STATUS_SUCCESS;
    if (!made) throw std::runtime_error("cuBLAS does not start");
    return handle;
  }();
  return only;
}

/// Times ours(stream), which takes `flop` sums and products at least, and by turns with it a (m, k) · b (k, n) by cuBLAS. Counters:
/// TFLOP/s, product_TFLOP/s and product, the share of the product's rate.
template <class T, class F>
void beside_product(benchmark::State& state, double flop, F&& ours, nibble::matrix<const T> a,
                    nibble::kernels::reading of_a, nibble::matrix<const T> b, index_t m, index_t k, index_t n) {
  using nibble::kernels::reading;
  const buffer<float> out(m * n);
  const auto multiply = [&](index_t, cudaStream_t) {
    return nibble::kernels::matmul(blas(), a, of_a, b, reading::plain, 0.0f, nibble::matrix<float>(out.data(), m, n));
  };
  const replay mine(1, [&](index_t, cudaStream_t stream) { return ours(stream); }), product(1, multiply);
  std::vector<double> times, products;
  for (auto _ : state) {
    times.push_back(mine.seconds());
    products.push_back(product.seconds());
    state.SetIterationTime(times.back());
  }
  const double rate = flop / median(times);
  const double product_rate =
      2 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k) / median(products);
  state.counters["us"] = 1e6 * median(times);
  state.counters["TFLOP/s"] = rate / 1e12;
  state.counters["product_TFLOP/s"] = product_rate / 1e12;
  state.counters["product"] = rate / product_rate;
}

}  // namespace bench
