// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/detail/fit.cuh"

#include "nibble/kernels/detail/percentile.cuh"
#include "nibble/kernels/detail/search.cuh"
#include "nibble/kernels/tuning/fit.cuh"

using namespace nibble;
using policy = tuned<tuning::fit, 80>;
using search_policy = tuned<tuning::fit_search, 80>;

#define NIBBLE_INSTANTIATE_SEARCH(Block, Scheme, T)                                           \
  template __global__ void kernels::detail::fit_groups_kernel<policy, 8, Block, Scheme, T>(   \
      matrix<const T>, matrix<params>, group_shape, bool, Scheme);                            \
  template __global__ void kernels::detail::fit_ends_kernel<search_policy, Block, Scheme, T>( \
      matrix<const T>, matrix<params>, group_shape, Scheme, ends_search, const float*);       \
  template __global__ void kernels::detail::fit_grid_kernel<search_policy, Block, Scheme, T>( \
      matrix<const T>, matrix<params>, group_shape, Scheme, mse_search, int, const float*,    \
      kernels::detail::grid_memory);
#define NIBBLE_INSTANTIATE(Scheme, T)                                                          \
  template __global__ void kernels::detail::fit_rows_kernel<policy, 8, Scheme, T>(             \
      matrix<const T>, matrix<params>, index_t, int, bool, Scheme, unsigned);                  \
  template __global__ void kernels::detail::fit_pieces_kernel<policy, 8, T>(                   \
      matrix<const T>, matrix<params>, group_shape, bool, index_t, index_t, index_t, index_t); \
  template __global__ void kernels::detail::fit_percentile_kernel<search_policy, Scheme, T>(   \
      matrix<const T>, matrix<params>, group_shape, Scheme, double);                           \
  NIBBLE_INSTANTIATE_SEARCH(true, Scheme, T)                                                   \
  NIBBLE_INSTANTIATE_SEARCH(false, Scheme, T)

NIBBLE_INSTANTIATE(scheme<4>, bf16)
NIBBLE_INSTANTIATE(any_scheme, float)
template __global__ void kernels::detail::fit_begin_kernel<policy>(matrix<params>);
template __global__ void kernels::detail::fit_end_kernel<policy>(matrix<params>, any_scheme);
template __global__ void kernels::detail::fit_grid_choose_kernel<search_policy>(matrix<params>, any_scheme, mse_search,
                                                                                int, kernels::detail::grid_memory);
