// SPDX-License-Identifier: Apache-2.0
/// @file
/// Codes ↔ words on a GPU, and words of one layout ↔ words of another; the reference's bytes.
///     kernels::pack(layout, codes, words, stream)          kernels::unpack(layout, words, codes, stream)
///     kernels::repack(from layout, words, to layout, stored, n, k, stream)
///     kernels::pack_scales(layout.scales(), scales, stored, stream)      kernels::unpack_scales(…, stored, scales, stream)
/// Layouts and shapes are pack.hpp's; any strides. Weights go through shared memory by 16-byte accesses where a matrix and its
/// stride are 16-byte aligned (4 or 8 where a layout's words come in odd numbers), else by single words. Zero points, of which
/// there is one in a group, and bitsandbytes with gaps between rows, go a word or a code a thread.
#pragma once

#include <type_traits>

#include "nibble/kernels/detail/pack.cuh"
#include "nibble/kernels/launch.cuh"
#include "nibble/kernels/pack_check.hpp"
#include "nibble/kernels/tuning/pack.cuh"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// The words of a tiled layout have a side with as many bits; others go a word a thread.
template <class Layout>
struct tiled : std::false_type {};
template <>
struct tiled<layout::compressed_tensors> : std::true_type {};
template <>
struct tiled<layout::awq_gemm> : std::true_type {};
template <>
struct tiled<layout::awq_gemv_fast> : std::true_type {};
template <>
struct tiled<layout::gptq> : std::true_type {};
template <>
struct tiled<layout::marlin> : std::true_type {};

/// The layout that has this one's words.
template <class Layout>
constexpr Layout same_words(Layout l) noexcept {
  return l;
}
constexpr layout::compressed_tensors same_words(layout::awq_gemv) noexcept {
  return {4};
}

/// Whether both layouts have a side of so many bits.
template <class Layout>
constexpr bool has_side(int bits) noexcept {
  return bits == 4;
}
template <>
constexpr bool has_side<layout::compressed_tensors>(int) noexcept {
  return true;
}
template <>
constexpr bool has_side<layout::gptq>(int bits) noexcept {
  return (bits >= 2 && bits <= 4) || bits == 8;
}
template <>
constexpr bool has_side<layout::marlin>(int bits) noexcept {
  return bits == 4 || bits == 8;
}
template <>
constexpr bool has_side<plain_codes>(int) noexcept {
  return true;
}

/// f(constant<bits>) where From and To have sides of that width, else bad_bits.
template <class From, class To, int Bits = 1, class F>
status with_bits(int bits, F&& f) {
  if constexpr (Bits > 8) {
    return status::bad_bits;
  } else {
    if constexpr (has_side<From>(Bits) && has_side<To>(Bits))
      if (bits == Bits) return f(constant<Bits>{});
    return with_bits<From, To, Bits + 1>(bits, f);
  }
}

/// `m` with whether its rows take the widest access of a side.
template <class Side, class T>
stored_words<T> stored(matrix<T> m) noexcept {
  return {m, aligned(m, access_units(Side::units) * 4 / index_t{sizeof(T)})};
}

/// Tiles over codes (n, k).
template <class Tuned, class Tile, class From, class To>
status launch_tiles(matrix<const typename From::word> from, matrix<typename To::word> to, index_t n, index_t k,
                    uint32_t blank, cudaStream_t stream) {
  const index_t across = ceil_div(k, Tile::cols), down = ceil_div(n, Tile::rows);
  if (across > 2147483647 / down) return status::too_large;
  return launch(repack_kernel<Tuned, Tile, From, To>, across * down, Tuned::value.threads, 0, stream,
                stored<From>(from), stored<To>(to), static_cast<unsigned>(across), blank);
}

/// The tile between two sides.
template <class Tuned, class From, class To>
using tile_between =
    std::conditional_t<From::turned || To::turned, code_tile<Tuned::value.turned_rows, Tuned::value.turned_cols>,
                       code_tile<Tuned::value.straight_rows, Tuned::value.straight_cols>>;
template <class Tuned>
using flat_tile = code_tile<1, Tuned::value.straight_rows * Tuned::value.straight_cols>;

/// to = the codes (n, k) of `from`, both of `bits` bits and not empty.
template <class From, class To, class Word, class Stored>
status move_tiles(int bits, matrix<const Word> from, matrix<Stored> to, index_t n, index_t k, cudaStream_t stream) {
  return dispatch(tuning::pack{}, [&](auto tuned) {
    return with_bits<From, To>(bits, [&](auto width) {
      using from_side = side<From, width.value>;
      using to_side = side<To, width.value>;
      using tile = tile_between<decltype(tuned), from_side, to_side>;
      return launch_tiles<decltype(tuned), tile, from_side, to_side>(from, to, n, k, 0, stream);
    });
  });
}

