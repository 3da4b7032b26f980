// SPDX-License-Identifier: Apache-2.0
#include "nibble/block.hpp"

#include <array>
#include <catch2/catch.hpp>
#include <cctype>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "nibble/reference/block.hpp"
#include "support/block_rows.hpp"
#include "support/golden.hpp"
#include "support/weights.hpp"

namespace block_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float nan_ = std::numeric_limits<float>::quiet_NaN();

/// f(block_tag<Block>{}) for every type.
template <class F>
void for_every_type(F f) {
  for (const block_type type : block_types) {
    CAPTURE(block_name(type));
    with_block(type, f);
  }
}

template <class T>
std::string hash_of(const std::vector<T>& values) {
  return fnv(values.data(), values.size() * sizeof(T));
}

/// Blocks of bytes that make no sense.
template <class Block>
std::vector<Block> any_blocks(std::size_t count) {
  std::vector<uint8_t> bytes(count * sizeof(Block));
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<uint8_t>(bits16(static_cast<uint32_t>(Block::type), static_cast<uint32_t>(i)) >> 8);
  std::vector<Block> blocks(count);
  std::memcpy(static_cast<void*>(blocks.data()), bytes.data(), bytes.size());
  return blocks;
}

template <class Block>
std::vector<float> decoded_by_reference(const std::vector<Block>& blocks) {
  std::vector<float> x(blocks.size() * Block::weights);
  const auto count = static_cast<index_t>(blocks.size());
  reference::dequantize_blocks(matrix<const Block>(blocks.data(), 1, count),
                               matrix<float>(x.data(), 1, count * Block::weights));
  return x;
}

template <class Block, class T>
std::vector<Block> encoded_by_reference(matrix<const T> w, const float* importance = nullptr) {
  std::vector<Block> blocks(static_cast<std::size_t>(w.size() / Block::weights));
  reference::quantize_blocks(w, matrix<Block>(blocks.data(), w.rows, w.cols / Block::weights), importance);
  return blocks;
}

/// NaN by one name.
std::vector<float> plain_nan(std::vector<float> x) {
  for (float& each : x)
    if (std::isnan(each)) each = nan_;
  return x;
}

bool same_bits(float a, float b) {
  return bit_cast<uint32_t>(a) == bit_cast<uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}

}  // namespace

TEST_CASE("the numbers and sizes and names of block types are those of ggml") {
  const auto made = golden("block/ggml.json");
  REQUIRE(made["types"].size() == std::size(block_types));
  std::size_t i = 0;
  for (const auto& type : made["types"]) {
    const block_type ours = block_types[i++];
    REQUIRE(type["type"].get<int>() == int(ours));
    REQUIRE(is_block_type(type["type"].get<uint32_t>()));
    REQUIRE(type["weights"].get<index_t>() == block_weights(ours));
    REQUIRE(type["bytes"].get<index_t>() == block_bytes(ours));
    auto name = type["name"].get<std::string>();
    for (char& c : name) c = static_cast<char>(std::toupper(c));
    REQUIRE(name == block_name(ours));
  }
  for (const uint32_t other : {0u, 1u, 4u, 5u, 9u, 15u, 19u, 21u, 22u, 24u, 30u, 258u, 0xffffffffu})
    REQUIRE_FALSE(is_block_type(other));
  REQUIRE(bits_per_weight(block_type::q4_k) == 4.5);
  REQUIRE(bits_per_weight(block_type::q2_k) == 2.625);
  REQUIRE(bits_per_weight(block_type::q8_0) == 8.5);
  for (int code = 0; code < 16; ++code) REQUIRE(iq4_value(code) == iq4_values[code]);
  for_every_type([](auto tag) {
    using Block = typename decltype(tag)::type;
    STATIC_REQUIRE(std::is_trivially_copyable_v<Block>);
    STATIC_REQUIRE(std::is_standard_layout_v<Block>);
  });
}

TEST_CASE("mathematics and reference read the numbers out of any bytes that ggml reads") {
  const auto made = golden("block/ggml.json");
  for_every_type([&](auto tag) {
    using Block = typename decltype(tag)::type;
    const auto blocks = any_blocks<Block>(512);
    const std::vector<float> read = decoded_by_reference(blocks);
    for (const auto& type : made["types"])
      if (type["type"].get<int>() == int(Block::type))
        REQUIRE(hash_of(plain_nan(read)) == type["decoded"].get<std::string>());
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      float x[Block::weights];
      decode(blocks[i], x);
      for (int j = 0; j < Block::weights; ++j) {
        CAPTURE(i, j);
        REQUIRE(same_bits(x[j], read[i * Block::weights + static_cast<std::size_t>(j)]));
        REQUIRE(same_bits(x[j], decoded(blocks[i], j)));
      }
    }
  });
}

