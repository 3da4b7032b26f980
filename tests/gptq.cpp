// SPDX-License-Identifier: Apache-2.0
#include "nibble/host/gptq.hpp"

#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "nibble/host/quantize.hpp"
#include "nibble/quantize.hpp"
#include "nibble/reference/awq.hpp"
#include "nibble/reference/gptq.hpp"
#include "support/activations.hpp"
#include "support/linears.hpp"

namespace gptq_tests {

using namespace nibble;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

/// A linear, its codes and parameters.
struct solved {
  owned<float> w;
  index_t group;
  any_scheme scheme;
  owned<params> p;
  owned<uint8_t> q;
  double loss = 0;

  solved(owned<float> w_, index_t group_, any_scheme scheme_)
      : w(std::move(w_)),
        group(group_),
        scheme(scheme_),
        p(w.rows, per_group(group).across(w.cols), params{1, 0}),
        q(w.rows, w.cols) {}

  void solve(const host::hessian& h, host::gptq_ranges ranges) {
    REQUIRE(h.usable());
    loss = host::gptq(std::as_const(w).view(), h, ranges, scheme, p.view(), q.view());
  }
  void solve(const owned<double>& damped, bool fit) {
    owned<double> u(w.cols, w.cols);
    reference::inverse_factor(damped.view(), u.view());
    loss = reference::gptq(std::as_const(w).view(), std::as_const(u).view(), group, scheme, fit, p.view(), q.view());
  }
  /// ŵ − w; column i takes the parameters in column parameters[i].
  owned<float> difference(const std::vector<index_t>& parameters) const {
    owned<float> d(w.rows, w.cols);
    for (index_t row = 0; row < w.rows; ++row)
      for (index_t col = 0; col < w.cols; ++col)
        d.view()(row, col) =
            dequantize(q.view()(row, col), p.view()(row, parameters[static_cast<size_t>(col)]), scheme) -
            w.view()(row, col);
    return d;
  }
  owned<float> difference() const {
    std::vector<index_t> parameters(static_cast<size_t>(w.cols));
    for (index_t col = 0; col < w.cols; ++col)
      parameters[static_cast<size_t>(col)] = col / per_group(group).width(w.cols);
    return difference(parameters);
  }
  double true_loss(const owned<double>& g) const {
    const owned<float> d = difference();
    return reference::gram_loss(d.view(), g.view());
  }
};

owned<double> damped(const owned<float>& x, float shrinkage, double damping) {
  owned<double> g = exact_gram(x, shrinkage);
  reference::damp(g.view(), damping);
  return g;
}

/// What float leaves of a loss that should be none: a group of one weight is met exactly but for that.
double rounding(const owned<float>& w, const owned<double>& h) {
  return 1e-12 * loss_magnitude(w.view(), h);
}

/// h in another order of columns.
owned<double> reordered(const owned<double>& h, const std::vector<index_t>& column) {
  owned<double> out(h.rows, h.cols);
  for (index_t i = 0; i < h.rows; ++i)
    for (index_t j = 0; j < h.cols; ++j)
      out.view()(i, j) = h.view()(column[static_cast<size_t>(i)], column[static_cast<size_t>(j)]);
  return out;
}

struct shape {
  index_t rows, cols, group;
};
constexpr shape shapes[] = {{3, 1, -1},   {5, 63, 16},   {4, 64, 128}, {130, 65, 32}, {9, 130, 128},
                            {6, 200, -1}, {7, 300, 200}, {5, 270, 48}, {3, 40, 1},    {131, 129, 129}};

bool all_finite(const solved& s) {
  for (const params& p : s.p.data)
    if (!(p.scale > 0) || !is_finite(p.scale) || p.zero < 0 || p.zero > max_code(s.scheme)) return false;
  for (const uint8_t code : s.q.data)
    if (code > max_code(s.scheme)) return false;
  return true;
}

}  // namespace

