// SPDX-License-Identifier: Apache-2.0
/// @file
/// Causal grouped-query attention over sequences of different lengths, with an optional sliding window, on a GPU.
#pragma once

#include <cmath>

#include "mistral/cuda/detail/attention.cuh"
#include "mistral/cuda/detail/attention_mma.cuh"
#include "mistral/cuda/rows.cuh"

namespace nibble::mistral::cuda {

namespace detail {

inline status check_attention(const attention_task& t, index_t longest) noexcept {
  const head_layout& h = t.heads;
  if (h.kv_heads < 1 || h.heads < h.kv_heads || h.heads % h.kv_heads != 0) return status::bad_shape;
  if (h.head_dim < 2 || h.head_dim % 2 != 0 || h.head_dim > 256 || t.window < 0) return status::bad_shape;
  if (!well_formed(t.qkv) || !well_formed(t.out) || t.qkv.rows != t.out.rows) return status::bad_shape;
  if (t.qkv.cols != h.width() || t.out.cols != h.q_width()) return status::bad_shape;
  if (t.out.empty()) return status::ok;
  if (t.starts == nullptr || t.sequences < 1 || longest < 1) return status::bad_shape;
  return kernels::detail::aligned(t.qkv) && kernels::detail::aligned(t.out) && aligned(t.starts) ? status::ok
                                                                                                 : status::misaligned;
}

/// Starts a block for each query tile of each head of each sequence.
template <class Kernel>
status launch_tiles(Kernel kernel, attention_task task, index_t longest, tuning::attention_policy policy,
                    index_t shared_bytes, cudaStream_t stream) {
  task.tiles = ceil_div(longest, policy.queries);
  constexpr index_t most = 2147483647;
  if (task.sequences > most / task.heads.heads || task.tiles > most / (task.heads.heads * task.sequences))
    return status::too_large;
  return launch(kernel, task.tiles * task.heads.heads * task.sequences, policy.warps * 32, shared_bytes, stream, task);
}

template <int MostHeadDim>
status launch_attention_mma(const attention_task& task, index_t longest, cudaStream_t stream) {
  return dispatch(tuning::attention_mma<MostHeadDim>{}, [&](auto tuned) {
    return launch_tiles(attention_mma_kernel<decltype(tuned)>, task, longest, tuned.value,
                        attention_mma_shared_bytes(tuned.value), stream);
  });
}

inline attention_task describe(matrix<const bf16> qkv, head_layout heads, const index_t* starts, index_t sequences,
                               index_t window, matrix<bf16> out) {
  const float scale = log2_e / std::sqrt(static_cast<float>(heads.head_dim));
  return {qkv, heads, starts, sequences, 0, window, scale, out};
}

}  // namespace detail

/// By plain arithmetic in float: any even head_dim up to 256, any alignment. Arguments as attention's.
inline status attention_plain(matrix<const bf16> qkv, head_layout heads, const index_t* starts, index_t sequences,
                              index_t longest, index_t window, matrix<bf16> out, cudaStream_t stream) {
  const auto task = detail::describe(qkv, heads, starts, sequences, window, out);
  const status checked = detail::check_attention(task, longest);
  if (checked != status::ok || out.empty()) return checked;
  return dispatch(tuning::attention{}, [&](auto tuned) {
    return detail::launch_tiles(detail::attention_kernel<decltype(tuned)>, task, longest, tuned.value,
                                detail::attention_shared_bytes(tuned.value, heads.head_dim), stream);
  });
}

/// By mma in bf16: head_dim a multiple of 8, rows of qkv 16-byte aligned and of out 4-byte, or misaligned. Arguments as
/// attention's.
inline status attention_mma(matrix<const bf16> qkv, head_layout heads, const index_t* starts, index_t sequences,
                            index_t longest, index_t window, matrix<bf16> out, cudaStream_t stream) {
  const auto task = detail::describe(qkv, heads, starts, sequences, window, out);
  const status checked = detail::check_attention(task, longest);
  if (checked != status::ok || out.empty()) return checked;
  if (heads.head_dim % 8 != 0) return status::bad_shape;
  if (!aligned(qkv, 8) || !aligned(out, 2)) return status::misaligned;
  if (heads.head_dim <= 64) return detail::launch_attention_mma<64>(task, longest, stream);
  if (heads.head_dim <= 128) return detail::launch_attention_mma<128>(task, longest, stream);
  return detail::launch_attention_mma<256>(task, longest, stream);
}

/// out (tokens, heads.q_width()) = softmax(q kᵀ / √head_dim) v of every head, each query seeing the last `window` keys of
/// its sequence up to its own (0: all of them); by mma where shapes and alignment allow it.
/// @param qkv (tokens, heads.width()), q and k already turned.
/// @param starts (sequences + 1) on the device, from 0 to the number of tokens, rising. @param longest of the sequences.
/// NaN in one sequence stays there; within it, keys that a query does not see may still make it NaN.
/// @returns bad_shape, misaligned, too_large for 2^31 tiles, or what launch says.
inline status attention(matrix<const bf16> qkv, head_layout heads, const index_t* starts, index_t sequences,
                        index_t longest, index_t window, matrix<bf16> out, cudaStream_t stream) {
  const bool wide = heads.head_dim % 8 == 0 && aligned(qkv, 8) && aligned(out, 2);
  return (wide ? attention_mma : attention_plain)(qkv, heads, starts, sequences, longest, window, out, stream);
}

}  // namespace nibble::mistral::cuda
