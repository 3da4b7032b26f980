// SPDX-License-Identifier: Apache-2.0
#include "nibble/host/target.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <utility>

#include "nibble/reference/gptq.hpp"
#include "support/activations.hpp"
#include "support/linears.hpp"

namespace target_tests {

using namespace nibble;

namespace {

/// Inputs as the original model has them, beside x: some channels mixed with their neighbours, and noise.
owned<float> drifted(const owned<float>& x) {
  std::mt19937 engine(9);
  std::normal_distribution<float> normal(0.0f, 0.05f);
  owned<float> out = x;
  for (index_t row = 0; row < x.rows; ++row)
    for (index_t col = 0; col < x.cols; ++col)
      out.view()(row, col) += 0.1f * x.view()(row, (col + 3) % x.cols) + normal(engine);
  return out;
}

/// E‖w·x₀ − v·x‖², v in double; with what the outputs join E‖r₀ + w·x₀ − r − v·x‖².
double missed(const owned<float>& w, const owned<double>& v, const owned<float>& original, const owned<float>& x,
              const owned<float>* before = nullptr, const owned<float>* now = nullptr) {
  double sum = 0;
  for (index_t token = 0; token < x.rows; ++token)
    for (index_t row = 0; row < w.rows; ++row) {
      double difference = 0;
      if (before != nullptr)
        difference = static_cast<double>(before->view()(token, row)) - static_cast<double>(now->view()(token, row));
      for (index_t col = 0; col < x.cols; ++col)
        difference += static_cast<double>(w.view()(row, col)) * static_cast<double>(original.view()(token, col)) -
                      v.view()(row, col) * static_cast<double>(x.view()(token, col));
      sum += difference * difference;
    }
  return sum / static_cast<double>(x.rows);
}

/// What outputs join: part of it follows from x, which they can make up for.
owned<float> joined(const owned<float>& x, index_t outputs) {
  std::mt19937 engine(10);
  std::normal_distribution<float> normal;
  owned<float> out(x.rows, outputs);
  for (index_t row = 0; row < x.rows; ++row)
    for (index_t col = 0; col < outputs; ++col)
      out.view()(row, col) = 0.3f * x.view()(row, (5 * col + 1) % x.cols) + normal(engine);
  return out;
}

struct problem {
  owned<float> x, original, w, residual, original_residual;
  host::drift d;

