// SPDX-License-Identifier: Apache-2.0
#include "nibble/host/sweep.hpp"

#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <utility>

#include "nibble/awq.hpp"
#include "nibble/host/fit.hpp"
#include "nibble/host/quantize.hpp"
#include "nibble/reference/awq.hpp"
#include "support/activations.hpp"
#include "support/rounded_linear.hpp"

namespace sweep_tests {

using namespace nibble;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

/// A linear as a sweep finds it: scaled weights, rounded to nearest.
struct rounded : rounded_linear {
  using rounded_linear::rounded_linear;

  void sweep(const host::second_moment& x, int rounds) {
    host::sweep(std::as_const(w).view(), s.data(), x, std::as_const(p).view(), group, scheme, rounds, q.view());
  }
  /// (ŵ − w) / s.
  owned<float> difference() const {
    owned<float> d(w.rows, w.cols);
    for (index_t row = 0; row < w.rows; ++row)
      for (index_t col = 0; col < w.cols; ++col) {
        const params of = p.view()(row, col / per_group(group).width(w.cols));
        d.view()(row, col) =
            (dequantize(q.view()(row, col), of, scheme) - w.view()(row, col)) / s[static_cast<size_t>(col)];
      }
    return d;
  }
};

struct shape {
  index_t rows, cols, group;
};
constexpr shape shapes[] = {{3, 1, -1}, {5, 63, 32}, {4, 64, 128}, {130, 65, 32}, {9, 130, 128}, {6, 200, -1}};

}  // namespace

TEST_CASE("an improved code is the best of all codes on the row's parabola") {
  for (const int bits : {1, 2, 3, 4, 8})
    for (int code = 0; code < 1 << bits; ++code)
      for (const float slope : {-40.0f, -3.1f, -0.6f, -0.2f, 0.0f, 0.24f, 0.7f, 2.9f, 55.0f}) {
        const any_scheme scheme = scheme_of(bits, false);
        const params p{0.25f, 1};
        const float curvature = 1.7f, s = 0.8f;
        const auto loss = [&](int other) {  // of moving D_i by (other − code)·scale / s
          const double step = (other - code) * static_cast<double>(p.scale) / static_cast<double>(s);
          return 2 * static_cast<double>(slope) * step + static_cast<double>(curvature) * step * step;
        };
        const int better = improved_code(static_cast<uint8_t>(code), p, slope, curvature, s, scheme);
        REQUIRE(better < 1 << bits);
        for (int other = 0; other < 1 << bits; ++other) REQUIRE(loss(better) <= loss(other) + 1e-6);
      }
}

TEST_CASE("a code stays where its channel is dead or its slope is not a number") {
  const any_scheme scheme = scheme_of(4, false);
  for (const float curvature : {0.0f, -1.0f, not_a_number})
    REQUIRE(improved_code(5, params{0.1f, 8}, 3.0f, curvature, 1.0f, scheme) == 5);
  for (const float slope : {inf, -inf, not_a_number})
    REQUIRE(improved_code(5, params{0.1f, 8}, slope, 1.0f, 1.0f, scheme) == 5);
  REQUIRE(improved_code(5, params{0.1f, 8}, 1e30f, 1e-30f, 1.0f, scheme) == 5);  // their quotient overflows
}

TEST_CASE(
    "on numbers that float holds exactly a sweep gives the reference's codes, from tokens and from their Gram matrix") {
  for (const auto& [rows, cols, group] : shapes)
    for (const int bits : {2, 3, 4})
      for (const bool symmetric : {false, true})
        for (const float shrinkage : {0.0f, 0.5f}) {
          const auto x = integer_activations(cols);
          rounded linear(eighths(rows, cols), scales(cols, true), group, scheme_of(bits, symmetric));
          for (params& p : linear.p.data) p.scale = 0.5f;
          const auto start = linear.q.data;
          const auto exact = exact_gram(x, shrinkage);
          reference::sweep(std::as_const(linear.w).view(), linear.s.data(), exact.view(),
                           std::as_const(linear.p).view(), group, linear.scheme, 2, linear.q.view());
          const auto expected = linear.q.data;
          INFO(rows << " x " << cols << ", " << bits << " bits, group " << group << ", shrinkage " << shrinkage);
          if (cols > 1) REQUIRE(expected != start);
          for (const index_t announced : {index_t(64), index_t(1000)}) {
            linear.q.data = start;
            const auto moment = gathered(x, announced, shrinkage);
            REQUIRE(moment.sampled() == (announced < cols));
            linear.sweep(moment, 2);
            REQUIRE(linear.q.data == expected);
          }
        }
}

