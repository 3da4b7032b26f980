// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the launchers of pack, unpack and repack ask of a layout and its words before anything is launched.
#pragma once

#include <type_traits>

#include "nibble/kernels/check.hpp"
#include "nibble/layout.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// What a layout takes beyond its shape: ok, bad_bits or bad_group.
template <class Layout>
status check_layout(Layout, index_t) noexcept {
  return status::ok;
}
constexpr status bits_between(int bits, int least, int most) noexcept {
  return bits >= least && bits <= most ? status::ok : status::bad_bits;
}
inline status check_layout(layout::compressed_tensors l, index_t) noexcept {
  return bits_between(l.bits, 1, 8);
}
inline status check_layout(layout::compressed_tensors_zeros l, index_t) noexcept {
  return bits_between(l.bits, 1, 8);
}
inline status check_layout(layout::gptq l, index_t) noexcept {
  return l.bits == 8 ? status::ok : bits_between(l.bits, 2, 4);
}
inline status check_layout(layout::gptq_zeros l, index_t) noexcept {
  return check_layout(layout::gptq{l.bits, l.version}, 0);
}
inline status check_layout(layout::marlin l, index_t) noexcept {
  return l.bits == 4 || l.bits == 8 ? status::ok : status::bad_bits;
}
inline status check_layout(layout::marlin_zeros l, index_t) noexcept {
  return check_layout(layout::marlin{l.bits}, 0);
}
inline status check_layout(layout::awq_gemv l, index_t k) noexcept {
  return layout::awq_gemv_group(k, l.group) ? status::ok : status::bad_group;
}
inline status check_layout(layout::awq_gemv_fast l, index_t k) noexcept {
  return layout::awq_gemv_group(k, l.group) ? status::ok : status::bad_group;
}
inline status check_layout(layout::awq_gemv_zeros l, index_t) noexcept {
  return l.group >= 128 || l.group == 64 || l.group == 32 || l.group == -1 ? status::ok : status::bad_group;
}

/// Whether codes (n, k) fill whole words where a layout wants that. What has no can_pack of its own are zero points.
template <class Layout>
constexpr bool fills_words(Layout l, index_t n, index_t k) noexcept {
  return static_cast<bool>(Layout::can_pack(n, k, l.bits, -1));
}
constexpr bool fills_words(layout::compressed_tensors_zeros, index_t, index_t) noexcept {
  return true;
}
constexpr bool fills_words(layout::awq_gemv_zeros, index_t, index_t) noexcept {
  return true;
}
constexpr bool fills_words(layout::gptq_zeros l, index_t n, index_t) noexcept {
  return n * l.bits % 32 == 0;
}
constexpr bool fills_words(layout::marlin_zeros, index_t n, index_t) noexcept {
  return n % 64 == 0;
}
constexpr bool fills_words(layout::awq_gemv l, index_t n, index_t k) noexcept {
  return static_cast<bool>(layout::awq_gemv::can_pack(n, k, 4, l.group));
}
constexpr bool fills_words(layout::awq_gemv_fast l, index_t n, index_t k) noexcept {
  return static_cast<bool>(layout::awq_gemv_fast::can_pack(n, k, 4, l.group));
}

/// Whether `words` are those of codes (n, k) under l.
template <class Layout, class Word>
status check_words(Layout l, matrix<Word> words, index_t n, index_t k) noexcept {
  if (n < 0 || k < 0) return status::bad_shape;
  const bool empty = n == 0 || k == 0;
  if (const status s = check_layout(l, empty ? 128 : k); s != status::ok) return s;
  const layout::extents shape = l.packed(n, k);
  if (!well_formed(words) || words.rows != shape.rows || words.cols != shape.cols) return status::bad_shape;
  if (!empty && !fills_words(l, n, k)) return status::bad_shape;
  return aligned(words) ? status::ok : status::misaligned;
}

/// Whether `stored` holds the scales (n, groups) of l.
template <class Layout, class T, class Stored>
status check_scales(Layout l, matrix<T> scales, matrix<Stored> stored) noexcept {
  if (!well_formed(scales) || !well_formed(stored)) return status::bad_shape;
  if constexpr (std::is_same_v<Layout, layout::awq_gemv_scales> || std::is_same_v<Layout, layout::awq_gemv_fast_scales>)
    if (const status s = check_layout(layout::awq_gemv_zeros{l.group}, 0); s != status::ok) return s;
  const layout::extents shape = l.packed(scales.rows, scales.cols);
  if (stored.rows != shape.rows || stored.cols != shape.cols) return status::bad_shape;
  if constexpr (std::is_same_v<Layout, layout::marlin_scales>)
    if (scales.rows % (scales.cols > 1 ? 64 : 32) != 0) return status::bad_shape;
  return aligned(scales) && aligned(stored) ? status::ok : status::misaligned;
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