  problem(index_t tokens, index_t k, index_t rows)
      : x(activations(tokens, k)),
        original(drifted(x)),
        w(weights<float>(rows, k)),
        residual(joined(x, rows)),
        original_residual(drifted(residual)),
        d(k, rows) {
    for (index_t row = 0; row < tokens; row += 100) {
      const index_t count = std::min<index_t>(100, tokens - row);
      const auto of = [&](const owned<float>& from) { return from.view().rows_at(row, count); };
      d.add(of(original), of(x), of(original_residual), of(residual));
    }
  }
  owned<float> target(const std::vector<float>& s, activation_order how, host::drift_shares share, float shrinkage,
                      float damping) const {
    owned<float> out(w.rows, w.cols), scaled = w;
    for (index_t row = 0; row < w.rows; ++row)
      for (index_t col = 0; col < w.cols; ++col) scaled.view()(row, col) *= s[static_cast<size_t>(col)];
    const host::hessian h(gathered(x, x.rows, shrinkage), s.data(), 32, how, damping);
    REQUIRE(h.usable());
    host::moved_target(std::as_const(scaled).view(), s.data(), d, h, share, shrinkage, out.view());
    for (index_t row = 0; row < w.rows; ++row)
      for (index_t col = 0; col < w.cols; ++col) out.view()(row, col) /= s[static_cast<size_t>(col)];
    return out;
  }
};

owned<double> in_double(const owned<float>& w) {
  owned<double> out(w.rows, w.cols);
  for (size_t i = 0; i < w.data.size(); ++i) out.data[i] = static_cast<double>(w.data[i]);
  return out;
}

}  // namespace

TEST_CASE("a moved target is the solution of the normal equations, whatever the order and the scales of columns") {
  for (const index_t tokens : {index_t(90), index_t(500)})
    for (const index_t k : {index_t(1), index_t(33), index_t(130)})
      for (const auto how : {activation_order::none, activation_order::descending}) {
        const problem of(tokens, k, 17);
        const auto h = [&] {
          owned<double> g = exact_gram(of.x, 0.2f);
          reference::damp(g.view(), 0.05);
          return g;
        }();
        owned<double> cross(k, 17, 0.0), moved(k, 17);  // shares of (E[(x₀ − x)·xᵀ] shrunk)ᵀ·wᵀ and of E[(r₀ − r)·xᵀ]ᵀ
        for (index_t i = 0; i < k; ++i)
          for (index_t j = 0; j < k; ++j) {
            double sum = 0;
            for (index_t token = 0; token < tokens; ++token)
              sum += (static_cast<double>(of.original.view()(token, j)) - static_cast<double>(of.x.view()(token, j))) *
                     static_cast<double>(of.x.view()(token, i));
            sum *= (i == j ? 1.0 : 1.0 - 0.2f) / static_cast<double>(tokens);
            for (index_t row = 0; row < 17; ++row)
              cross.view()(i, row) += 0.75 * sum * static_cast<double>(of.w.view()(row, j));
          }
        for (index_t i = 0; i < k; ++i)
          for (index_t row = 0; row < 17; ++row) {
            double sum = 0;
            for (index_t token = 0; token < tokens; ++token)
              sum += (static_cast<double>(of.original_residual.view()(token, row)) -
                      static_cast<double>(of.residual.view()(token, row))) *
                     static_cast<double>(of.x.view()(token, i));
            cross.view()(i, row) += 0.5 * sum / static_cast<double>(tokens);
          }
        reference::solve(h.view(), std::as_const(cross).view(), moved.view());
        const auto target =
            of.target(std::vector<float>(static_cast<size_t>(k), 1.0f), how, {0.75f, 0.5f}, 0.2f, 0.05f);
        for (index_t row = 0; row < 17; ++row) {
          double size = 0;
          for (index_t col = 0; col < k; ++col)
            size = std::max(size,
                            std::fabs(static_cast<double>(of.w.view()(row, col))) + std::fabs(moved.view()(col, row)));
          for (index_t col = 0; col < k; ++col) {
            const double expected = static_cast<double>(of.w.view()(row, col)) + moved.view()(col, row);
            INFO(tokens << " tokens, " << k << " inputs: " << row << ", " << col);
            REQUIRE(std::fabs(static_cast<double>(target.view()(row, col)) - expected) <= 1e-4 * size);
          }
        }
      }
}

TEST_CASE("targets that are solved for once, for several linears, are those of each by itself") {
  for (const auto how : {activation_order::none, activation_order::descending}) {
    const problem of(500, 200, 70);
    const auto s = scales(200, true);
    const host::hessian h(gathered(of.x, 500, 0.2f), s.data(), 32, how, 0.02f);
    REQUIRE(h.usable());
    const host::moved_targets shared(s.data(), of.d, h, {0.75f, 0.5f}, 0.2f, true);
    for (const unsigned seed : {3u, 4u}) {
      const auto w = activations(70, 200, seed);
      owned<float> together(70, 200), alone(70, 200);
      shared.of(w.view(), together.view());
      host::moved_target(w.view(), s.data(), of.d, h, {0.75f, 0.5f}, 0.2f, alone.view());
      double moved = 0;
      for (size_t i = 0; i < w.data.size(); ++i) {
        REQUIRE(together.data[i] == Approx(alone.data[i]).epsilon(1e-4).margin(1e-4));
        moved += std::fabs(static_cast<double>(alone.data[i] - w.data[i]));
      }
      REQUIRE(moved > 1);
    }
  }
}

TEST_CASE("a moved target without scales is that of scales of 1") {
  const problem of(90, 33, 17);
  const std::vector<float> ones(33, 1.0f);
  const host::hessian h(gathered(of.x, 90, 0.2f), nullptr, 32, activation_order::descending, 0.05f);
  REQUIRE(h.usable());
  owned<float> target(17, 33);
  host::moved_target(of.w.view(), nullptr, of.d, h, {0.75f, 0.5f}, 0.2f, target.view());
  REQUIRE(target.data == of.target(ones, activation_order::descending, {0.75f, 0.5f}, 0.2f, 0.05f).data);
}

TEST_CASE("a target moved all the way misses the original output by least, and by less the further it moves") {
  const problem of(600, 96, 20);
  const std::vector<float> ones(96, 1.0f);
  double before = missed(of.w, in_double(of.w), of.original, of.x);
  for (const float share : {0.25f, 0.5f, 1.0f}) {
    const double now =
        missed(of.w, in_double(of.target(ones, activation_order::none, {share}, 0.0f, 1e-4f)), of.original, of.x);
    REQUIRE(now < before);
    before = now;
  }
  const auto best = in_double(of.target(ones, activation_order::none, {1.0f}, 0.0f, 1e-6f));
  const double least = missed(of.w, best, of.original, of.x);
  for (const index_t col : {0, 7, 95}) {
    auto other = best;
    for (index_t row = 0; row < 20; ++row) other.view()(row, col) += 0.02;
    REQUIRE(missed(of.w, other, of.original, of.x) > least);
  }
}

TEST_CASE("a target that makes up for what its output joins misses the original sum by least") {
  const problem of(600, 96, 20);
  const std::vector<float> ones(96, 1.0f);
  const auto sum_missed = [&](const owned<double>& v) {
    return missed(of.w, v, of.original, of.x, &of.original_residual, &of.residual);
  };
  double before = sum_missed(in_double(of.target(ones, activation_order::none, {1.0f, 0.0f}, 0.0f, 1e-4f)));
  for (const float share : {0.25f, 0.5f, 1.0f}) {
    const double now = sum_missed(in_double(of.target(ones, activation_order::none, {1.0f, share}, 0.0f, 1e-4f)));
    REQUIRE(now < before);
    before = now;
  }
  const auto best = in_double(of.target(ones, activation_order::none, {1.0f, 1.0f}, 0.0f, 1e-6f));
  const double least = sum_missed(best);
  for (const index_t col : {0, 7, 95}) {
    auto other = best;
    for (index_t row = 0; row < 20; ++row) other.view()(row, col) += 0.02;
    REQUIRE(sum_missed(other) > least);
  }
}

TEST_CASE("inputs and residual streams that do not drift leave the target where it was, and so do shares of none") {
  problem of(300, 64, 9);
  const std::vector<float> ones(64, 1.0f);
  REQUIRE(of.target(ones, activation_order::none, {0.0f, 0.0f}, 0.2f, 0.01f).data == of.w.data);
  of.d = host::drift(64, 9);
  const auto x = std::as_const(of.x).view(), r = std::as_const(of.residual).view();
  of.d.add(x, x, r, r);
  REQUIRE(of.target(ones, activation_order::none, {1.0f, 1.0f}, 0.2f, 0.01f).data == of.w.data);
  of.d = host::drift(64);  // of inputs alone
  of.d.add(x, x);
  REQUIRE(of.target(ones, activation_order::none, {1.0f, 1.0f}, 0.2f, 0.01f).data == of.w.data);
}

TEST_CASE("inputs that are no numbers count as 0 on their side, and an overflow leaves the target where it was") {
  problem of(300, 64, 9);
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()};
  auto broken = of.original;
  auto as_zero = of.original;
  for (size_t i = 0; i < broken.data.size(); i += 41) broken.data[i] = bad[i % 2], as_zero.data[i] = 0;
  host::drift a(64, 64), b(64, 64);
  const matrix<const float> wrong = broken.view(), right = as_zero.view(), now = of.x.view();
  a.add(wrong, now, now, wrong);
  b.add(right, now, now, right);
  for (size_t i = 0; i < 64 * 64; ++i) {
    REQUIRE(a.sum().data[i] == b.sum().data[i]);
    REQUIRE(a.residual_sum().data[i] == b.residual_sum().data[i]);
  }
  const owned<float> large(300, 64, 3e38f);
  of.d = host::drift(64);
  of.d.add(large.view(), large.view());
  of.d.add(large.view(), std::as_const(of.x).view());
  const auto target = of.target(std::vector<float>(64, 1.0f), activation_order::none, {1.0f}, 0.2f, 0.01f);
  for (const float value : target.data) REQUIRE(is_finite(value));
}

