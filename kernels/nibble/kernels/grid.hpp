// SPDX-License-Identifier: Apache-2.0
/// @file
/// The arithmetic of a launch, checkable without a device: extents in 64 bits, so that a huge matrix is refused instead
/// of wrapping round to a small grid.
/// Source: CUDA C++ Programming Guide, "Compute Capabilities", technical specifications (equal from sm_30 on).
#pragma once

#include "nibble/core.hpp"
#include "nibble/kernels/status.hpp"

NIBBLE_NAMESPACE_BEGIN

/// Blocks of a grid, or threads of a block.
struct extent3 {
  index_t x = 1;
  index_t y = 1;
  index_t z = 1;
  constexpr extent3(index_t x_ = 1, index_t y_ = 1, index_t z_ = 1) noexcept : x(x_), y(y_), z(z_) {}
  constexpr bool empty() const noexcept { return x == 0 || y == 0 || z == 0; }
};

/// Dynamic shared memory, in bytes, that every kernel may use without asking for more.
inline constexpr index_t plain_shared_bytes = 48 * 1024;

/// Whether a device can run blocks of `block` threads in a grid of `grid` blocks.
/// @param most_shared_bytes the device's shared memory a block can opt in to.
/// @returns ok, bad_shape for an empty block or a negative number, too_large for a number past the device's limits.
constexpr status check_launch(extent3 grid, extent3 block, index_t shared_bytes, index_t most_shared_bytes) noexcept {
  if (grid.x < 0 || grid.y < 0 || grid.z < 0 || shared_bytes < 0) return status::bad_shape;
  if (block.x < 1 || block.y < 1 || block.z < 1) return status::bad_shape;
  constexpr index_t most_x = 2147483647, most_yz = 65535, most_threads = 1024, most_deep = 64;
  if (grid.x > most_x || grid.y > most_yz || grid.z > most_yz) return status::too_large;
  if (block.x > most_threads || block.y > most_threads || block.z > most_deep) return status::too_large;
  if (block.x * block.y * block.z > most_threads || shared_bytes > most_shared_bytes) return status::too_large;
  return status::ok;
}

NIBBLE_NAMESPACE_END