/// start(grid, block, blocks across) with a thread for each element of m.
template <class T, class F>
status launch_elements(matrix<T> m, int threads, F start) {
  const index_t wide = power_of_two(m.cols, threads), high = threads / wide;
  const index_t across = ceil_div(m.cols, wide), down = ceil_div(m.rows, high);
  if (across > 2147483647 / down) return status::too_large;
  return start(extent3(across * down), extent3(wide, high), static_cast<unsigned>(across));
}
template <class Layout, class Codes>
status gather_words(Layout l, Codes codes, matrix<typename Layout::word> words, index_t n, index_t k,
                    cudaStream_t stream) {
  return dispatch(tuning::pack{}, [&](auto tuned) {
    return launch_elements(words, tuned.value.threads, [&](extent3 grid, extent3 block, unsigned across) {
      return launch(gather_words_kernel<decltype(tuned), Layout, Codes>, grid, block, 0, stream, l, codes, words, n, k,
                    across);
    });
  });
}
template <class Layout>
status gather_codes(Layout l, matrix<const typename Layout::word> words, matrix<uint8_t> codes, cudaStream_t stream) {
  return dispatch(tuning::pack{}, [&](auto tuned) {
    return launch_elements(codes, tuned.value.threads, [&](extent3 grid, extent3 block, unsigned across) {
      return launch(gather_codes_kernel<decltype(tuned), Layout>, grid, block, 0, stream,
                    packed_codes<Layout>{l, words, codes.rows, codes.cols}, codes, across);
    });
  });
}

/// Both directions of bitsandbytes where neither matrix has gaps: each is one row.
template <class From, class To, class Word, class Stored>
status move_flat(matrix<const Word> from, matrix<Stored> to, index_t codes, uint32_t blank, cudaStream_t stream) {
  return dispatch(tuning::pack{}, [&](auto tuned) {
    return launch_tiles<decltype(tuned), flat_tile<decltype(tuned)>, side<From, 4>, side<To, 4>>(
        matrix<const Word>(from.data, 1, from.size()), matrix<Stored>(to.data, 1, to.size()), 1, codes, blank, stream);
  });
}
template <class T>
bool gapless(matrix<T> m) noexcept {
  return m.stride == m.cols || m.rows == 1;
}

}  // namespace detail

/// reference::pack on device pointers, asynchronous in `stream`. codes (n, k); words (l.packed(n, k)); not the same memory.
/// @pre every code is in [0, 2^bits).
/// @returns bad_bits or bad_group for what the layout does not take, bad_shape for words of another shape or codes that the
/// layout does not take, misaligned (to less than a word), or what launch says.
template <class Layout>
status pack(Layout l, matrix<const uint8_t> codes, matrix<typename Layout::word> words, cudaStream_t stream) {
  const status checked = detail::check_words(l, words, codes.rows, codes.cols);
  if (checked != status::ok) return checked;
  if (!detail::well_formed(codes)) return status::bad_shape;
  if (codes.empty()) return status::ok;
  const auto own = detail::same_words(l);
  using tiled_layout = std::remove_const_t<decltype(own)>;
  if constexpr (detail::tiled<tiled_layout>::value) {
    return detail::move_tiles<detail::plain_codes, tiled_layout>(own.bits, codes, words, codes.rows, codes.cols,
                                                                 stream);
  } else {
    if constexpr (std::is_same_v<Layout, layout::bitsandbytes>)
      if (detail::gapless(codes) && detail::gapless(words))
        return detail::move_flat<detail::plain_codes, Layout>(codes, words, codes.size(), l.filler * 0x01010101u,
                                                              stream);
    return detail::gather_words(l, codes, words, codes.rows, codes.cols, stream);
  }
}

/// reference::unpack on device pointers, asynchronous in `stream`. Shapes and statuses as pack's.
template <class Layout>
status unpack(Layout l, matrix<const typename Layout::word> words, matrix<uint8_t> codes, cudaStream_t stream) {
  const status checked = detail::check_words(l, words, codes.rows, codes.cols);
  if (checked != status::ok) return checked;
  if (!detail::well_formed(codes)) return status::bad_shape;
  if (codes.empty()) return status::ok;
  const auto own = detail::same_words(l);
  using tiled_layout = std::remove_const_t<decltype(own)>;
  if constexpr (detail::tiled<tiled_layout>::value) {
    return detail::move_tiles<tiled_layout, detail::plain_codes>(own.bits, words, codes, codes.rows, codes.cols,
                                                                 stream);
  } else {
    if constexpr (std::is_same_v<Layout, layout::bitsandbytes>)
      if (detail::gapless(codes) && detail::gapless(words))
        return detail::move_flat<Layout, detail::plain_codes>(words, codes, codes.size(), 0, stream);
    return detail::gather_codes(l, words, codes, stream);
  }
}

