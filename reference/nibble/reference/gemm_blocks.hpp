// SPDX-License-Identifier: Apache-2.0
/// @file
/// x · Wᵀ over ggml's blocks, as plain loops over codes, inputs rounded in runs of 32 and added in the order that
/// nibble/host/gemm_blocks.hpp states.
#pragma once

#include <array>
#include <cstring>
#include <vector>

#include "nibble/block_layout.hpp"
#include "nibble/matrix.hpp"
#include "nibble/reference/block/unpacked.hpp"
#include "nibble/reference/gemm.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {
namespace detail {

/// What a weight is of its group's scale, an integer; the rest of it is the group's offset.
template <class Block>
int level(const ggml::unpacked& u, int i) {
  if (ggml::of_table<Block>) return iq4_values[u.codes[i]];
  return ggml::minimum_of_block<Block> || ggml::minima_of_groups<Block> ? u.codes[i]
                                                                        : u.codes[i] - (1 << (Block::bits - 1));
}
template <class Block>
float scale(const ggml::unpacked& u, int group) {
  const auto d = static_cast<float>(u.d);
  return ggml::scaled_groups<Block> ? d * static_cast<float>(u.scales[group]) : d;
}
template <class Block>
float offset(const ggml::unpacked& u, int group) {
  const auto d = static_cast<float>(u.minimum_d);
  return ggml::minima_of_groups<Block> ? -(d * static_cast<float>(u.minima[group])) : d;
}

/// One output of a token.
template <class Block>
float block_dot(const run_inputs& in, const uint8_t* row, index_t blocks) {
  constexpr bool offsets = ggml::minimum_of_block<Block> || ggml::minima_of_groups<Block>;
  constexpr int groups = Block::weights / Block::group;
  std::array<float, 16> lane{};
  std::array<float, 8> added{};
  for (index_t b = 0; b < blocks; ++b) {
    Block block;
    std::memcpy(static_cast<void*>(&block), row + b * static_cast<index_t>(sizeof(Block)), sizeof(Block));
    const ggml::unpacked u = ggml::read(block);
    const int32_t* const q = in.integers.data() + b * Block::weights;
    const float* const units = in.units.data() + b * (Block::weights / 32);
    for (int i = 0; i < Block::weights; i += 2) {
      const int pair = level<Block>(u, i) * q[i] + level<Block>(u, i + 1) * q[i + 1];
      const float factor = scale<Block>(u, i / Block::group) * units[i / 32];
      const auto l = static_cast<size_t>(i / 2 % 16);
      lane[l] = lane[l] + static_cast<float>(pair) * factor;
    }
    for (int g = 0; offsets && g < groups; ++g) {
      int sum = 0;
      for (int i = g * Block::group; i < (g + 1) * Block::group; ++i) sum += q[i];
      const float total = static_cast<float>(sum) * units[g * Block::group / 32];
      const auto at = static_cast<size_t>((b * groups + g) % 8);
      added[at] = added[at] + offset<Block>(u, g) * total;
    }
  }
  if (!offsets) return lane_total(lane);
  for (const size_t width : {4u, 2u, 1u})
    for (size_t l = 0; l < width; ++l) added[l] = added[l] + added[l + width];
  return lane_total(lane) + added[0];
}

}  // namespace detail

/// y (m, n) of x (m, k) and blocks (n, k / weights · bytes of a block) of `type`. @pre whole blocks a row.
inline void gemm(matrix<const float> x, matrix<const uint8_t> blocks, block_type type, matrix<float> y) {
  with_block(type, [&](auto tag) {
    using Block = typename decltype(tag)::type;
    for (index_t t = 0; t < x.rows; ++t) {
      const detail::run_inputs in(x.row(t), x.cols, 32);
      for (index_t i = 0; i < blocks.rows; ++i)
        y(t, i) = detail::block_dot<Block>(in, blocks.row(i), x.cols / Block::weights);
    }
  });
}

}  // namespace reference
NIBBLE_NAMESPACE_END