TEST_CASE(
    "changes of codes reach the columns of other spans, before and after, and of the last one, which is narrower") {
  constexpr index_t cols = 2 * host::detail::span_cols + 77;
  const auto x = integer_activations(cols);
  const auto exact = exact_gram(x, 0.5f);
  rounded linear(eighths(5, cols), scales(cols, true), 128, scheme_of(3, false));
  for (params& p : linear.p.data) p.scale = 0.5f;
  const auto start = linear.q.data;
  reference::sweep(std::as_const(linear.w).view(), linear.s.data(), exact.view(), std::as_const(linear.p).view(), 128,
                   linear.scheme, 3, linear.q.view());
  const auto expected = linear.q.data;
  REQUIRE(expected != start);
  for (const index_t announced : {index_t(64), index_t(2 * cols)}) {
    linear.q.data = start;
    linear.sweep(gathered(x, announced, 0.5f), 3);
    REQUIRE(linear.q.data == expected);
  }
}

TEST_CASE("on ordinary numbers nearly every row of a sweep is the reference's, and the others lose no more") {
  const auto x = activations(300, 200);
  const auto exact = exact_gram(x, 0.5f);
  rounded ours(weights<float>(270, 200), scales(200, false), 32, scheme_of(4, false));
  rounded expected = ours;
  ours.sweep(gathered(x, 300, 0.5f), 1);
  reference::sweep(std::as_const(expected.w).view(), expected.s.data(), exact.view(), std::as_const(expected.p).view(),
                   32, expected.scheme, 1, expected.q.view());
  const auto d = ours.difference(), expected_d = expected.difference();
  int other_rows = 0;
  for (index_t row = 0; row < 270; ++row) {
    if (std::equal(ours.q.view().row(row), ours.q.view().row(row + 1), expected.q.view().row(row))) continue;
    ++other_rows;  // one code went to the other side of a tie, and the codes after it followed
    const double loss = reference::gram_loss(d.view().rows_at(row, 1), exact.view());
    const double expected_loss = reference::gram_loss(expected_d.view().rows_at(row, 1), exact.view());
    REQUIRE(loss <= 1.2 * expected_loss);
  }
  REQUIRE(other_rows <= 3);  // of 54,000 codes, some 1e-5 lie as near to a tie as slopes in float can tell
}

TEST_CASE("no row's loss rises in a sweep, whatever the bits, groups and shapes") {
  for (const auto& [rows, cols, group] : shapes)
    for (const int bits : {2, 3, 4, 8})
      for (const bool symmetric : {false, true})
        for (const index_t tokens : {40, 300}) {
          const auto x = activations(tokens, cols);
          const auto exact = exact_gram(x, 0.25f);
          const auto moment = gathered(x, tokens, 0.25f);
          rounded linear(weights<float>(rows, cols), scales(cols, false), group, scheme_of(bits, symmetric));
          for (int round = 0; round < 3; ++round) {
            const auto before = linear.difference();
            linear.sweep(moment, 1);
            const auto after = linear.difference();
            for (index_t row = 0; row < rows; ++row) {
              const auto b = before.view().rows_at(row, 1), a = after.view().rows_at(row, 1);
              // A move of D_i by t is made only if G·t² + 2·r'·t <= 0 for the slope r' as computed, so the loss rises by
              // 2·|t|·|r − r'| at most. |r − r'| <= terms·u·√G_ii·Σ_j|D_j|√G_jj, and |t_i|, |D_i| <= |before| + |after|.
              owned<float> both(1, cols);
              for (index_t col = 0; col < cols; ++col)
                both.view()(0, col) = std::fabs(b(0, col)) + std::fabs(a(0, col));
              const double terms = static_cast<double>(2 * cols + 2 * tokens + 100);
              const double bound = 2 * terms * roundoff * loss_magnitude(std::as_const(both).view(), exact);
              INFO(rows << " x " << cols << ", " << bits << " bits, group " << group << ", row " << row);
              REQUIRE(reference::gram_loss(a, exact.view()) <= reference::gram_loss(b, exact.view()) + bound);
            }
          }
        }
}

