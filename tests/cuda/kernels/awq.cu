// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/detail/awq.cuh"
#include "nibble/kernels/detail/clip.cuh"
#include "nibble/kernels/detail/sweep.cuh"
#include "nibble/kernels/tuning/awq.cuh"

using namespace nibble;
using namespace nibble::kernels::detail;
using policy = tuned<tuning::awq, 80>;

template __global__ void kernels::detail::group_maximum_kernel<policy, 8, bf16>(matrix<const bf16>, index_t, int,
                                                                                matrix<float>);
template __global__ void kernels::detail::importance_kernel<policy, 8, bf16>(matrix<const bf16>, matrix<const float>,
                                                                             index_t, matrix<double>, unsigned);
template __global__ void kernels::detail::scale_columns_kernel<policy, 4, float, bf16>(matrix<const float>,
                                                                                       const float*, matrix<bf16>,
                                                                                       unsigned);
#define NIBBLE_INSTANTIATE(Items, Scheme, T, To)                                                                     \
  template __global__ void kernels::detail::scaled_error_kernel<policy, Items, Scheme, T, To>(                       \
      matrix<const T>, const float*, matrix<To>, matrix<params>, index_t, int, Scheme);                              \
  template __global__ void kernels::detail::codes_error_kernel<policy, Items, Scheme, T, To>(                        \
      matrix<const T>, matrix<const uint8_t>, matrix<const params>, const float*, const float*, matrix<To>, index_t, \
      Scheme, unsigned);

NIBBLE_INSTANTIATE(8, scheme<4>, bf16, bf16)
NIBBLE_INSTANTIATE(4, any_scheme, float, float)

template __global__ void kernels::detail::row_dot_kernel<policy, bf16>(matrix<const float>, matrix<const bf16>,
                                                                       double*);
template __global__ void kernels::detail::sum_kernel<policy>(const double*, index_t, double*);
template __global__ void kernels::detail::clip_kernel<tuned<tuning::clip, 80>, any_scheme>(
    matrix<const float>, const float*, matrix<const float>, index_t, int, any_scheme, clip_shape, matrix<params>);
template __global__ void kernels::detail::improve_kernel<tuned<tuning::sweep, 80>, scheme<4>>(
    matrix<uint8_t>, matrix<const params>, const float*, matrix<const float>, matrix<const float>, matrix<float>,
    index_t, index_t, scheme<4>);
