// SPDX-License-Identifier: Apache-2.0
// Compiled by nvcc, not run: a kernel tuned by architecture, dispatched and launched as every row does it.
#include "nibble/kernels/launch.cuh"

#include "nibble/half.hpp"
#include "nibble/matrix.hpp"

namespace {

using namespace nibble;

struct policy {
  int threads;  ///< per block
};

struct tuning {
  static constexpr int architectures[] = {80, 90};
  constexpr policy operator()(int sm) const { return sm >= 90 ? policy{512} : policy{256}; }
};

template <class Tuned, class T>
__global__ void double_kernel(matrix<T> x) {
  constexpr policy p = Tuned::value;
  const index_t i = index_t{blockIdx.x} * p.threads + threadIdx.x;
  if (i < x.size()) x.data[i] = T(2.0f * float(x.data[i]));
}

template <class T>
status twice(matrix<T> x, cudaStream_t stream) {
  return dispatch(tuning{}, [&](auto tuned) {
    constexpr policy p = tuned.value;
    return launch(double_kernel<decltype(tuned), T>, ceil_div(x.size(), p.threads), p.threads, 0, stream, x);
  });
}

}  // namespace

status twice_in_place(matrix<float> x, cudaStream_t stream) {
  return twice(x, stream);
}
status twice_in_place(matrix<fp16> x, cudaStream_t stream) {
  return twice(x, stream);
}
