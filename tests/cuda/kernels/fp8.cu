// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/detail/fp8.cuh"

using namespace nibble;
using streaming = tuned<tuning::quantize, 80>;
using policy = tuned<tuning::fp8, 80>;
using e4m3 = float_scheme<float_format::e4m3>;
using e5m2 = float_scheme<float_format::e5m2, dtype::bf16, dtype::bf16>;

#define NIBBLE_INSTANTIATE(Items, Scheme, T)                                                       \
  template __global__ void kernels::detail::quantize_fp8_kernel<streaming, Items, Scheme, T>(      \
      matrix<const T>, matrix<const float>, matrix<uint8_t>, group_shape, Scheme, unsigned);       \
  template __global__ void kernels::detail::dequantize_fp8_kernel<streaming, Items, Scheme, T>(    \
      matrix<const uint8_t>, matrix<const float>, matrix<T>, group_shape, Scheme, unsigned);       \
  template __global__ void kernels::detail::fit_rows_fp8_kernel<policy, Items, true, Scheme, T>(   \
      matrix<const T>, matrix<float>, matrix<uint8_t>, index_t, int, bool, Scheme, unsigned);      \
  template __global__ void kernels::detail::fit_quantize_row_fp8_kernel<policy, Items, Scheme, T>( \
      matrix<const T>, matrix<float>, matrix<uint8_t>, index_t, bool, Scheme);

NIBBLE_INSTANTIATE(4, e4m3, float)
NIBBLE_INSTANTIATE(8, e4m3, bf16)
NIBBLE_INSTANTIATE(8, e5m2, fp16)
NIBBLE_INSTANTIATE(8, any_float_scheme, bf16)

template __global__ void kernels::detail::fit_rows_fp8_kernel<policy, 8, false, e4m3, bf16>(matrix<const bf16>,
                                                                                            matrix<float>,
                                                                                            matrix<uint8_t>, index_t,
                                                                                            int, bool, e4m3, unsigned);
template __global__ void kernels::detail::fit_groups_fp8_kernel<policy, 8, true, e4m3, bf16>(matrix<const bf16>,
                                                                                             matrix<float>, group_shape,
                                                                                             bool, e4m3);
template __global__ void kernels::detail::fit_groups_fp8_kernel<policy, 8, false, e4m3, bf16>(matrix<const bf16>,
                                                                                              matrix<float>,
                                                                                              group_shape, bool, e4m3);
template __global__ void kernels::detail::amax_begin_kernel<policy>(matrix<float>);
template __global__ void kernels::detail::amax_pieces_kernel<policy, 8, bf16>(matrix<const bf16>, matrix<float>,
                                                                              group_shape, bool, index_t, index_t,
                                                                              index_t, index_t);
template __global__ void kernels::detail::amax_end_kernel<policy, e4m3>(matrix<float>, e4m3);
