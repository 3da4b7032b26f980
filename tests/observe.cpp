// SPDX-License-Identifier: Apache-2.0
#include "nibble/observe.hpp"

#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <utility>

#include "nibble/host/observe.hpp"
#include "nibble/host/output_loss.hpp"
#include "nibble/reference/awq.hpp"
#include "nibble/reference/observe.hpp"
#include "support/activations.hpp"

namespace observe_tests {

using namespace nibble;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr index_t token_counts[] = {1, 63, 64, 511, 513};
constexpr index_t channel_counts[] = {1, 63, 64, 130, 257};

/// NaN, ±inf and the largest floats among ordinary activations.
owned<float> nasty_activations(index_t tokens, index_t channels) {
  auto x = activations(tokens, channels);
  const float odd[] = {not_a_number, inf, -inf, 3e38f, -3e38f, -not_a_number, 1e-45f};
  for (size_t i = 0; i < x.data.size(); i += 11) x.data[i] = odd[(i / 11) % 7];
  return x;
}

owned<float> cleaned(owned<float> x) {
  for (float& value : x.data) value = std::isfinite(value) ? value : 0.0f;
  return x;
}

constexpr auto in_bfloat16 = host::matmul_precision::bfloat16;

owned<float> host_gram(const owned<float>& x, index_t chunk,
                       host::matmul_precision how = host::matmul_precision::float32) {
  owned<float> g(x.cols, x.cols, 0.0f);
  for (index_t row = 0; row < x.rows; row += chunk)
    host::gram(x.view().rows_at(row, std::min(chunk, x.rows - row)), g.view(), how);
  host::mirror(g.view(), 1.0f);
  return g;
}

/// Every element of g within rounding of the Gram matrix of `tokens` tokens in double: float products summed in any order
/// are off by tokens·u·Σ|x_i·x_j| <= tokens·u·√(G_ii·G_jj) at most; `more` roundings follow.
void near_gram(const owned<float>& g, const owned<double>& exact, index_t tokens, int more) {
  for (index_t i = 0; i < g.rows; ++i)
    for (index_t j = 0; j < g.cols; ++j) {
      const double size = std::sqrt(exact.view()(i, i) * exact.view()(j, j));
      const double bound = static_cast<double>(tokens + more) * roundoff * size;
      INFO("element " << i << ", " << j);
      REQUIRE(std::fabs(static_cast<double>(g.view()(i, j)) - exact.view()(i, j)) <= bound);
    }
}

}  // namespace

TEST_CASE("an activation that is not finite counts as 0") {
  STATIC_REQUIRE(observed(-2.5f) == -2.5f);
  for (const float odd : {not_a_number, -not_a_number, inf, -inf}) REQUIRE(bit_cast<uint32_t>(observed(odd)) == 0);
  REQUIRE(observed(3.4028235e38f) == 3.4028235e38f);
  REQUIRE(observed(-1e-45f) == -1e-45f);
}

TEST_CASE("shrinkage leaves the diagonal and takes its share of the rest") {
  STATIC_REQUIRE(shrink(3.0f, 5, 5, 1.0f) == 3.0f);
  STATIC_REQUIRE(shrink(3.0f, 5, 6, 1.0f) == 0.0f);
  STATIC_REQUIRE(shrink(3.0f, 6, 5, 0.25f) == 2.25f);
  STATIC_REQUIRE(shrink(3.0f, 6, 5, 0.0f) == 3.0f);
}

TEST_CASE("host sums and maxima of |x| are the reference's bit for bit") {
  for (const index_t tokens : token_counts)
    for (const index_t channels : channel_counts) {
      const auto x = nasty_activations(tokens, channels);
      std::vector<double> expected(static_cast<size_t>(channels), 0.75), sum = expected;
      std::vector<float> expected_most(static_cast<size_t>(channels), 0.25f), most = expected_most;
      reference::absolute_sum(x.view(), expected.data());
      host::absolute_sum(x.view(), sum.data());
      REQUIRE(sum == expected);
      reference::absolute_maximum(x.view(), expected_most.data());
      host::absolute_maximum(x.view(), most.data());
      REQUIRE(most == expected_most);
    }
}

