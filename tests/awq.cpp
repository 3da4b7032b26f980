// SPDX-License-Identifier: Apache-2.0
#include "nibble/awq.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <utility>

#include "nibble/fit.hpp"
#include "nibble/host/awq.hpp"
#include "nibble/reference/awq.hpp"
#include "nibble/reference/quantize.hpp"
#include "support/activations.hpp"
#include "support/golden.hpp"

namespace awq_tests {

using namespace nibble;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr duo_scaling modes[] = {duo_scaling::off, duo_scaling::on, duo_scaling::both};

any_scheme scheme_of(int bits, bool symmetric) {
  any_scheme s;
  s.bits = bits;
  s.symmetric = symmetric;
  return s;
}

owned<float> normal(index_t rows, index_t cols, unsigned seed, float deviation = 1.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> draw(0.0f, deviation);
  owned<float> w(rows, cols);
  for (float& value : w.data) value = draw(engine);
  return w;
}

owned<float> matrix_of(const nlohmann::json& rows) {
  owned<float> out(static_cast<index_t>(rows.size()), static_cast<index_t>(rows[0].size()));
  std::size_t i = 0;
  for (const auto& row : rows)
    for (const auto& value : row) out.data[i++] = value.get<float>();
  return out;
}

/// The linear's weights after rounding w·s with reference::fit and reference::quantize, divided by s again.
template <class Method>
owned<float> reference_rounded(const owned<float>& w, const std::vector<float>& s, const std::vector<float>& energy,
                               index_t group, any_scheme scheme, Method method) {
  const group_shape g = per_group(group);
  owned<float> scaled = w, back(w.rows, w.cols);
  std::vector<float> importance(s.size());
  for (size_t j = 0; j < s.size(); ++j) importance[j] = energy[j] / (s[j] * s[j]);
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t col = 0; col < w.cols; ++col) scaled.view()(row, col) *= s[static_cast<size_t>(col)];
  owned<params> p(w.rows, g.across(w.cols), params{});
  owned<uint8_t> q(w.rows, w.cols);
  reference::fit(std::as_const(scaled).view(), p.view(), g, scheme, method, importance.data());
  reference::quantize(std::as_const(scaled).view(), std::as_const(p).view(), q.view(), g, scheme);
  reference::dequantize(std::as_const(q).view(), std::as_const(p).view(), back.view(), g, scheme);
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t col = 0; col < w.cols; ++col) back.view()(row, col) /= s[static_cast<size_t>(col)];
  return back;
}

std::vector<float> some_scales(index_t k) {
  std::vector<float> s(static_cast<size_t>(k));
  for (size_t j = 0; j < s.size(); ++j) s[j] = 0.5f + 0.37f * static_cast<float>(j % 7);
  return s;
}

}  // namespace

TEST_CASE("every grid begins with the identity and has the published ratios") {
  for (const duo_scaling mode : modes) {
    REQUIRE(awq_candidate(mode, 0, 20).identity());
    for (int i = 1; i < 20; ++i) REQUIRE_FALSE(awq_candidate(mode, i, 20).identity());
    for (const int count : {4, 5, 20, 21}) {
      REQUIRE(awq_candidate(mode, count - 1, count).exponent == 1.0f);
      for (int i = 0; i < count; ++i) {
        const awq_ratio ratio = awq_candidate(mode, i, count);
        REQUIRE((ratio.exponent >= 0.0f && ratio.exponent <= 1.0f));
      }
    }
  }
  for (int i = 1; i < 20; ++i) {
    REQUIRE(awq_candidate(duo_scaling::off, i, 20).exponent == static_cast<float>(i) / 19.0f);
    REQUIRE(awq_candidate(duo_scaling::on, i, 20).exponent == static_cast<float>(i - 1) / 18.0f);
    REQUIRE(awq_candidate(duo_scaling::on, i, 20).duo);
    REQUIRE(awq_candidate(duo_scaling::both, i, 20).exponent == static_cast<float>(i % 10) / 9.0f);
    REQUIRE(awq_candidate(duo_scaling::both, i, 20).duo == (i >= 10));
  }
}

