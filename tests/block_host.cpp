// SPDX-License-Identifier: Apache-2.0
#include "nibble/host/block.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "nibble/host/fp4.hpp"  // has names of its own for blocks
#include "nibble/reference/block.hpp"
#include "support/activations.hpp"
#include "support/block_rows.hpp"
#include "support/weights.hpp"

namespace block_host_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

using bytes = std::vector<uint8_t>;

index_t row_bytes(index_t cols, block_type type) {
  return cols / block_weights(type) * block_bytes(type);
}

template <class T>
bytes by_reference(const owned<T>& w, block_type type, const float* importance) {
  owned<uint8_t> to(w.rows, row_bytes(w.cols, type));
  reference::quantize_blocks(w.view(), to.view(), type, importance);
  return to.data;
}

template <class T>
bytes by_host(const owned<T>& w, block_type type, const float* importance) {
  owned<uint8_t> to(w.rows, row_bytes(w.cols, type));
  host::quantize_blocks(w.view(), to.view(), type, importance);
  return to.data;
}

/// By one instruction set.
template <class Lanes, class T>
bytes by_lanes(const owned<T>& w, block_type type, const float* importance) {
  owned<uint8_t> to(w.rows, row_bytes(w.cols, type));
  with_block(type, [&](auto tag) {
    host::detail::encode_blocks<typename decltype(tag)::type, Lanes>(w.view(), to.data.data(), to.cols, importance);
  });
  return to.data;
}

/// One block at a time by the scalar text, as a thread of a GPU may.
bytes by_scalar(const owned<float>& w, block_type type, const float* importance) {
  bytes to;
  with_block(type, [&](auto tag) {
    using Block = typename decltype(tag)::type;
    for (index_t row = 0; row < w.rows; ++row) {
      float sum = 0.0f;
      for (index_t col = 0; col < w.cols; ++col) sum += w.view()(row, col) * w.view()(row, col);
      for (index_t first = 0; first < w.cols; first += Block::weights) {
        const Block b = encoded<Block>(w.view().row(row) + first, importance == nullptr ? nullptr : importance + first,
                                       sum / static_cast<float>(w.cols));
        const std::size_t end = to.size();
        to.resize(end + sizeof(Block));
        std::memcpy(to.data() + end, static_cast<const void*>(&b), sizeof(Block));
      }
    }
  });
  return to;
}

/// Every way of the host against the reference.
void ways_agree(const owned<float>& w, block_type type, const float* importance) {
  const bytes expected = by_reference(w, type, importance);
  CHECK(by_host(w, type, importance) == expected);
  CHECK(by_scalar(w, type, importance) == expected);
  CHECK(by_lanes<host::detail::four_lanes>(w, type, importance) == expected);
#if defined(__GNUC__) && defined(__x86_64__)
  if (host::detail::eight_lanes::here()) CHECK(by_lanes<host::detail::eight_lanes>(w, type, importance) == expected);
  if (host::detail::sixteen_lanes::here())
    CHECK(by_lanes<host::detail::sixteen_lanes>(w, type, importance) == expected);
#endif
}

void ways_agree_on(const owned<float>& w) {
  const auto importance = column_importance(w.cols);
  for (const block_type type : block_types) {
    CAPTURE(block_name(type), w.rows, w.cols);
    ways_agree(w, type, nullptr);
    ways_agree(w, type, importance.data());
  }
}

/// Row by row another kind, groups of 16 another size.
owned<float> mixed_rows(index_t rows, index_t cols, unsigned seed) {
  std::mt19937 engine(seed);
  owned<float> w(rows, cols);
  for (index_t row = 0; row < rows; ++row)
    for (index_t col = 0; col < cols; ++col) {
      const float size = col % 16 == 0 ? std::ldexp(1.0f, -static_cast<int>(engine() % 14)) : 0.0f;
      float& x = w.view()(row, col);
      x = block_weight(engine() % 64 == 0 ? 3 : static_cast<std::size_t>(row) % row_kinds,
                       seed + static_cast<uint32_t>(row), static_cast<uint32_t>(col));
      if (size != 0.0f && engine() % 2 == 0) x *= size;
    }
  return w;
}

}  // namespace

TEST_CASE("blocks made in lanes of every instruction set have the reference's bytes for every type and kind of row") {
  for (std::size_t kind = 0; kind < row_kinds; ++kind) {
    CAPTURE(row_kind_names[kind]);
    ways_agree_on(block_rows(kind, 4, 512));
  }
  for (unsigned seed = 1; seed <= 4; ++seed) ways_agree_on(mixed_rows(11, 512, seed));
}

