// SPDX-License-Identifier: Apache-2.0
#include "nibble/host/refit.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <utility>

#include "nibble/host/fit.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/reference/awq.hpp"
#include "nibble/reference/gptq.hpp"
#include "support/activations.hpp"
#include "support/rounded_linear.hpp"

namespace refit_tests {

using namespace nibble;

namespace {

/// A scaled linear, rounded to nearest with min-max ranges.
struct rounded : rounded_linear {
  using rounded_linear::rounded_linear;

  void refit(const host::second_moment& x, int rounds) {
    host::refit(std::as_const(w).view(), s.data(), x, std::as_const(q).view(), group, scheme, rounds, p.view());
  }
  double loss(const owned<double>& g, index_t row) const {
    owned<float> d(1, w.cols);
    for (index_t col = 0; col < w.cols; ++col) {
      const params of = p.view()(row, col / per_group(group).width(w.cols));
      d.view()(0, col) =
          (dequantize(q.view()(row, col), of, scheme) - w.view()(row, col)) / s[static_cast<size_t>(col)];
    }
    return reference::gram_loss(matrix<const float>(d.view()), g.view());
  }
  std::vector<double> losses(const owned<double>& g) const {
    std::vector<double> all;
    for (index_t row = 0; row < w.rows; ++row) all.push_back(loss(g, row));
    return all;
  }
  /// No loss of a row of zeros is larger.
  double magnitude(const owned<double>& g, index_t row) const {
    owned<float> d(1, w.cols);
    for (index_t col = 0; col < w.cols; ++col) d.view()(0, col) = w.view()(row, col) / s[static_cast<size_t>(col)];
    return loss_magnitude(matrix<const float>(d.view()), g);
  }
  /// What float may do to a loss, some roundings a term.
  double rounding(const owned<double>& g, index_t row) const {
    return 16 * roundoff * roundoff * static_cast<double>(w.cols) * magnitude(g, row);
  }
};

struct shape {
  index_t rows, cols, group;
};
constexpr shape shapes[] = {{3, 1, -1},    {5, 63, 32},  {4, 64, 128}, {130, 65, 32},
                            {9, 130, 128}, {6, 200, -1}, {3, 20, 1}};

double total(const std::vector<double>& parts) {
  double sum = 0;
  for (const double part : parts) sum += part;
  return sum;
}

}  // namespace

TEST_CASE("a refitted scale is the best that can be stored, and its zero point the best within one") {
  std::mt19937 engine(4);
  std::normal_distribution<double> normal(0.0, 1.0);
  int moved = 0, shifted = 0;
  for (int round = 0; round < 400; ++round) {
    any_scheme scheme = scheme_of(round % 2 == 0 ? 4 : 2, round % 5 == 0);
    scheme.scale_dtype = round % 3 == 0 ? dtype::bf16 : dtype::f32;
    // ‖a·c − (a·c + r)‖² over 12 numbers, H = I: c·H·c = Σc² and so on
    const params p{scheme.scale_dtype == dtype::bf16 ? 0.25f : 0.3f, mid_code(scheme)};
    double c[12], r[12];
    group_products m{0, 0, 0, 0, 0};
    for (int i = 0; i < 12; ++i) {
      c[i] = std::nearbyint(2 * normal(engine)), r[i] = 0.2 * normal(engine) + (round % 4 == 0 ? 0.2 : 0);
      m.cc += c[i] * c[i], m.ce += c[i], m.ee += 1, m.rc += r[i] * c[i], m.re += r[i];
    }
    const auto loss = [&](params of) {
      double sum = 0;
      for (int i = 0; i < 12; ++i) {
        const double now = static_cast<double>(of.scale) * (c[i] - (of.zero - p.zero)), was = 0.25 * c[i];
        const double change = now - (scheme.scale_dtype == dtype::bf16 ? was : static_cast<double>(p.scale) * c[i]);
        sum += (r[i] + change) * (r[i] + change);
      }
      return sum;
    };
    const params best = refitted(p, m, scheme);
    moved += best.scale != p.scale, shifted += best.zero != p.zero;
    REQUIRE(round_to(scheme.scale_dtype, best.scale) == best.scale);
    REQUIRE(std::abs(best.zero - p.zero) <= (scheme.symmetric ? 0 : 1));
    for (int zero = p.zero - (scheme.symmetric ? 0 : 1); zero <= p.zero + (scheme.symmetric ? 0 : 1); ++zero)
      for (int i = 1; i < 4000; ++i) {
        const float scale = round_to(scheme.scale_dtype, static_cast<float>(i) * 0.00025f);
        REQUIRE(loss(best) <= loss({scale, zero}) + 1e-4);
      }
  }
  REQUIRE(moved > 300);
  REQUIRE(shifted > 50);
}

TEST_CASE("parameters stay where products are no numbers, and in their range") {
  const any_scheme scheme = scheme_of(4, false);
  const params p{0.5f, 0};
  const double bad = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  for (const group_products& m :
       {group_products{bad, 1, 1, 1, 1}, group_products{1, bad, bad, -1, 1}, group_products{0, 0, 0, 0, 0},
        group_products{inf, 1, 1, -inf, 1}, group_products{1, 0, 1, -inf, bad}}) {
    const params got = refitted(p, m, scheme);
    REQUIRE(got.scale == p.scale);
    REQUIRE(got.zero == p.zero);
  }
  REQUIRE(refitted(p, {4, 2, 1, 0.3, 0.9}, scheme).zero >= 0);
  REQUIRE(refitted(params{0.5f, 15}, {4, 2, 1, 0.3, -0.9}, scheme).zero <= 15);
  // The best scale would be negative: the codes point the wrong way.
  REQUIRE(refitted(p, {1, 0, 0, 5, 0}, scheme).scale == p.scale);
}

TEST_CASE("parameters are the reference's, group after group, from tokens and from the Gram matrix") {
  index_t groups = 0, others = 0;
  for (const auto& [rows, cols, group] : shapes)
    for (const bool symmetric : {false, true})
      for (const index_t tokens : {index_t(40), index_t(300)}) {
        const auto x = activations(tokens, cols);
        const auto g = exact_gram(x, 0.25f);
        any_scheme scheme = scheme_of(3, symmetric);
        scheme.scale_dtype = dtype::bf16;
        rounded ours(weights<float>(rows, cols), scales(cols), group, scheme), expected = ours;
        ours.refit(gathered(x, tokens, 0.25f), 1);
        reference::refit(std::as_const(expected.w).view(), expected.s.data(), g.view(),
                         std::as_const(expected.q).view(), group, scheme, expected.p.view());
        for (index_t row = 0; row < rows; ++row) {
          // A lone weight is met by several pairs of scale and zero point.
          for (index_t at = 0; at < ours.p.cols && cols > 1 && group != 1; ++at, ++groups) {
            const params a = ours.p.view()(row, at), b = expected.p.view()(row, at);
            others += a.scale == b.scale && a.zero == b.zero ? 0 : 1;
          }
          INFO(rows << " x " << cols << ", group " << group << ", row " << row);
          // A zero point is not moved for a gain below 10⁻⁶ of the group's own size.
          REQUIRE(ours.loss(g, row) <= 1.01 * expected.loss(g, row) + 2e-6 * ours.magnitude(g, row));
        }
      }
  INFO(others << " of " << groups);
  REQUIRE(others * 25 <= groups);  // a scale between two stored ones, and what follows from it in the row
}

TEST_CASE("no row's loss rises when its parameters are refitted, nor when codes and parameters move by turns") {
  for (const auto& [rows, cols, group] : shapes)
    for (const int bits : {2, 3, 4, 8})
      for (const bool symmetric : {false, true})
        for (const index_t tokens : {40, 300}) {
          const auto x = activations(tokens, cols);
          const auto g = exact_gram(x, 0.25f);
          const auto moment = gathered(x, tokens, 0.25f);
          any_scheme scheme = scheme_of(bits, symmetric);
          scheme.scale_dtype = bits == 3 ? dtype::f16 : dtype::f32;
          rounded linear(weights<float>(rows, cols), scales(cols), group, scheme);
          auto before = linear.losses(g);
          const auto check = [&] {
            const auto after = linear.losses(g);
            for (index_t row = 0; row < rows; ++row) {
              INFO(rows << " x " << cols << ", " << bits << " bits, group " << group << ", row " << row);
              const auto at = static_cast<size_t>(row);
              REQUIRE(after[at] <= before[at] * (1 + 1e-4) + linear.rounding(g, row));
            }
            before = after;
          };
          linear.refit(moment, 1);
          check();
          host::sweep_and_refit(std::as_const(linear.w).view(), linear.s.data(), moment, group, scheme, 2,
                                linear.p.view(), linear.q.view());
          check();
        }
}

TEST_CASE("codes and parameters moved by turns lose less than codes alone") {
  const auto x = activations(600, 130);
  const auto g = exact_gram(x, 0.1f);
  const auto moment = gathered(x, 600, 0.1f);
  rounded codes(weights<float>(40, 130), scales(130), 32, scheme_of(3, false)), both = codes;
  host::sweep(std::as_const(codes.w).view(), codes.s.data(), moment, std::as_const(codes.p).view(), 32, codes.scheme, 4,
              codes.q.view());
  host::sweep_and_refit(std::as_const(both.w).view(), both.s.data(), moment, 32, both.scheme, 4, both.p.view(),
                        both.q.view());
  REQUIRE(total(both.losses(g)) < 0.95 * total(codes.losses(g)));
}

TEST_CASE(
    "codes and parameters moved by turns say what they lose then, from tokens, from Gram matrices of either "
    "precision") {
  for (const auto& [rows, cols, group] :
       {shape{130, 600, 128}, shape{7, 1100, 32}, shape{5, 90, -1}, shape{4, 200, 24}, shape{300, 64, 64}})
    for (const auto how : {host::matmul_precision::float32, host::matmul_precision::bfloat16})
      for (const index_t tokens : {index_t(50), 2 * cols}) {
        const auto x = activations(tokens, cols);
        host::second_moment moment(cols, tokens, 0.25f, how);
        moment.add(x.view());
        moment.finish();
        rounded linear(weights<float>(rows, cols), scales(cols), group, scheme_of(3, false)), plain = linear;
        std::vector<float> of_row(static_cast<size_t>(rows));
        for (index_t row = 0; row < rows; ++row) of_row[static_cast<size_t>(row)] = 0.5f + static_cast<float>(row % 5);
        const double loss = host::sweep_and_refit(std::as_const(linear.w).view(), linear.s.data(), moment, group,
                                                  linear.scheme, 2, linear.p.view(), linear.q.view(), of_row.data());
        const auto g = exact_gram(x, 0.25f);
        const auto losses = linear.losses(g), before = plain.losses(g);
        double wanted = 0;
        for (size_t row = 0; row < losses.size(); ++row)
          wanted += losses[row] * static_cast<double>(of_row[row]) * static_cast<double>(of_row[row]);
        INFO(rows << " x " << cols << ", group " << group << ", " << tokens << " tokens, "
                  << (how == host::matmul_precision::float32 ? "float32" : "bfloat16"));
        // In bfloat16 the tokens are rounded before they are summed.
        const bool rounded_tokens = how == host::matmul_precision::bfloat16 && !moment.sampled();
        REQUIRE(loss == Approx(wanted).epsilon(rounded_tokens ? 5e-3 : 1e-4));
        REQUIRE(total(losses) < 0.97 * total(before));
        // As good as in float32, but for codes that a rounding sent another way.
        host::sweep_and_refit(std::as_const(plain.w).view(), plain.s.data(), gathered(x, tokens, 0.25f), group,
                              plain.scheme, 2, plain.p.view(), plain.q.view());
        REQUIRE(total(losses) < 1.02 * total(plain.losses(g)));
      }
}

TEST_CASE("weights that lie on a grid of another scale are met exactly once the scale is refitted") {
  const auto x = activations(300, 64);
  rounded linear(owned<float>(10, 64), std::vector<float>(64, 1.0f), 64, scheme_of(4, false));
  for (index_t row = 0; row < 10; ++row)
    for (index_t col = 0; col < 64; ++col) {
      linear.q.view()(row, col) = static_cast<uint8_t>((row + 5 * col) % 16);
      linear.p.view()(row, 0) = {0.25f, 7};
      linear.w.view()(row, col) = 0.375f * static_cast<float>(linear.q.view()(row, col) - 7);
    }
  linear.refit(gathered(x, 300, 0.2f), 2);
  for (const params& p : linear.p.data) {
    REQUIRE(p.scale == Approx(0.375f).epsilon(1e-4));
    REQUIRE(p.zero == 7);
  }
}

TEST_CASE("refitted parameters are the same bytes for any number of threads") {
  const auto x = activations(300, 200);
  for (const index_t tokens : {index_t(150), index_t(300)})
    REQUIRE(same_for_any_threads([&] {
      host::second_moment moment(200, tokens, 0.5f);
      moment.add(x.view().rows_at(0, tokens));
      moment.finish();
      rounded linear(weights<float>(400, 200), scales(200), 128, scheme_of(4, false));
      host::sweep_and_refit(std::as_const(linear.w).view(), linear.s.data(), moment, 128, linear.scheme, 2,
                            linear.p.view(), linear.q.view());
      std::vector<float> found;
      for (const params& p : linear.p.data) found.push_back(p.scale), found.push_back(static_cast<float>(p.zero));
      return std::make_pair(linear.q.data, found);
    }));
}

}  // namespace refit_tests
