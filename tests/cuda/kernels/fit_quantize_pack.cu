// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/detail/fit_quantize_pack.cuh"
#include "nibble/kernels/tuning/fit_quantize_pack.cuh"

using namespace nibble;
using policy = tuned<tuning::fit_quantize_pack, 80>;

#define NIBBLE_INSTANTIATE(Scheme, T, S)                                                                              \
  template __global__ void kernels::detail::fit_quantize_pack_kernel<policy, Scheme, T, S>(                           \
      matrix<const T>, matrix<uint32_t>, kernels::detail::stored_params<S>, index_t, int, bool, Scheme, unsigned);    \
  template __global__ void kernels::detail::fit_quantize_pack_row_kernel<policy, true, Scheme, T, S>(                 \
      matrix<const T>, matrix<uint32_t>, kernels::detail::stored_params<S>, index_t, bool, bool, Scheme);             \
  template __global__ void kernels::detail::fit_quantize_pack_row_kernel<policy, false, Scheme, T, S>(                \
      matrix<const T>, matrix<uint32_t>, kernels::detail::stored_params<S>, index_t, bool, bool, Scheme);             \
  template __global__ void kernels::detail::fit_quantize_pack_tile_kernel<policy, layout::awq_gemm, Scheme, T, S>(    \
      layout::awq_gemm, matrix<const T>, matrix<uint32_t>, kernels::detail::stored_params<S>, index_t, int, bool,     \
      Scheme, unsigned);                                                                                              \
  template __global__ void kernels::detail::fit_quantize_pack_tile_kernel<policy, layout::gptq, Scheme, T, S>(        \
      layout::gptq, matrix<const T>, matrix<uint32_t>, kernels::detail::stored_params<S>, index_t, int, bool, Scheme, \
      unsigned);

NIBBLE_INSTANTIATE(scheme<4>, bf16, float)
NIBBLE_INSTANTIATE(any_scheme, float, float)
