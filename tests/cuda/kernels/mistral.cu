// SPDX-License-Identifier: Apache-2.0
#include "mistral/cuda/detail/attention_mma.cuh"
#include "mistral/cuda/detail/rounding.cuh"
#include "mistral/cuda/detail/score.cuh"

using namespace nibble;
namespace steps = nibble::mistral::cuda::detail;
namespace policies = nibble::mistral::cuda::tuning;
using rows_policy = tuned<policies::rows, 80>;

#define NIBBLE_INSTANTIATE(Items)                                                                                 \
  template __global__ void steps::embed_kernel<rows_policy, Items>(matrix<const bf16>, index_t, const int32_t*,   \
                                                                   matrix<float>);                                \
  template __global__ void steps::rms_norm_kernel<rows_policy, Items>(matrix<const float>, const float*, float,   \
                                                                      matrix<bf16>);                              \
  template __global__ void steps::rotate_kernel<rows_policy, Items>(matrix<const float>, steps::head_layout,      \
                                                                    const index_t*, index_t, matrix<const float>, \
                                                                    matrix<const float>, matrix<bf16>);           \
  template __global__ void steps::swiglu_kernel<rows_policy, Items>(matrix<const float>, matrix<bf16>);           \
  template __global__ void steps::round_kernel<rows_policy, Items>(                                               \
      matrix<const bf16>, nibble::mistral::cuda::activation_rounding, matrix<bf16>, matrix<bf16>);

NIBBLE_INSTANTIATE(1)
NIBBLE_INSTANTIATE(4)
template __global__ void steps::attention_kernel<tuned<policies::attention, 80>>(steps::attention_task);
template __global__ void steps::attention_mma_kernel<tuned<policies::attention_mma<64>, 80>>(steps::attention_task);
template __global__ void steps::attention_mma_kernel<tuned<policies::attention_mma<128>, 80>>(steps::attention_task);
template __global__ void steps::attention_mma_kernel<tuned<policies::attention_mma<256>, 80>>(steps::attention_task);
template __global__ void steps::score_kernel<rows_policy>(matrix<const float>, matrix<const float>, index_t,
                                                          const int32_t*, steps::score_state*);
