// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernel that rounds what linears read, and keys and values, to what their 8-bit codes stand for: a block has a token.
#pragma once

#include "mistral/cuda/detail/rows.cuh"
#include "nibble/fp8.hpp"
#include "nibble/kernels/detail/float_conversion.cuh"
#include "nibble/smooth.hpp"

namespace nibble::mistral::cuda {

/// How activations are rounded on a GPU, as mistral::round_inputs does it on the host.
struct activation_rounding {
  bool integers;    ///< int8; e4m3 otherwise
  float scale;      ///< of all activations; 0: found
  index_t group;    ///< activations of a token that share a scale that is found
  const float* by;  ///< (k): what activations are divided by before; null: 1
};

namespace detail {

inline constexpr float_scheme<float_format::e4m3> e4m3;
inline constexpr float not_finite = bit_cast<float>(0x7f800000u);

/// The scale of activations whose largest |x| is `amax`.
__device__ inline float scale_of(float amax, bool integers) {
  return integers ? activation_scale(amax) : nibble::fit(amax, e4m3);
}

/// What the code of x stands for.
__device__ inline float round_activation(float x, float scale, bool integers) {
  if (integers) return device::multiply(static_cast<float>(activation_code(x, scale)) - 128.0f, scale);
  const uint8_t code = device::float_code(device::divide(x, scale), float_format::e4m3);
  return device::multiply(float_value(code, float_format::e4m3), scale);
}

/// Maximum over the block. Every thread comes. `of_warp` as block_sum's.
__device__ inline float block_max(float x, float* of_warp) {
  for (int flip = 16; flip > 0; flip /= 2) x = max(x, device::shuffle_xor(x, flip));
  if (device::lane() == 0) of_warp[threadIdx.x / 32] = x;
  device::barrier();
  x = of_warp[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) x = max(x, of_warp[warp]);
  return x;
}

/// y = rounded x / by, and off = by how much it is more than x / by; either may be nowhere, y may be x. Tokens that hold NaN or
/// infinity stay as they are: whoever reads outputs is to find those.
template <class Tuned, int Items>
__global__ void __launch_bounds__(Tuned::value.threads)
    round_kernel(matrix<const bf16> x, activation_rounding how, matrix<bf16> y, matrix<bf16> off) {
  NIBBLE_SHARED(float, of_warp, Tuned::value.threads / 32);
  const index_t token = blockIdx.x;
  const auto load = [&](index_t col) {
    const auto stored = load_items<Items>(x.row(token) + col);
    device::chunk<float, Items> items;
    for (int i = 0; i < Items; ++i) items.at[i] = stored.at[i];
    if (how.by == nullptr) return items;
    const auto by = load_items<Items>(how.by + col);
    for (int i = 0; i < Items; ++i) items.at[i] = device::divide(items.at[i], by.at[i]);
    return items;
  };
  const auto largest_in = [&](index_t first, index_t end, int one, int all) {
    float most = 0;
    for (index_t col = first + index_t{one} * Items; col < end; col += index_t{all} * Items) {
      const auto items = load(col);
      for (int i = 0; i < Items; ++i) most = max(most, is_finite(items.at[i]) ? abs(items.at[i]) : not_finite);
    }
    return most;
  };
  const auto store = [&](index_t first, index_t end, int one, int all, float scale) {
    for (index_t col = first + index_t{one} * Items; col < end; col += index_t{all} * Items) {
      const auto items = load(col);
      device::chunk<float, Items> rounded = items, more;
      for (int i = 0; i < Items; ++i) {
        if (scale > 0.0f) rounded.at[i] = round_activation(items.at[i], scale, how.integers);
        more.at[i] = device::subtract(rounded.at[i], items.at[i]);
      }
      if (y.data != nullptr) store_items<Items>(y.row(token) + col, rounded);
      if (off.data != nullptr) store_items<Items>(off.row(token) + col, more);
    }
  };

  const int me = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const float most = block_max(largest_in(0, x.cols, me, threads), of_warp);
  if (!is_finite(most)) return store(0, x.cols, me, threads, 0.0f);
  if (how.scale > 0.0f) return store(0, x.cols, me, threads, how.scale);
  if (how.group >= x.cols) return store(0, x.cols, me, threads, scale_of(most, how.integers));
  for (index_t first = me / 32 * how.group; first < x.cols; first += threads / 32 * how.group) {
    const index_t end = min(first + how.group, x.cols);
    float largest = largest_in(first, end, device::lane(), 32);
    for (int flip = 16; flip > 0; flip /= 2) largest = max(largest, device::shuffle_xor(largest, flip));
    store(first, end, device::lane(), 32, scale_of(largest, how.integers));
  }
}

}  // namespace detail
}  // namespace nibble::mistral::cuda
