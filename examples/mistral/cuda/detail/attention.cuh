// SPDX-License-Identifier: Apache-2.0
/// @file
/// Causal grouped-query attention, out = softmax(q kᵀ / √d) v, over the sequences of a batch, by tiles of keys with a running
/// maximum and sum: no more scores are held than a tile's. Plain arithmetic in float; attention_mma.cuh does the same by mma.
/// Source: Milakov and Gimelshein, arXiv 1805.02867 (the running softmax); Rabe and Staats, arXiv 2112.05682.
#pragma once

#include "mistral/cuda/detail/rows.cuh"
#include "mistral/cuda/tuning.cuh"

namespace nibble::mistral::cuda::detail {

inline constexpr float no_score = bit_cast<float>(0xff800000u);  ///< −inf: of a key that a query does not see

/// What all attention kernels are told.
struct attention_task {
  matrix<const bf16> qkv;  ///< (tokens, heads.width()), q and k turned
  head_layout heads;
  const index_t* starts;  ///< (sequences + 1)
  index_t sequences;
  index_t tiles;     ///< of queries in the longest sequence
  index_t window;    ///< keys a query sees, its own included; 0: all before it
  float scale;       ///< of scores, as powers of two: log2 e / √d
  matrix<bf16> out;  ///< (tokens, heads.q_width())
};

/// A block's work: some queries of one head of one sequence. Late queries see most keys and come first; the heads that share
/// keys are neighbours.
struct query_tile {
  index_t head, kv_head;
  index_t first, length;    ///< the sequence's first token and length
  index_t query;            ///< position of the first query
  index_t first_key, keys;  ///< some query sees keys of the positions [first_key, keys)

  __device__ query_tile(const attention_task& task, int queries) {
    index_t at = blockIdx.x;
    head = at % task.heads.heads;
    kv_head = head / (task.heads.heads / task.heads.kv_heads);
    at /= task.heads.heads;
    const index_t sequence = at % task.sequences;
    first = task.starts[sequence];
    length = task.starts[sequence + 1] - first;
    query = (task.tiles - 1 - at / task.sequences) * queries;
    first_key = task.window > 0 ? max(index_t(0), query + 1 - task.window) : 0;
    keys = min(length, query + queries);
  }
  /// Shorter sequences have fewer tiles than the longest.
  __device__ bool empty() const { return query >= length; }
};

__device__ inline bool sees(index_t query, index_t key, index_t window) {
  return key <= query && (window == 0 || key > query - window);
}

/// What a row of scores was so far: Σ 2^(score − largest) = sum. Scores of −inf count for nothing, also when there are
/// no others yet.
struct running_row {
  float largest = no_score, sum = 0;

  /// Moves to a new maximum; sums so far are to be multiplied by what comes back.
  __device__ float rescale(float candidate) {
    const float most = max(largest, candidate), factor = device::exp2(largest - base(most));
    largest = most;
    sum *= factor;
    return factor;
  }
  __device__ float numerator(float score) const { return device::exp2(score - base(largest)); }

 private:
  __device__ static float base(float most) { return most == no_score ? 0.0f : most; }
};

/// Bytes of dynamic shared memory: queries as float, a tile of keys, a tile of values, numerators. Keys lie an odd number of
/// words apart, so that lanes with a key each read different banks.
NIBBLE_HOST_DEVICE constexpr index_t attention_shared_bytes(tuning::attention_policy policy, index_t head_dim) {
  return 4 * policy.queries * head_dim + 2 * policy.keys * (head_dim + 2) + 2 * policy.keys * head_dim +
         4 * policy.warps * policy.keys;
}

template <class Tuned>
__global__ void __launch_bounds__(Tuned::value.warps * 32) attention_kernel(attention_task task) {
  constexpr auto policy = Tuned::value;
  constexpr int own_queries = policy.queries / policy.warps, own_cols = policy.most_head_dim / 32;
  static_assert(policy.keys == 32, "a lane has a key");
  const query_tile tile(task, policy.queries);
  if (tile.empty()) return;
  const int head_dim = static_cast<int>(task.heads.head_dim), key_stride = head_dim + 2;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = device::lane();
  NIBBLE_DYNAMIC_SHARED(float, queries);
  float* const numerators = queries + policy.queries * head_dim + warp * policy.keys;
  bf16* const keys = reinterpret_cast<bf16*>(queries + policy.queries * head_dim + policy.warps * policy.keys);
  bf16* const values = keys + policy.keys * key_stride;
  const auto at = [&](index_t position, index_t col) { return task.qkv.row(tile.first + position) + col; };
  const index_t q_col = tile.head * head_dim, k_col = task.heads.q_width() + tile.kv_head * head_dim;
  const index_t v_col = k_col + task.heads.kv_width();
  for (int i = static_cast<int>(threadIdx.x); i < policy.queries * head_dim; i += policy.warps * 32) {
    const index_t position = tile.query + i / head_dim;
    queries[i] = position < tile.length ? static_cast<float>(*at(position, q_col + i % head_dim)) : 0.0f;
  }

  running_row rows[own_queries];
  float outputs[own_queries][own_cols] = {};
  for (index_t first_key = tile.first_key; first_key < tile.keys; first_key += policy.keys) {
    device::barrier();
    for (int i = static_cast<int>(threadIdx.x); i < policy.keys * head_dim; i += policy.warps * 32) {
      const int key = i / head_dim, col = i % head_dim;
      const bool there = first_key + key < tile.keys;
      keys[key * key_stride + col] = there ? *at(first_key + key, k_col + col) : bf16(0.0f);
      values[i] = there ? *at(first_key + key, v_col + col) : bf16(0.0f);
    }
    device::barrier();
#pragma unroll
    for (int own = 0; own < own_queries; ++own) {
      const int query = own * policy.warps + warp;
      float score = 0;
      for (int i = 0; i < head_dim; ++i) score += queries[query * head_dim + i] * float(keys[lane * key_stride + i]);
      score = sees(tile.query + query, first_key + lane, task.window) ? score * task.scale : no_score;
      float most = score;
      for (int flip = 16; flip > 0; flip /= 2) most = max(most, device::shuffle_xor(most, flip));
      const float factor = rows[own].rescale(most);
      const float numerator = rows[own].numerator(score);
      float sum = numerator;
      for (int flip = 16; flip > 0; flip /= 2) sum += device::shuffle_xor(sum, flip);
      rows[own].sum += sum;
      numerators[lane] = numerator;
      device::warp_barrier();
#pragma unroll
      for (int i = 0; i < own_cols; ++i) {
        const int col = lane + 32 * i;
        outputs[own][i] *= factor;
        for (int key = 0; key < policy.keys && col < head_dim; ++key)
          outputs[own][i] += numerators[key] * float(values[key * head_dim + col]);
      }
      device::warp_barrier();
    }
  }
#pragma unroll
  for (int own = 0; own < own_queries; ++own) {
    const index_t position = tile.query + own * policy.warps + warp;
    if (position >= tile.length) continue;
#pragma unroll
    for (int i = 0; i < own_cols; ++i)
      if (lane + 32 * i < head_dim)
        task.out(tile.first + position, q_col + lane + 32 * i) = bf16(outputs[own][i] / rows[own].sum);
  }
}

}  // namespace nibble::mistral::cuda::detail
