// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/detail/fp4.cuh"

using namespace nibble;
using policy = tuned<tuning::fp8, 80>;

#define NIBBLE_INSTANTIATE(Items, BlockFormat, T)                                                        \
  template __global__ void kernels::detail::fit_quantize_pack_fp4_kernel<policy, Items, BlockFormat, T>( \
      matrix<const T>, matrix<uint8_t>, matrix<uint8_t>, bool, BlockFormat, unsigned);                   \
  template __global__ void kernels::detail::unpack_dequantize_fp4_kernel<policy, Items, BlockFormat, T>( \
      matrix<const uint8_t>, matrix<const uint8_t>, matrix<T>, bool, BlockFormat, unsigned);

NIBBLE_INSTANTIATE(8, mxfp4, bf16)
NIBBLE_INSTANTIATE(8, nvfp4, bf16)
NIBBLE_INSTANTIATE(4, nvfp4, float)
