// SPDX-License-Identifier: Apache-2.0
/// @file
/// SmoothQuant on a GPU: scales, activations in int8, and integer products on tensor cores, codes and scales equal to the reference's
/// bit for bit, y to nibble::int8_output of the exact sum. Maxima of activations and of weights are absolute_maximum of observe.cuh,
/// called once for every linear on the same k floats; what folds s into weights is scale_columns of awq.cuh.
#pragma once

#include "nibble/kernels/check.hpp"
#include "nibble/kernels/detail/smooth.cuh"
#include "nibble/kernels/launch.cuh"
#include "nibble/kernels/quantize.cuh"
#include "nibble/kernels/tuning/smooth.cuh"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// Whether x (m, k), its codes and its scales belong together; `tokens` scales, or one where `one_too`.
template <class T, class Scale>
status check_activations(matrix<const T> x, matrix<Scale> scales, matrix<uint8_t> q, bool one_too) noexcept {
  if (!well_formed(x) || !well_formed(q) || x.rows != q.rows || x.cols != q.cols) return status::bad_shape;
  if (!well_formed(scales) || scales.cols != 1) return status::bad_shape;
  if (scales.rows != x.rows && !(one_too && scales.rows == 1)) return status::bad_shape;
  return aligned(x) && aligned(scales) ? status::ok : status::misaligned;
}

template <class To>
status check_int8_matmul(matrix<const uint8_t> x, matrix<const float> scales, matrix<const uint8_t> w,
                         matrix<const params> p, matrix<To> y) noexcept {
  if (!well_formed(x) || !well_formed(w) || !well_formed(y) || !well_formed(scales) || !well_formed(p))
    return status::bad_shape;
  if (x.cols != w.cols || x.cols > int8_inputs || y.rows != x.rows || y.cols != w.rows) return status::bad_shape;
  if (scales.cols != 1 || (scales.rows != 1 && scales.rows != x.rows)) return status::bad_shape;
  if (p.cols != 1 || p.rows != w.rows) return status::bad_shape;
  return aligned(scales) && aligned(p.data) && aligned(y) ? status::ok : status::misaligned;
}

/// One tile of an int8_policy as a type that a kernel takes.
template <class Tuned, bool Small>
struct int8_tile_of {
  static constexpr tuning::int8_tile value = Small ? Tuned::value.small : Tuned::value.large;
};

}  // namespace detail

/// s (k) of smooth_scale, each from the largest |x| of its channel and the largest |w| of it over all linears that read x.
/// @error as smooth_scale's: powers are the device's, within 2 units in the last place.
/// @returns bad_shape, misaligned, or what launch says.
inline status smooth_scales(const float* activation, const float* weight, float alpha, index_t k, float* s,
                            cudaStream_t stream) {
  if (k < 0 || (k > 0 && (activation == nullptr || weight == nullptr || s == nullptr))) return status::bad_shape;
  if (!detail::aligned(activation) || !detail::aligned(weight) || !detail::aligned(s)) return status::misaligned;
  if (k == 0) return status::ok;
  return dispatch(tuning::smooth{}, [&](auto tuned) {
    constexpr int threads = tuned.value.threads;
    return launch(detail::smooth_scales_kernel<decltype(tuned)>, ceil_div(k, threads), threads, 0, stream, activation,
                  weight, alpha, k, s);
  });
}

/// reference::quantize_activations on device pointers, asynchronous in `stream`: q (m, k) of x (m, k), float, fp16 or bf16, under scales
/// (m, 1) or (1, 1), by any rule. By 16-byte accesses where x is 16-byte aligned, row for row, and q as many elements.
/// @returns bad_shape, misaligned (to less than an element), or what launch says.
template <class T>
status quantize_activations(matrix<const T> x, matrix<const float> scales, matrix<uint8_t> q, activation_rule rule,
                            cudaStream_t stream) {
  const status checked = detail::check_activations(x, scales, q, true);
  if (checked != status::ok || x.empty()) return checked;
  const group_shape g = scales.rows == 1 ? per_tensor : per_channel;
  return dispatch(tuning::quantize{}, [&](auto tuned) {
    constexpr auto policy = tuned.value;
    const auto start = [&](auto items, extent3 grid, extent3 block, unsigned across) {
      return launch(detail::quantize_activations_kernel<decltype(tuned), items.value, T>, grid, block, 0, stream, x,
                    scales, q, g, under_static_scale(rule), across);
    };
    return detail::launch_by_items<16 / int{sizeof(T)}>(x, q, policy.threads, policy.rows, start);
  });
}

/// reference::quantize_tokens on device pointers in one pass, asynchronous in `stream`: scales (m, 1) and q (m, k) of x (m, k), float,
/// fp16 or bf16, by any rule. Tokens of up to 8192 numbers of 16 bits are read once. Accesses and statuses as quantize_activations'.
template <class T>
status quantize_tokens(matrix<const T> x, matrix<float> scales, matrix<uint8_t> q, activation_rule rule,
                       cudaStream_t stream) {
  const status checked = detail::check_activations(x, scales, q, false);
  if (checked != status::ok || x.rows == 0) return checked;
  return dispatch(tuning::smooth{}, [&](auto tuned) {
    constexpr auto policy = tuned.value;
    constexpr int items = 16 / int{sizeof(T)};
    const bool wide = detail::aligned(x, items) && detail::aligned(q, items);
    if (x.cols > 32 * items * policy.in_flight)
      return launch(detail::quantize_tokens_kernel<decltype(tuned), items, true, T>, x.rows, policy.threads, 0, stream,
                    x, scales, q, rule, wide);
    return launch(detail::quantize_tokens_kernel<decltype(tuned), items, false, T>,
                  ceil_div(x.rows, policy.threads / 32), policy.threads, 0, stream, x, scales, q, rule, wide);
  });
}

/// reference::int8_matmul on device pointers, asynchronous in `stream`, scaled back by int8_output, then rounded to To, float, fp16 or
/// bf16: y (m, n) of codes x (m, k), scales (m, 1) or (1, 1), codes w (n, k), p (n, 1). By cp.async where rows of codes are 16-byte
/// aligned, by single bytes where they are not.
/// @pre zero points are 128; codes of x at least 1 where k is int8_inputs.
/// @returns bad_shape, also for k above int8_inputs, misaligned (to less than an element), or what launch says.
template <class To>
status int8_matmul(matrix<const uint8_t> x, matrix<const float> scales, matrix<const uint8_t> w, matrix<const params> p,
                   matrix<To> y, cudaStream_t stream) {
  const status checked = detail::check_int8_matmul(x, scales, w, p, y);
  if (checked != status::ok || y.empty()) return checked;
  return dispatch(tuning::int8_matmul{}, [&](auto tuned) {
    const auto by = [&](auto chosen) {
      using tile_type = decltype(chosen);
      constexpr tuning::int8_tile tile = tile_type::value;
      const index_t down = ceil_div(y.rows, tile.tokens), across = ceil_div(y.cols, tile.outputs);
      if (across > 2147483647 / down) return status::too_large;
      return launch(detail::int8_matmul_kernel<tile_type, To>, down * across, threads_of(tile),
                    index_t{tile.stages} * stage_bytes(tile), stream, x, scales, w, p, y, detail::aligned(x, 16),
                    detail::aligned(w, 16), static_cast<unsigned>(down));
    };
    if (y.rows <= tuned.value.few) return by(detail::int8_tile_of<decltype(tuned), true>{});
    return by(detail::int8_tile_of<decltype(tuned), false>{});
  });
}

}  // namespace kernels
NIBBLE_NAMESPACE_END
