// SPDX-License-Identifier: Apache-2.0
/// @file
/// Keys and values into a cache of floating-point codes, token by token.
#pragma once

#include "nibble/float_scheme.hpp"
#include "nibble/kv_cache.hpp"
#include "nibble/matrix.hpp"
#include "nibble/reference/fp8.hpp"
#include "nibble/scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {

/// from (tokens, heads · head_dim); slots (tokens); scales (1, 1) or (1, heads); cache (slots, heads · head_dim).
/// @pre no two tokens have one slot.
template <class FloatScheme, class T>
void write_cache(keys_values<const T> from, const index_t* slots, keys_values<const float> scales,
                 keys_values<uint8_t> cache, FloatScheme s) {
  const auto write = [&](matrix<const T> x, matrix<const float> scale, matrix<uint8_t> to) {
    const group_shape heads{-1, x.cols / scale.cols};
    for (index_t token = 0; token < x.rows; ++token) {
      if (slots[token] < 0 || slots[token] >= to.rows) continue;
      quantize(x.rows_at(token, 1), scale, to.rows_at(slots[token], 1), heads, s);
    }
  };
  write(from.k, scales.k, cache.k);
  write(from.v, scales.v, cache.v);
}

}  // namespace reference
NIBBLE_NAMESPACE_END