TEST_CASE("sums of |x| that no float could hold are exact") {
  owned<float> x(100, 65, 3e38f);
  std::vector<double> sum(65, 0.0);
  host::absolute_sum(x.view(), sum.data());
  REQUIRE(sum[64] == 100.0 * static_cast<double>(3e38f));
}

TEST_CASE("the host's Gram matrix is the reference's up to rounding, and symmetric") {
  for (const index_t tokens : token_counts)
    for (const index_t channels : channel_counts) {
      const auto x = activations(tokens, channels);
      owned<double> exact(channels, channels, 0.0);
      reference::gram(x.view(), exact.view());
      const auto g = host_gram(x, tokens);
      near_gram(g, exact, tokens, 0);
      for (index_t i = 0; i < channels; ++i)
        for (index_t j = 0; j < i; ++j) REQUIRE(g.view()(i, j) == g.view()(j, i));
    }
}

TEST_CASE("the host's Gram matrix in bfloat16 is that of the rounded tokens up to rounding, and symmetric") {
  for (const index_t tokens : token_counts)
    for (const index_t channels : channel_counts) {
      CAPTURE(tokens, channels);
      const auto x = activations(tokens, channels);
      auto rounded = x;
      for (float& value : rounded.data) value = bf16_value(bf16_bits(value));
      owned<double> exact(channels, channels, 0.0);
      reference::gram(matrix<const float>(rounded.view()), exact.view());
      const auto g = host_gram(x, tokens, in_bfloat16);
      near_gram(g, exact, tokens, 0);
      for (index_t i = 0; i < channels; ++i)
        for (index_t j = 0; j < i; ++j) REQUIRE(g.view()(i, j) == g.view()(j, i));
    }
}

TEST_CASE("gathering in chunks gives what one chunk gives") {
  const auto x = nasty_activations(1100, 130);
  std::vector<double> whole(130, 0.0);
  std::vector<float> most(130, 0.0f);
  host::absolute_sum(x.view(), whole.data());
  host::absolute_maximum(x.view(), most.data());
  for (const index_t chunk : {1, 7, 64, 512, 1099}) {
    std::vector<double> sum(130, 0.0);
    std::vector<float> chunk_most(130, 0.0f);
    for (index_t row = 0; row < x.rows; row += chunk) {
      const auto part = x.view().rows_at(row, std::min(chunk, x.rows - row));
      host::absolute_sum(part, sum.data());
      host::absolute_maximum(part, chunk_most.data());
    }
    REQUIRE(sum == whole);
    REQUIRE(chunk_most == most);
  }
  const auto ordinary = activations(1100, 130);
  owned<double> exact(130, 130, 0.0);
  reference::gram(ordinary.view(), exact.view());
  for (const index_t chunk : {7, 100, 513}) near_gram(host_gram(ordinary, chunk), exact, 1100, 0);
  for (const auto how : {host::matmul_precision::float32, in_bfloat16})
    REQUIRE(host_gram(ordinary, 512, how).data == host_gram(ordinary, 1100, how).data);
}

TEST_CASE("tokens that hold NaN or inf add to a Gram matrix as if those were 0, in both columns of the grid") {
  auto x = activations(70, 65);
  for (size_t i = 3; i < x.data.size(); i += 97) x.data[i] = std::array<float, 3>{not_a_number, inf, -inf}[i % 3];
  const auto clean = cleaned(x);
  for (const auto how : {host::matmul_precision::float32, in_bfloat16})
    REQUIRE(host_gram(x, 70, how).data == host_gram(clean, 70, how).data);
  owned<double> dirty_exact(65, 65, 0.0), exact(65, 65, 0.0);
  reference::gram(std::as_const(x).view(), dirty_exact.view());
  reference::gram(clean.view(), exact.view());
  REQUIRE(dirty_exact.data == exact.data);
  for (const index_t announced : {index_t(64), index_t(70)}) {  // tokens kept, Gram matrix kept
    host::second_moment dirty(65, announced, 0.5f), wanted(65, announced, 0.5f);
    dirty.add(x.view().rows_at(0, 64));
    wanted.add(clean.view().rows_at(0, 64));
    dirty.finish();
    wanted.finish();
    REQUIRE(dirty.non_finite() == host::count_non_finite(x.view().rows_at(0, 64)));
    REQUIRE(dirty.non_finite() > 0);
    REQUIRE(wanted.non_finite() == 0);
    REQUIRE(dirty.absolute_mean() == wanted.absolute_mean());
    REQUIRE(dirty.diagonal() == wanted.diagonal());
    owned<float> got(65, 65), expected(65, 65);
    dirty.block(0, 65, got.view());
    wanted.block(0, 65, expected.view());
    REQUIRE(got.data == expected.data);
  }
}

