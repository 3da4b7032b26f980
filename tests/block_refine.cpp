// SPDX-License-Identifier: Apache-2.0
#include "nibble/host/block_refine.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <vector>

#include "nibble/reference/block.hpp"
#include "support/block_rows.hpp"
#include "support/weights.hpp"

namespace block_refine_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

/// Rows of blocks, and the error of what the reference decodes of each block.
struct made_blocks {
  owned<uint8_t> bytes;
  std::vector<double> error;
};

template <class Block>
made_blocks judged(const owned<float>& w, const float* importance, owned<uint8_t> bytes) {
  owned<float> back(w.rows, w.cols);
  reference::dequantize_blocks(std::as_const(bytes).view(), back.view(), Block::type);
  std::vector<double> error(static_cast<std::size_t>(w.view().size() / Block::weights), 0.0);
  for (index_t i = 0; i < w.view().size(); ++i) {
    const auto at = static_cast<std::size_t>(i);
    const double off = static_cast<double>(w.data[at]) - static_cast<double>(back.data[at]);
    error[at / Block::weights] +=
        (importance != nullptr ? static_cast<double>(importance[i % w.cols]) : 1.0) * off * off;
  }
  return {std::move(bytes), std::move(error)};
}

template <class Block>
made_blocks plain(const owned<float>& w, const float* importance) {
  owned<uint8_t> bytes(w.rows, w.cols / Block::weights * index_t(sizeof(Block)));
  reference::quantize_blocks(w.view(), bytes.view(), Block::type, importance);
  return judged<Block>(w, importance, std::move(bytes));
}

template <class Block>
made_blocks refined(const owned<float>& w, const float* importance) {
  owned<uint8_t> bytes = plain<Block>(w, importance).bytes;
  host::refine_blocks(w.view(), bytes.view(), Block::type, importance);
  return judged<Block>(w, importance, std::move(bytes));
}

double total(const std::vector<double>& errors) {
  double sum = 0;
  for (const double each : errors) sum += each;
  return sum;
}

template <class F>
void for_every_type(F f) {
  for (const block_type type : block_types) {
    CAPTURE(block_name(type));
    with_block(type, f);
  }
}

}  // namespace

TEST_CASE("a refined block never has more error than the one it replaces, whatever the weights") {
  constexpr index_t k = 512;
  const std::vector<float> importance = column_importance(k);
  for_every_type([&](auto tag) {
    using Block = typename decltype(tag)::type;
    for (std::size_t kind = 0; kind < row_kinds; ++kind)
      for (const float* weighed : {static_cast<const float*>(nullptr), importance.data()}) {
        CAPTURE(row_kind_names[kind], weighed != nullptr);
        const owned<float> w = block_rows(kind, 3, k);
        const made_blocks before = plain<Block>(w, weighed), after = refined<Block>(w, weighed);
        for (std::size_t i = 0; i < before.error.size(); ++i) {
          CAPTURE(i);
          REQUIRE(after.error[i] <= before.error[i]);
        }
      }
  });
}

TEST_CASE("refined blocks of normal weights have clearly less error") {
  constexpr index_t k = 2048;
  const std::vector<float> importance = column_importance(k);
  const owned<float> w = block_rows(row_kind("normal"), 4, k);
  for_every_type([&](auto tag) {
    using Block = typename decltype(tag)::type;
    for (const float* weighed : {static_cast<const float*>(nullptr), importance.data()}) {
      CAPTURE(weighed != nullptr);
      CHECK(total(refined<Block>(w, weighed).error) < 0.98 * total(plain<Block>(w, weighed).error));
    }
  });
}

TEST_CASE("blocks that hold their weights exactly stay exact") {
  for_every_type([&](auto tag) {
    using Block = typename decltype(tag)::type;
    const made_blocks once = refined<Block>(block_rows(row_kind("normal"), 2, 512), nullptr);
    owned<float> w(2, 512);
    reference::dequantize_blocks(once.bytes.view(), w.view(), Block::type);
    owned<uint8_t> bytes = once.bytes;
    host::refine_blocks(std::as_const(w).view(), bytes.view(), Block::type);
    CHECK(bytes.data == once.bytes.data);
    const made_blocks zero = refined<Block>(block_rows(row_kind("zero"), 2, 512), nullptr);
    CHECK(total(zero.error) == 0);
  });
}

TEST_CASE("refined blocks are the same bytes for any number of lanes and threads") {
  constexpr index_t k = 768;
  const std::vector<float> importance = column_importance(k);
  const owned<float> w = block_rows(row_kind("heavy"), 19, k);
  for_every_type([&](auto tag) {
    using Block = typename decltype(tag)::type;
    const made_blocks wanted = refined<Block>(w, importance.data());
    const auto with = [&](auto lanes_of) {
      owned<uint8_t> bytes = plain<Block>(w, importance.data()).bytes;
      host::detail::refine_all<Block, decltype(lanes_of)>(w.view(), bytes.data.data(), bytes.cols, importance.data());
      CHECK(bytes.data == wanted.bytes.data);
    };
    with(host::detail::refine_four{});
#if defined(__GNUC__) && defined(__x86_64__)
    if (host::detail::eight_lanes::here()) with(host::detail::refine_eight{});
#endif
    host::set_threads(3);
    CHECK(refined<Block>(w, importance.data()).bytes.data == wanted.bytes.data);
    host::set_threads(2);
  });
}

TEST_CASE("one lane, as a thread would run it, finds what sixteen do") {
  const owned<float> w = block_rows(row_kind("normal"), 1, 256);
  for_every_type([&](auto tag) {
    using Block = typename decltype(tag)::type;
    lanes<1> x[Block::weights], ones[Block::weights];
    for (int i = 0; i < Block::weights; ++i)
      x[i] = lanes<1>(w.data[static_cast<std::size_t>(i)]), ones[i] = lanes<1>(1.0f);
    int_lanes<1> units[sizeof(Block) / 2];
    block_search::refine(x, ones, units, block_tag<Block>{});
    uint16_t bytes[sizeof(Block) / 2];
    for (std::size_t i = 0; i < sizeof(Block) / 2; ++i) bytes[i] = static_cast<uint16_t>(units[i].v);
    const made_blocks wanted = refined<Block>(w, nullptr), before = plain<Block>(w, nullptr);
    if (wanted.error[0] < before.error[0]) CHECK(std::memcmp(bytes, wanted.bytes.data.data(), sizeof(Block)) == 0);
  });
}

}  // namespace block_refine_tests