TEST_CASE("sweeps lower the loss of correlated channels, and end where no code alone can be moved for the better") {
  const auto x = activations(600, 130);
  const auto exact = exact_gram(x, 0.1f);
  rounded linear(weights<float>(40, 130), scales(130, false), 32, scheme_of(3, false));
  const double before = reference::gram_loss(std::as_const(linear).difference().view(), exact.view());
  linear.sweep(gathered(x, 600, 0.1f), 100);
  const auto d = linear.difference();
  REQUIRE(reference::gram_loss(d.view(), exact.view()) < 0.4 * before);
  for (index_t row = 0; row < 40; ++row)
    for (index_t i = 0; i < 130; ++i) {
      if (!(exact.view()(i, i) > 0)) continue;
      double slope = 0, size = 0;
      for (index_t j = 0; j < 130; ++j) {
        const double term = static_cast<double>(d.view()(row, j)) * exact.view()(j, i);
        slope += term;
        size += std::fabs(static_cast<double>(d.view()(row, j))) * std::sqrt(exact.view()(j, j) * exact.view()(i, i));
      }
      const double step = static_cast<double>(linear.p.view()(row, i / 32).scale) /
                          static_cast<double>(linear.s[static_cast<size_t>(i)]);
      const double rounding = 100 * (2 * 130 + 2 * 600 + 100) * roundoff * size / exact.view()(i, i) / step;
      const double wanted = -slope / exact.view()(i, i) / step;  // in codes from here
      const int code = linear.q.view()(row, i);
      REQUIRE((code == 7 || wanted <= 0.5 + rounding));
      REQUIRE((code == 0 || wanted >= -0.5 - rounding));
    }
}

TEST_CASE("where channels are independent, rounding to nearest is already best") {
  const auto x = activations(300, 130);
  for (const index_t announced : {index_t(100), index_t(300)}) {
    host::second_moment moment(130, announced, 1.0f);
    moment.add(x.view().rows_at(0, announced));
    moment.finish();
    rounded linear(weights<float>(30, 130), scales(130, false), 32, scheme_of(4, true));
    const auto before = linear.q.data;
    linear.sweep(moment, 2);
    int moved = 0;
    for (size_t i = 0; i < before.size(); ++i) {
      if (linear.q.data[i] == before[i]) continue;
      ++moved;  // rows of halves stand at ties, and either side is as good
      const params p = linear.p.data[i / 130 * 5 + i % 130 / 32];
      const double at = static_cast<double>(linear.w.data[i]) / static_cast<double>(p.scale);
      REQUIRE(std::fabs(std::fabs(at - std::floor(at)) - 0.5) < 1e-4);
    }
    REQUIRE(moved < 40);
  }
}

TEST_CASE("a channel that was never seen keeps its codes") {
  const auto x = activations(300, 130);
  rounded linear(weights<float>(30, 130), scales(130, false), 32, scheme_of(2, false));
  const auto before = linear.q.data;
  linear.sweep(gathered(x, 300, 0.0f), 3);
  REQUIRE(linear.q.data != before);
  for (index_t row = 0; row < 30; ++row)
    for (index_t col = 11; col < 130; col += 32)
      REQUIRE(linear.q.view()(row, col) == before[static_cast<size_t>(row * 130 + col)]);
}

TEST_CASE("codes at the ends of their range stay within it") {
  const auto x = activations(300, 96);
  for (const int bits : {2, 4, 8})
    for (const bool high : {false, true}) {
      rounded linear(weights<float>(10, 96), scales(96, false), 32, scheme_of(bits, false));
      const auto end = static_cast<uint8_t>(high ? (1 << bits) - 1 : 0);
      linear.q.data.assign(linear.q.data.size(), end);
      for (params& p : linear.p.data) p.zero = high ? 0 : (1 << bits) - 1;
      linear.sweep(gathered(x, 300, 0.5f), 2);
      int inside = 0;
      for (const uint8_t code : linear.q.data) {
        REQUIRE(int(code) < 1 << bits);
        inside += code != end;
      }
      REQUIRE(inside > 100);  // all began at the end
    }
}

TEST_CASE("channels scaled by s are swept as the unscaled weights are under the inputs divided by s") {
  const auto x = activations(300, 130);
  const auto s = scales(130, true);  // powers of two, so that scaling changes no rounding
  auto divided = x;
  for (index_t row = 0; row < 300; ++row)
    for (index_t col = 0; col < 130; ++col) divided.view()(row, col) /= s[static_cast<size_t>(col)];
  for (const index_t tokens : {index_t(100), index_t(300)}) {
    rounded scaled(weights<float>(150, 130), s, 32, scheme_of(4, false)), plain = scaled;
    plain.s.assign(130, 1.0f);
    const auto before = scaled.q.data;
    host::second_moment of_x(130, tokens, 0.5f), of_divided(130, tokens, 0.5f);
    of_x.add(x.view().rows_at(0, tokens));
    of_divided.add(divided.view().rows_at(0, tokens));
    of_x.finish();
    of_divided.finish();
    scaled.sweep(of_x, 2);
    plain.sweep(of_divided, 2);
    REQUIRE(scaled.q.data != before);
    REQUIRE(scaled.q.data == plain.q.data);
  }
}

