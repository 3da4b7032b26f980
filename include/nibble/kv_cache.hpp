// SPDX-License-Identifier: Apache-2.0
/// @file
/// A cache of keys and values in floating-point codes, as paged attention keeps it: a row a slot, one after another in blocks
/// (slot = block · tokens a block + token in it), heads side by side in a row. Which slot a token has, its engine says.
/// Codes are quantize's of fp8.hpp, under one scale a tensor or a head, fixed when the cache begins.
#pragma once

#include "nibble/core.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN

/// Keys and values, or what belongs to them. Of tokens and of the cache: (tokens or slots, heads · numbers a head), any strides;
/// keys and values may have heads of different sizes. Of scales: (1, 1) for a tensor, or (1, heads).
template <class T>
struct keys_values {
  matrix<T> k, v;
};

/// Whether a token's number is written at all: engines mark padding by a slot below 0; one past the cache is left out too.
NIBBLE_HOST_DEVICE constexpr bool has_slot(index_t slot, index_t slots) noexcept {
  return slot >= 0 && slot < slots;
}

NIBBLE_NAMESPACE_END
