// SPDX-License-Identifier: Apache-2.0
/// @file
/// What launchers ask of their arguments before anything is launched.
#pragma once

#include "nibble/core.hpp"
#include "nibble/kernels/status.hpp"
#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {
namespace detail {

/// Whether `m` is a view at all: no negative extent, rows that do not overlap, data where there are elements.
template <class T>
bool well_formed(matrix<T> m) noexcept {
  return m.rows >= 0 && m.cols >= 0 && m.stride >= m.cols && (m.data != nullptr || m.empty());
}

/// Whether the first of every `items` elements in every row starts at a multiple of their size.
template <class T>
bool aligned(matrix<T> m, index_t items = 1) noexcept {
  const auto address = reinterpret_cast<size_t>(m.data);
  return address % (sizeof(T) * static_cast<size_t>(items)) == 0 && (m.rows <= 1 || m.stride % items == 0);
}

/// Whether a T may lie at `pointer`, or there is none.
template <class T>
bool aligned(const T* pointer) noexcept {
  return reinterpret_cast<size_t>(pointer) % alignof(T) == 0;
}

/// Whether p has the parameters of every group of an (n, k) matrix: params, or a scale.
/// @returns bad_group for an extent that is neither positive nor −1, bad_shape for parameters of another shape.
template <class P>
status check_groups(matrix<P> p, index_t n, index_t k, group_shape g) noexcept {
  if (g.rows < -1 || g.rows == 0 || g.cols < -1 || g.cols == 0) return status::bad_group;
  if (!well_formed(p) || p.rows != g.down(n) || p.cols != g.across(k)) return status::bad_shape;
  return aligned(p) ? status::ok : status::misaligned;
}

/// Smallest power of two from `x` on, at most `most`, itself a power of two.
constexpr index_t power_of_two(index_t x, index_t most) noexcept {
  index_t power = 1;
  while (power < x && power < most) power *= 2;
  return power;
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
