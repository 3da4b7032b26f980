// SPDX-License-Identifier: Apache-2.0
/// @file
/// The summaries of a layer that reports are drawn from.
#include "mistral/summary.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <numeric>

namespace summary_tests {

using namespace nibble;
using namespace nibble::mistral;

namespace {

index_t total(const weight_histogram& h) {
  return std::accumulate(h.counts.begin(), h.counts.end(), index_t(0));
}

/// The bin that x lies in, from the definition.
size_t bin_of(double x) {
  return static_cast<size_t>(std::floor((x + 4.0) * 8.0));
}

}  // namespace

TEST_CASE(
    "a weight is counted in the bin of its value over the root mean square, and beyond the ends in the last ones") {
  const std::vector<float> w = {-9.0f, -4.0f, -0.0626f, 0.0f, 0.126f, 3.99f, 4.0f, 70.0f};
  const weight_histogram h = count_weights({w.data(), 2, 4}, 1.0);
  CHECK(h.unit == 1.0);
  CHECK(h.counted == 8);
  CHECK(total(h) == 8);
  CHECK(h.counts[0] == 2);
  CHECK(h.counts[bin_of(-0.0626)] == 1);
  CHECK(h.counts[bin_of(0.0)] == 1);
  CHECK(h.counts[bin_of(0.126)] == 1);
  CHECK(h.counts[63] == 3);
  const std::vector<float> own = {3.0f, -3.0f, 3.0f, -3.0f};
  const weight_histogram by_itself = count_weights({own.data(), 1, 4});
  CHECK(by_itself.unit == Approx(3.0));
  CHECK(by_itself.counts[bin_of(1.0)] == 2);
  CHECK(by_itself.counts[bin_of(-1.0)] == 2);
}

TEST_CASE("scales of rows are multiplied back into the weights counted, and those of columns divided out") {
  const std::vector<float> w = {1.0f, 2.0f, 1.0f, 2.0f}, rows = {1.0f, 3.0f}, cols = {2.0f, 8.0f};
  const weight_histogram h = count_weights({w.data(), 2, 2}, 1.0, rows.data(), cols.data());
  for (const double x : {0.5, 0.25, 1.5, 0.75}) CHECK(h.counts[bin_of(x)] == 1);
}

TEST_CASE("zeros alone have a histogram, too") {
  const std::vector<float> w(12, 0.0f);
  const weight_histogram h = count_weights({w.data(), 3, 4});
  CHECK(h.unit == 0.0);
  CHECK(h.counts[bin_of(0.0)] == 12);
}

TEST_CASE("of a large linear about a million weights are counted, from rows evenly apart") {
  const index_t rows = 4096, cols = 1024;
  std::vector<float> w(static_cast<size_t>(rows * cols));
  for (index_t row = 0; row < rows; ++row) std::fill_n(w.begin() + row * cols, cols, row % 4 == 0 ? 1.0f : -1.0f);
  const weight_histogram h = count_weights({w.data(), rows, cols}, 1.0);
  CHECK(h.counted == 1 << 20);
  CHECK(h.counts[bin_of(1.0)] == 1 << 20);
}

TEST_CASE("the range kept is each group's step over its step of the whole range") {
  std::vector<params> chosen, whole;
  for (int i = 1; i <= 100; ++i) {
    whole.push_back({2.0f, 0});
    chosen.push_back({0.02f * static_cast<float>(101 - i), 0});
  }
  const range_kept r = compare_ranges({chosen.data(), 10, 10}, {whole.data(), 10, 10});
  CHECK(r.mean == Approx(0.505));
  CHECK(r.quantiles[0] == Approx(0.05));
  CHECK(r.quantiles[2] == Approx(0.50));
  CHECK(r.quantiles[4] == Approx(0.95));
}

TEST_CASE(
    "channels are ranked by magnitude: the loudest are named with their share, and the profile ends with the least") {
  std::vector<float> magnitude(100);
  for (size_t i = 0; i < 100; ++i) magnitude[i] = static_cast<float>((i * 37) % 100 + 1);
  magnitude[42] = 1000.0f;
  const double sum = std::accumulate(magnitude.begin(), magnitude.end(), 0.0);
  const channel_profile p = rank_channels(magnitude);
  REQUIRE(p.salient.size() == 8);
  CHECK(p.salient[0].index == 42);
  CHECK(p.salient[0].share == Approx(1000.0 / sum));
  for (size_t i = 1; i < 8; ++i) CHECK(p.salient[i].magnitude <= p.salient[i - 1].magnitude);
  CHECK(p.median == Approx(51).margin(1));
  CHECK(p.profile.front().rank == 1);
  CHECK(p.profile.front().magnitude == 1000.0);
  CHECK(p.profile.back().rank == 100);
  CHECK(p.profile.back().magnitude == 1.0);
  CHECK(p.profile.size() < 16);
  for (size_t i = 1; i < p.profile.size(); ++i) CHECK(p.profile[i].rank > p.profile[i - 1].rank);
  const channel_profile one = rank_channels({0.0f});
  CHECK(one.salient.size() == 1);
  CHECK(to_json(one)["salient"][0]["times_median"].is_null());
}

TEST_CASE("readable JSON says the same as any other, with lists of numbers on one line") {
  const nlohmann::ordered_json json = {{"a", {1, 2.5, nullptr}},
                                       {"pairs", {{1, 0.1}, {2, 0.2}}},
                                       {"objects", {{{"k\"\n", "v"}}, {{"e", nlohmann::ordered_json::object()}}}},
                                       {"empty", nlohmann::ordered_json::array()}};
  const std::string text = readable(json);
  CHECK(nlohmann::ordered_json::parse(text) == json);
  CHECK(text.find("\"a\": [1,2.5,null]") != std::string::npos);
  CHECK(text.find("\"pairs\": [[1,0.1],[2,0.2]]") != std::string::npos);
  CHECK(text.find("\n  \"objects\": [\n    {\n      ") != std::string::npos);
}

}  // namespace summary_tests
