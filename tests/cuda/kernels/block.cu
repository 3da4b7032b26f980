// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/detail/block.cuh"

using namespace nibble;
using reading = tuned<tuning::dequantize_blocks, 80>;

#define NIBBLE_INSTANTIATE(Block)                                                              \
  template __global__ void kernels::detail::dequantize_blocks_kernel<reading, 8, Block, bf16>( \
      matrix<const Block>, matrix<bf16>, bool, unsigned);

NIBBLE_INSTANTIATE(q4_0)
NIBBLE_INSTANTIATE(q4_1)
NIBBLE_INSTANTIATE(q5_0)
NIBBLE_INSTANTIATE(q5_1)
NIBBLE_INSTANTIATE(q8_0)
NIBBLE_INSTANTIATE(q2_k)
NIBBLE_INSTANTIATE(q3_k)
NIBBLE_INSTANTIATE(q4_k)
NIBBLE_INSTANTIATE(q5_k)
NIBBLE_INSTANTIATE(q6_k)
NIBBLE_INSTANTIATE(iq4_nl)
NIBBLE_INSTANTIATE(iq4_xs)
template __global__ void kernels::detail::dequantize_blocks_kernel<reading, 4, q4_k, float>(matrix<const q4_k>,
                                                                                            matrix<float>, bool,
                                                                                            unsigned);