TEST_CASE("a reversed Cholesky factor multiplies to its matrix, and leaves what is above the diagonal") {
  for (const index_t k : {1, 2, 5, 127, 128, 129, 256, 300, 513}) {
    const auto h = damped(activations(2 * k, k), 0.2f, 0.01);
    owned<float> l(k, k);
    for (size_t i = 0; i < l.data.size(); ++i) l.data[i] = static_cast<float>(h.data[i]);
    REQUIRE(host::factorise(l.view()));
    for (index_t i = 0; i < k; ++i)
      for (index_t j = 0; j <= i; ++j) {
        REQUIRE((i == j || l.view()(j, i) == static_cast<float>(h.view()(j, i))));
        double sum = 0;
        for (index_t m = i; m < k; ++m)
          sum += static_cast<double>(l.view()(m, i)) * static_cast<double>(l.view()(m, j));
        // Each element goes through k products and sums, a division and a root, in float; |L_mi·L_mj| sum to at most
        // √(H_ii·H_jj) (Cauchy-Schwarz).
        const double size = std::sqrt(h.view()(i, i) * h.view()(j, j));
        INFO(k << ": " << i << ", " << j);
        REQUIRE(std::fabs(sum - h.view()(i, j)) <= static_cast<double>(k + 8) * roundoff * size);
      }
  }
}

TEST_CASE("a matrix that is not positive definite, or not finite, has no factor") {
  for (const index_t k : {1, 130, 300})
    for (const index_t at : {index_t(0), k / 2, k - 1})
      for (const float value : {-1.0f, 0.0f, inf, -inf, std::numeric_limits<float>::quiet_NaN()}) {
        owned<float> h(k, k, 0.0f);
        for (index_t i = 0; i < k; ++i) h.view()(i, i) = 1;
        REQUIRE(host::factorise(owned<float>(h).view()));
        h.view()(at, at) = value;
        INFO(k << ", " << at << ": " << value);
        REQUIRE_FALSE(host::factorise(h.view()));
      }
}

TEST_CASE("codes are the published algorithm's in double but where a target lies at a tie") {
  index_t rows_in_all = 0, others = 0;
  for (const auto& [rows, cols, group] : shapes)
    for (const int bits : {2, 3, 4, 8})
      for (const bool symmetric : {false, true})
        for (const index_t tokens : {index_t(50), index_t(700)}) {  // fewer than inputs, so kept as they are; and more
          const auto x = activations(tokens, cols);
          const any_scheme scheme =
              scheme_of(bits, symmetric, bits == 3 ? convention::gptq : convention::compressed_tensors);
          solved ours(weights<float>(rows, cols), group, scheme);
          solved expected = ours;
          ours.solve(host::hessian(gathered(x, tokens, 0.1f), nullptr, group, activation_order::none, 0.01f),
                     host::gptq_ranges::minmax);
          const auto h = damped(x, 0.1f, 0.01);
          expected.solve(h, true);
          INFO(rows << " x " << cols << ", group " << group << ", " << bits << " bits, " << tokens << " tokens");
          for (index_t row = 0; row < rows; ++row) {
            ++rows_in_all;
            others +=
                std::equal(ours.q.view().row(row), ours.q.view().row(row + 1), expected.q.view().row(row)) ? 0 : 1;
          }
          REQUIRE(all_finite(ours));
          // One code on the other side of a tie is a step in t_i as small as any other: the loss hardly knows.
          REQUIRE(std::fabs(ours.loss - expected.loss) <= 0.05 * expected.loss + rounding(ours.w, h));
        }
  INFO(others << " of " << rows_in_all << " rows");
  REQUIRE(others * 20 <= rows_in_all);
}