TEST_CASE("every code in every place of a block reads back as itself and touches no other") {
  for_every_type([](auto tag) {
    using Block = typename decltype(tag)::type;
    constexpr int codes = 1 << Block::bits;
    for (int i = 0; i < Block::weights; ++i)
      for (int code = 0; code < codes; ++code) {
        reference::ggml::unpacked u;
        for (int& each : u.codes) each = codes - 1 - code;
        u.codes[i] = code;
        for (int j = 0; j < Block::weights / Block::group; ++j) u.minima[j] = u.scales[j] = (code + j) % 16;
        const auto b = reference::ggml::packed<Block>(u);
        for (int j = 0; j < Block::weights; ++j)
          if (block_code(b, j) != u.codes[j]) FAIL("code " << code << " at " << i << ": " << j << " is another");
      }
  });
}

TEST_CASE("a block that is read and packed again has the same bytes") {
  for_every_type([](auto tag) {
    using Block = typename decltype(tag)::type;
    for (const Block& b : any_blocks<Block>(200)) {
      const auto again = reference::ggml::packed<Block>(reference::ggml::read(b));
      REQUIRE(std::memcmp(&again, &b, sizeof(Block)) == 0);
    }
  });
}

TEST_CASE("the reference makes the bytes that ggml makes of rows of every kind with importance and without") {
  const auto made = golden("block/ggml.json");
  REQUIRE(made["cases"].size() == std::size(block_types) * 2 * row_kinds);
  for (const auto& one : made["cases"]) {
    const auto type = static_cast<block_type>(one["type"].get<int>());
    const bool weighed = one["importance"].get<bool>();
    const auto kind = one["kind"].get<std::string>();
    CAPTURE(block_name(type), weighed, kind);
    for (std::size_t i = 0; i < one["hashes"].size(); ++i) {
      const index_t k = std::array<index_t, 3>{256, 768, 1536}[i];
      const auto w = block_rows(row_kind(kind), 4, k);
      const auto importance = column_importance(k);
      owned<uint8_t> bytes(4, k / block_weights(type) * block_bytes(type));
      reference::quantize_blocks(w.view(), bytes.view(), type, weighed ? importance.data() : nullptr);
      if (i == 0 && one.contains("bytes")) {
        const auto expected = one["bytes"].get<std::string>();
        REQUIRE(expected.size() == 2 * static_cast<std::size_t>(bytes.cols));
        for (std::size_t j = 0; j < expected.size() / 2; ++j) {
          CAPTURE(j);
          REQUIRE(int(bytes.data[j]) == std::stoi(expected.substr(2 * j, 2), nullptr, 16));
        }
      }
      CAPTURE(k);
      REQUIRE(hash_of(bytes.data) == one["hashes"][i].get<std::string>());
    }
  }
}

TEST_CASE("blocks of 16-bit weights are those of the same weights in float") {
  const auto wide = block_rows(0, 3, 512);
  owned<bf16> brain(3, 512);
  owned<fp16> half(3, 512);
  owned<float> as_brain(3, 512), as_half(3, 512);
  for (std::size_t i = 0; i < wide.data.size(); ++i) {
    brain.data[i] = bf16(wide.data[i]);
    half.data[i] = fp16(wide.data[i]);
    as_brain.data[i] = brain.data[i];
    as_half.data[i] = half.data[i];
  }
  for_every_type([&](auto tag) {
    using Block = typename decltype(tag)::type;
    REQUIRE(hash_of(encoded_by_reference<Block>(std::as_const(brain).view())) ==
            hash_of(encoded_by_reference<Block>(std::as_const(as_brain).view())));
    const auto blocks = encoded_by_reference<Block>(std::as_const(half).view());
    REQUIRE(hash_of(blocks) == hash_of(encoded_by_reference<Block>(std::as_const(as_half).view())));
    const auto read = decoded_by_reference(blocks);
    owned<bf16> back(3, 512);
    reference::dequantize_blocks(matrix<const Block>(blocks.data(), 3, 512 / Block::weights), back.view());
    for (std::size_t i = 0; i < read.size(); ++i) REQUIRE(back.data[i].bits == bf16_bits(read[i]));
  });
}