TEST_CASE("a moved target does not depend on the scales its columns carry") {
  const problem of(400, 96, 20);
  const auto plain = of.target(std::vector<float>(96, 1.0f), activation_order::none, {1.0f, 0.5f}, 0.3f, 0.0f);
  const auto scaled = of.target(scales(96, true), activation_order::none, {1.0f, 0.5f}, 0.3f, 0.0f);
  for (size_t i = 0; i < plain.data.size(); ++i) REQUIRE(scaled.data[i] == Approx(plain.data[i]).margin(1e-4 * 0.5));
}

TEST_CASE("a drift in bfloat16 is that of rounded inputs and rounded differences, of the residual stream too") {
  const problem of(700, 200, 70);
  host::drift d(200, 70, host::matmul_precision::bfloat16);
  d.add(of.original.view(), of.x.view(), of.original_residual.view(), of.residual.view());
  const auto rounded = [](float value) { return static_cast<double>(bf16_value(bf16_bits(value))); };
  const auto near = [&](const owned<float>& before, const owned<float>& now, matrix<const float> sum) {
    REQUIRE(sum.rows == before.cols);
    for (index_t i = 0; i < sum.rows; ++i)
      for (index_t j = 0; j < sum.cols; ++j) {
        double exact = 0, size = 0;
        for (index_t token = 0; token < 700; ++token) {
          const double term = rounded(before.view()(token, i) - now.view()(token, i)) * rounded(of.x.view()(token, j));
          exact += term, size += std::fabs(term);
        }
        INFO("element " << i << ", " << j);
        REQUIRE(std::fabs(static_cast<double>(sum(i, j)) - exact) <= 700 * roundoff * size);
      }
  };
  near(of.original, of.x, d.sum());
  near(of.original_residual, of.residual, d.residual_sum());
  REQUIRE(d.tokens() == 700);
  // What rounding does to it is little beside it.
  double off = 0, size = 0;
  for (index_t i = 0; i < 200; ++i)
    for (index_t j = 0; j < 200; ++j) {
      off += std::pow(static_cast<double>(d.sum()(i, j) - of.d.sum()(i, j)), 2);
      size += std::pow(static_cast<double>(of.d.sum()(i, j)), 2);
    }
  REQUIRE(off < 1e-5 * size);
  REQUIRE(off > 0);
}

TEST_CASE("drifts and targets are the same bytes for any number of threads") {
  REQUIRE(same_for_any_threads([] {
    const problem of(700, 200, 300);
    host::drift d(200, 300, host::matmul_precision::bfloat16);
    d.add(of.original.view(), of.x.view(), of.original_residual.view(), of.residual.view());
    std::vector<float> all(d.sum().data, d.sum().data + d.sum().size());
    all.insert(all.end(), d.residual_sum().data, d.residual_sum().data + d.residual_sum().size());
    return all;
  }));
  REQUIRE(same_for_any_threads([] {
    const problem of(700, 200, 300);
    return of.target(std::vector<float>(200, 1.0f), activation_order::descending, {1.0f, 0.5f}, 0.3f, 0.01f).data;
  }));
}

}  // namespace target_tests