TEST_CASE("elements that are not finite are counted wherever they stand") {
  owned<float> x(130, 67, 1.0f);
  REQUIRE(host::count_non_finite(x.view()) == 0);
  x.data.front() = not_a_number;
  x.data.back() = -inf;
  x.view()(64, 66) = inf;
  REQUIRE(host::count_non_finite(x.view()) == 3);
  REQUIRE(host::count_non_finite(x.view().rows_at(1, 128)) == 1);
}

TEST_CASE("tokens are kept where they are fewer than the channels, the Gram matrix otherwise") {
  REQUIRE(host::second_moment(64, 63, 0.0f).sampled());
  REQUIRE_FALSE(host::second_moment(64, 64, 0.0f).sampled());
}

TEST_CASE("a second moment is the shrunk Gram matrix over the tokens, above and below as many as channels") {
  for (const index_t tokens : {index_t(1), index_t(100), index_t(129), index_t(130), index_t(600)})
    for (const float shrinkage : {0.0f, 0.5f, 1.0f}) {
      const auto x = activations(tokens, 130);
      const auto moment = gathered(x, tokens, shrinkage, 50);
      REQUIRE(moment.sampled() == (tokens < 130));
      REQUIRE(moment.tokens() == tokens);
      owned<float> all(130, 130);
      moment.block(0, 130, all.view());
      // After the products: the division by the tokens (2 roundings) and the factor 1 − λ (1).
      near_gram(all, exact_gram(x, shrinkage), tokens, 3);
      std::vector<double> sum(130, 0.0);
      reference::absolute_sum(x.view(), sum.data());
      for (size_t j = 0; j < sum.size(); ++j) {
        REQUIRE(moment.absolute_mean()[j] == static_cast<float>(sum[j] / static_cast<double>(tokens)));
        REQUIRE(moment.diagonal()[j] == all.view()(static_cast<index_t>(j), static_cast<index_t>(j)));
      }
    }
}

TEST_CASE("the Gram matrix and the tokens it was made of give the same mean, diagonal, blocks and loss") {
  const auto x = activations(100, 130);
  const auto difference = weights<float>(5, 130);
  for (const float shrinkage : {0.0f, 0.5f, 1.0f}) {
    const auto kept = gathered(x, 100, shrinkage), gram = gathered(x, 130, shrinkage);
    REQUIRE(kept.sampled());
    REQUIRE_FALSE(gram.sampled());
    REQUIRE(kept.absolute_mean() == gram.absolute_mean());
    const auto exact = exact_gram(x, shrinkage);
    for (const index_t first : {0, 64, 128}) {
      const index_t count = std::min(index_t(64), 130 - first);
      owned<float> a(count, count), b(count, count);
      kept.block(first, count, a.view());
      gram.block(first, count, b.view());
      for (index_t i = 0; i < count; ++i)
        for (index_t j = 0; j < count; ++j) {
          const double size = std::sqrt(exact.view()(first + i, first + i) * exact.view()(first + j, first + j));
          const double apart = std::fabs(static_cast<double>(a.view()(i, j)) - static_cast<double>(b.view()(i, j)));
          REQUIRE(apart <= 2 * 103 * roundoff * size);  // each within (100 + 3)·u of the exact one
        }
    }
    // Either is within the roundings of products over k and over tokens, and of a dot product, of the exact loss.
    const double bound = (2 * 130 + 2 * 100 + 70) * roundoff * loss_magnitude(difference.view(), exact);
    const double loss = reference::gram_loss(difference.view(), exact.view());
    REQUIRE(std::fabs(host::output_loss(difference.view(), kept) - loss) <= bound);
    REQUIRE(std::fabs(host::output_loss(difference.view(), gram) - loss) <= bound);
    REQUIRE(bound < 0.05 * loss);  // the bound means something
  }
}

