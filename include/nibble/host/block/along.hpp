// SPDX-License-Identifier: Apache-2.0
/// @file
/// Q8_0 in 16 lanes: no search, so a block by itself, along its weights, is faster than a block a lane. A block is 32 / N vectors of N
/// lanes.
#pragma once

#include <cstring>
#include <utility>

#include "nibble/block/lane.hpp"
#include "nibble/block_layout.hpp"
#include "nibble/core.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// Lanes `By` further on, and round.
template <int By, int N, std::size_t... I>
NIBBLE_LANE int_lanes<N> rotated(const int_lanes<N>& a, std::index_sequence<I...>) noexcept {
  int_lanes<N> r;
  r.v = __builtin_shufflevector(a.v, a.v, int((I + By) % N)...);
  return r;
}

/// The greatest of N integers.
template <int N>
NIBBLE_LANE int32_t greatest(const int_lanes<N>& of) noexcept {
  constexpr auto index = std::make_index_sequence<N>{};
  int_lanes<N> a = of;
  if constexpr (N >= 16) a = greater(a, rotated<8>(a, index));
  if constexpr (N >= 8) a = greater(a, rotated<4>(a, index));
  a = greater(a, rotated<2>(a, index));
  a = greater(a, rotated<1>(a, index));
  return a.v[0];
}

template <int N>
NIBBLE_LANE void load_block(const float* from, lanes<N>* x) noexcept {
  for (int i = 0; i < 32 / N; ++i) std::memcpy(&x[i].v, from + N * i, sizeof(x[i].v));
}

/// Low bytes of integers.
template <int N>
NIBBLE_LANE void store_bytes(const int_lanes<N>& a, uint8_t* to) noexcept {
  typedef uint8_t bytes __attribute__((vector_size(N)));
  const bytes low = __builtin_convertvector(a.v, bytes);
  std::memcpy(to, &low, N);
}

NIBBLE_LANE void store_scale(float d, uint8_t* to) noexcept {
  const auto bits = static_cast<uint16_t>(half_bits(lanes<1>(d)).v);
  std::memcpy(to, &bits, 2);
}

template <int N>
NIBBLE_LANE void encode_along(const float* from, uint8_t* to, block_tag<q8_0>) noexcept {
  using V = lanes<N>;
  using I = int_lanes<N>;
  V x[32 / N];
  load_block(from, x);
  I most = bits_of(abs(x[0]));
  for (int i = 1; i < 32 / N; ++i) most = greater(most, bits_of(abs(x[i])));
  const float d = bit_cast<float>(greatest(most)) / 127.0f;
  const V inverse(d != 0.0f ? 1.0f / d : 0.0f);
  store_scale(d, to);
  for (int i = 0; i < 32 / N; ++i) {
    const V ratio = x[i] * inverse;
    const V half =
        of_bits((bits_of(ratio) & I(-2147483647 - 1)) | I(0x3effffff));  // the float below ½: ties go away from zero
    store_bytes(truncated(ratio + half), to + 2 + N * i);
  }
}

/// Whether a block is encoded along its weights. With fewer lanes the compiler takes bytes out of vectors one at a time.
template <class Block, int N>
inline constexpr bool goes_along = Block::type == block_type::q8_0&& N == 16;

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END
