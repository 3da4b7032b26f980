// SPDX-License-Identifier: Apache-2.0
#include "nibble/host/matmul.hpp"

#include <array>
#include <catch2/catch.hpp>
#include <cmath>

#include "support/activations.hpp"

namespace matmul_tests {

using namespace nibble;

namespace {

/// y against Σ_i x(r, i)·b(i, c) in double. Float products summed in any order are off by k·u·Σ|x·b| at most.
template <class B>
void near_product(matrix<const float> x, B b, matrix<const float> y) {
  for (index_t row = 0; row < y.rows; ++row)
    for (index_t col = 0; col < y.cols; ++col) {
      double sum = 0, size = 0;
      for (index_t i = 0; i < x.cols; ++i) {
        const double term = static_cast<double>(x(row, i)) * static_cast<double>(b(i, col));
        sum += term;
        size += std::fabs(term);
      }
      INFO("element " << row << ", " << col);
      REQUIRE(std::fabs(static_cast<double>(y(row, col)) - sum) <= static_cast<double>(x.cols) * roundoff * size);
    }
}

}  // namespace

TEST_CASE("a product is the plain sum up to rounding, on both sides of a tile's edge") {
  for (const auto& [m, n, k] :
       {std::array<index_t, 3>{1, 1, 1}, {3, 257, 5}, {256, 256, 64}, {257, 300, 33}, {513, 2, 100}, {2, 513, 1}}) {
    const auto x = activations(m, k), w = activations(n, k, 4), t = activations(k, n, 5);
    owned<float> y(m, n, 99.0f);  // what was there before must not show
    host::matmul_nt(x.view(), w.view(), y.view());
    near_product(
        x.view(), [&](index_t i, index_t col) { return w.view()(col, i); }, y.view());
    host::matmul_nn(x.view(), t.view(), y.view());
    near_product(x.view(), t.view(), y.view());
  }
}

TEST_CASE("a product reads and writes views whose rows lie apart, and nothing beside them") {
  const auto x = activations(300, 90), w = activations(70, 90, 4);
  owned<float> y(300, 80, 99.0f);
  host::matmul_nt(x.view().cols_at(10, 50), w.view().cols_at(20, 50), y.view().cols_at(5, 70));
  near_product(
      x.view().cols_at(10, 50), [&](index_t i, index_t col) { return w.view()(col, 20 + i); }, y.view().cols_at(5, 70));
  for (index_t row = 0; row < 300; ++row)
    for (index_t col = 0; col < 80; ++col)
      if (col < 5 || col >= 75) REQUIRE(y.view()(row, col) == 99.0f);
}

TEST_CASE("a product over no inputs is 0, and an empty one touches nothing") {
  owned<float> none(300, 0), y(300, 4, 99.0f);
  host::matmul_nt(none.view(), matrix<const float>(nullptr, 4, 0), y.view());
  REQUIRE(y.data == std::vector<float>(1200, 0.0f));
  y.data.assign(1200, 99.0f);
  host::matmul_nn(none.view(), matrix<const float>(nullptr, 0, 4), y.view());
  REQUIRE(y.data == std::vector<float>(1200, 0.0f));
  host::matmul_nt(matrix<const float>(nullptr, 0, 5), activations(4, 5).view(), matrix<float>(nullptr, 0, 4));
}

TEST_CASE("a product is the same bytes for any number of threads") {
  const auto x = activations(700, 300), w = activations(600, 300, 4);
  REQUIRE(same_for_any_threads([&] {
    owned<float> y(700, 600);
    host::matmul_nt(x.view(), w.view(), y.view());
    return y.data;
  }));
}

TEST_CASE("a token's product does not depend on which other tiles are computed") {
  const auto x = activations(512, 100), w = activations(300, 100, 4);
  owned<float> all(512, 300), half(256, 300);
  host::matmul_nt(x.view(), w.view(), all.view());
  host::matmul_nt(x.view().rows_at(256, 256), w.view(), half.view());
  REQUIRE(std::vector<float>(all.data.begin() + 256 * 300, all.data.end()) == half.data);
}

}  // namespace matmul_tests