TEST_CASE("the loss is linear in the shrinkage, and at 1 it is the diagonal's alone") {
  const auto difference = weights<float>(3, 96);
  for (const index_t announced : {index_t(80), index_t(96)}) {
    const auto x = activations(80, 96);
    double loss[3];
    for (int i = 0; i < 3; ++i) {
      const auto moment = gathered(x, announced, 0.5f * static_cast<float>(i));
      loss[i] = host::output_loss(difference.view(), moment);
      if (i < 2) continue;
      double diagonal = 0;
      for (index_t row = 0; row < 3; ++row)
        for (index_t col = 0; col < 96; ++col)
          diagonal += std::pow(static_cast<double>(difference.view()(row, col)), 2) *
                      static_cast<double>(moment.diagonal()[static_cast<size_t>(col)]);
      REQUIRE(loss[2] == Approx(diagonal).epsilon(1e-5));
    }
    REQUIRE(loss[1] == Approx((loss[0] + loss[2]) / 2).epsilon(1e-4));
    REQUIRE(std::fabs(loss[0] - loss[2]) > 0.05 * loss[2]);  // the channels are correlated
  }
}

TEST_CASE("diagonal blocks are the second moment's, the narrow last one too") {
  const auto x = activations(100, 130);
  for (const index_t announced : {100, 130})
    for (const index_t width : {64, 65, 128, 130}) {
      const auto moment = gathered(x, announced, 0.5f);
      const host::diagonal_blocks blocks(moment, width);
      for (index_t i = 0; i < ceil_div(130, width); ++i) {
        const index_t count = std::min(width, 130 - i * width);
        owned<float> expected(count, count);
        moment.block(i * width, count, expected.view());
        const auto block = blocks(i);
        REQUIRE((block.rows == count && block.cols == count));
        for (index_t row = 0; row < count; ++row)
          for (index_t col = 0; col < count; ++col) REQUIRE(block(row, col) == expected.view()(row, col));
      }
    }
}

TEST_CASE("without a token every statistic is 0") {
  for (const index_t announced : {0, 8}) {
    host::second_moment moment(8, announced, 0.5f);
    moment.finish();
    const std::vector<float> zeros(8, 0.0f);
    REQUIRE(moment.absolute_mean() == zeros);
    REQUIRE(moment.diagonal() == zeros);
    REQUIRE(host::output_loss(weights<float>(3, 8).view(), moment) == 0.0);
  }
}

TEST_CASE("activation statistics are the same bytes for any number of threads") {
  const auto x = nasty_activations(700, 300);
  const auto finite = activations(700, 300);
  REQUIRE(same_for_any_threads([&] {
    std::vector<double> sum(300, 0.0);
    host::absolute_sum(x.view(), sum.data());
    return sum;
  }));
  REQUIRE(same_for_any_threads([&] {
    std::vector<float> most(300, 0.0f);
    host::absolute_maximum(x.view(), most.data());
    return most;
  }));
  for (const auto& [announced, how] : {std::pair{index_t(299), in_bfloat16},
                                       {700, in_bfloat16},
                                       {299, host::matmul_precision::float32},
                                       {700, host::matmul_precision::float32}})
    REQUIRE(same_for_any_threads([&, announced = announced, how = how] {
      host::second_moment moment(300, announced, 0.5f, how);
      moment.add(finite.view().rows_at(0, announced));
      moment.finish();
      owned<float> all(300, 300);
      moment.block(0, 300, all.view());
      all.data.insert(all.data.end(), moment.diagonal().begin(), moment.diagonal().end());
      all.data.push_back(static_cast<float>(host::output_loss(finite.view(), moment)));
      return all.data;
    }));
}

}  // namespace observe_tests
