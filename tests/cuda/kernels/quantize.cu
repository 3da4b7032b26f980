// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/detail/quantize.cuh"

using namespace nibble;
using policy = tuned<tuning::quantize, 80>;

#define NIBBLE_INSTANTIATE(Items, Scheme, T)                                                  \
  template __global__ void kernels::detail::quantize_kernel<policy, Items, Scheme, T>(        \
      matrix<const T>, matrix<const params>, matrix<uint8_t>, group_shape, Scheme, unsigned); \
  template __global__ void kernels::detail::dequantize_kernel<policy, Items, Scheme, T>(      \
      matrix<const uint8_t>, matrix<const params>, matrix<T>, group_shape, Scheme, unsigned);

NIBBLE_INSTANTIATE(4, scheme<4>, float)
NIBBLE_INSTANTIATE(8, scheme<4>, fp16)
NIBBLE_INSTANTIATE(8, scheme<8>, bf16)
NIBBLE_INSTANTIATE(8, any_scheme, bf16)
NIBBLE_INSTANTIATE(1, any_scheme, fp16)