TEST_CASE("what GPTQ reports is the loss of its codes under the damped Hessian") {
  for (const auto& [rows, cols, group] : shapes) {
    const auto x = activations(500, cols);
    solved ours(weights<float>(rows, cols), group, scheme_of(3, false));
    for (const auto ranges : {host::gptq_ranges::minmax, host::gptq_ranges::mse, host::gptq_ranges::gram}) {
      ours.solve(host::hessian(gathered(x, 500, 0.3f), nullptr, group, activation_order::none, 0.05f), ranges);
      const auto h = damped(x, 0.3f, 0.05);
      INFO(rows << " x " << cols << ", group " << group);
      REQUIRE(std::fabs(ours.loss - ours.true_loss(h)) <= 1e-4 * ours.true_loss(h) + rounding(ours.w, h));
    }
  }
}

TEST_CASE("a group's range is found of the weights that make the least of the loss, those before it being chosen") {
  const auto x = activations(500, 96);
  const auto h = damped(x, 0.2f, 0.01);
  solved ours(weights<float>(20, 96), 32, scheme_of(4, false));
  ours.solve(host::hessian(gathered(x, 500, 0.2f), nullptr, 32, activation_order::none, 0.01f),
             host::gptq_ranges::minmax);
  const auto d = ours.difference();
  for (const index_t taken : {32, 64}) {
    owned<double> values(20, taken), left(20, 96 - taken);
    for (index_t row = 0; row < 20; ++row)
      for (index_t col = 0; col < taken; ++col)
        values.view()(row, col) =
            static_cast<double>(ours.w.view()(row, col)) + static_cast<double>(d.view()(row, col));
    reference::give_way(std::as_const(ours.w).view(), std::as_const(values).view(), h.view(), left.view());
    for (index_t row = 0; row < 20; ++row) {
      const auto [low, high] = std::minmax_element(left.view().row(row), left.view().row(row) + 32);
      const params expected = reference::detail::fit(static_cast<float>(*low), static_cast<float>(*high), ours.scheme);
      const params got = ours.p.view()(row, taken / 32);
      const double magnitude = std::max(std::fabs(*low), std::fabs(*high));
      INFO(row << ", " << taken);
      REQUIRE(std::fabs(static_cast<double>(got.scale - expected.scale)) <= 1e-4 * magnitude);
      REQUIRE(std::abs(got.zero - expected.zero) <= 1);
    }
  }
}

TEST_CASE("every order of columns gives what the published algorithm gives for columns in that order") {
  const index_t k = 130;
  const auto x = activations(600, k);
  const auto h = damped(x, 0.2f, 0.01);
  const auto w = weights<float>(40, k);
  for (const auto how : {activation_order::none, activation_order::static_groups, activation_order::group_aware,
                         activation_order::descending}) {
    solved ours(w, 32, scheme_of(3, false));
    host::fit(w.view(), ours.p.view(), per_group(32), ours.scheme, minmax{});
    const host::hessian hessian(gathered(x, 600, 0.2f), nullptr, 32, how, 0.01f);
    const auto& order = hessian.order();
    ours.solve(hessian, host::gptq_ranges::given);

    // The published algorithm has no order: its columns are permuted, each with a parameter column of its own.
    solved expected(owned<float>(40, k), 1, ours.scheme);
    std::vector<index_t> of_column(static_cast<size_t>(k));
    for (index_t i = 0; i < k; ++i) {
      const index_t col = order.column[static_cast<size_t>(i)];
      of_column[static_cast<size_t>(col)] = order.parameters[static_cast<size_t>(i)];
      for (index_t row = 0; row < 40; ++row) {
        expected.w.view()(row, i) = w.view()(row, col);
        expected.p.view()(row, i) = ours.p.view()(row, order.parameters[static_cast<size_t>(i)]);
      }
    }
    expected.solve(reordered(h, order.column), false);
    index_t others = 0;
    for (index_t row = 0; row < 40; ++row)
      for (index_t i = 0; i < k; ++i)
        others += ours.q.view()(row, order.column[static_cast<size_t>(i)]) == expected.q.view()(row, i) ? 0 : 1;
    INFO(static_cast<int>(how));
    REQUIRE(others <= 40);
    REQUIRE(std::fabs(ours.loss - expected.loss) <= 0.02 * expected.loss);
    const double loss = reference::gram_loss(matrix<const float>(ours.difference(of_column).view()), h.view());
    REQUIRE(std::fabs(ours.loss - loss) <= 1e-4 * loss);
  }
}