TEST_CASE("a row of weights that are no numbers keeps its codes and disturbs no other") {
  const auto x = activations(300, 130);
  rounded with(weights<float>(20, 130), scales(130, false), 32, scheme_of(4, false)), without = with;
  with.w.view()(7, 40) = not_a_number;
  const auto before = with.q.data;
  const auto moment = gathered(x, 300, 0.5f);
  with.sweep(moment, 2);
  without.sweep(moment, 2);
  for (index_t row = 0; row < 20; ++row)
    for (index_t col = 0; col < 130; ++col)
      REQUIRE(with.q.view()(row, col) ==
              (row == 7 ? before[static_cast<size_t>(row * 130 + col)] : without.q.view()(row, col)));
}

TEST_CASE("activations too large to square leave the codes alone") {
  owned<float> x(100, 32, 3e38f);
  rounded linear(weights<float>(9, 32), scales(32, false), 32, scheme_of(4, false));
  const auto before = linear.q.data;
  for (const index_t announced : {index_t(31), index_t(100)}) {
    host::second_moment moment(32, announced, 0.5f);
    moment.add(x.view().rows_at(0, announced));
    moment.finish();
    linear.sweep(moment, 2);
    REQUIRE(linear.q.data == before);
  }
}

TEST_CASE("sweeps give the same bytes for any number of threads") {
  const auto x = activations(300, 200);
  for (const index_t tokens : {index_t(150), index_t(300)})
    REQUIRE(same_for_any_threads([&] {
      host::second_moment moment(200, tokens, 0.5f);
      moment.add(x.view().rows_at(0, tokens));
      moment.finish();
      rounded linear(weights<float>(400, 200), scales(200, false), 128, scheme_of(4, false));
      linear.sweep(moment, 2);
      return linear.q.data;
    }));
}

TEST_CASE("the loss of codes is the Gram loss of what they stand for") {
  const auto x = activations(300, 130);
  for (const index_t announced : {index_t(100), index_t(300)}) {
    owned<float> seen(announced, 130);
    std::copy_n(x.data.begin(), seen.data.size(), seen.data.begin());
    const auto gram = exact_gram(seen, 0.5f);
    const rounded linear(weights<float>(140, 130), scales(130, false), 32, scheme_of(3, false));
    const auto d = linear.difference();
    const double loss = host::codes_loss(linear.w.view(), linear.q.view(), linear.p.view(), linear.s.data(),
                                         gathered(seen, announced, 0.5f), 32, linear.scheme);
    const double bound = static_cast<double>(2 * 130 + 2 * announced + 70) * roundoff * loss_magnitude(d.view(), gram);
    REQUIRE(std::fabs(loss - reference::gram_loss(d.view(), gram.view())) <= bound);
  }
}

TEST_CASE("losses under a Gram matrix of more than one block of columns are those in double, in bfloat16 nearly") {
  const auto x = activations(1400, 1100);
  const auto gram = exact_gram(x, 0.5f);
  const rounded linear(weights<float>(33, 1100), scales(1100, false), 32, scheme_of(3, false));
  const auto d = linear.difference();
  const double exact = reference::gram_loss(d.view(), gram.view());
  for (const auto how : {host::matmul_precision::float32, host::matmul_precision::bfloat16}) {
    host::second_moment seen(1100, 1400, 0.5f, how);
    seen.add(x.view());
    seen.finish();
    const double loss =
        host::codes_loss(linear.w.view(), linear.q.view(), linear.p.view(), linear.s.data(), seen, 32, linear.scheme);
    CAPTURE(loss, exact);
    REQUIRE(std::fabs(loss - exact) <= (how == host::matmul_precision::float32 ? 1e-5 : 1e-3) * exact);
    REQUIRE((seen.packed_gram() != nullptr) == (how == host::matmul_precision::bfloat16));
  }
}

TEST_CASE("the loss of codes whose rows were divided by numbers is that of the rows as they were") {
  const auto x = activations(300, 130);
  const auto seen = gathered(x, 300, 0.5f);
  const rounded linear(weights<float>(140, 130), scales(130, false), 32, scheme_of(3, false));
  owned<float> w = linear.w;
  owned<params> p = linear.p;
  std::vector<float> of_row(140);
  for (index_t row = 0; row < 140; ++row) {  // powers of two, so that nothing else changes
    const float by = of_row[static_cast<size_t>(row)] = std::ldexp(1.0f, static_cast<int>(row % 7) - 3);
    for (index_t col = 0; col < w.cols; ++col) w.view()(row, col) /= by;
    for (index_t group = 0; group < p.cols; ++group) p.view()(row, group).scale /= by;
  }
  const auto loss = [&](const owned<float>& of, const owned<params>& with, const float* rows) {
    return host::codes_loss(of.view(), linear.q.view(), with.view(), linear.s.data(), seen, 32, linear.scheme, rows);
  };
  CHECK(loss(w, p, of_row.data()) == loss(linear.w, linear.p, nullptr));
  CHECK(loss(w, p, nullptr) != loss(linear.w, linear.p, nullptr));
}

}  // namespace sweep_tests