TEST_CASE("the grids are llm-compressor's as sets, whatever their order") {
  const auto file = golden("awq/llmcompressor.json");
  for (const auto& grid : file["grids"]) {
    const duo_scaling mode = grid["duo_scaling"] == "both"     ? duo_scaling::both
                             : grid["duo_scaling"].get<bool>() ? duo_scaling::on
                                                               : duo_scaling::off;
    std::vector<std::pair<float, bool>> theirs, ours;
    for (const auto& candidate : grid["grid"]) theirs.emplace_back(candidate[0].get<float>(), candidate[1].get<bool>());
    for (int i = 0; i < 20; ++i) {
      const awq_ratio ratio = awq_candidate(mode, i, 20);
      ours.emplace_back(ratio.exponent, ratio.duo);
    }
    std::sort(theirs.begin(), theirs.end());
    std::sort(ours.begin(), ours.end());
    REQUIRE(theirs == ours);
  }
}

TEST_CASE("scales are those that llm-compressor and AutoAWQ search among") {
  const auto data = golden("awq/inputs.json");
  const auto x = matrix_of(data["activations"]);
  std::vector<owned<float>> linears;
  for (const auto& rows : data["linears"]) linears.push_back(matrix_of(rows));
  std::vector<double> sums(64, 0.0);
  index_t rows = 0;
  for (const auto& linear : linears) {
    host::weight_importance(linear.view(), 32, sums.data());
    rows += linear.rows;
  }
  std::vector<float> weight(64);
  for (size_t j = 0; j < 64; ++j) weight[j] = static_cast<float>(sums[j] / static_cast<double>(rows));
  const auto mean = gathered(x, 64, 0.0f).absolute_mean();

  const auto llmcompressor = golden("awq/llmcompressor.json");
  for (size_t j = 0; j < 64; ++j)  // their |w| / (max + 1e-6) is in float, as ours, then summed in double
    REQUIRE(std::fabs(weight[j] - llmcompressor["importance"][j].get<float>()) <= 0x1p-22f * weight[j]);
  for (const auto& file : {llmcompressor, golden("awq/autoawq.json")})
    for (const auto& grid : file["grids"])
      for (const auto& candidate : grid["candidates"]) {
        const awq_ratio ratio{candidate["ratio"].get<float>(), candidate["duo"].get<bool>()};
        const auto s = host::candidate_scales(mean, weight, ratio);
        for (size_t j = 0; j < 64; ++j) {
          INFO("ratio " << ratio.exponent << ", duo " << ratio.duo << ", channel " << j);
          // Two powers, each of inputs off by 4u and computed to 2u, a sum, two quotients, a root: 24u in all on either
          // side, and as much again for the normalisation by two other channels' scales.
          REQUIRE(s[j] == Approx(candidate["scale"][j].get<float>()).epsilon(96 * roundoff));
        }
      }
}

TEST_CASE("host scales and importance are the reference's up to rounding") {
  const auto w = weights<float>(33, 150);
  for (const index_t group : {32, 128, -1}) {
    std::vector<double> sum(150, 0.5), expected = sum;
    host::weight_importance(w.view(), group, sum.data());
    reference::weight_importance(w.view(), group, expected.data());
    // Each of 33 terms of at most 1 has two roundings in float, of the group's maximum + 1e-6 and of the quotient, and
    // 1e-6f is 1e-6 up to u.
    for (size_t j = 0; j < sum.size(); ++j) REQUIRE(std::fabs(sum[j] - expected[j]) <= 33 * 3 * roundoff);
  }
  std::vector<float> activation, weight;
  for (int i = 0; i < 150; ++i) {
    activation.push_back(std::ldexp(1.0f + 0.01f * static_cast<float>(i), i % 24 - 12));
    weight.push_back(0.004f * static_cast<float>(i + 1));
  }
  for (const duo_scaling mode : modes)
    for (int i = 0; i < 20; ++i) {
      const awq_ratio ratio = awq_candidate(mode, i, 20);
      const auto s = host::candidate_scales(activation, weight, ratio);
      const auto expected =
          reference::candidate_scales({activation.begin(), activation.end()}, {weight.begin(), weight.end()},
                                      static_cast<double>(ratio.exponent), ratio.duo);
      for (size_t j = 0; j < s.size(); ++j)  // roundings as in the test above, on one side only
        REQUIRE(static_cast<double>(s[j]) == Approx(expected[j]).epsilon(48 * roundoff));
    }
}

