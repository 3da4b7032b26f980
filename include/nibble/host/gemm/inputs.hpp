// SPDX-License-Identifier: Apache-2.0
/// @file
/// Inputs of a packed product as its kernels read them. A block is 16 runs of inputs, one a lane: their integers q as of
/// nibble/gemm.hpp, code s of a 32-bit word going with input s, and their units.
#pragma once

#include <algorithm>
#include <vector>

#include "nibble/gemm.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/simd.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// The integers in pairs, as one instruction multiplies and adds them. Pair p of a lane holds inputs p and p + Pairs: the
/// two codes that a mask of one code in each half of a word leaves, p codes up.
template <int Pairs>
struct alignas(64) pair_block {
  static constexpr int inputs = 2 * Pairs, most_tokens = 4;  ///< of a word, and that kernels take at once
  static constexpr int32_t zero_factor = 0x10001;
  int32_t pairs[Pairs][gemm_lanes];  ///< input p in the low half
  float units[gemm_lanes];

  void set(const int32_t (&q)[gemm_lanes][inputs]) {
    int32_t words[gemm_lanes][Pairs];
    for (index_t l = 0; l < gemm_lanes; ++l)
      for (int p = 0; p < Pairs; ++p)
        words[l][p] = static_cast<int32_t>((static_cast<uint32_t>(q[l][p]) & 0xffffu) |
                                           static_cast<uint32_t>(q[l][p + Pairs]) << 16);
    for (int p = 0; p < Pairs; ++p)
      for (index_t l = 0; l < gemm_lanes; ++l) pairs[p][l] = words[l][p];
  }
};

/// The integers as 256 · high + low, four a lane: the inputs whose codes a mask of one code in each byte leaves, p codes up.
/// A product with both makes Σ code · q; what a zero point takes off it, zero · Σ q, is that of (zero, 128 · zero) and
/// `totals`, each two halves of an integer.
template <int Phases>
struct alignas(64) byte_block {
  static constexpr int inputs = 4 * Phases, most_tokens = 1;
  static constexpr int32_t zero_factor = 0x800001;
  int8_t high[Phases][4 * gemm_lanes];
  uint8_t low[Phases][4 * gemm_lanes];
  int32_t totals[gemm_lanes];
  float units[gemm_lanes];

  void set(const int32_t (&q)[gemm_lanes][inputs]) {
    for (index_t l = 0; l < gemm_lanes; ++l) {
      int32_t total = 0;
      for (int s = 0; s < inputs; ++s) total -= q[l][s];
      totals[l] = static_cast<int32_t>((static_cast<uint32_t>(total) & 127u) | static_cast<uint32_t>(total >> 7) << 16);
    }
    for (int p = 0; p < Phases; ++p)
      for (index_t l = 0; l < gemm_lanes; ++l)
        for (int b = 0; b < 4; ++b) {
          const int32_t value = q[l][b * Phases + p];
          high[p][4 * l + b] = static_cast<int8_t>(value >> 8);
          low[p][4 * l + b] = static_cast<uint8_t>(value);
        }
  }
};

/// @param from  16 · Run inputs.
template <int Run, class Block>
void fill_block(const float* from, Block& to) {
  uint32_t largest[gemm_lanes];
  for (index_t l = 0; l < gemm_lanes; ++l) {
    uint32_t most = 0;
    for (int s = 0; s < Run; ++s) most = max(most, magnitude_bits(from[l * Run + s]));
    largest[l] = most;
  }
  float inverse[gemm_lanes];
  for (index_t l = 0; l < gemm_lanes; ++l) inverse[l] = 1.0f / (to.units[l] = run_unit(largest[l]));
  // At 1.5 · 2^23 a float's unit is 1: the sum rounds to even, and its bits count from there.
  constexpr float middle = 12582912.0f;
  int32_t q[gemm_lanes][Block::inputs] = {};
  for (index_t l = 0; l < gemm_lanes; ++l)
    for (int s = 0; s < Run; ++s)
      q[l][s] = bit_cast<int32_t>(from[l * Run + s] * inverse[l] + middle) - bit_cast<int32_t>(middle);
  for (index_t l = 0; l < gemm_lanes; ++l)
    if (largest[l] >= 0x7f800000u) std::fill_n(q[l], Block::inputs, 0);
  to.set(q);
}

/// x (m, k) in blocks, the last filled up with zeros.
template <class Block, int Run>
class block_inputs {
 public:
  static constexpr index_t block = gemm_lanes * Run;

  explicit block_inputs(matrix<const float> x) : blocks_(ceil_div(x.cols, block)) {
    data_.resize(static_cast<size_t>(x.rows * blocks_));
    constexpr index_t tile_rows = 4;
    parallel_for(ceil_div(x.rows, tile_rows), [&](index_t tile) {
      vectorised([&] {
        for (index_t t = tile * tile_rows; t < min(x.rows, (tile + 1) * tile_rows); ++t) fill_row(x.row(t), x.cols, t);
      });
    });
  }
  const Block* row(index_t t) const { return data_.data() + t * blocks_; }
  index_t blocks() const { return blocks_; }

 private:
  void fill_row(const float* from, index_t k, index_t t) {
    Block* to = data_.data() + t * blocks_;
    const index_t whole = k / block;
    for (index_t b = 0; b < whole; ++b) fill_block<Run>(from + b * block, to[b]);
    if (whole == blocks_) return;
    float last[block] = {};
    for (index_t j = whole * block; j < k; ++j) last[j - whole * block] = from[j];
    fill_block<Run>(last, to[whole]);
  }

  index_t blocks_;
  std::vector<Block> data_;
};

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END
