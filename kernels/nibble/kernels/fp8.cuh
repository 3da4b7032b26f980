// SPDX-License-Identifier: Apache-2.0
/// @file
/// fit, quantize and dequantize of floating-point codes over matrices on a GPU, and fit_quantize, which is the first two in
/// one pass over activations; equal to the reference bit for bit (but for which NaN a NaN is).
#pragma once

#include <type_traits>

#include "nibble/kernels/check.hpp"
#include "nibble/kernels/detail/fp8.cuh"
#include "nibble/kernels/fit.cuh"
#include "nibble/kernels/launch.cuh"
#include "nibble/kernels/quantize.cuh"
#include "nibble/kernels/tuning/fp8.cuh"
#include "nibble/search.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

template <class T>
status check_one(matrix<T> w, matrix<const float> scales, group_shape g) noexcept {
  if (!well_formed(w)) return status::bad_shape;
  if (!aligned(w)) return status::misaligned;
  return check_groups(scales, w.rows, w.cols, g);
}

/// Whether two matrices of one shape, one of codes, and the scales of their groups belong together.
template <class From, class To>
status check_two(matrix<From> from, matrix<const float> scales, matrix<To> to, group_shape g) noexcept {
  if (!well_formed(from) || !well_formed(to) || from.rows != to.rows || from.cols != to.cols) return status::bad_shape;
  if (!aligned(from) || !aligned(to)) return status::misaligned;
  return check_groups(scales, from.rows, from.cols, g);
}

/// A group's scale by several blocks, which meet in the memory of the scale.
template <class Tuned, int Items, class Scheme, class T>
status fit_pieces_fp8(matrix<const T> w, matrix<float> scales, group_shape g, bool wide, cut pieces, Scheme s,
                      cudaStream_t stream) {
  constexpr int threads = Tuned::value.threads;
  const index_t count = pieces.down * pieces.across;
  if (count > 2147483647 / scales.size()) return status::too_large;
  const extent3 groups(ceil_div(scales.size(), threads));
  status done = launch(amax_begin_kernel<Tuned>, groups, threads, 0, stream, scales);
  if (done != status::ok) return done;
  done = launch(amax_pieces_kernel<Tuned, Items, T>, extent3(scales.size() * count), threads, 0, stream, w, scales, g,
                wide, pieces.rows, pieces.cols, pieces.down, pieces.across);
  if (done != status::ok) return done;
  return launch(amax_end_kernel<Tuned, Scheme>, groups, threads, 0, stream, scales, s);
}

/// fit_rows_fp8_kernel where a warp's lanes can hold a group. @returns whether they can; `done` is how the launch went.
template <class Tuned, int Items, bool Codes, class Scheme, class T>
bool fit_rows_fp8(matrix<const T> w, matrix<float> scales, matrix<uint8_t> q, group_shape g, bool wide, Scheme s,
                  cudaStream_t stream, status& done) {
  constexpr int threads = Tuned::value.threads, rows = Tuned::value.in_flight;
  const index_t width = min(g.width(w.cols), w.cols);
  const int lanes = g.height(w.rows) == 1 || w.rows == 1 ? lanes_of_group<Items>(width, 1) : 0;
  if (lanes == 0) return false;
  done = launch_groups(w.rows, scales.cols, lanes, threads, rows, [&](extent3 grid, extent3 block, unsigned across) {
    return launch(fit_rows_fp8_kernel<Tuned, Items, Codes, Scheme, T>, grid, block, 0, stream, w, scales, q, width,
                  lanes, wide, s, across);
  });
  return true;
}

template <class Tuned, int Items, class Scheme, class T>
status fit_fp8(matrix<const T> w, matrix<float> scales, group_shape g, Scheme s, cudaStream_t stream) {
  constexpr int threads = Tuned::value.threads;
  const bool wide = groups_aligned(w, g.width(w.cols));
  status done = status::ok;
  if (fit_rows_fp8<Tuned, Items, false>(w, scales, matrix<uint8_t>(), g, wide, s, stream, done)) return done;
  const index_t height = min(g.height(w.rows), w.rows), width = min(g.width(w.cols), w.cols);
  const cut pieces(height, width);
  if (!pieces.whole()) return fit_pieces_fp8<Tuned, Items>(w, scales, g, wide, pieces, s, stream);
  constexpr index_t of_warp = 1024;
  if (height * width > of_warp)
    return launch(fit_groups_fp8_kernel<Tuned, Items, true, Scheme, T>, scales.size(), threads, 0, stream, w, scales, g,
                  wide, s);
  return launch(fit_groups_fp8_kernel<Tuned, Items, false, Scheme, T>, ceil_div(scales.size(), threads / 32), threads,
                0, stream, w, scales, g, wide, s);
}