TEST_CASE("orders are permutations that fall by importance, within groups, between them, or over all columns") {
  const std::vector<double> importance = {1, 9, 3, 3, 8, 2, 7, 0, 10, 4};
  using order = std::vector<index_t>;
  const auto of = [&](activation_order how, index_t group) { return host::order_columns(importance, group, how); };
  REQUIRE(of(activation_order::none, 4).column == order{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
  REQUIRE(of(activation_order::none, 4).parameters == order{0, 0, 0, 0, 1, 1, 1, 1, 2, 2});
  REQUIRE(of(activation_order::static_groups, 4).column == order{8, 1, 4, 6, 9, 2, 3, 5, 0, 7});
  REQUIRE(of(activation_order::static_groups, 4).parameters == order{2, 0, 1, 1, 2, 0, 0, 1, 0, 1});
  REQUIRE(of(activation_order::group_aware, 4).column == order{8, 9, 1, 2, 3, 0, 4, 6, 5, 7});
  REQUIRE(of(activation_order::group_aware, 4).parameters == order{2, 2, 0, 0, 0, 0, 1, 1, 1, 1});
  REQUIRE(of(activation_order::descending, 4).column == order{8, 1, 4, 6, 9, 2, 3, 5, 0, 7});
  REQUIRE(of(activation_order::descending, 4).parameters == order{0, 0, 0, 0, 1, 1, 1, 1, 2, 2});
  REQUIRE(of(activation_order::descending, -1).parameters == order(10, 0));
}

TEST_CASE("on correlated channels GPTQ loses much less than rounding to nearest, and searched ranges less again") {
  const auto x = activations(800, 256);
  const auto g = exact_gram(x, 0.2f);
  const auto w = heavy_tailed(60, 256);
  solved nearest(w, 64, scheme_of(3, false));
  host::fit(w.view(), nearest.p.view(), per_group(64), nearest.scheme, minmax{});
  host::quantize(w.view(), std::as_const(nearest.p).view(), nearest.q.view(), per_group(64), nearest.scheme);
  std::array<double, 3> loss{};
  for (const auto ranges : {host::gptq_ranges::minmax, host::gptq_ranges::mse, host::gptq_ranges::gram}) {
    solved ours(w, 64, scheme_of(3, false));
    ours.solve(host::hessian(gathered(x, 800, 0.2f), nullptr, 64, activation_order::none, 0.01f), ranges);
    loss[static_cast<size_t>(ranges) - 1] = ours.true_loss(g);
  }
  REQUIRE(loss[0] < 0.6 * nearest.true_loss(g));
  REQUIRE(loss[1] < loss[0]);
  REQUIRE(loss[2] < loss[1]);
}

TEST_CASE("columns scaled by s are solved as the unscaled inputs divided by s") {
  const auto s = scales(130, true);  // powers of two, so that scaling changes no rounding
  const auto x = activations(400, 130);
  auto divided = x;
  for (index_t row = 0; row < 400; ++row)
    for (index_t col = 0; col < 130; ++col) divided.view()(row, col) /= s[static_cast<size_t>(col)];
  for (const auto how : {activation_order::none, activation_order::group_aware}) {
    solved a(weights<float>(140, 130), 32, scheme_of(4, false)), b = a;
    a.solve(host::hessian(gathered(x, 400, 0.5f), s.data(), 32, how, 0.01f), host::gptq_ranges::gram);
    b.solve(host::hessian(gathered(divided, 400, 0.5f), nullptr, 32, how, 0.01f), host::gptq_ranges::gram);
    int others = 0;
    for (size_t i = 0; i < a.q.data.size(); ++i) others += a.q.data[i] == b.q.data[i] ? 0 : 1;
    REQUIRE(others <= 60);  // 1/s·1/s·g is not rounded as g/s² is
    REQUIRE(std::fabs(a.loss - b.loss) <= 0.01 * b.loss);
  }
}

TEST_CASE("where channels are independent, GPTQ rounds to nearest") {
  const auto x = activations(300, 96);
  solved ours(weights<float>(20, 96), 32, scheme_of(4, false)), nearest = ours;
  ours.solve(host::hessian(gathered(x, 300, 1.0f), nullptr, 32, activation_order::none, 0.01f),
             host::gptq_ranges::minmax);
  host::fit(std::as_const(nearest.w).view(), nearest.p.view(), per_group(32), nearest.scheme, minmax{});
  host::quantize(std::as_const(nearest.w).view(), std::as_const(nearest.p).view(), nearest.q.view(), per_group(32),
                 nearest.scheme);
  REQUIRE(ours.q.data == nearest.q.data);
}

TEST_CASE("a channel that never fired is rounded to nearest, and its error goes to no other") {
  const auto x = activations(300, 130);  // 11, 43, 75 and 107 are dead
  for (const auto how : {activation_order::none, activation_order::static_groups}) {
    solved ours(weights<float>(30, 130), 32, scheme_of(4, false));
    host::fit(std::as_const(ours.w).view(), ours.p.view(), per_group(32), ours.scheme, minmax{});
    solved nearest = ours, moved = ours;
    host::quantize(std::as_const(nearest.w).view(), std::as_const(nearest.p).view(), nearest.q.view(), per_group(32),
                   nearest.scheme);
    const host::hessian h(gathered(x, 300, 0.1f), nullptr, 32, how, 0.01f);
    ours.solve(h, host::gptq_ranges::given);
    for (index_t row = 0; row < 30; ++row) moved.w.view()(row, 43) += 0.01f;
    moved.solve(h, host::gptq_ranges::given);
    for (index_t row = 0; row < 30; ++row)
      for (index_t col = 0; col < 130; ++col) {
        if (col % 32 == 11) REQUIRE((col == 43 || ours.q.view()(row, col) == nearest.q.view()(row, col)));
        if (col != 43) REQUIRE(ours.q.view()(row, col) == moved.q.view()(row, col));
      }
    REQUIRE(ours.q.data != nearest.q.data);
  }
}

TEST_CASE("inputs of any magnitude give the codes that ordinary ones give") {
  const auto x = activations(300, 96);
  const auto codes_of = [&](float factor) {
    auto scaled = x;
    for (float& value : scaled.data) value *= factor;
    solved ours(weights<float>(20, 96), 32, scheme_of(4, false));
    const host::hessian h(gathered(scaled, 300, 0.2f), nullptr, 32, activation_order::none, 1e-8f);
    REQUIRE(h.damping() == Approx(1e-8));
    ours.solve(h, host::gptq_ranges::minmax);
    return ours.q.data;
  };
  REQUIRE(codes_of(0x1p-50f) == codes_of(1.0f));
  REQUIRE(codes_of(0x1p50f) == codes_of(1.0f));
}

TEST_CASE("a Hessian of too low a rank is damped until it has a factor, and says by how much") {
  for (const index_t tokens : {index_t(1), index_t(5), index_t(500)}) {
    owned<float> x(tokens, 130);  // every channel the same but for its sign: rank 1
    for (index_t row = 0; row < tokens; ++row)
      for (index_t col = 0; col < 130; ++col)
        x.view()(row, col) = (col % 3 == 0 ? -1.0f : 1.0f) * static_cast<float>(row % 7 + 1);
    const host::hessian h(gathered(x, tokens, 0.0f), nullptr, 32, activation_order::none, 0.0f);
    REQUIRE(h.usable());
    REQUIRE(h.damping() > 0);
    REQUIRE_FALSE(h.floored());
    solved ours(weights<float>(20, 130), 32, scheme_of(4, false));
    ours.solve(h, host::gptq_ranges::gram);
    REQUIRE(all_finite(ours));
    REQUIRE(std::isfinite(ours.loss));
  }
}

TEST_CASE("a Hessian that no damping helps has its diagonal raised, and says so") {
  // Not positive semidefinite, which only an overflow or a broken statistic can make it.
  owned<float> x(200, 64, 0.0f);
  for (index_t row = 0; row < 200; ++row)
    for (index_t col = 0; col < 64; ++col) x.view()(row, col) = row < 190 ? 1.0f : col % 2 == 0 ? 1e3f : -1e3f;
  host::second_moment moment = gathered(x, 200, -2.0f);  // a shrinkage below 0 exaggerates what is beside the diagonal
  const host::hessian h(moment, nullptr, 32, activation_order::none, 0.01f);
  REQUIRE(h.usable());
  REQUIRE(h.floored());
  solved ours(weights<float>(20, 64), 32, scheme_of(4, false));
  ours.solve(h, host::gptq_ranges::gram);
  REQUIRE(all_finite(ours));
}

TEST_CASE("inputs too large to square have no usable Hessian, and inputs that are no numbers count as none") {
  owned<float> large(100, 32, 3e38f);
  for (const index_t announced : {index_t(20), index_t(100)}) {
    host::second_moment moment(32, announced, 0.5f);
    moment.add(std::as_const(large).view().rows_at(0, announced));
    moment.finish();
    REQUIRE_FALSE(host::hessian(moment, nullptr, 32, activation_order::descending, 0.01f).usable());
  }
  auto x = activations(300, 96);
  for (size_t i = 0; i < x.data.size(); i += 97) x.data[i] = i % 2 == 0 ? inf : std::numeric_limits<float>::quiet_NaN();
  solved ours(weights<float>(20, 96), 32, scheme_of(4, false));
  ours.solve(host::hessian(gathered(x, 300, 0.2f), nullptr, 32, activation_order::none, 0.01f),
             host::gptq_ranges::gram);
  REQUIRE(all_finite(ours));
  REQUIRE(std::isfinite(ours.loss));
}

TEST_CASE("nothing observed at all rounds to nearest") {
  const owned<float> x(50, 64, 0.0f);
  solved ours(weights<float>(20, 64), 32, scheme_of(4, false)), nearest = ours;
  ours.solve(host::hessian(gathered(x, 50, 0.5f), nullptr, 32, activation_order::static_groups, 0.01f),
             host::gptq_ranges::given);
  for (params& p : nearest.p.data) p = {1, 0};
  host::quantize(std::as_const(nearest.w).view(), std::as_const(nearest.p).view(), nearest.q.view(), per_group(32),
                 nearest.scheme);
  REQUIRE(ours.q.data == nearest.q.data);
}

TEST_CASE("GPTQ gives the same bytes for any number of threads and in every run") {
  const auto x = activations(700, 300);
  for (const auto how : {activation_order::none, activation_order::descending})
    REQUIRE(same_for_any_threads([&] {
      solved ours(weights<float>(400, 300), 64, scheme_of(4, false));
      ours.solve(host::hessian(gathered(x, 700, 0.2f), nullptr, 64, how, 0.01f), host::gptq_ranges::gram);
      return std::make_pair(ours.q.data, ours.loss);
    }));
}

TEST_CASE("scales are stored before codes are chosen for them") {
  const auto x = activations(300, 96);
  any_scheme scheme = scheme_of(4, false);
  for (const dtype stored : {dtype::f16, dtype::bf16}) {
    scheme.scale_dtype = stored;
    solved ours(weights<float>(20, 96), 32, scheme);
    const auto h = damped(x, 0.2f, 0.01);
    for (const auto ranges : {host::gptq_ranges::minmax, host::gptq_ranges::gram}) {
      ours.solve(host::hessian(gathered(x, 300, 0.2f), nullptr, 32, activation_order::none, 0.01f), ranges);
      for (const params& p : ours.p.data) REQUIRE(round_to(stored, p.scale) == p.scale);
      REQUIRE(ours.loss == Approx(ours.true_loss(h)).epsilon(1e-4));
    }
  }
}

}  // namespace gptq_tests