/// reference::repack on device pointers, asynchronous in `stream`: words of codes (n, k) to the words of another layout, codes
/// in no memory but the blocks' own. Weights of compressed-tensors, GPTQ, AutoAWQ and Marlin go by tiles; zero points too are
/// repacked, `from.zeros()` to `to.zeros()` with (n, groups).
/// @returns what pack would for either layout, bad_bits where they differ in bits.
template <class From, class To>
status repack(From from, matrix<const typename From::word> words, To to, matrix<typename To::word> stored, index_t n,
              index_t k, cudaStream_t stream) {
  if (const status s = detail::check_words(from, words, n, k); s != status::ok) return s;
  if (const status s = detail::check_words(to, stored, n, k); s != status::ok) return s;
  if (from.bits != to.bits) return status::bad_bits;
  if (n == 0 || k == 0) return status::ok;
  using from_words = std::remove_const_t<decltype(detail::same_words(from))>;
  using to_words = std::remove_const_t<decltype(detail::same_words(to))>;
  if constexpr (detail::tiled<from_words>::value && detail::tiled<to_words>::value &&
                !std::is_same_v<from_words, to_words>)
    return detail::move_tiles<from_words, to_words>(from.bits, words, stored, n, k, stream);
  else
    return detail::gather_words(to, detail::packed_codes<From>{from, words, n, k}, stored, n, k, stream);
}

namespace detail {

template <class Layout>
constexpr bool turns_scales =
    !std::is_same_v<Layout, layout::plain_scales> && !std::is_same_v<Layout, layout::awq_gemv_scales>;

/// start(grid, block, blocks across) with a block for each tile of scales (n, groups).
template <class F>
status launch_scale_tiles(index_t n, index_t groups, int threads, F start) {
  const index_t across = ceil_div(n, scale_outputs), down = ceil_div(groups, scale_groups);
  if (across > 2147483647 / down) return status::too_large;
  return start(extent3(across * down), extent3(threads), static_cast<unsigned>(across));
}

}  // namespace detail

/// reference::pack_scales on device pointers, asynchronous in `stream`. scales (n, groups) of 2 or 4 bytes each; stored
/// (l.packed(n, groups)). Any strides.
/// @returns bad_group, bad_shape, misaligned (to less than an element), or what launch says.
template <class ScaleLayout, class Source, class T>
status pack_scales(ScaleLayout l, matrix<Source> scales, matrix<T> stored, cudaStream_t stream) {
  static_assert(std::is_same_v<std::remove_const_t<Source>, T>, "scales are stored in their own type");
  const status checked = detail::check_scales(l, scales, stored);
  if (checked != status::ok || stored.empty()) return checked;
  return dispatch(tuning::pack{}, [&](auto tuned) {
    constexpr int threads = tuned.value.threads;
    const auto start = [&](auto kernel, auto... first) {
      return [=](extent3 grid, extent3 block, unsigned across) {
        return launch(kernel, grid, block, 0, stream, first..., matrix<const T>(scales), stored, across);
      };
    };
    if constexpr (detail::turns_scales<ScaleLayout>)
      return detail::launch_scale_tiles(stored.cols, stored.rows, threads,
                                        start(&detail::turn_scales_kernel<decltype(tuned), ScaleLayout, T>, l));
    else
      return detail::launch_elements(stored, threads, start(&detail::copy_scales_kernel<decltype(tuned), T>));
  });
}

/// reference::unpack_scales on device pointers, asynchronous in `stream`. Shapes and statuses as pack_scales'.
template <class ScaleLayout, class Source, class T>
status unpack_scales(ScaleLayout l, matrix<Source> stored, matrix<T> scales, cudaStream_t stream) {
  static_assert(std::is_same_v<std::remove_const_t<Source>, T>, "scales are stored in their own type");
  const status checked = detail::check_scales(l, scales, stored);
  if (checked != status::ok || scales.empty()) return checked;
  return dispatch(tuning::pack{}, [&](auto tuned) {
    constexpr int threads = tuned.value.threads;
    const auto start = [&](auto kernel, auto... first) {
      return [=](extent3 grid, extent3 block, unsigned across) {
        return launch(kernel, grid, block, 0, stream, first..., matrix<const T>(stored), scales, across);
      };
    };
    if constexpr (detail::turns_scales<ScaleLayout>)
      return detail::launch_scale_tiles(scales.rows, scales.cols, threads,
                                        start(&detail::turn_scales_back_kernel<decltype(tuned), ScaleLayout, T>, l));
    else
      return detail::launch_elements(scales, threads, start(&detail::copy_scales_kernel<decltype(tuned), T>));
  });
}

}  // namespace kernels
NIBBLE_NAMESPACE_END
