// SPDX-License-Identifier: Apache-2.0
/// @file
/// mxfp4 and nvfp4 on a GPU, weights to stored bytes and back, in one pass each; equal to the reference bit for bit.
#pragma once

#include "nibble/kernels/check.hpp"
#include "nibble/kernels/detail/fp4.cuh"
#include "nibble/kernels/fit.cuh"
#include "nibble/kernels/launch.cuh"
#include "nibble/kernels/tuning/fp8.cuh"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// Whether packed codes and scales belong to an (n, k) matrix.
template <class T, class U, class BlockFormat>
status check_fp4(matrix<T> w, matrix<U> packed, matrix<U> scales, BlockFormat) noexcept {
  if (!well_formed(w) || !well_formed(packed) || !well_formed(scales)) return status::bad_shape;
  if (packed.rows != w.rows || packed.cols != ceil_div(w.cols, 2)) return status::bad_shape;
  if (scales.rows != w.rows || scales.cols != ceil_div(w.cols, BlockFormat::block)) return status::bad_shape;
  return aligned(w) ? status::ok : status::misaligned;
}

/// Numbers a thread takes at once: 16 bytes.
template <class T>
inline constexpr int fp4_items = 16 / static_cast<int>(sizeof(T));

}  // namespace detail

/// reference::fit_quantize_pack on device pointers, asynchronous in `stream`. w (n, k) float, fp16 or bf16; packed (n, ⌈k/2⌉);
/// scales (n, ⌈k/block⌉), stored codes. Any strides; by 16-byte accesses where w is 16-byte aligned, row for row, and packed as many
/// numbers. @returns bad_shape, misaligned (to less than an element), or what launch says.
template <class BlockFormat, class T>
status fit_quantize_pack(matrix<const T> w, matrix<uint8_t> packed, matrix<uint8_t> scales, BlockFormat f,
                         cudaStream_t stream) {
  const status checked = detail::check_fp4(w, packed, scales, f);
  if (checked != status::ok || w.empty()) return checked;
  return dispatch(tuning::fp8{}, [&](auto tuned) {
    constexpr int items = detail::fp4_items<T>, lanes = static_cast<int>(BlockFormat::block) / items;
    const bool wide = detail::aligned(w, items) && detail::aligned(packed, items / 2);
    return detail::launch_groups(w.rows, scales.cols, lanes, tuned.value.threads, tuned.value.in_flight,
                                 [&](extent3 grid, extent3 block, unsigned across) {
                                   return launch(
                                       detail::fit_quantize_pack_fp4_kernel<decltype(tuned), items, BlockFormat, T>,
                                       grid, block, 0, stream, w, packed, scales, wide, f, across);
                                 });
  });
}

/// reference::unpack_dequantize on device pointers, asynchronous in `stream`. Shapes, strides and statuses as above.
template <class BlockFormat, class T>
status unpack_dequantize(matrix<const uint8_t> packed, matrix<const uint8_t> scales, matrix<T> w, BlockFormat f,
                         cudaStream_t stream) {
  const status checked = detail::check_fp4(w, packed, scales, f);
  if (checked != status::ok || w.empty()) return checked;
  return dispatch(tuning::fp8{}, [&](auto tuned) {
    constexpr int items = detail::fp4_items<T>, threads = tuned.value.threads, rows = tuned.value.in_flight;
    const bool wide = detail::aligned(w, items) && detail::aligned(packed, items / 2);
    const index_t chunks = ceil_div(w.cols, items), across_threads = detail::power_of_two(chunks, threads);
    const index_t high = threads / across_threads, across = ceil_div(chunks, across_threads);
    const index_t down = ceil_div(w.rows, high * rows);
    if (across > 2147483647 / down) return status::too_large;
    return launch(detail::unpack_dequantize_fp4_kernel<decltype(tuned), items, BlockFormat, T>, across * down,
                  extent3(across_threads, high), 0, stream, packed, scales, w, wide, f, static_cast<unsigned>(across));
  });
}

}  // namespace kernels
NIBBLE_NAMESPACE_END
