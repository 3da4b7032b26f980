// SPDX-License-Identifier: Apache-2.0
/// @file
/// fit by the range, quantize and pack in one pass over the weights: bf16 weights and packed 4-bit codes with fp16 scales of
/// groups of 128 are 2.52 bytes a weight moved, where the three kernels one after another move 6.6.
#pragma once

#include "nibble/kernels/check.hpp"
#include "nibble/kernels/detail/fit_quantize_pack.cuh"
#include "nibble/kernels/fit.cuh"
#include "nibble/kernels/launch.cuh"
#include "nibble/kernels/tuning/fit_quantize_pack.cuh"
#include "nibble/layout.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

template <class T>
bool has_extents(matrix<T> m, layout::extents e) noexcept {
  return well_formed(m) && m.rows == e.rows && m.cols == e.cols;
}

template <class Layout, class T, class S, class Scheme>
status check_fit_quantize_pack(Layout l, matrix<const T> w, matrix<uint32_t> words, matrix<S> scales,
                               matrix<uint8_t> zeros, index_t group, Scheme s) noexcept {
  if (s.bits < 1 || s.bits > 8 || l.bits != s.bits) return status::bad_bits;
  if (!well_formed(w) || w.empty() || !l.can_pack(w.rows, w.cols, s.bits, -1)) return status::bad_shape;
  if (!l.can_pack(w.rows, w.cols, s.bits, group)) return status::bad_group;
  if (dtype_of<S>::value != dtype::f32 && dtype_of<S>::value != s.scale_dtype) return status::bad_shape;
  const index_t groups = layout::groups(w.cols, group);
  if (!has_extents(words, l.packed(w.rows, w.cols))) return status::bad_shape;
  if (!has_extents(scales, l.scales().packed(w.rows, groups))) return status::bad_shape;
  const bool no_zeros = s.symmetric && zeros.data == nullptr;
  if (!no_zeros && !has_extents(zeros, {w.rows, groups})) return status::bad_shape;
  return aligned(w) && aligned(words) && aligned(scales) ? status::ok : status::misaligned;
}

/// Least rows and columns of codes whose words are a rectangle of their own.
inline layout::extents unit(layout::awq_gemm) noexcept {
  return {8, 1};
}
inline layout::extents unit(layout::gptq l) noexcept {
  return {1, l.bits == 3 ? 32 : 32 / l.bits};
}

template <class Tuned, class Scheme, class T, class S>
status fit_quantize_pack(layout::compressed_tensors, matrix<const T> w, matrix<uint32_t> words, stored_params<S> out,
                         index_t width, Scheme s, cudaStream_t stream) {
  constexpr int threads = Tuned::value.threads, rows = rows_at_once<Tuned, Scheme>;
  const bool wide_groups = groups_aligned(w, width), wide = aligned(w, 16 / index_t{sizeof(T)});
  const int lanes = width % codes_at_once == 0 || width == w.cols ? lanes_of_group<codes_at_once>(width, rows) : 0;
  if (lanes > 0)
    return launch_groups(w.rows, ceil_div(w.cols, width), lanes, threads, rows,
                         [&](extent3 grid, extent3 block, unsigned across) {
                           return launch(fit_quantize_pack_kernel<Tuned, Scheme, T, S>, grid, block, 0, stream, w,
                                         words, out, width, lanes, wide, s, across);
                         });
  constexpr index_t of_warp = 1024;
  const auto start = [&](auto kernel) {
    return launch(kernel, w.rows, threads, 0, stream, w, words, out, width, wide_groups, wide, s);
  };
  if (width > of_warp) return start(fit_quantize_pack_row_kernel<Tuned, true, Scheme, T, S>);
  return start(fit_quantize_pack_row_kernel<Tuned, false, Scheme, T, S>);
}

template <class Tuned, class Layout, class Scheme, class T, class S>
status fit_quantize_pack(Layout l, matrix<const T> w, matrix<uint32_t> words, stored_params<S> out, index_t width,
                         Scheme s, cudaStream_t stream) {
  constexpr int threads = Tuned::value.threads, rows = Tuned::value.rows;
  const int lanes = lanes_of_group<codes_at_once>(width, rows);
  const layout::extents least = unit(l);
  if (lanes == 0 || width % least.cols != 0) return status::bad_group;
  static_assert(threads / 32 * rows % 8 == 0, "a block's rows fill words");
  const index_t high = threads / lanes, across = ceil_div(w.cols, width), down = ceil_div(w.rows, high * rows);
  if (across > 2147483647 / down) return status::too_large;
  return launch(fit_quantize_pack_tile_kernel<Tuned, Layout, Scheme, T, S>, across * down, extent3(lanes, high), 0,
                stream, l, w, words, out, width, lanes, groups_aligned(w, width), s, static_cast<unsigned>(across));
}

}  // namespace detail

/// reference::fit by minmax, quantize and pack on device pointers, bit for bit, asynchronous in `stream`. w (n, k) float, fp16
/// or bf16, any stride; words l.packed(n, k); scales l.scales().packed(n, groups) in S, the scheme's scale dtype or float;
/// zeros (n, groups), codes as pack(l.zeros(), …) takes them, or nothing where the scheme is symmetric.
/// l: compressed_tensors with any group it can pack, 1 to 8 bits; awq_gemm and gptq with groups of at most 256 inputs, whose
/// codes fill whole words.
/// @returns bad_bits also when the layout's and the scheme's differ, bad_shape for an empty matrix and for any argument
/// that the layout does not want so, bad_group for a group it does not take, misaligned (to less than an element), or what
/// launch says.
template <class Layout, class Scheme, class T, class S>
status fit_quantize_pack(Layout l, matrix<const T> w, matrix<uint32_t> words, matrix<S> scales, matrix<uint8_t> zeros,
                         index_t group, Scheme s, cudaStream_t stream) {
  const status checked = detail::check_fit_quantize_pack(l, w, words, scales, zeros, group, s);
  if (checked != status::ok) return checked;
  const index_t width = group < 0 || group > w.cols ? w.cols : group;
  return dispatch(tuning::fit_quantize_pack{}, [&](auto tuned) {
    return detail::fit_quantize_pack<decltype(tuned)>(l, w, words, detail::stored_params<S>{scales, zeros}, width, s,
                                                      stream);
  });
}

}  // namespace kernels
NIBBLE_NAMESPACE_END
