// SPDX-License-Identifier: Apache-2.0
/// @file
/// A linear over ggml's blocks as they are stored, read once for every few tokens. Of weight x_j · w_j, w_j = scale_g · level_j + offset_g
/// (block.hpp), a run of 32 inputs shares a power of two u, the smallest with |x| <= 32767 · u, and each is an integer
/// q = round_even(x / u), as in gemm.hpp:
///     y = Σ_runs Σ_lanes float(level_2l · q_2l + level_(2l+1) · q_(2l+1)) · (scale_g · u)  +  Σ_g offset_g · (float(Σ_g q) · u)
/// Integers are exact. Sums have one order on every machine: partial sum l of 16 takes inputs 2l and 2l + 1 of each run, ascending, and
/// number g mod 8 of another 8 the offset of group g; then l and l + 8 are added, l + 4, l + 2, l + 1, and the second total to the first. An
/// output depends on its row of W and its row of x alone.
/// @error from the exact sum over the decoded weights at most ½ Σ u·|w| of rounding inputs, where u is 2^-126 or less than 2/32767 of the
/// run's largest |x|, and (⌈k/32⌉ + 10) · 2^-24 · Σ (|x| + u)·(|scale·level| + |offset|) of float sums. A run with a NaN or an infinity in it
/// makes NaN.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "nibble/block.hpp"
#include "nibble/block_layout.hpp"
#include "nibble/gemm.hpp"
#include "nibble/host/block/decode.hpp"
#include "nibble/host/gemm.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/matrix.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace host {
namespace detail {

inline constexpr index_t block_run = 32;

/// x (m, k) in runs: integers, their units, and of every group of `width` inputs float(Σ q) · u.
class run_inputs {
 public:
  run_inputs(matrix<const float> x, index_t width)
      : k_(x.cols), groups_(x.cols / width), q_(static_cast<size_t>(x.size())), units_(q_.size() / block_run) {
    totals_.resize(static_cast<size_t>(x.rows * groups_));
    parallel_for(x.rows, [&](index_t t) { vectorised([&] { fill(x.row(t), t, width); }); });
  }
  const int16_t* integers(index_t t) const { return q_.data() + t * k_; }
  const float* units(index_t t) const { return units_.data() + t * (k_ / block_run); }
  const float* totals(index_t t) const { return totals_.data() + t * groups_; }

 private:
  void fill(const float* x, index_t t, index_t width) {
    int16_t* const q = q_.data() + t * k_;
    float* const units = units_.data() + t * (k_ / block_run);
    for (index_t first = 0; first < k_; first += block_run) {
      uint32_t largest = 0;
      for (index_t j = first; j < first + block_run; ++j) largest = max(largest, magnitude_bits(x[j]));
      const float unit = units[first / block_run] = run_unit(largest);
      if (is_nan(unit)) {
        std::fill_n(q + first, block_run, int16_t{0});
        continue;
      }
      // At 1.5 · 2^23 a float's unit is 1: the sum rounds to even, and its bits count from there.
      constexpr float middle = 12582912.0f;
      const float inverse = 1.0f / unit;
      for (index_t j = first; j < first + block_run; ++j)
        q[j] = static_cast<int16_t>(bit_cast<int32_t>(x[j] * inverse + middle) - bit_cast<int32_t>(middle));
    }
    for (index_t g = 0; g < groups_; ++g) {
      int32_t sum = 0;
      for (index_t j = g * width; j < (g + 1) * width; ++j) sum += q[j];
      totals_[static_cast<size_t>(t * groups_ + g)] = static_cast<float>(sum) * units[g * width / block_run];
    }
  }

  index_t k_, groups_;
  std::vector<int16_t> q_;
  std::vector<float> units_, totals_;
};

/// A row of blocks, of any alignment.
struct block_row {
  const uint8_t* bytes;
  index_t count;
};

/// Block b, in its place where that is aligned (a copy that is read again in wider pieces waits for them), else in `copy`.
template <class Block>
NIBBLE_LANE const Block& block_at(const block_row& row, index_t b, Block& copy) noexcept {
  const uint8_t* const at = row.bytes + b * index_t(sizeof(Block));
  if (reinterpret_cast<std::uintptr_t>(at) % alignof(Block) == 0) return *reinterpret_cast<const Block*>(at);
  std::memcpy(static_cast<void*>(&copy), at, sizeof(Block));
  return copy;
}

/// What a block is multiplied as.
template <class Block>
struct opened_block {
  static constexpr int groups = Block::weights / Block::group;
  alignas(32) int8_t levels[Block::weights];
  nibble::block_scales scales[groups];

