// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/detail/observe.cuh"
#include "nibble/kernels/tuning/observe.cuh"

using namespace nibble;
using policy = tuned<tuning::observe, 80>;

#define NIBBLE_INSTANTIATE(Items, T)                                                                                  \
  template __global__ void kernels::detail::observe_kernel<policy, Items, T>(matrix<const T>, matrix<double>, float*, \
                                                                             uint64_t*, matrix<T>, unsigned);

NIBBLE_INSTANTIATE(8, bf16)
NIBBLE_INSTANTIATE(4, float)
NIBBLE_INSTANTIATE(1, fp16)

template __global__ void kernels::detail::fold_kernel<policy>(matrix<const double>, double*);
template __global__ void kernels::detail::mirror_kernel<tuned<tuning::gram, 80>>(matrix<float>, float, float, float*,
                                                                                 unsigned);