TEST_CASE("no activations or weights give a scale that is not a positive number") {
  const std::vector<float> odd = {0.0f, 1e-45f, 1e-30f, 1.0f, 3e38f, inf, not_a_number};
  for (const duo_scaling mode : modes)
    for (int i = 0; i < 20; ++i) {
      const awq_ratio ratio = awq_candidate(mode, i, 20);
      for (const float a : odd)
        for (const float b : odd)
          for (const float w : odd) {
            const std::vector<float> activation = {a, b, 0.3f}, weight = {w, 0.2f, w};
            for (const float s : host::candidate_scales(activation, weight, ratio)) {
              REQUIRE(std::isfinite(s));
              REQUIRE(s > 0.0f);
            }
          }
    }
  auto nasty = nasty_weights<float>(20, 64);
  for (const index_t group : {32, -1}) {
    std::vector<double> sum(64, 0.0), expected(64, 0.0);
    host::weight_importance(std::as_const(nasty).view(), group, sum.data());
    reference::weight_importance(std::as_const(nasty).view(), group, expected.data());
    for (size_t j = 0; j < 64; ++j) {
      REQUIRE(std::isfinite(sum[j]));
      REQUIRE(std::fabs(sum[j] - expected[j]) <= 20 * 3 * roundoff);
    }
  }
}

TEST_CASE("scales are normalised to lie evenly about 1, and the identity stays 1") {
  const std::vector<float> activation = {1e-3f, 0.5f, 2.0f, 40.0f}, weight = {0.1f, 0.4f, 0.3f, 0.2f};
  for (int i = 1; i < 20; ++i) {
    const auto s = host::candidate_scales(activation, weight, awq_candidate(duo_scaling::both, i, 20));
    const auto [low, high] = std::minmax_element(s.begin(), s.end());
    REQUIRE(*low * *high == Approx(1.0f).epsilon(1e-6));
  }
  REQUIRE(host::candidate_scales(activation, weight, {}) == std::vector<float>(4, 1.0f));
  REQUIRE(host::candidate_scales({}, {}, {0.5f, true}).empty());
}

TEST_CASE("a folded scale times the stored norm weight is the norm weight again") {
  std::mt19937 engine(2);
  std::uniform_real_distribution<float> exponent(-6.0f, 6.0f), weight(0.01f, 20.0f);
  for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16})
    for (int i = 0; i < 20000; ++i) {
      const float w = round_to(type, (i % 2 == 0 ? 1.0f : -1.0f) * weight(engine)), s = std::exp2(exponent(engine));
      const float folded = awq_folded(w, s, type);
      const float stored = round_to(type, w / folded);  // what a checkpoint holds
      REQUIRE(round_to(type, w / s) == stored);         // the same that folding s itself would have stored
      REQUIRE(std::fabs(stored * folded - w) <= 0x1p-23f * std::fabs(w));
      // s was changed by no more than the storage's rounding.
      REQUIRE(std::fabs(folded / s - 1.0f) <= 1.01f * epsilon(type) / 2 + 0x1p-22f);
    }
}

TEST_CASE("where a folded norm weight could not be stored, the channel is not scaled") {
  REQUIRE(awq_folded(0.0f, 2.0f, dtype::bf16) == 1.0f);
  REQUIRE(awq_folded(1.0f, 1e-5f, dtype::f16) == 1.0f);    // 100,000 is inf in fp16
  REQUIRE(awq_folded(1.0f, 1e-5f, dtype::bf16) != 1.0f);   // but not in bf16
  REQUIRE(awq_folded(1e-3f, 1e6f, dtype::f16) == 1.0f);    // 1e-9 is 0 in fp16
  REQUIRE(awq_folded(1e30f, 1e-30f, dtype::f32) == 1.0f);  // inf
  REQUIRE(awq_folded(not_a_number, 2.0f, dtype::f32) == 1.0f);
  REQUIRE(awq_folded(inf, 2.0f, dtype::f32) == 1.0f);
  for (const float s : {0.0f, inf, not_a_number}) REQUIRE(awq_folded(1.5f, s, dtype::f32) == 1.0f);
}

