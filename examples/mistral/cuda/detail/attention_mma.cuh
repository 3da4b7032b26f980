// SPDX-License-Identifier: Apache-2.0
/// @file
/// attention.cuh by mma.m16n8k16 in bf16: a warp has 16 queries, and holds their scores with a tile of keys and their outputs
/// as accumulators, (g, 2t..2t+1) and (g+8, 2t..2t+1) of every 8 columns. Keys are copied while values are multiplied, and
/// the other way round. Numerators are rounded to bf16 before they meet the values.
/// Source: Dao, arXiv 2307.08691 (which warp has what).
#pragma once

#include "mistral/cuda/detail/attention.cuh"

namespace nibble::mistral::cuda::detail {

/// Rows in shared memory lie 16 bytes more than a power of two apart: ldmatrix reads 8 rows from different banks.
NIBBLE_HOST_DEVICE constexpr int mma_stride(tuning::attention_policy policy) {
  return policy.most_head_dim + 8;
}
NIBBLE_HOST_DEVICE constexpr index_t attention_mma_shared_bytes(tuning::attention_policy policy) {
  return index_t{2} * mma_stride(policy) * (policy.queries + 2 * policy.keys);
}

/// Starts to copy `rows` positions from `first` on of the head at `col` into `to`; zeros from position `end` and from the
/// head's end on.
template <class Tuned>
__device__ void copy_tile(const attention_task& task, const query_tile& tile, index_t col, index_t first, index_t end,
                          int rows, bf16* to) {
  constexpr auto policy = Tuned::value;
  constexpr int chunks = policy.most_head_dim / 8;
  for (int i = static_cast<int>(threadIdx.x); i < rows * chunks; i += policy.warps * 32) {
    const int row = i / chunks, within = i % chunks * 8;
    const bool there = first + row < end && within < task.heads.head_dim;
    const bf16* const from = there ? task.qkv.row(tile.first + first + row) + col + within : task.qkv.data;
    device::cp_async<16>(to + row * mma_stride(policy) + within, from, there);
  }
}

/// A warp's 16 queries.
template <class Tuned>
struct warp_queries {
  static constexpr auto policy = Tuned::value;
  static constexpr int stride = mma_stride(policy);
  running_row rows[2];               ///< g and g + 8; `sum` is of this lane's columns
  float scores[policy.keys / 8][4];  ///< then numerators
  float outputs[policy.most_head_dim / 8][4] = {};

  /// scores = q kᵀ of 16 rows of queries and a tile of keys, unscaled.
  __device__ void multiply_keys(const bf16* queries, const bf16* keys) {
    const int lane = device::lane();
#pragma unroll
    for (int n = 0; n < policy.keys / 8; ++n)
      for (int i = 0; i < 4; ++i) scores[n][i] = 0;
#pragma unroll
    for (int k = 0; k < policy.most_head_dim; k += 16) {
      uint32_t a[4];
      device::load_matrices(a, queries + lane % 16 * stride + k + lane / 16 * 8);
#pragma unroll
      for (int n = 0; n < policy.keys; n += 16) {
        uint32_t b[4];
        device::load_matrices(b, keys + (n + lane % 8 + lane / 16 * 8) * stride + k + lane / 8 % 2 * 8);
        const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
        device::mma_m16n8k16<bf16>(scores[n / 8], a, left);
        device::mma_m16n8k16<bf16>(scores[n / 8 + 1], a, right);
      }
    }
  }