template <class T>
inline constexpr int access_items = 16 / static_cast<int>(sizeof(T));

}  // namespace detail

/// reference::fit on device pointers, asynchronous in `stream`. w (n, k) float, fp16 or bf16, any stride; scales (g.down(n),
/// g.across(k)). By 16-byte accesses where every group's rows start at a multiple of 16 bytes. Groups of more than 2^16
/// numbers are read by several blocks each, which meet in the scales.
/// @returns bad_shape, bad_group, misaligned (to less than an element), or what launch says.
template <class Scheme, class T>
status fit(matrix<const T> w, matrix<float> scales, group_shape g, Scheme s, minmax, cudaStream_t stream) {
  const status checked = detail::check_one(w, scales, g);
  if (checked != status::ok || w.empty()) return checked;
  return dispatch(tuning::fp8{}, [&](auto tuned) {
    return detail::fit_fp8<decltype(tuned), detail::access_items<T>>(w, scales, g, s, stream);
  });
}

/// reference::quantize on device pointers, asynchronous in `stream`. w (n, k) float, fp16 or bf16; scales (g.down(n),
/// g.across(k)); q (n, k). Any strides; by 16-byte accesses where w is 16-byte aligned, row for row, and q as many elements.
/// @returns as fit's.
template <class Scheme, class T>
status quantize(matrix<const T> w, matrix<const float> scales, matrix<uint8_t> q, group_shape g, Scheme s,
                cudaStream_t stream) {
  const status checked = detail::check_two(w, scales, q, g);
  if (checked != status::ok || w.empty()) return checked;
  return dispatch(tuning::quantize{}, [&](auto tuned) {
    const auto start = [&](auto items, extent3 grid, extent3 block, unsigned across) {
      return launch(detail::quantize_fp8_kernel<decltype(tuned), items.value, Scheme, T>, grid, block, 0, stream, w,
                    scales, q, g, s, across);
    };
    constexpr auto policy = tuned.value;
    return detail::launch_by_items<detail::access_items<T>>(w, q, policy.threads, detail::rows_of<Scheme>(policy),
                                                            start);
  });
}

/// reference::dequantize on device pointers, asynchronous in `stream`. Shapes, strides and statuses as quantize's.
template <class Scheme, class T>
status dequantize(matrix<const uint8_t> q, matrix<const float> scales, matrix<T> w, group_shape g, Scheme s,
                  cudaStream_t stream) {
  const status checked = detail::check_two(q, scales, w, g);
  if (checked != status::ok || w.empty()) return checked;
  return dispatch(tuning::quantize{}, [&](auto tuned) {
    const auto start = [&](auto items, extent3 grid, extent3 block, unsigned across) {
      return launch(detail::dequantize_fp8_kernel<decltype(tuned), items.value, Scheme, T>, grid, block, 0, stream, q,
                    scales, w, g, s, across);
    };
    constexpr auto policy = tuned.value;
    return detail::launch_by_items<detail::access_items<T>>(q, w, policy.threads, detail::rows_of<Scheme>(policy),
                                                            start);
  });
}

/// fit and quantize on device pointers, asynchronous in `stream`: dynamic scales, of tokens (per_channel) or of pieces of them
/// (per_group). Where groups are pieces of one row it is one launch, and of a group of up to 8192 numbers of 16 bits each is
/// read once; else it is fit's launches and quantize's.
/// @returns as fit's.
template <class Scheme, class T>
status fit_quantize(matrix<const T> w, matrix<float> scales, matrix<uint8_t> q, group_shape g, Scheme s,
                    cudaStream_t stream) {
  const status checked = detail::check_two(w, scales, q, g);
  if (checked != status::ok || w.empty()) return checked;
  const index_t width = min(g.width(w.cols), w.cols);
  if (g.height(w.rows) != 1 && w.rows != 1) {
    const status fitted = fit(w, scales, g, s, minmax{}, stream);
    return fitted != status::ok ? fitted : quantize(w, matrix<const float>(scales), q, g, s, stream);
  }
  return dispatch(tuning::fp8{}, [&](auto tuned) {
    using policy = decltype(tuned);
    constexpr int items = detail::access_items<T>;
    const bool whole = width % items == 0 || width == w.cols;
    const bool wide = detail::groups_aligned(w, width) && whole && detail::aligned(q, items);
    status done = status::ok;
    if (detail::fit_rows_fp8<policy, items, true>(w, scales, q, g, wide, s, stream, done)) return done;
    return launch(detail::fit_quantize_row_fp8_kernel<policy, items, Scheme, T>, w.rows * scales.cols,
                  policy::value.threads, 0, stream, w, scales, q, width, wide, s);
  });
}

}  // namespace kernels
NIBBLE_NAMESPACE_END
