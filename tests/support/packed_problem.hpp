// SPDX-License-Identifier: Apache-2.0
/// @file
/// What tests/golden/pack/make.py packed, made again from its formulas, and the words it wrote.
#pragma once

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "nibble/half.hpp"
#include "nibble/layout.hpp"
#include "nibble/scheme.hpp"

namespace nibble::test {

/// Element t of matrix `seed`, row-major.
inline int draw(int seed, index_t t, int bits) {
  const auto hash =
      static_cast<uint32_t>(static_cast<uint64_t>(t + 1) * 2654435761u + static_cast<uint64_t>(seed) * 40503);
  return static_cast<int>(hash >> 24) >> (8 - bits);
}

struct problem {
  index_t n, k, groups;
  group_shape group;
  std::vector<uint8_t> codes, zeros;
  std::vector<params> grid;
  std::vector<float> weights;
  std::vector<fp16> scales;

  problem(const nlohmann::json& golden, int least_zero) {
    n = golden["n"], k = golden["k"];
    const int bits = golden["bits"];
    const index_t size = golden["group"];
    group = per_group(size);
    groups = layout::groups(k, size);
    for (index_t t = 0; t < n * k; ++t) codes.push_back(static_cast<uint8_t>(draw(1, t, bits)));
    for (index_t t = 0; t < n * groups; ++t) {
      zeros.push_back(static_cast<uint8_t>(std::max(draw(2, t, bits), least_zero)));
      grid.push_back({static_cast<float>(draw(3, t, 4) + 17) / 1024, zeros.back()});
      scales.push_back(fp16(grid.back().scale));
    }
    for (index_t t = 0; t < n * k; ++t) {
      const params p = grid[static_cast<size_t>(t / k * groups + t % k / group.width(k))];
      weights.push_back(static_cast<float>(codes[static_cast<size_t>(t)] - p.zero) * p.scale);
    }
  }
};

template <class Word>
std::vector<Word> words_of(const nlohmann::json& hexadecimal) {
  const std::string text = hexadecimal;
  std::vector<Word> words;
  for (size_t at = 0; at < text.size(); at += 2 * sizeof(Word))
    words.push_back(static_cast<Word>(std::stoul(text.substr(at, 2 * sizeof(Word)), nullptr, 16)));
  return words;
}

}  // namespace nibble::test