  /// Scores to numerators; what was added up before is brought to the new maximum.
  /// @param query position of the first of the 16 rows. @param key of the first column.
  __device__ void normalise(index_t query, index_t key, index_t window, float scale) {
    const int g = device::lane() / 4, t = device::lane() % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = no_score;
#pragma unroll
      for (int n = 0; n < policy.keys / 8; ++n)
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          const bool seen = sees(query + g + 8 * half, key + 8 * n + 2 * t + i % 2, window);
          scores[n][i] = seen ? scores[n][i] * scale : no_score;
          most = max(most, scores[n][i]);
        }
      for (int flip = 1; flip < 4; flip *= 2) most = max(most, device::shuffle_xor(most, flip));
      const float factor = rows[half].rescale(most);
#pragma unroll
      for (int n = 0; n < policy.keys / 8; ++n)
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[n][i] = rows[half].numerator(scores[n][i]);
          rows[half].sum += scores[n][i];
        }
#pragma unroll
      for (int n = 0; n < policy.most_head_dim / 8; ++n)
        for (int i = 2 * half; i < 2 * half + 2; ++i) outputs[n][i] *= factor;
    }
  }

  /// outputs += numerators · values.
  __device__ void multiply_values(const bf16* values) {
    const int lane = device::lane();
#pragma unroll
    for (int k = 0; k < policy.keys; k += 16) {
      const float(&low)[4] = scores[k / 8];
      const float(&high)[4] = scores[k / 8 + 1];
      const uint32_t a[4] = {device::pack_bf16(low[0], low[1]), device::pack_bf16(low[2], low[3]),
                             device::pack_bf16(high[0], high[1]), device::pack_bf16(high[2], high[3])};
#pragma unroll
      for (int n = 0; n < policy.most_head_dim; n += 16) {
        uint32_t b[4];
        device::load_matrices<true>(b, values + (k + lane % 16) * stride + n + lane / 16 * 8);
        const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
        device::mma_m16n8k16<bf16>(outputs[n / 8], a, left);
        device::mma_m16n8k16<bf16>(outputs[n / 8 + 1], a, right);
      }
    }
  }

  /// @param query position of the first of the 16 rows.
  __device__ void store(const attention_task& task, const query_tile& tile, index_t query) const {
    const int g = device::lane() / 4, t = device::lane() % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = rows[half].sum;
      for (int flip = 1; flip < 4; flip *= 2) sum += device::shuffle_xor(sum, flip);
      const index_t position = query + g + 8 * half;
      if (position >= tile.length) continue;
      bf16* const out = task.out.row(tile.first + position) + tile.head * task.heads.head_dim;
#pragma unroll
      for (int n = 0; n < policy.most_head_dim / 8; ++n)
        if (8 * n < task.heads.head_dim)
          device::store(reinterpret_cast<uint32_t*>(out + 8 * n + 2 * t),
                        device::pack_bf16(outputs[n][2 * half] / sum, outputs[n][2 * half + 1] / sum));
    }
  }
};

template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.warps * 32) attention_mma_kernel(attention_task task) {
  constexpr auto policy = Tuned::value;
  constexpr int stride = mma_stride(policy);
  static_assert(policy.queries == policy.warps * 16, "a warp has 16 queries");
  const query_tile tile(task, policy.queries);
  if (tile.empty()) return;
  NIBBLE_DYNAMIC_SHARED(bf16, queries);
  bf16* const keys = queries + policy.queries * stride;
  bf16* const values = keys + policy.keys * stride;
  const index_t k_col = task.heads.q_width() + tile.kv_head * task.heads.head_dim;
  const index_t v_col = k_col + task.heads.kv_width();
  const auto copy = [&](index_t col, index_t key, bf16* to) {
    copy_tile<Tuned>(task, tile, col, key, tile.keys, policy.keys, to);
    device::cp_async_commit();
  };
  copy_tile<Tuned>(task, tile, tile.head * task.heads.head_dim, tile.query, tile.length, policy.queries, queries);
  copy(k_col, tile.first_key, keys);

  const int first_row = static_cast<int>(threadIdx.x) / 32 * 16;
  warp_queries<Tuned> own;
  for (index_t key = tile.first_key; key < tile.keys; key += policy.keys) {
    device::cp_async_wait<0>();
    device::barrier();  // keys are there, and the values before were used by all
    copy(v_col, key, values);
    own.multiply_keys(queries + first_row * stride, keys);
    device::cp_async_wait<0>();
    device::barrier();  // values are there, and these keys were used by all
    if (key + policy.keys < tile.keys) copy(k_col, key + policy.keys, keys);
    own.normalise(tile.query + first_row, key, task.window, task.scale);
    own.multiply_values(values);
  }
  own.store(task, tile, tile.query + first_row);
}

}  // namespace nibble::mistral::cuda::detail