  NIBBLE_LANE void open(const Block& block) noexcept {
    levels_of_block(block, levels, std::make_index_sequence<Block::weights / 32>{});
    all_groups(block, scales);
  }
  /// Adds offsets times totals of the block's groups, the first of which is `first`.
  NIBBLE_LANE void add_offsets(const float* totals, index_t first, float* sums) const noexcept {
    for (int g = 0; g < groups; ++g) sums[(first + g) % 8] += scales[g].offset * totals[first + g];
  }
};

NIBBLE_LANE float total_of_8(const float* s) noexcept {
  const float a = s[0] + s[4], b = s[1] + s[5], c = s[2] + s[6], d = s[3] + s[7];
  return (a + c) + (b + d);
}

/// Tokens' outputs of one row by plain loops.
struct plain_block_kernel {
  static constexpr int most_tokens = 1;

  template <class Block, int Tokens>
  static void row(const block_row& w, const run_inputs& in, index_t token, float* y, index_t) {
    lane_sums sums;
    float offsets[8] = {};
    const int16_t* const q = in.integers(token);
    opened_block<Block> block;
    Block copy;
    for (index_t b = 0; b < w.count; ++b) {
      block.open(block_at(w, b, copy));
      for (index_t first = 0; first < Block::weights; first += block_run) {
        const index_t at = b * Block::weights + first;
        const float unit = in.units(token)[at / block_run];
        for (index_t l = 0; l < gemm_lanes; ++l) {
          const int32_t pair =
              block.levels[first + 2 * l] * q[at + 2 * l] + block.levels[first + 2 * l + 1] * q[at + 2 * l + 1];
          sums.lanes[l] += static_cast<float>(pair) * (block.scales[(first + 2 * l) / Block::group].scale * unit);
        }
      }
      if constexpr (has_offset<Block>) block.add_offsets(in.totals(token), b * opened_block<Block>::groups, offsets);
    }
    *y = has_offset<Block> ? sums.total() + total_of_8(offsets) : sums.total();
  }
};

#if defined(__GNUC__) && defined(__x86_64__)
#define NIBBLE_BLOCKS_AVX2 __attribute__((target("avx2,f16c"), always_inline)) inline
#define NIBBLE_BLOCKS_ENTRY __attribute__((target("avx2,f16c")))

/// The same in two vectors of 8 lanes.
struct avx2_block_kernel {
  static constexpr int most_tokens = 4;

  template <class Block, int Tokens>
  NIBBLE_BLOCKS_ENTRY static void row(const block_row& w, const run_inputs& in, index_t token, float* y,
                                      index_t y_stride) {
    constexpr auto tokens = std::make_index_sequence<Tokens>{};
    row_sums<Tokens> sums;
    sums.clear(tokens);
    float offsets[Tokens][8] = {};
    const int16_t* q[Tokens];
    const float *units[Tokens], *totals[Tokens];
    for (int t = 0; t < Tokens; ++t)
      q[t] = in.integers(token + t), units[t] = in.units(token + t), totals[t] = in.totals(token + t);
    opened_block<Block> block;
    Block copy;
    for (index_t b = 0; b < w.count; ++b) {
      open(block_at(w, b, copy), block);
      for (index_t first = 0; first < Block::weights; first += block_run)
        add_run(sums, block.levels + first, block.scales[first / Block::group].scale,
                block.scales[(first + 16) / Block::group].scale, q, units, b * Block::weights + first, tokens);
      if constexpr (has_offset<Block>)
        for (int t = 0; t < Tokens; ++t) block.add_offsets(totals[t], b * opened_block<Block>::groups, offsets[t]);
    }
    for (int t = 0; t < Tokens; ++t) {
      const float sum = row_sums<Tokens>::total(sums.sums[0][t], sums.sums[1][t]);
      y[t * y_stride] = has_offset<Block> ? sum + total_of_8(offsets[t]) : sum;
    }
  }

