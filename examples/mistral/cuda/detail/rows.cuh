// SPDX-License-Identifier: Apache-2.0
/// @file
/// Kernels of the forward pass that work on a token's row by itself, a block each: embedding, RMSNorm, rotary embedding,
/// SwiGLU. `Items` elements an access; columns are a multiple of it.
#pragma once

#include "nibble/half.hpp"
#include "nibble/kernels/detail/device.cuh"
#include "nibble/matrix.hpp"

namespace nibble::mistral::cuda::detail {

inline constexpr float log2_e = 1.44269504f;

/// f(first column) for every `Items`-th column of [0, cols), shared out over the block.
template <int Items, class F>
__device__ void over_columns(index_t cols, F f) {
  for (index_t col = index_t{threadIdx.x} * Items; col < cols; col += index_t{blockDim.x} * Items) f(col);
}

template <int Items, class T>
__device__ device::chunk<T, Items> load_items(const T* p) {
  return device::load(reinterpret_cast<const device::chunk<T, Items>*>(p));
}
template <int Items, class T>
__device__ void store_items(T* p, device::chunk<T, Items> items) {
  device::store(reinterpret_cast<device::chunk<T, Items>*>(p), items);
}
template <int Items>
__device__ void store_items(bf16* p, device::chunk<float, Items> items) {
  device::chunk<bf16, Items> rounded;
  for (int i = 0; i < Items; ++i) rounded.at[i] = bf16(items.at[i]);
  store_items<Items, bf16>(p, rounded);
}

/// Sum over the block, the same bits in every thread. Every thread comes. `of_warp` has an element a warp, and the kernel
/// uses it for nothing else.
template <class T>
__device__ T block_sum(T x, T* of_warp) {
  for (int flip = 16; flip > 0; flip /= 2) x = device::add(x, device::shuffle_xor(x, flip));
  if (device::lane() == 0) of_warp[threadIdx.x / 32] = x;
  device::barrier();
  T sum = of_warp[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) sum = device::add(sum, of_warp[warp]);
  return sum;
}

/// The sequence of `token`: the last s with starts[s] <= token. @pre starts rises from 0 and ends beyond `token`.
__device__ inline index_t sequence_of(const index_t* starts, index_t sequences, index_t token) {
  index_t low = 0, high = sequences;
  while (high - low > 1) {
    const index_t middle = (low + high) / 2;
    if (starts[middle] <= token)
      low = middle;
    else
      high = middle;
  }
  return low;
}

/// x row t = table row ids[t] − first_id, where the table has it.
template <class Tuned, int Items>
__global__ void __launch_bounds__(Tuned::value.threads)
    embed_kernel(matrix<const bf16> table, index_t first_id, const int32_t* ids, matrix<float> x) {
  const index_t token = blockIdx.x, entry = ids[token] - first_id;
  if (entry < 0 || entry >= table.rows) return;
  over_columns<Items>(x.cols, [&](index_t col) {
    const auto stored = load_items<Items>(table.row(entry) + col);
    device::chunk<float, Items> wide;
    for (int i = 0; i < Items; ++i) wide.at[i] = stored.at[i];
    store_items<Items>(x.row(token) + col, wide);
  });
}

template <class Tuned, int Items>
__global__ void __launch_bounds__(Tuned::value.threads)
    rms_norm_kernel(matrix<const float> x, const float* weight, float epsilon, matrix<bf16> y) {
  NIBBLE_SHARED(float, of_warp, Tuned::value.threads / 32);
  const float* const in = x.row(blockIdx.x);
  float squares = 0;
  over_columns<Items>(x.cols, [&](index_t col) {
    const auto items = load_items<Items>(in + col);
    for (int i = 0; i < Items; ++i) squares = device::fused(items.at[i], items.at[i], squares);
  });
  const float mean = device::divide(block_sum(squares, of_warp), static_cast<float>(x.cols));
  const float inverse = device::divide(1.0f, device::square_root(device::add(mean, epsilon)));
  over_columns<Items>(x.cols, [&](index_t col) {
    auto items = load_items<Items>(in + col);
    const auto by = load_items<Items>(weight + col);
    for (int i = 0; i < Items; ++i) items.at[i] = device::multiply(device::multiply(items.at[i], inverse), by.at[i]);
    store_items<Items>(y.row(blockIdx.x) + col, items);
  });
}

/// How the columns of q, k and v side by side are cut: `heads` of q, then kv_heads of k, then as many of v.
struct head_layout {
  index_t heads, kv_heads, head_dim;
  NIBBLE_HOST_DEVICE constexpr index_t q_width() const { return heads * head_dim; }
  NIBBLE_HOST_DEVICE constexpr index_t kv_width() const { return kv_heads * head_dim; }
  NIBBLE_HOST_DEVICE constexpr index_t width() const { return q_width() + 2 * kv_width(); }
};

/// Rounds qkv to `out`, q and k turned by their position in their sequence. `Items` divides head_dim / 2.
template <class Tuned, int Items>
__global__ void __launch_bounds__(Tuned::value.threads)
    rotate_kernel(matrix<const float> qkv, head_layout heads, const index_t* starts, index_t sequences,
                  matrix<const float> cosine, matrix<const float> sine, matrix<bf16> out) {
  const index_t token = blockIdx.x, half = heads.head_dim / 2;
  const index_t position = token - starts[sequence_of(starts, sequences, token)];
  const float* const in = qkv.row(token);
  const index_t turned = heads.q_width() + heads.kv_width();
  over_columns<Items>(turned / 2, [&](index_t pair) {
    const index_t i = pair % half, first = pair / half * heads.head_dim + i;
    const auto a = load_items<Items>(in + first), b = load_items<Items>(in + first + half);
    const auto c = load_items<Items>(cosine.row(position) + i), s = load_items<Items>(sine.row(position) + i);
    device::chunk<float, Items> low, high;
    for (int j = 0; j < Items; ++j) {
      low.at[j] = device::subtract(device::multiply(a.at[j], c.at[j]), device::multiply(b.at[j], s.at[j]));
      high.at[j] = device::add(device::multiply(b.at[j], c.at[j]), device::multiply(a.at[j], s.at[j]));
    }
    store_items<Items>(out.row(token) + first, low);
    store_items<Items>(out.row(token) + first + half, high);
  });
  over_columns<Items>(heads.kv_width(), [&](index_t col) {
    store_items<Items>(out.row(token) + turned + col, load_items<Items>(in + turned + col));
  });
}

/// out = silu(gate) · up; gate is the left half of gate_up, up the right.
template <class Tuned, int Items>
__global__ void __launch_bounds__(Tuned::value.threads) swiglu_kernel(matrix<const float> gate_up, matrix<bf16> out) {
  const float* const gate = gate_up.row(blockIdx.x);
  const float* const up = gate + out.cols;
  over_columns<Items>(out.cols, [&](index_t col) {
    const auto g = load_items<Items>(gate + col), u = load_items<Items>(up + col);
    device::chunk<float, Items> y;
    for (int i = 0; i < Items; ++i) {
      const float below = device::add(1.0f, device::exp2(device::multiply(g.at[i], -log2_e)));
      y.at[i] = device::multiply(device::divide(g.at[i], below), u.at[i]);
    }
    store_items<Items>(out.row(blockIdx.x) + col, y);
  });
}

}  // namespace nibble::mistral::cuda::detail
