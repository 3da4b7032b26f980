// SPDX-License-Identifier: Apache-2.0
#include "nibble/pack.hpp"

#include <catch2/catch.hpp>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "nibble/host/pack.hpp"
#include "nibble/reference/pack.hpp"

using namespace nibble;

namespace {

std::vector<uint8_t> random_codes(index_t count, int bits, unsigned seed = 1) {
  std::mt19937 engine(seed);
  std::vector<uint8_t> codes(static_cast<size_t>(count));
  for (auto& code : codes) code = static_cast<uint8_t>(engine() & ((1u << bits) - 1));
  return codes;
}

/// Packs and unpacks codes (n, k) in every column of the grid and holds them equal.
template <class Layout>
void require_grid_agrees(Layout l, index_t n, index_t k) {
  using word = typename Layout::word;
  CAPTURE(n, k, l.bits);
  const auto codes = random_codes(n * k, l.bits, static_cast<unsigned>(n * 131 + k));
  const matrix<const uint8_t> from(codes.data(), n, k);
  const layout::extents shape = l.packed(n, k);
  const auto count = static_cast<size_t>(shape.rows * shape.cols);
  std::vector<word> expected(count, static_cast<word>(~word{})), fast(count, static_cast<word>(~word{})), rule(count);
  reference::pack(l, from, matrix<word>(expected.data(), shape.rows, shape.cols));
  host::pack(l, from, matrix<word>(fast.data(), shape.rows, shape.cols));
  for (index_t row = 0; row < shape.rows; ++row)
    for (index_t col = 0; col < shape.cols; ++col)
      rule[static_cast<size_t>(row * shape.cols + col)] = word_at(l, from, row, col);
  REQUIRE(fast == expected);
  REQUIRE(rule == expected);

  const matrix<const word> words(expected.data(), shape.rows, shape.cols);
  std::vector<uint8_t> back(codes.size(), 255), quick(codes.size(), 255), each(codes.size());
  reference::unpack(l, words, matrix<uint8_t>(back.data(), n, k));
  host::unpack(l, words, matrix<uint8_t>(quick.data(), n, k));
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < k; ++j) each[static_cast<size_t>(i * k + j)] = code_at(l, words, n, k, i, j);
  REQUIRE(back == codes);
  REQUIRE(quick == codes);
  REQUIRE(each == codes);
}

}  // namespace

TEST_CASE("compressed_tensors: every width round-trips on every remainder, the same in all columns") {
  for (int bits = 1; bits <= 8; ++bits)
    for (const index_t n : {1, 2, 7, 8, 31, 32, 33, 65})
      for (const index_t k : {1, 2, 3, 7, 8, 9, 15, 31, 32, 33, 64, 67, 1030}) {
        require_grid_agrees(layout::compressed_tensors{bits}, n, k);
        require_grid_agrees(layout::compressed_tensors{bits}.zeros(), n, k);
      }
}

TEST_CASE("awq_gemm and awq_gemv round-trip on every shape they take, the same in all columns") {
  for (const index_t n : {8, 16, 24, 40, 64, 128, 136, 200, 264})
    for (const index_t k : {8, 32, 64, 128, 256, 264, 520}) {
      require_grid_agrees(layout::awq_gemm{}, n, k);
      require_grid_agrees(layout::awq_gemv{}, n, k);
    }
  for (const index_t n : {8, 24, 136})
    for (index_t groups = 1; groups <= 20; ++groups) require_grid_agrees(layout::awq_gemm{}.zeros(), n, groups);
}
