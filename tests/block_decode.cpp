// SPDX-License-Identifier: Apache-2.0
#include <catch2/catch.hpp>
#include <cmath>
#include <random>
#include <utility>

#include "nibble/host/block.hpp"
#include "nibble/reference/block.hpp"
#include "support/activations.hpp"
#include "support/weights.hpp"

namespace block_decode_tests {

using namespace nibble;

namespace {

index_t row_bytes(index_t cols, block_type type) {
  return cols / block_weights(type) * block_bytes(type);
}

/// Reads back by each instruction set, into the caches and past them, and calls f after each.
template <class T, class F>
void by_every_lanes(matrix<const uint8_t> from, matrix<T> to, block_type type, F f) {
  with_block(type, [&](auto tag) {
    using Block = typename decltype(tag)::type;
    for (const bool streamed : {false, true}) {
      CAPTURE(streamed);
      const auto by = [&](auto lanes_of) {
        for (index_t row = 0; row < to.rows; ++row)
          for (index_t col = 0; col < to.cols; ++col) to(row, col) = T(-7.0f);
        host::detail::decode_blocks_in<Block, decltype(lanes_of)>(from.data, from.stride, to, streamed);
        f();
      };
      by(host::detail::four_lanes{});
#if defined(__GNUC__) && defined(__x86_64__)
      if (host::detail::eight_lanes::here()) by(host::detail::eight_lanes{});
#endif
    }
  });
}

bool same_number(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || bit_cast<uint32_t>(a) == bit_cast<uint32_t>(b);
}

}  // namespace

TEST_CASE("blocks of any bytes become the reference's numbers in every storage type") {
  std::mt19937 engine(11);
  for (const block_type type : block_types) {
    CAPTURE(block_name(type));
    const index_t width = row_bytes(512, type);
    owned<uint8_t> from(33, width);
    for (auto& byte : from.data) byte = static_cast<uint8_t>(engine());
    const auto same = [&](auto zero) {
      using T = decltype(zero);
      owned<T> expected(33, 512), got(33, 512);
      reference::dequantize_blocks(std::as_const(from).view(), expected.view(), type);
      const auto compare = [&] {
        for (std::size_t i = 0; i < got.data.size(); ++i) {
          const auto a = static_cast<float>(got.data[i]), b = static_cast<float>(expected.data[i]);
          if (!(std::isnan(a) && std::isnan(b))) REQUIRE(bit_cast<uint32_t>(a) == bit_cast<uint32_t>(b));
        }
      };
      host::dequantize_blocks(std::as_const(from).view(), got.view(), type);
      compare();
      by_every_lanes(from.view(), got.view(), type, compare);
    };
    same(0.0f);
    same(bf16(0.0f));
    same(fp16(0.0f));
  }
}

TEST_CASE("weights that are streamed fill their own columns from any place in a line and touch nothing beside") {
  std::mt19937 engine(12);
  for (const block_type type : {block_type::q8_0, block_type::q4_1, block_type::q6_k})
    for (index_t first = 0; first < 34; ++first) {
      CAPTURE(block_name(type), first);
      constexpr index_t rows = 3, cols = 768;
      const index_t width = row_bytes(cols, type);
      owned<uint8_t> from(rows, width);
      for (auto& byte : from.data) byte = static_cast<uint8_t>(engine());
      owned<float> expected(rows, cols), wide(rows, cols + 41);
      reference::dequantize_blocks(std::as_const(from).view(), expected.view(), type);
      by_every_lanes(std::as_const(from).view(), wide.view().cols_at(first, cols), type, [&] {
        bool same = true;
        for (index_t row = 0; row < rows; ++row)
          for (index_t col = 0; col < wide.cols; ++col) {
            const bool inside = col >= first && col < first + cols;
            same = same && same_number(wide.view()(row, col), inside ? expected.view()(row, col - first) : 0.0f);
          }
        REQUIRE(same);
      });
    }
}

TEST_CASE("so many weights that they are streamed, where that pays, are the reference's") {
  constexpr index_t cols = 4096, rows = host::streamed_bytes / (cols * index_t(sizeof(float))) + 1;
  const index_t width = row_bytes(cols, block_type::q4_0);
  owned<uint8_t> from(rows, width);
  for (std::size_t i = 0; i < from.data.size(); ++i) from.data[i] = static_cast<uint8_t>(i * 37 % 251 & 0xbf);
  owned<float> expected(rows, cols), got(rows, cols);
  reference::dequantize_blocks(std::as_const(from).view(), expected.view(), block_type::q4_0);
  host::dequantize_blocks(std::as_const(from).view(), got.view(), block_type::q4_0);
  bool same = true;
  for (std::size_t i = 0; i < got.data.size(); ++i) same = same && same_number(got.data[i], expected.data[i]);
  CHECK(same);
}

}  // namespace block_decode_tests
