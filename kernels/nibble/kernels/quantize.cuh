// SPDX-License-Identifier: Apache-2.0
/// @file
/// nibble::quantize and nibble::dequantize over matrices on a GPU; equal to the reference bit for bit.
#pragma once

#include "nibble/kernels/check.hpp"
#include "nibble/kernels/detail/quantize.cuh"
#include "nibble/kernels/launch.cuh"
#include "nibble/kernels/tuning/quantize.cuh"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// Whether two matrices of one shape, one of codes, and the parameters of their groups belong together.
template <class From, class To, class Scheme>
status check_quantize(matrix<From> from, matrix<const params> p, matrix<To> to, group_shape g, Scheme s) noexcept {
  if (s.bits < 1 || s.bits > 8) return status::bad_bits;
  if (!well_formed(from) || !well_formed(to) || from.rows != to.rows || from.cols != to.cols) return status::bad_shape;
  if (!aligned(from) || !aligned(to)) return status::misaligned;
  return check_groups(p, from.rows, from.cols, g);
}

/// start(items as a constant, grid, block, blocks across): by chunks of Items where both matrices allow them, else by single
/// elements.
template <int Items, class From, class To, class F>
status launch_by_items(matrix<From> from, matrix<To> to, index_t threads, index_t rows, F start) {
  const auto by = [&](auto items) {
    const index_t chunks = ceil_div(from.cols, items.value);
    const index_t wide = power_of_two(chunks, threads), high = threads / wide;
    const index_t across = ceil_div(chunks, wide), down = ceil_div(from.rows, high * rows);
    if (down > 0 && across > 2147483647 / down) return status::too_large;
    return start(items, extent3(across * down), extent3(wide, high), static_cast<unsigned>(across));
  };
  if (aligned(from, Items) && aligned(to, Items)) return by(constant<Items>{});
  return by(constant<1>{});
}

}  // namespace detail

/// reference::quantize on device pointers, asynchronous in `stream`. w (n, k) float, fp16 or bf16; p (g.down(n), g.across(k));
/// q (n, k). Any strides; by 16-byte accesses where w is 16-byte aligned, row for row, and q as many elements.
/// @returns bad_bits, bad_shape, bad_group, misaligned (to less than an element), or what launch says.
template <class Scheme, class T>
status quantize(matrix<const T> w, matrix<const params> p, matrix<uint8_t> q, group_shape g, Scheme s,
                cudaStream_t stream) {
  const status checked = detail::check_quantize(w, p, q, g, s);
  if (checked != status::ok || w.empty()) return checked;
  return dispatch(tuning::quantize{}, [&](auto tuned) {
    const auto start = [&](auto items, extent3 grid, extent3 block, unsigned across) {
      return launch(detail::quantize_kernel<decltype(tuned), items.value, Scheme, T>, grid, block, 0, stream, w, p, q,
                    g, s, across);
    };
    constexpr auto policy = tuned.value;
    return detail::launch_by_items<16 / int{sizeof(T)}>(w, q, policy.threads, detail::rows_of<Scheme>(policy), start);
  });
}

/// reference::dequantize on device pointers, asynchronous in `stream`. Shapes, strides and statuses as quantize's.
template <class Scheme, class T>
status dequantize(matrix<const uint8_t> q, matrix<const params> p, matrix<T> w, group_shape g, Scheme s,
                  cudaStream_t stream) {
  const status checked = detail::check_quantize(q, p, w, g, s);
  if (checked != status::ok || w.empty()) return checked;
  return dispatch(tuning::quantize{}, [&](auto tuned) {
    const auto start = [&](auto items, extent3 grid, extent3 block, unsigned across) {
      return launch(detail::dequantize_kernel<decltype(tuned), items.value, Scheme, T>, grid, block, 0, stream, q, p, w,
                    g, s, across);
    };
    constexpr auto policy = tuned.value;
    return detail::launch_by_items<16 / int{sizeof(T)}>(q, w, policy.threads, detail::rows_of<Scheme>(policy), start);
  });
}

}  // namespace kernels
NIBBLE_NAMESPACE_END
