// SPDX-License-Identifier: Apache-2.0
/// @file
/// The choice of types within a budget of bytes, against all choices of small tables.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <random>

#include "gguf/choose.hpp"

namespace gguf_choose_tests {

using namespace nibble::mistral;

namespace {

using table = std::vector<tensor_options>;

/// Tensors with one to five options each, of sizes that are multiples of `grain`.
table random_table(std::mt19937& random, size_t tensors, std::uint64_t grain) {
  std::uniform_int_distribution<std::uint64_t> sizes(1, 40), counts(1, 5);
  std::uniform_real_distribution<double> errors(0.0, 1.0);
  table out;
  for (size_t i = 0; i < tensors; ++i) {
    tensor_options row{"t" + std::to_string(i), 0.1 + errors(random), {}};
    for (std::uint64_t k = counts(random); k > 0; --k)
      row.options.push_back({gguf_type::q4_k, grain * sizes(random), errors(random)});
    out.push_back(std::move(row));
  }
  return out;
}

/// The least error of all choices within the budget, and the fewest bytes that it takes.
std::pair<double, std::uint64_t> best_of_all(const table& t, std::uint64_t budget) {
  std::pair<double, std::uint64_t> best{std::numeric_limits<double>::infinity(), 0};
  std::vector<size_t> at(t.size(), 0);
  for (;;) {
    std::uint64_t bytes = 0;
    double error = 0;
    for (size_t i = 0; i < t.size(); ++i)
      bytes += t[i].options[at[i]].bytes, error += t[i].weight * t[i].options[at[i]].error;
    if (bytes <= budget && std::make_pair(error, bytes) < best) best = {error, bytes};
    size_t i = 0;
    while (i < t.size() && ++at[i] == t[i].options.size()) at[i++] = 0;
    if (i == t.size()) return best;
  }
}

}  // namespace

TEST_CASE("of all choices within a budget the best is taken, in the fewest bytes") {
  std::mt19937 random(1);
  for (int trial = 0; trial < 60; ++trial) {
    const table t = random_table(random, 1 + static_cast<size_t>(trial) % 6, trial % 2 ? 1 : 4096);
    const byte_range range = bytes_of_choices(t);
    for (int part = 0; part <= 8; ++part) {
      const std::uint64_t budget = range.least + (range.most - range.least) * static_cast<std::uint64_t>(part) / 8;
      const chosen_types chosen = choose_types(t, budget);
      const auto [error, bytes] = best_of_all(t, budget);
      CAPTURE(trial, part);
      CHECK(chosen.error == Approx(error).epsilon(1e-12));
      CHECK(chosen.bytes == bytes);
      std::uint64_t own_bytes = 0;
      double own_error = 0;
      for (size_t i = 0; i < t.size(); ++i) {
        own_bytes += t[i].options[chosen.options[i]].bytes;
        own_error += t[i].weight * t[i].options[chosen.options[i]].error;
      }
      CHECK(own_bytes == chosen.bytes);
      CHECK(own_error == chosen.error);
    }
  }
}

TEST_CASE("the smallest choice and the one of least error are the ends of what budgets can do") {
  std::mt19937 random(2);
  for (int trial = 0; trial < 40; ++trial) {
    const table t = random_table(random, 5, 1);
    const byte_range range = bytes_of_choices(t);
    std::uint64_t least = 0;
    double error = 0;
    for (const tensor_options& row : t) {
      const auto& o = row.options;
      least += std::min_element(o.begin(), o.end(), [](auto& a, auto& b) { return a.bytes < b.bytes; })->bytes;
      error +=
          row.weight * std::min_element(o.begin(), o.end(), [](auto& a, auto& b) { return a.error < b.error; })->error;
    }
    CHECK(range.least == least);
    CHECK(choose_types(t, range.least).bytes == least);
    CHECK(choose_types(t, range.most).error == Approx(error).epsilon(1e-12));
    CHECK(choose_types(t, range.most + 1000).bytes == range.most);
    CHECK(choose_types(t, range.most + 1000).error == choose_types(t, range.most).error);
  }
}

TEST_CASE("more bytes never have more error, and no budget is exceeded, with sizes exact or rounded") {
  std::mt19937 random(3);
  const table t = random_table(random, 40, 37);
  const byte_range range = bytes_of_choices(t);
  const std::uint64_t units = GENERATE(1u << 19, 100u, 7u);  // the last two: rounded to powers of 2
  double before = std::numeric_limits<double>::infinity();
  for (std::uint64_t budget = range.least; budget <= range.most + 200; budget += 13) {
    const chosen_types chosen = choose_types(t, budget, units);
    REQUIRE(chosen.bytes <= budget);
    REQUIRE(chosen.error <= before * (1 + 1e-12));
    before = chosen.error;
  }
  CHECK(before < 0.9 * choose_types(t, range.least, units).error);
}

TEST_CASE("sizes that have nothing in common cost little of the budget") {
  std::mt19937 random(4);
  table t = random_table(random, 60, 1 << 20);
  for (tensor_options& row : t)
    for (type_option& o : row.options) o.bytes += random() % 1000;  // as rows of an odd number of tokens have them
  const byte_range range = bytes_of_choices(t);
  const std::uint64_t budget = range.least + (range.most - range.least) / 3;
  const chosen_types rounded = choose_types(t, budget, 1 << 13), finer = choose_types(t, budget, 1 << 19);
  CHECK(rounded.bytes <= budget);
  CHECK(rounded.error < 1.02 * finer.error);
}

TEST_CASE("a tensor of greater weight gets the bytes, and one of no weight the fewest") {
  const std::vector<type_option> options = {{gguf_type::q2_k, 10, 0.5}, {gguf_type::q8_0, 20, 0.1}};
  const chosen_types one = choose_types({{"a", 1.0, options}, {"b", 2.0, options}}, 30);
  CHECK(one.options == std::vector<size_t>{0, 1});
  CHECK(one.error == 0.5 + 2.0 * 0.1);
  CHECK(choose_types({{"a", 0.0, options}, {"b", 2.0, options}}, 40).bytes == 30);
}

}  // namespace gguf_choose_tests
