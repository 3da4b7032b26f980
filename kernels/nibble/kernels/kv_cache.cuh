// SPDX-License-Identifier: Apache-2.0
/// @file
/// Keys and values into a cache of floating-point codes on a GPU; equal to the reference bit for bit.
#pragma once

#include "nibble/kernels/check.hpp"
#include "nibble/kernels/detail/kv_cache.cuh"
#include "nibble/kernels/launch.cuh"
#include "nibble/kernels/tuning/fp8.cuh"
#include "nibble/kv_cache.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

template <class T>
status check_write_cache(matrix<const T> from, matrix<const float> scales, matrix<uint8_t> cache) noexcept {
  if (!well_formed(from) || !well_formed(cache) || cache.cols != from.cols) return status::bad_shape;
  if (!well_formed(scales) || scales.rows != 1 || scales.cols < 1) return status::bad_shape;
  if (from.cols % scales.cols != 0) return status::bad_group;
  return aligned(from) && aligned(scales) ? status::ok : status::misaligned;
}

}  // namespace detail

/// reference::write_cache on device pointers, asynchronous in `stream`. from, float, fp16 or bf16, (tokens, heads · head_dim); slots
/// (tokens); scales (1, 1) or (1, heads); cache (slots, heads · head_dim). Any strides; by 16-byte accesses where keys and
/// values are 16-byte aligned, row for row, and the cache as many elements. @pre no two tokens have one slot.
/// @returns bad_shape, bad_group where there are not as many numbers to each scale, misaligned (to less than an element), or
/// what launch says.
template <class Scheme, class T>
status write_cache(keys_values<const T> from, const index_t* slots, keys_values<const float> scales,
                   keys_values<uint8_t> cache, Scheme s, cudaStream_t stream) {
  for (const status checked :
       {detail::check_write_cache(from.k, scales.k, cache.k), detail::check_write_cache(from.v, scales.v, cache.v)})
    if (checked != status::ok) return checked;
  const index_t tokens = from.k.rows;
  if (from.v.rows != tokens || (slots == nullptr && tokens > 0)) return status::bad_shape;
  if (!detail::aligned(slots)) return status::misaligned;
  return dispatch(tuning::fp8{}, [&](auto tuned) {
    constexpr int threads = tuned.value.threads;
    const auto by = [&](auto items) {
      const index_t key_chunks = ceil_div(from.k.cols, items.value);
      const index_t chunks = key_chunks + ceil_div(from.v.cols, items.value);
      const index_t wide = detail::power_of_two(chunks, threads), high = threads / wide;
      const index_t across = ceil_div(chunks, wide), down = ceil_div(tokens, high);
      if (down > 0 && across > 2147483647 / down) return status::too_large;
      return launch(detail::write_cache_kernel<decltype(tuned), items.value, Scheme, T>, across * down,
                    extent3(wide, high), 0, stream, from, slots, scales, cache, s, key_chunks,
                    static_cast<unsigned>(across));
    };
    constexpr int most = 16 / int{sizeof(T)};
    const bool whole = detail::aligned(from.k, most) && detail::aligned(from.v, most) &&
                       detail::aligned(cache.k, most) && detail::aligned(cache.v, most);
    return whole ? by(constant<most>{}) : by(constant<1>{});
  });
}

}  // namespace kernels
NIBBLE_NAMESPACE_END
