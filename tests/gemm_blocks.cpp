// SPDX-License-Identifier: Apache-2.0
/// @file
/// host::gemm over ggml's blocks: against the reference, and against the decoded weights.
#include "nibble/host/gemm_blocks.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "nibble/block.hpp"
#include "nibble/reference/gemm_blocks.hpp"

namespace gemm_blocks_tests {

using namespace nibble;

namespace {

/// Blocks of random bytes, with scales that are finite and of both signs.
template <class Block>
std::vector<uint8_t> random_blocks(index_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> bytes(static_cast<size_t>(count) * sizeof(Block));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  for (index_t i = 0; i < count; ++i) {
    Block b;
    uint8_t* const at = bytes.data() + i * index_t(sizeof(Block));
    std::memcpy(static_cast<void*>(&b), at, sizeof(b));
    const auto scale = [&] { return fp16((static_cast<float>(random() % 2001) - 1000.0f) / 4096.0f); };
    b.d = scale();
    if constexpr (Block::type == block_type::q4_1 || Block::type == block_type::q5_1)
      b.m = scale();
    else if constexpr (has_offset<Block>)
      b.dmin = scale();
    std::memcpy(at, &b, sizeof(b));
  }
  return bytes;
}

std::vector<float> random_inputs(index_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(count));
  for (float& value : x) value = normal(random) * (random() % 50 == 0 ? 100.0f : 1.0f);
  return x;
}

/// Σ x·w over decoded weights, and how far from it a result may be.
struct sum {
  double exact, bound;
};
template <class Block>
sum output_of(const float* x, const uint8_t* row, index_t k) {
  double exact = 0, rounding = 0, magnitude = 0;
  for (index_t b = 0; b < k / Block::weights; ++b) {
    Block block;
    std::memcpy(static_cast<void*>(&block), row + b * index_t(sizeof(Block)), sizeof(Block));
    for (int first = 0; first < Block::weights; first += 32) {
      const float* in = x + b * Block::weights + first;
      float largest = 0, unit = 0x1p-126f;
      for (int j = 0; j < 32; ++j) largest = std::max(largest, std::abs(in[j]));
      while (static_cast<double>(largest) > 32767.0 * static_cast<double>(unit)) unit *= 2.0f;
      for (int j = 0; j < 32; ++j) {
        const auto s = block_group(block, (first + j) / Block::group);
        const int level = block_level<Block>(block_code(block, first + j));
        const double w = static_cast<double>(block_value<Block>(s, level)), u = static_cast<double>(unit);
        exact += static_cast<double>(in[j]) * w;
        rounding += 0.5 * u * std::abs(w);
        magnitude += (std::abs(static_cast<double>(in[j])) + u) *
                     (std::abs(static_cast<double>(s.scale) * level) + std::abs(static_cast<double>(s.offset)));
      }
    }
  }
  return {exact, rounding + static_cast<double>(ceil_div(k, index_t(32)) + 10) * 0x1p-24 * magnitude};
}

}  // namespace

TEMPLATE_TEST_CASE(
    "a product with blocks is the reference's bits alone and in a batch and as near to the decoded weights as stated",
    "", q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs) {
  using Block = TestType;
  const index_t n = 37, m = 7, k = 3 * Block::weights;
  const index_t row_bytes = 3 * index_t(sizeof(Block));
  const auto bytes = random_blocks<Block>(3 * n, 5);
  const auto x = random_inputs(m * k, 6);
  const matrix<const float> in(x.data(), m, k);
  std::vector<uint8_t> moved(bytes.size() + 1);  // of odd addresses
  std::copy(bytes.begin(), bytes.end(), moved.begin() + 1);
  std::vector<float> all(static_cast<size_t>(m * n)), odd(all.size()), plain(all.size());
  const matrix<float> y(all.data(), m, n);
  host::gemm(in, {bytes.data(), n, row_bytes}, Block::type, y);
  host::gemm(in, {moved.data() + 1, n, row_bytes}, Block::type, {odd.data(), m, n});
  host::detail::gemm_blocks_of<host::detail::plain_block_kernel, Block>(in, {bytes.data(), n, row_bytes},
                                                                        {plain.data(), m, n});
  CHECK(std::memcmp(all.data(), odd.data(), all.size() * 4) == 0);
  CHECK(std::memcmp(all.data(), plain.data(), all.size() * 4) == 0);
  std::vector<float> formula(all.size());
  reference::gemm(in, {bytes.data(), n, row_bytes}, Block::type, {formula.data(), m, n});
  CHECK(std::memcmp(all.data(), formula.data(), all.size() * 4) == 0);
  index_t near = 0;
  for (index_t t = 0; t < m; ++t) {
    std::vector<float> alone(static_cast<size_t>(n));
    host::gemm(in.rows_at(t, 1), {bytes.data(), n, row_bytes}, Block::type, {alone.data(), 1, n});
    CHECK(std::memcmp(alone.data(), y.row(t), static_cast<size_t>(n) * 4) == 0);
    for (index_t i = 0; i < n; ++i) {
      const sum expected = output_of<Block>(in.row(t), bytes.data() + i * row_bytes, k);
      near += std::abs(static_cast<double>(y(t, i)) - expected.exact) <= expected.bound ? 1 : 0;
    }
  }
  CHECK(near == m * n);
}

TEST_CASE("what is no number in a token of a product with blocks reaches the outputs of that token only") {
  const index_t n = 5, k = 512;
  const auto bytes = random_blocks<q4_k>(2 * n, 1);
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    auto x = random_inputs(5 * k, 2);
    x[static_cast<size_t>(2 * k + 40)] = bad;
    std::vector<float> y(5 * n);
    host::gemm({x.data(), 5, k}, {bytes.data(), n, 2 * index_t(sizeof(q4_k))}, block_type::q4_k, {y.data(), 5, n});
    for (index_t i = 0; i < 5 * n; ++i) CHECK(std::isnan(y[static_cast<size_t>(i)]) == (i / n == 2));
  }
}

}  // namespace gemm_blocks_tests
