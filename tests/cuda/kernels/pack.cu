// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/detail/pack.cuh"

#include "nibble/kernels/tuning/pack.cuh"

using namespace nibble;
using namespace nibble::kernels::detail;
using policy = tuned<tuning::pack, 80>;
using high = code_tile<policy::value.turned_rows, policy::value.turned_cols>;
using wide = code_tile<policy::value.straight_rows, policy::value.straight_cols>;
using flat = code_tile<1, policy::value.straight_rows * policy::value.straight_cols>;

template <class Layout, int Bits>
using word = typename side<Layout, Bits>::word;

#define NIBBLE_REPACK(Tile, From, To, Bits)                                                                \
  template __global__ void kernels::detail::repack_kernel<policy, Tile, side<From, Bits>, side<To, Bits>>( \
      stored_words<const word<From, Bits>>, stored_words<word<To, Bits>>, unsigned, uint32_t);
#define NIBBLE_BOTH_WAYS(Tile, Layout, Bits)     \
  NIBBLE_REPACK(Tile, plain_codes, Layout, Bits) \
  NIBBLE_REPACK(Tile, Layout, plain_codes, Bits)

NIBBLE_BOTH_WAYS(wide, layout::compressed_tensors, 3)
NIBBLE_BOTH_WAYS(wide, layout::compressed_tensors, 4)
NIBBLE_BOTH_WAYS(wide, layout::compressed_tensors, 8)
NIBBLE_BOTH_WAYS(high, layout::awq_gemm, 4)
NIBBLE_BOTH_WAYS(wide, layout::awq_gemv_fast, 4)
NIBBLE_BOTH_WAYS(high, layout::gptq, 3)
NIBBLE_BOTH_WAYS(high, layout::gptq, 4)
NIBBLE_BOTH_WAYS(high, layout::gptq, 8)
NIBBLE_BOTH_WAYS(high, layout::marlin, 4)
NIBBLE_BOTH_WAYS(high, layout::marlin, 8)
NIBBLE_BOTH_WAYS(flat, layout::bitsandbytes, 4)
NIBBLE_REPACK(high, layout::awq_gemm, layout::marlin, 4)
NIBBLE_REPACK(high, layout::gptq, layout::marlin, 8)
NIBBLE_REPACK(high, layout::compressed_tensors, layout::marlin, 4)

template __global__ void kernels::detail::gather_words_kernel<policy, layout::gptq_zeros, matrix<const uint8_t>>(
    layout::gptq_zeros, matrix<const uint8_t>, matrix<uint32_t>, index_t, index_t, unsigned);
template __global__ void
kernels::detail::gather_words_kernel<policy, layout::marlin_zeros, packed_codes<layout::awq_gemm>>(
    layout::marlin_zeros, packed_codes<layout::awq_gemm>, matrix<uint32_t>, index_t, index_t, unsigned);
template __global__ void kernels::detail::gather_codes_kernel<policy, layout::compressed_tensors_zeros>(
    packed_codes<layout::compressed_tensors_zeros>, matrix<uint8_t>, unsigned);
template __global__ void kernels::detail::turn_scales_kernel<policy, layout::marlin_scales, fp16>(layout::marlin_scales,
                                                                                                  matrix<const fp16>,
                                                                                                  matrix<fp16>,
                                                                                                  unsigned);
template __global__ void kernels::detail::turn_scales_back_kernel<policy, layout::transposed_scales, float>(
    layout::transposed_scales, matrix<const float>, matrix<float>, unsigned);
template __global__ void kernels::detail::copy_scales_kernel<policy, bf16>(matrix<const bf16>, matrix<bf16>, unsigned);