TEST_CASE("the loss of a scale is ‖ΔW·Xᵀ‖² over the tokens, whether tokens or their Gram matrix are kept") {
  const auto w = weights<float>(140, 130);
  const auto s = some_scales(130);
  for (const index_t tokens : {index_t(100), index_t(300)})
    for (const bool symmetric : {false, true})
      for (const bool searched : {false, true}) {
        const auto x = activations(tokens, 130);
        const auto moment = gathered(x, tokens, 0.0f);
        const any_scheme scheme = scheme_of(3, symmetric);
        const auto with = [&](auto method) {
          const auto rounded = reference_rounded(w, s, moment.diagonal(), 32, scheme, method);
          owned<float> d(140, 130);
          double loss = 0;
          for (size_t i = 0; i < d.data.size(); ++i) d.data[i] = rounded.data[i] - w.data[i];
          for (index_t row = 0; row < 140; ++row)
            for (index_t token = 0; token < tokens; ++token) {
              double error = 0;
              for (index_t col = 0; col < 130; ++col)
                error += static_cast<double>(d.view()(row, col)) * static_cast<double>(x.view()(token, col));
              loss += error * error / static_cast<double>(tokens);
            }
          const double bound = static_cast<double>(2 * 130 + 2 * tokens + 70) * roundoff *
                               loss_magnitude(std::as_const(d).view(), exact_gram(x, 0.0f));
          const double got = host::scaled_loss(w.view(), s.data(), moment, 32, scheme, method);
          REQUIRE(std::fabs(got - loss) <= bound);
          REQUIRE(bound < 0.2 * loss);
          auto in_place = w;
          host::round_scaled(in_place.view(), s.data(), moment, 32, scheme, method);
          for (size_t i = 0; i < d.data.size(); ++i)  // w + (ŵ − w): two roundings from ŵ
            REQUIRE(std::fabs(in_place.data[i] - rounded.data[i]) <=
                    0x1p-23f * (std::fabs(w.data[i]) + std::fabs(rounded.data[i])));
        };
        if (searched)
          with(ends_search{});
        else
          with(minmax{});
      }
}

TEST_CASE("a search ends with the least of the losses it measured, never above the identity's") {
  const auto x = activations(300, 96);
  const auto moment = gathered(x, 300, 0.5f);
  const auto q = normal(40, 96, 1), k = normal(24, 96, 2, 0.1f);
  for (const duo_scaling mode : modes)
    for (const bool rounded : {false, true}) {
      const auto loss = [&](const float* s) {
        return host::scaled_loss(q.view(), s, moment, 32, scheme_of(3, false), minmax{}) +
               host::scaled_loss(k.view(), s, moment, 32, scheme_of(3, false), minmax{});
      };
      const auto fold = [](std::vector<float>& s) {
        for (float& value : s) value = awq_folded(1.25f, value, dtype::bf16);
      };
      const auto found = rounded ? host::search_scale({q.view(), k.view()}, moment, 32, mode, 20, loss, fold)
                                 : host::search_scale({q.view(), k.view()}, moment, 32, mode, 20, loss);
      REQUIRE(found.losses.size() == 20);
      REQUIRE(found.identity_loss == found.losses[0]);
      REQUIRE(found.identity_loss == loss(std::vector<float>(96, 1.0f).data()));
      REQUIRE(found.loss == *std::min_element(found.losses.begin(), found.losses.end()));
      REQUIRE(found.loss <= found.identity_loss);
      REQUIRE(found.loss == loss(found.scale.data()));
      if (!rounded || found.ratio.identity()) continue;
      for (const float s : found.scale) {
        const float stored = round_to(dtype::bf16, 1.25f / s);
        REQUIRE(std::fabs(stored * s - 1.25f) <= 0x1p-23f * 1.25f);
      }
    }
}

TEST_CASE("a search over several linears weighs the rows of all of them") {
  const auto moment = gathered(activations(100, 64), 100, 0.0f);
  const auto a = normal(3, 64, 1), b = normal(9, 64, 2);
  owned<float> both(12, 64);
  std::copy(b.data.begin(), b.data.end(), std::copy(a.data.begin(), a.data.end(), both.data.begin()));
  std::vector<std::vector<float>> apart, together;
  const auto collect = [](std::vector<std::vector<float>>& into) {
    return [&into](const float* s) {
      into.emplace_back(s, s + 64);
      return 1.0;
    };
  };
  host::search_scale({a.view(), b.view()}, moment, 32, duo_scaling::on, 20, collect(apart));
  host::search_scale({both.view()}, moment, 32, duo_scaling::on, 20, collect(together));
  REQUIRE(apart == together);
}

