// SPDX-License-Identifier: Apache-2.0
#include "nibble/distortion.hpp"

#include <catch2/catch.hpp>
#include <cstring>
#include <limits>
#include <utility>

#include "nibble/host/distortion.hpp"
#include "nibble/reference/distortion.hpp"
#include "support/golden.hpp"
#include "support/weights.hpp"

namespace distortion_tests {

using namespace nibble;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
const float nan_ = std::numeric_limits<float>::quiet_NaN();

bool same(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof a) == 0;
}

owned<float> row_of(std::initializer_list<float> values) {
  owned<float> row(1, static_cast<index_t>(values.size()));
  row.data = values;
  return row;
}

distortion_sums between(const owned<float>& x, const owned<float>& y) {
  return host::distortion(x.view(), y.view());
}

double kl(const owned<float>& p, const owned<float>& q) {
  return kl_divergence(p.data.data(), q.data.data(), p.cols);
}

template <class T, class U>
void columns_agree(const owned<T>& x, const owned<U>& y) {
  REQUIRE(same(host::mse(x.view(), y.view()), reference::mse(x.view(), y.view())));
  REQUIRE(same(host::sqnr(x.view(), y.view()), reference::sqnr(x.view(), y.view())));
  REQUIRE(same(host::cosine(x.view(), y.view()), reference::cosine(x.view(), y.view())));
  REQUIRE(same(host::max_error(x.view(), y.view()), reference::max_error(x.view(), y.view())));
}

}  // namespace

TEST_CASE("host and reference measure the same distortion to the last bit") {
  columns_agree(weights<float>(50, 77, 1), weights<bf16>(50, 77, 2));
  columns_agree(weights<fp16>(1, 1, 1), weights<float>(1, 1, 2));
  columns_agree(nasty_weights<float>(20, 30, 1), weights<float>(20, 30, 2));
  columns_agree(owned<float>(4, 4, 0.0f), owned<float>(4, 4, 0.0f));
  columns_agree(owned<float>(4, 4, 0.0f), owned<float>(4, 4, 1.0f));
  columns_agree(owned<float>(0, 3), owned<float>(0, 3));
}

TEST_CASE("measures of a small example are what one computes by hand") {
  const auto x = row_of({3.0f, -4.0f}), y = row_of({2.0f, -2.0f});
  const auto d = between(x, y);
  REQUIRE(d.mse() == 2.5);
  REQUIRE(d.max_error() == 2.0);
  REQUIRE(d.sqnr() == Approx(10.0 * std::log10(5.0)).epsilon(1e-15));
  REQUIRE(d.cosine() == Approx(14.0 / (5.0 * std::sqrt(8.0))).epsilon(1e-15));
}

TEST_CASE("sums are in double: a small error beside a large one is not lost") {
  owned<float> x(1, 1000001, 0.0f), y(1, 1000001, 1e-3f);
  y.data[0] = 4096.0f;
  const double d = static_cast<double>(1e-3f);
  // 1e6 additions, each off by at most 2^-53 of the sum; in float nothing of the small ones would be left.
  REQUIRE(between(x, y).mse() * 1000001 == Approx(4096.0 * 4096.0 + 1e6 * d * d).epsilon(2e-10));
}

TEST_CASE("equal, empty and zero vectors have defined measures") {
  const auto x = row_of({1.0f, 2.0f}), zero = row_of({0.0f, 0.0f});
  REQUIRE(between(x, x).mse() == 0.0);
  REQUIRE(between(x, x).sqnr() == std::numeric_limits<double>::infinity());
  REQUIRE(between(zero, zero).sqnr() == std::numeric_limits<double>::infinity());
  REQUIRE(between(zero, x).sqnr() == -std::numeric_limits<double>::infinity());
  REQUIRE(between(x, x).cosine() == Approx(1.0));
  REQUIRE(between(zero, zero).cosine() == 1.0);
  REQUIRE(between(zero, x).cosine() == 0.0);
  const owned<float> none(3, 0);
  REQUIRE(between(none, none).mse() == 0.0);
  REQUIRE(between(none, none).max_error() == 0.0);
  REQUIRE(kl(owned<float>(1, 0), owned<float>(1, 0)) == 0.0);
}

