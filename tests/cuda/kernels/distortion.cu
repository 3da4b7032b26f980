// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/detail/distortion.cuh"
#include "nibble/kernels/tuning/distortion.cuh"

using namespace nibble;
using policy = tuned<tuning::distortion, 80>;

#define NIBBLE_INSTANTIATE(Items, T, U)                                                                              \
  template __global__ void kernels::detail::distortion_kernel<policy, Items, T, U>(matrix<const T>, matrix<const U>, \
                                                                                   distortion_sums*, unsigned);

NIBBLE_INSTANTIATE(4, float, bf16)
NIBBLE_INSTANTIATE(8, bf16, fp16)
NIBBLE_INSTANTIATE(1, float, float)

template __global__ void kernels::detail::join_kernel<policy>(const distortion_sums*, index_t, distortion_sums*);
template __global__ void kernels::detail::kl_divergence_kernel<policy, float, float>(matrix<const float>,
                                                                                     matrix<const float>, double*);
template __global__ void kernels::detail::kl_divergence_kernel<policy, bf16, fp16>(matrix<const bf16>,
                                                                                   matrix<const fp16>, double*);
