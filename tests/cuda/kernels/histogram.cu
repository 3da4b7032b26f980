// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/detail/histogram.cuh"
#include "nibble/kernels/tuning/histogram.cuh"

using namespace nibble;
using policy = tuned<tuning::histogram, 80>;

#define NIBBLE_INSTANTIATE(Items, T)                                                                               \
  template __global__ void kernels::detail::range_kernel<policy, Items, true, T>(                                  \
      matrix<const T>, matrix<kernels::detail::range_ends>, unsigned);                                             \
  template __global__ void kernels::detail::range_kernel<policy, Items, false, T>(                                 \
      matrix<const T>, matrix<kernels::detail::range_ends>, unsigned);                                             \
  template __global__ void kernels::detail::magnitude_kernel<policy, Items, T>(matrix<const T>, histogram_counts*, \
                                                                               unsigned);                          \
  template __global__ void kernels::detail::count_kernel<policy, Items, T>(matrix<const T>, histogram_counts*,     \
                                                                           unsigned);

NIBBLE_INSTANTIATE(8, bf16)
NIBBLE_INSTANTIATE(4, float)
NIBBLE_INSTANTIATE(1, fp16)

template __global__ void kernels::detail::join_channel_ranges_kernel<policy>(matrix<const kernels::detail::range_ends>,
                                                                             value_range*);
template __global__ void kernels::detail::join_range_kernel<policy>(const kernels::detail::range_ends*, index_t,
                                                                    value_range*);
template __global__ void kernels::detail::widen_kernel<policy>(histogram_counts*);

#define NIBBLE_INSTANTIATE_SEARCH(Rule)                                                                         \
  template __global__ void kernels::detail::threshold_costs_kernel<policy, Rule>(const histogram_counts*, Rule, \
                                                                                 matrix<double>);
NIBBLE_INSTANTIATE_SEARCH(kernels::detail::least_squared_error<int32_t>)
NIBBLE_INSTANTIATE_SEARCH(kernels::detail::least_squared_error<float_format>)
NIBBLE_INSTANTIATE_SEARCH(kernels::detail::least_divergence)

template __global__ void kernels::detail::least_cost_kernel<policy>(const histogram_counts*, matrix<const double>,
                                                                    float*);
template __global__ void kernels::detail::percentile_threshold_kernel<policy>(const histogram_counts*, double, float*);
