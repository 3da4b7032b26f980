// SPDX-License-Identifier: Apache-2.0
/// @file
/// Inputs of a packed product as its kernels read them. A block is 16 runs of inputs, one a lane: the integers q of
/// nibble/gemm.hpp in pairs, as one instruction multiplies and adds them, and the run's unit.
#pragma once

#include <algorithm>
#include <vector>

#include "nibble/gemm.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/host/simd.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

/// A run is at most 2 · Pairs inputs, code s of a 32-bit word going with input s. Pair p holds inputs p and p + Pairs: the
/// two codes that a mask of one code in each half of the word leaves, p codes up.
template <int Pairs>
struct alignas(64) input_block {
  int32_t pairs[Pairs][gemm_lanes];  ///< input p in the low half
  float units[gemm_lanes];
};

/// @param from  16 · Run inputs.
template <int Pairs, int Run>
void fill_block(const float* from, input_block<Pairs>& to) {
  uint32_t largest[gemm_lanes];
  for (index_t l = 0; l < gemm_lanes; ++l) {
    uint32_t most = 0;
    for (int s = 0; s < Run; ++s) most = max(most, magnitude_bits(from[l * Run + s]));
    largest[l] = most;
  }
  float inverse[gemm_lanes];
  for (index_t l = 0; l < gemm_lanes; ++l) inverse[l] = 1.0f / (to.units[l] = run_unit(largest[l]));
  // At 1.5 · 2^23 a float's unit is 1: the sum rounds to even, and its lowest 16 bits are the integer's.
  uint32_t sums[gemm_lanes][2 * Pairs] = {};
  for (index_t l = 0; l < gemm_lanes; ++l)
    for (int s = 0; s < Run; ++s) sums[l][s] = bit_cast<uint32_t>(from[l * Run + s] * inverse[l] + 12582912.0f);
  for (index_t l = 0; l < gemm_lanes; ++l)
    if (largest[l] >= 0x7f800000u) std::fill_n(sums[l], 2 * Pairs, 0u);
  uint32_t words[gemm_lanes][Pairs];
  for (index_t l = 0; l < gemm_lanes; ++l)
    for (int p = 0; p < Pairs; ++p) words[l][p] = (sums[l][p] & 0xffffu) | sums[l][p + Pairs] << 16;
  for (int p = 0; p < Pairs; ++p)
    for (index_t l = 0; l < gemm_lanes; ++l) to.pairs[p][l] = static_cast<int32_t>(words[l][p]);
}

/// x (m, k) in blocks, the last filled up with zeros.
template <int Pairs, int Run>
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
  const input_block<Pairs>* row(index_t t) const { return data_.data() + t * blocks_; }
  index_t blocks() const { return blocks_; }

 private:
  void fill_row(const float* from, index_t k, index_t t) {
    input_block<Pairs>* to = data_.data() + t * blocks_;
    const index_t whole = k / block;
    for (index_t b = 0; b < whole; ++b) fill_block<Pairs, Run>(from + b * block, to[b]);
    if (whole == blocks_) return;
    float last[block] = {};
    for (index_t j = whole * block; j < k; ++j) last[j - whole * block] = from[j];
    fill_block<Pairs, Run>(last, to[whole]);
  }

  index_t blocks_;
  std::vector<input_block<Pairs>> data_;
};

}  // namespace detail
}  // namespace host
NIBBLE_NAMESPACE_END