TEST_CASE("a candidate whose loss is not a number never wins, nor does one that only equals the best") {
  const auto moment = gathered(activations(100, 64), 100, 0.0f);
  const auto w = normal(8, 64, 1);
  const auto search = [&](std::vector<double> losses) {
    std::size_t call = 0;
    return host::search_scale({w.view()}, moment, 32, duo_scaling::off, static_cast<int>(losses.size()),
                              [&](const float*) { return losses[call++]; });
  };
  const double none = std::numeric_limits<double>::quiet_NaN(), all = std::numeric_limits<double>::infinity();
  REQUIRE(search({5, none, 4, none, none}).ratio.exponent == 0.5f);
  REQUIRE(search({5, none, none, all}).ratio.identity());
  REQUIRE(search({5, 5, 5, 5}).ratio.identity());
  REQUIRE(search({5, 4, 4, 4}).ratio.exponent == Approx(1.0 / 3));
  REQUIRE(search({all, none, 7, 8}).ratio.exponent == Approx(2.0 / 3));
  REQUIRE(search({none, 1, 1, 1}).ratio.identity());
  REQUIRE(search({none, 1, 1, 1}).scale == std::vector<float>(64, 1.0f));
}

TEST_CASE("a search over activations too large to square ends with the identity") {
  const owned<float> x(100, 32, 3e38f);
  const auto moment = gathered(x, 100, 0.5f);
  const auto w = normal(8, 32, 1);
  const auto found = host::search_scale({w.view()}, moment, 32, duo_scaling::both, 20, [&](const float* s) {
    return host::scaled_loss(w.view(), s, moment, 32, scheme_of(4, false), ends_search{});
  });
  REQUIRE(found.ratio.identity());
}

// Scaling a norm's weights by f, and the columns that read it by 1/f, changes no output. Round-to-nearest then spends its
// steps on columns that matter least. What AWQ should find is s = f.
TEST_CASE("channels made salient are found again: nearly all that rounding to nearest loses is recovered") {
  const index_t k = 256, n = 192;
  std::mt19937 engine(4);
  std::student_t_distribution<float> heavy(2.0f);
  std::vector<float> f(static_cast<size_t>(k));
  for (float& value : f) value = std::exp(0.8f * heavy(engine));
  for (float& value : f) value = std::clamp(value, 1e-2f, 1e2f);
  const auto w = normal(n, k, 1, 0.02f), x = activations(1024, k);
  auto planted_w = w, planted_x = x;
  for (index_t col = 0; col < k; ++col) {
    for (index_t row = 0; row < n; ++row) planted_w.view()(row, col) /= f[static_cast<size_t>(col)];
    for (index_t row = 0; row < x.rows; ++row) planted_x.view()(row, col) *= f[static_cast<size_t>(col)];
  }
  const std::vector<float> ones(static_cast<size_t>(k), 1.0f);
  const auto before = gathered(x, 1024, 0.0f), planted = gathered(planted_x, 1024, 0.0f);
  for (const int bits : {3, 4}) {
    const any_scheme scheme = scheme_of(bits, false);
    const double plain = host::scaled_loss(w.view(), ones.data(), before, 64, scheme, minmax{});
    const double ruined =
        host::scaled_loss(std::as_const(planted_w).view(), ones.data(), planted, 64, scheme, minmax{});
    const auto search = [&](auto method) {
      return host::search_scale({std::as_const(planted_w).view()}, planted, 64, duo_scaling::both, 20,
                                [&](const float* s) {
                                  return host::scaled_loss(std::as_const(planted_w).view(), s, planted, 64, scheme,
                                                           method);
                                })
          .loss;
    };
    const double found = search(minmax{}), with_ranges = search(ends_search{});
    CAPTURE(bits, plain, ruined, found, with_ranges);
    REQUIRE(ruined > 10 * plain);
    REQUIRE((ruined - found) > 0.95 * (ruined - plain));
    REQUIRE((ruined - with_ranges) > 0.98 * (ruined - plain));
  }
}

TEST_CASE("a search gives the same bytes for any number of threads") {
  const auto x = activations(300, 160);
  const auto w = weights<float>(300, 160);
  for (const index_t announced : {index_t(150), index_t(300)})
    for (const index_t group : {64, -1})
      REQUIRE(same_for_any_threads([&] {
        host::second_moment moment(160, announced, 0.5f);
        moment.add(x.view().rows_at(0, announced));
        moment.finish();
        const auto found = host::search_scale({w.view()}, moment, group, duo_scaling::both, 6, [&](const float* s) {
          return host::scaled_loss(w.view(), s, moment, group, scheme_of(4, false), ends_search{});
        });
        auto all = found.losses;
        all.insert(all.end(), found.scale.begin(), found.scale.end());
        return all;
      }));
}

}  // namespace awq_tests