 private:
  /// opened_block::open; fp16 to float is one instruction here, where subnormal ones, which d of real models often is, cost no more.
  template <class Block>
  NIBBLE_BLOCKS_AVX2 static void open(const Block& from, opened_block<Block>& to) noexcept {
    levels_of_block(from, to.levels, std::make_index_sequence<Block::weights / 32>{});
    const float d = _cvtsh_ss(from.d.bits);
    if constexpr (Block::weights == 32) {
      to.scales[0].scale = d;
      if constexpr (has_offset<Block>) to.scales[0].offset = _cvtsh_ss(from.m.bits);
    } else {
      for (int g = 0; g < opened_block<Block>::groups; ++g)
        to.scales[g].scale = d * static_cast<float>(scale_integer(from, g));
      if constexpr (has_offset<Block>) {
        const float dmin = _cvtsh_ss(from.dmin.bits);
        for (int g = 0; g < opened_block<Block>::groups; ++g)
          to.scales[g].offset = -(dmin * static_cast<float>(minimum_integer(from, g)));
      }
    }
  }
  /// 32 inputs from `at` on; the first 16 have the scale `low`.
  template <int Tokens, std::size_t... T>
  NIBBLE_BLOCKS_AVX2 static void add_run(row_sums<Tokens>& sums, const int8_t* levels, float low, float high,
                                         const int16_t* const* q, const float* const* units, index_t at,
                                         std::index_sequence<T...>) noexcept {
    const __m256i first = _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(levels)));
    const __m256i second = _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(levels + 16)));
    ((sums.sums[0][T] = added(sums.sums[0][T], first, q[T] + at, low * units[T][at / block_run])), ...);
    ((sums.sums[1][T] = added(sums.sums[1][T], second, q[T] + at + 16, high * units[T][at / block_run])), ...);
  }
  NIBBLE_BLOCKS_AVX2 static __m256 added(__m256 sum, __m256i levels, const int16_t* q, float factor) noexcept {
    const __m256i pairs = _mm256_madd_epi16(levels, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q)));
    return _mm256_add_ps(sum, _mm256_mul_ps(_mm256_cvtepi32_ps(pairs), _mm256_set1_ps(factor)));
  }
};

#undef NIBBLE_BLOCKS_AVX2
#undef NIBBLE_BLOCKS_ENTRY
#endif

/// f(kernel), the fastest this machine runs on blocks.
template <class F>
void with_block_kernel(F&& f) {
#if defined(__GNUC__) && defined(__x86_64__)
  if (has_avx2()) return f(avx2_block_kernel{});
#endif
  f(plain_block_kernel{});
}

template <class Kernel, class Block>
void gemm_blocks_of(matrix<const float> x, matrix<const uint8_t> blocks, matrix<float> y) {
  const run_inputs in(x, Block::group);
  const index_t count = x.cols / Block::weights, rows = y.cols;
  const index_t tile_rows = gemm_tile(count * index_t(sizeof(Block)), rows);
  parallel_for(ceil_div(rows, tile_rows), [&](index_t tile) {
    constexpr int most = Kernel::most_tokens;
    const index_t end = min(rows, (tile + 1) * tile_rows);
    index_t token = 0;
    for (; token + most <= x.rows; token += most)
      for (index_t row = tile * tile_rows; row < end; ++row)
        Kernel::template row<Block, most>({blocks.row(row), count}, in, token, &y(token, row), y.stride);
    for (; token < x.rows; ++token)
      for (index_t row = tile * tile_rows; row < end; ++row)
        Kernel::template row<Block, 1>({blocks.row(row), count}, in, token, &y(token, row), y.stride);
  });
}

}  // namespace detail

/// y (m, n) of x (m, k) and blocks (n, k / weights · bytes of a block) of `type`, of any alignment. @pre whole blocks a row.
inline void gemm(matrix<const float> x, matrix<const uint8_t> blocks, block_type type, matrix<float> y) {
  with_block(type, [&](auto tag) {
    detail::with_block_kernel(
        [&](auto kernel) { detail::gemm_blocks_of<decltype(kernel), typename decltype(tag)::type>(x, blocks, y); });
  });
}

}  // namespace host
NIBBLE_NAMESPACE_END
