// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/detail/kv_cache.cuh"

using namespace nibble;
using policy = tuned<tuning::fp8, 80>;

#define NIBBLE_INSTANTIATE(Items, Scheme, T)                                                                 \
  template __global__ void kernels::detail::write_cache_kernel<policy, Items, Scheme, T>(                    \
      keys_values<const T>, const index_t*, keys_values<const float>, keys_values<uint8_t>, Scheme, index_t, \
      unsigned);

NIBBLE_INSTANTIATE(8, float_scheme<float_format::e4m3>, bf16)
NIBBLE_INSTANTIATE(8, float_scheme<float_format::e5m2>, fp16)
NIBBLE_INSTANTIATE(4, float_scheme<float_format::e4m3>, float)
NIBBLE_INSTANTIATE(1, any_float_scheme, bf16)
