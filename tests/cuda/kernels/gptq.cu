// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/detail/gptq.cuh"
#include "nibble/kernels/detail/hessian.cuh"
#include "nibble/kernels/detail/refit.cuh"
#include "nibble/kernels/detail/target.cuh"
#include "nibble/kernels/tuning/gptq.cuh"

using namespace nibble;
using namespace nibble::kernels::detail;
using kernels::factored;
using factoring = tuned<tuning::factor, 80>;
using refitting = tuned<tuning::refit, 80>;
using solving = tuned<tuning::gptq, 80>;

template __global__ void kernels::detail::unit_kernel<factoring>(ordered_gram, factored*);
template __global__ void kernels::detail::damp_kernel<factoring>(ordered_gram, double, bool, const factored*,
                                                                 matrix<float>);
template __global__ void kernels::detail::corner_kernel<factoring>(matrix<float>, factored*);
template __global__ void kernels::detail::panel_kernel<factoring>(matrix<const float>, matrix<float>, const factored*);
template __global__ void kernels::detail::settle_kernel<factoring>(const factored*, matrix<float>);

#define NIBBLE_INSTANTIATE(Fit, Scheme)                                                                    \
  template __global__ void kernels::detail::codes_kernel<solving, Fit, Scheme>(                            \
      matrix<const float>, matrix<const float>, matrix<const float>, column_block, Scheme, matrix<params>, \
      matrix<uint8_t>, matrix<float>, double*);

NIBBLE_INSTANTIATE(false, scheme<4>)
NIBBLE_INSTANTIATE(true, scheme<4>)
NIBBLE_INSTANTIATE(false, any_scheme)
NIBBLE_INSTANTIATE(true, any_scheme)

template __global__ void kernels::detail::give_way_kernel<solving>(matrix<const float>, matrix<const float>,
                                                                   matrix<const float>, column_block, matrix<float>,
                                                                   matrix<float>);
template __global__ void kernels::detail::group_cost_kernel<solving>(matrix<const float>, float*, matrix<float>,
                                                                     float*);

template __global__ void kernels::detail::steps_kernel<refitting>(matrix<const uint8_t>, matrix<const params>,
                                                                  const float*, matrix<float>);
template __global__ void kernels::detail::refit_kernel<refitting, scheme<4>>(matrix<const uint8_t>, matrix<const float>,
                                                                             matrix<const float>, const float*,
                                                                             scheme<4>, matrix<float>, matrix<params>);
template __global__ void kernels::detail::refit_kernel<refitting, any_scheme>(matrix<const uint8_t>,
                                                                              matrix<const float>, matrix<const float>,
                                                                              const float*, any_scheme, matrix<float>,
                                                                              matrix<params>);

template __global__ void kernels::detail::apart_kernel<solving, 8, bf16>(matrix<const bf16>, matrix<const bf16>,
                                                                         matrix<float>, matrix<float>, unsigned);
template __global__ void kernels::detail::apart_kernel<solving, 4, float>(matrix<const float>, matrix<const float>,
                                                                          matrix<float>, matrix<float>, unsigned);
template __global__ void kernels::detail::ordered_drift_kernel<solving>(matrix<const float>, const float*,
                                                                        const index_t*, double, float, const factored*,
                                                                        matrix<float>);
template __global__ void kernels::detail::ordered_residual_kernel<solving>(matrix<const float>, const float*,
                                                                           const index_t*, const index_t*, double,
                                                                           const kernels::factored*, matrix<float>);
template __global__ void kernels::detail::solve_kernel<solving, false>(matrix<const float>, matrix<float>);
template __global__ void kernels::detail::solve_kernel<solving, true>(matrix<const float>, matrix<float>);
template __global__ void kernels::detail::move_kernel<solving>(matrix<const float>, matrix<const float>, const index_t*,
                                                               const factored*, matrix<float>);