TEST_CASE(
    "blocks without a search round at ties and take the first of equals and the sign of zero as the reference does") {
  const float tiny = std::numeric_limits<float>::denorm_min();
  const auto against_reference = [](const owned<float>& w) {
    for (const block_type type :
         {block_type::q4_0, block_type::q4_1, block_type::q5_0, block_type::q5_1, block_type::q8_0}) {
      CAPTURE(block_name(type), w.data[0]);
      ways_agree(w, type, nullptr);
    }
  };
  // every tie of Q8_0 under d = 1 and its neighbours: both ways to round are steps, so that they agree everywhere
  owned<float> ties(1, 32 * 26, 0.0f);
  for (int block = 0, at = 0; block < 26; ++block) {
    ties.data[std::size_t(32 * block)] = block % 2 == 0 ? 127.0f : -127.0f;
    for (int i = 1; i < 31; ++i, ++at) {
      const float tie = static_cast<float>(at / 6 % 128) + 0.5f;
      const float near = at % 3 == 0 ? tie : std::nextafter(tie, at % 3 == 1 ? 0.0f : 200.0f);
      ties.data[std::size_t(32 * block + i)] = std::min(near, 127.0f) * (at % 6 < 3 ? 1.0f : -1.0f);
    }
  }
  against_reference(ties);
  for (int i = 0; i < 32; ++i)
    for (const float most : {1.5f, 3e-39f, 65504.0f}) {
      // ±equal magnitudes at every place, either first, in blocks 0 and 9 of 21
      owned<float> w(1, 32 * 21, 0.0f);
      for (std::size_t at = 0; at < w.data.size(); ++at)
        w.data[at] = std::ldexp(static_cast<float>(static_cast<int>(at * 37 % 61) - 30), -12) * most;
      for (const int block : {0, 9}) {
        w.data[std::size_t(32 * block + i)] = block == 0 ? most : -most;
        w.data[std::size_t(32 * block + (i * 5 + 3) % 32)] = block == 0 ? -most : most;
      }
      against_reference(w);
    }
  // zeros of both signs, alone and as the least or the greatest
  owned<float> zeros(1, 32 * 40, 0.0f);
  for (int block = 0; block < 40; ++block)
    for (int i = 0; i < 32; ++i) {
      const float sign = (block * 5 + i) % 3 == 0 ? -0.0f : 0.0f;
      const float other = static_cast<float>(i % 7) * (block % 4 == 1 ? 0.25f : block % 4 == 2 ? -0.25f : 0.0f);
      zeros.data[std::size_t(32 * block + i)] = other == 0.0f ? sign : other;
    }
  against_reference(zeros);
  // d so small that 1 / d is no float, around where that begins, and d = 0 of weights that are not
  for (const int bits : {1, 60, 127, 0x200000 * 8, 0x200000 * 8 - 9, 0x200000 * 8 + 9, 0x200000 * 127})
    for (const float sign : {1.0f, -1.0f}) {
      owned<float> w(1, 32 * 18, 0.0f);
      for (std::size_t at = 0; at < w.data.size(); ++at)
        w.data[at] = at % 32 == 7 ? sign * static_cast<float>(bits) * tiny
                                  : (static_cast<float>(at % 5) - 2.0f) * static_cast<float>(bits / 3) * tiny;
      against_reference(w);
    }
}

TEST_CASE("any number of blocks fills lanes and leaves none out") {
  for (index_t rows = 1; rows <= 19; rows += 2) ways_agree_on(mixed_rows(rows, 256, static_cast<unsigned>(rows)));
  ways_agree_on(mixed_rows(1, 4352, 7));  // 17 blocks of 256
  for (const index_t cols : {32, 96, 544, 1056}) {
    const auto w = mixed_rows(3, cols, static_cast<unsigned>(cols));
    const auto importance = column_importance(cols);
    for (const block_type type : block_types) {
      if (block_weights(type) != 32) continue;
      CAPTURE(block_name(type), cols);
      ways_agree(w, type, nullptr);
      ways_agree(w, type, importance.data());
    }
  }
}

TEST_CASE("matrices without rows or columns make no blocks") {
  for (const block_type type : block_types) {
    CHECK(by_host(owned<float>(0, 256), type, nullptr).empty());
    CHECK(by_host(owned<float>(3, 0), type, nullptr).empty());
    owned<float> back(0, 256);
    host::dequantize_blocks(matrix<const uint8_t>(nullptr, 0, row_bytes(256, type)), back.view(), type);
  }
}

