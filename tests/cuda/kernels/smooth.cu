// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/detail/smooth.cuh"

using namespace nibble;
using streaming = tuned<tuning::quantize, 80>;
using policy = tuned<tuning::smooth, 80>;
using products = tuned<tuning::int8_matmul, 80>;

struct large_tile {
  static constexpr tuning::int8_tile value = products::value.large;
};
struct small_tile {
  static constexpr tuning::int8_tile value = products::value.small;
};

template __global__ void kernels::detail::smooth_scales_kernel<policy>(const float*, const float*, float, index_t,
                                                                       float*);

#define NIBBLE_INSTANTIATE(Items, T)                                                                                  \
  template __global__ void kernels::detail::quantize_activations_kernel<streaming, Items, T>(                         \
      matrix<const T>, matrix<const float>, matrix<uint8_t>, group_shape, activation_rule, unsigned);                 \
  template __global__ void kernels::detail::quantize_tokens_kernel<policy, Items, true, T>(                           \
      matrix<const T>, matrix<float>, matrix<uint8_t>, activation_rule, bool);                                        \
  template __global__ void kernels::detail::quantize_tokens_kernel<policy, Items, false, T>(                          \
      matrix<const T>, matrix<float>, matrix<uint8_t>, activation_rule, bool);                                        \
  template __global__ void kernels::detail::int8_matmul_kernel<large_tile, T>(                                        \
      matrix<const uint8_t>, matrix<const float>, matrix<const uint8_t>, matrix<const params>, matrix<T>, bool, bool, \
      unsigned);                                                                                                      \
  template __global__ void kernels::detail::int8_matmul_kernel<small_tile, T>(                                        \
      matrix<const uint8_t>, matrix<const float>, matrix<const uint8_t>, matrix<const params>, matrix<T>, bool, bool, \
      unsigned);

NIBBLE_INSTANTIATE(4, float)
NIBBLE_INSTANTIATE(8, fp16)
NIBBLE_INSTANTIATE(8, bf16)