TEST_CASE("NaN anywhere makes every measure NaN") {
  for (const bool first : {false, true})
    for (std::size_t place = 0; place < 5; ++place) {
      auto x = weights<float>(1, 5, 1), y = weights<float>(1, 5, 2);
      (first ? x : y).data[place] = nan_;
      const auto d = between(x, y);
      REQUIRE(std::isnan(d.mse()));
      REQUIRE(std::isnan(d.sqnr()));
      REQUIRE(std::isnan(d.cosine()));
      REQUIRE(std::isnan(d.max_error()));
      REQUIRE(std::isnan(kl(x, y)));
      owned<float> zero(1, 5, 0.0f);
      REQUIRE(std::isnan(between(zero, first ? x : y).cosine()));
    }
}

TEST_CASE("KL divergence is zero for equal rows, whatever is added to them, and positive otherwise") {
  auto p = row_of({0.5f, -1.25f, 3.0f, 0.0f}), shifted = p, q = row_of({1.0f, 1.0f, 1.0f, 1.0f});
  for (auto& x : shifted.data) x += 64.0f;
  REQUIRE(kl(p, p) == 0.0);
  REQUIRE(kl(p, shifted) == Approx(0.0).margin(1e-12));
  REQUIRE(kl(p, q) > 0.0);
  REQUIRE(kl(q, p) > 0.0);
}

TEST_CASE("KL divergence of logits far apart neither overflows nor underflows to NaN") {
  REQUIRE(kl(row_of({1000.0f, 0.0f}), row_of({1000.0f, 0.0f})) == 0.0);
  REQUIRE(kl(row_of({1000.0f, 0.0f}), row_of({0.0f, 1000.0f})) == Approx(1000.0));
  REQUIRE(kl(row_of({-3e38f, 0.0f}), row_of({0.0f, 0.0f})) == Approx(std::log(2.0)));
}

TEST_CASE("a logit of -inf is a probability of zero") {
  const auto masked = row_of({0.0f, -inf, 0.0f}), open = row_of({0.0f, 0.0f, 0.0f});
  REQUIRE(kl(masked, open) == Approx(std::log(3.0 / 2.0)));
  REQUIRE(kl(masked, masked) == 0.0);
  REQUIRE(kl(open, masked) == std::numeric_limits<double>::infinity());
  REQUIRE(std::isnan(kl(row_of({-inf, -inf}), row_of({0.0f, 0.0f}))));
  REQUIRE(std::isnan(kl(row_of({inf, 0.0f}), row_of({0.0f, 0.0f}))));
  REQUIRE(std::isnan(kl(row_of({0.0f, 0.0f}), row_of({0.0f, inf}))));
}

TEST_CASE("KL divergence row by row is the same in every column and equals torch's in double") {
  const auto file = golden("distortion/logits.json");
  const std::vector<std::vector<float>> p_rows = file["p"], q_rows = file["q"];
  const std::vector<double> expected = file["kl_divergence"];
  const auto rows = static_cast<index_t>(p_rows.size()), cols = static_cast<index_t>(p_rows[0].size());
  owned<float> p(rows, cols), q(rows, cols);
  for (std::size_t i = 0; i < p.data.size(); ++i) {
    p.data[i] = p_rows[i / cols][i % cols];
    q.data[i] = q_rows[i / cols][i % cols];
  }
  std::vector<double> host_kl(rows), reference_kl(rows);
  host::kl_divergence(std::as_const(p).view(), std::as_const(q).view(), host_kl.data());
  reference::kl_divergence(std::as_const(p).view(), std::as_const(q).view(), reference_kl.data());
  for (index_t row = 0; row < rows; ++row) {
    REQUIRE(same(host_kl[row], reference_kl[row]));
    // A sum of `cols` terms, each from a log-softmax of size up to 100 rounded to 2^-53 of itself.
    REQUIRE(host_kl[row] == Approx(expected[row]).epsilon(1e-12).margin(1e-13));
  }
}

TEST_CASE("MSE, SQNR, cosine and maximum equal torch's in double") {
  const auto file = golden("distortion/logits.json");
  const std::vector<std::vector<float>> p_rows = file["p"], q_rows = file["q"];
  for (std::size_t row = 0; row < p_rows.size(); ++row) {
    distortion_sums sums;
    for (std::size_t i = 0; i < p_rows[row].size(); ++i)
      sums.add(static_cast<double>(p_rows[row][i]), static_cast<double>(q_rows[row][i]));
    REQUIRE(sums.mse() == Approx(file["mse"][row].get<double>()).epsilon(1e-13));
    REQUIRE(sums.sqnr() == Approx(file["sqnr"][row].get<double>()).epsilon(1e-13));
    REQUIRE(sums.cosine() == Approx(file["cosine"][row].get<double>()).epsilon(1e-13));
    REQUIRE(sums.max_error() == file["max_error"][row].get<double>());
  }
}

}  // namespace distortion_tests