TEST_CASE("blocks of a type chosen at run time lie at any address and leave what is between rows alone") {
  const auto w = block_rows(1, 3, 768);
  const auto importance = column_importance(256);
  for_every_type([&](auto tag) {
    using Block = typename decltype(tag)::type;
    const auto part = std::as_const(w).view().cols_at(256, 256);
    const auto blocks = encoded_by_reference<Block>(part, importance.data());
    const index_t row_bytes = 256 / Block::weights * static_cast<index_t>(sizeof(Block));
    owned<uint8_t> bytes(3, row_bytes + 3, 0x77);
    const auto inner = bytes.view().cols_at(1, row_bytes);
    reference::quantize_blocks(part, inner, Block::type, importance.data());
    for (index_t row = 0; row < 3; ++row) {
      REQUIRE(std::memcmp(inner.row(row), blocks.data() + row * (256 / Block::weights), size_t(row_bytes)) == 0);
      REQUIRE(int(bytes.view()(row, 0)) == 0x77);
      REQUIRE(int(bytes.view()(row, row_bytes + 1)) == 0x77);
      REQUIRE(int(bytes.view()(row, row_bytes + 2)) == 0x77);
    }
    owned<float> back(3, 258, 5.0f);
    reference::dequantize_blocks(matrix<const uint8_t>(inner), back.view().cols_at(1, 256), Block::type);
    const auto read = decoded_by_reference(blocks);
    for (index_t row = 0; row < 3; ++row) {
      REQUIRE(std::memcmp(back.view().row(row) + 1, read.data() + row * 256, 256 * sizeof(float)) == 0);
      REQUIRE(back.view()(row, 0) == 5.0f);
      REQUIRE(back.view()(row, 257) == 5.0f);
    }
  });
  owned<uint8_t> none(0, 18);
  reference::quantize_blocks(matrix<const float>(nullptr, 0, 32), none.view(), block_type::q4_0);
  reference::quantize_blocks(matrix<const float>(nullptr, 4, 0), matrix<uint8_t>(nullptr, 4, 0), block_type::q4_k);
  reference::dequantize_blocks(matrix<const uint8_t>(nullptr, 4, 0), matrix<float>(nullptr, 4, 0), block_type::q4_k);
}

TEST_CASE("a weight that is not finite spoils its own block and no other where columns have no importance") {
  const auto whole = block_rows(0, 1, 768);
  for_every_type([&](auto tag) {
    using Block = typename decltype(tag)::type;
    const auto expected = encoded_by_reference<Block>(whole.view());
    for (const float bad : {nan_, inf, -inf, 3e38f, -3e38f, 1e30f})
      for (const index_t at : {256, 300, 511}) {
        auto w = whole;
        w.data[static_cast<std::size_t>(at)] = bad;
        const auto blocks = encoded_by_reference<Block>(std::as_const(w).view());
        for (std::size_t i = 0; i < blocks.size(); ++i)
          if (static_cast<index_t>(i) != at / Block::weights)
            REQUIRE(std::memcmp(&blocks[i], &expected[i], sizeof(Block)) == 0);
        const auto importance = column_importance(768);
        encoded_by_reference<Block>(std::as_const(w).view(), importance.data());
      }
    const owned<float> nothing(1, 256, nan_), endless(1, 256, inf);
    encoded_by_reference<Block>(nothing.view());
    encoded_by_reference<Block>(endless.view());
  });
}

TEST_CASE("weights in blocks of 32 without importance read back within the stated share of their step") {
  for (std::size_t kind = 0; kind < row_kinds; ++kind) {
    if (kind == row_kind("denormal") || kind == row_kind("tiny")) continue;  // d has no normal number in fp16
    const auto w = block_rows(kind, 4, 768);
    const auto bounded = [&](auto tag, float share, float most) {
      using Block = typename decltype(tag)::type;
      const auto blocks = encoded_by_reference<Block>(w.view());
      const auto read = decoded_by_reference(blocks);
      for (std::size_t i = 0; i < read.size(); ++i) {
        const block_scales s = block_group(blocks[i / 32], 0);
        CAPTURE(kind, i, s.scale, s.offset, w.data[i], read[i]);
        // d is within 2^-11 of itself, or 2^-25, of what codes were chosen for, and so is m
        const float rounding =
            most * (std::fabs(s.scale) * 0x1p-11f + 0x1p-25f) + std::fabs(s.offset) * 0x1p-11f + 0x1p-25f;
        REQUIRE(std::fabs(read[i] - w.data[i]) <= (share * std::fabs(s.scale) + rounding) * (1 + 1e-5f));
      }
    };
    bounded(block_tag<q8_0>{}, 0.5f, 127);
    bounded(block_tag<q4_0>{}, 1.0f, 8);
    bounded(block_tag<q5_0>{}, 1.0f, 16);
    bounded(block_tag<q4_1>{}, 0.5f, 15);
    bounded(block_tag<q5_1>{}, 0.5f, 31);
  }
}

TEST_CASE("importance brings the weighed error down in every type that looks at it") {
  const auto w = block_rows(0, 8, 768);
  const auto importance = column_importance(768);
  const auto error = [&](const std::vector<float>& read) {
    double sum = 0.0;
    for (std::size_t i = 0; i < read.size(); ++i) {
      const double off = double(read[i]) - double(w.data[i]);
      sum += double(importance[i % 768]) * off * off;
    }
    return sum;
  };
  for_every_type([&](auto tag) {
    using Block = typename decltype(tag)::type;
    const double plain = error(decoded_by_reference(encoded_by_reference<Block>(w.view())));
    const double weighed = error(decoded_by_reference(encoded_by_reference<Block>(w.view(), importance.data())));
    CAPTURE(plain, weighed);
    if (Block::type == block_type::q8_0)
      REQUIRE(weighed == plain);
    else
      REQUIRE(weighed < plain);
  });
}

}  // namespace block_tests