TEST_CASE("weights in two bytes make the blocks of the same weights in four") {
  const auto w = mixed_rows(9, 512, 3);
  owned<bf16> brief(w.rows, w.cols);
  owned<fp16> half(w.rows, w.cols);
  owned<float> of_brief(w.rows, w.cols), of_half(w.rows, w.cols);
  for (std::size_t i = 0; i < w.data.size(); ++i) {
    brief.data[i] = bf16(w.data[i]);
    half.data[i] = fp16(w.data[i]);
    of_brief.data[i] = brief.data[i];
    of_half.data[i] = half.data[i];
  }
  const auto importance = column_importance(w.cols);
  for (const block_type type : block_types) {
    CAPTURE(block_name(type));
    CHECK(by_host(brief, type, nullptr) == by_reference(of_brief, type, nullptr));
    CHECK(by_host(half, type, importance.data()) == by_reference(of_half, type, importance.data()));
  }
}

TEST_CASE("views with strides take and give blocks of their own columns and leave what is between alone") {
  const auto w = mixed_rows(5, 768, 9);
  const auto importance = column_importance(512);
  for (const block_type type : block_types) {
    CAPTURE(block_name(type));
    const index_t width = row_bytes(512, type);
    owned<float> inner(5, 512);
    for (index_t row = 0; row < 5; ++row)
      for (index_t col = 0; col < 512; ++col) inner.view()(row, col) = w.view()(row, col + 256);
    owned<uint8_t> padded(5, width + 7, 0xa5);  // no alignment either
    host::quantize_blocks(w.view().cols_at(256, 512), padded.view().cols_at(3, width), type, importance.data());
    const bytes expected = by_reference(inner, type, importance.data());
    for (index_t row = 0; row < 5; ++row)
      for (index_t at = 0; at < width + 7; ++at) {
        const bool inside = at >= 3 && at < width + 3;
        REQUIRE(int(padded.view()(row, at)) == (inside ? int(expected[std::size_t(row * width + at - 3)]) : 0xa5));
      }
    owned<float> back(5, 520, -7.0f), plain(5, 512);
    host::dequantize_blocks(std::as_const(padded).view().cols_at(3, width), back.view().cols_at(4, 512), type);
    reference::dequantize_blocks(matrix<const uint8_t>(expected.data(), 5, width), plain.view(), type);
    for (index_t row = 0; row < 5; ++row)
      for (index_t col = 0; col < 520; ++col) {
        const bool inside = col >= 4 && col < 516;
        REQUIRE(bit_cast<uint32_t>(back.view()(row, col)) ==
                bit_cast<uint32_t>(inside ? plain.view()(row, col - 4) : -7.0f));
      }
  }
}

TEST_CASE("blocks of structs are the same as blocks of bytes") {
  const auto w = mixed_rows(6, 512, 5);
  const auto importance = column_importance(512);
  owned<q4_k> blocks(6, 2);
  host::quantize_blocks(w.view(), blocks.view(), importance.data());
  const bytes expected = by_reference(w, block_type::q4_k, importance.data());
  CHECK(std::memcmp(static_cast<const void*>(blocks.data.data()), expected.data(), expected.size()) == 0);
  owned<float> back(6, 512), plain(6, 512);
  host::dequantize_blocks(std::as_const(blocks).view(), back.view());
  reference::dequantize_blocks(std::as_const(blocks).view(), plain.view());
  CHECK(back.data == plain.data);
}

TEST_CASE("blocks do not depend on the number of threads") {
  const auto w = mixed_rows(100, 512, 6);
  const auto importance = column_importance(512);
  for (const block_type type : {block_type::q8_0, block_type::q5_1, block_type::q3_k, block_type::q4_k}) {
    CAPTURE(block_name(type));
    CHECK(same_for_any_threads([&] { return by_host(w, type, importance.data()); }));
    CHECK(by_host(w, type, importance.data()) == by_reference(w, type, importance.data()));
  }
}

TEST_CASE("weights that are not finite spoil their own block alone and undefine nothing") {
  const float inf = std::numeric_limits<float>::infinity();
  auto w = mixed_rows(2, 4096, 8);
  for (const block_type type : block_types) {
    CAPTURE(block_name(type));
    const bytes before = by_host(w, type, nullptr);
    auto bad = w;
    bad.data[300] = std::numeric_limits<float>::quiet_NaN();
    bad.data[301] = inf;
    bad.data[302] = -3e38f;
    const bytes after = by_host(bad, type, nullptr);
    const auto size = static_cast<std::size_t>(block_bytes(type)),
               block = static_cast<std::size_t>(300 / block_weights(type));
    for (std::size_t i = 0; i < before.size(); ++i)
      if (i / size != block) REQUIRE(int(before[i]) == int(after[i]));
    static_cast<void>(by_scalar(bad, type, nullptr));
  }
}

}  // namespace block_host_tests
