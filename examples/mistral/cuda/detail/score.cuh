// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernel that adds a tile of logits to what is known of each row's distribution, a block a row.
#pragma once

#include "mistral/cuda/detail/rows.cuh"

namespace nibble::mistral::cuda::detail {

/// What is known of a row of logits after some tiles of the vocabulary, relative to the largest logit so far.
struct logit_sums {
  double sum = 0;  ///< Σ e^(logit − largest)
  float largest = bit_cast<float>(0xff800000u);
  int32_t top = -1;  ///< the first entry that has it
};

struct score_state {
  logit_sums own, reference;
  double cross = 0;  ///< Σ e^(r − largest r) (r − logit), r the reference's logits
  float target = 0;  ///< the logit of the id that came
};

struct top_logit {
  float value;
  int32_t at;
};

__device__ inline top_logit higher(top_logit a, top_logit b) {
  return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a;
}

/// The largest logit of a row over the block, the first of equals; NaN is none. Every thread comes; of_warp as block_sum's.
__device__ inline top_logit block_top(const float* logits, index_t count, top_logit* of_warp) {
  top_logit top{bit_cast<float>(0xff800000u), 2147483647};
  over_columns<1>(count, [&](index_t col) { top = higher(top, {logits[col], static_cast<int32_t>(col)}); });
  for (int flip = 16; flip > 0; flip /= 2) top = higher(top, device::shuffle_xor(top, flip));
  if (device::lane() == 0) of_warp[threadIdx.x / 32] = top;
  device::barrier();
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) top = higher(top, of_warp[warp]);
  return top;
}

__device__ inline float exponential(float x) {
  return device::exp2(device::multiply(x, log2_e));
}

/// Makes room for a tile whose largest logit is `top`, `entry` the id of its first. @returns by what sums so far shrink.
__device__ inline double raise(logit_sums& sums, top_logit top, index_t entry) {
  if (!(top.value > sums.largest)) return 1.0;
  const double factor = exponential(device::subtract(sums.largest, top.value));
  sums.largest = top.value;
  sums.top = static_cast<int32_t>(entry + top.at);
  sums.sum *= factor;
  return factor;
}

/// logits (tokens, entries of the vocabulary from `entry` on); `reference` the same of another model, or without data.
template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.threads)
    score_kernel(matrix<const float> logits, matrix<const float> reference, index_t entry, const int32_t* targets,
                 score_state* states) {
  constexpr int warps = Tuned::value.threads / 32;
  NIBBLE_SHARED(top_logit, own_tops, warps);
  NIBBLE_SHARED(top_logit, reference_tops, warps);
  NIBBLE_SHARED(double, own_sums, warps);
  NIBBLE_SHARED(double, reference_sums, warps);
  NIBBLE_SHARED(double, cross_sums, warps);
  const index_t row = blockIdx.x, wanted = targets[row] - entry;
  const bool compare = reference.data != nullptr;
  const float* const own = logits.row(row);
  score_state state;
  if (entry > 0) state = states[row];

  raise(state.own, block_top(own, logits.cols, own_tops), entry);
  float sum = 0;
  over_columns<1>(logits.cols, [&](index_t col) { sum += exponential(device::subtract(own[col], state.own.largest)); });
  state.own.sum += block_sum(static_cast<double>(sum), own_sums);
  if (wanted >= 0 && wanted < logits.cols) state.target = own[wanted];
  if (compare) {
    const float* const other = reference.row(row);
    state.cross *= raise(state.reference, block_top(other, logits.cols, reference_tops), entry);
    float mass = 0, cross = 0;
    over_columns<1>(logits.cols, [&](index_t col) {
      const float p = exponential(device::subtract(other[col], state.reference.largest));
      mass += p;
      cross += p * device::subtract(other[col], own[col]);
    });
    state.reference.sum += block_sum(static_cast<double>(mass), reference_sums);
    state.cross += block_sum(static_cast<double>(cross), cross_sums);
  }
  if (threadIdx.x == 0) states[row] = state;
}

}  // namespace nibble::mistral::cuda::detail
