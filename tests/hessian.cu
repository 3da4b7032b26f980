// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/hessian.cuh"

#include <algorithm>
#include <limits>

#include "nibble/host/hessian.hpp"
#include "support/activations.hpp"
#include "support/blas.hpp"
#include "support/linears.hpp"

namespace hessian_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity(), not_a_number = std::numeric_limits<float>::quiet_NaN();

/// The shrunk Gram matrix of correlated channels, some of them dead.
owned<float> gram_of(index_t k, float shrinkage = 0.1f) {
  const auto exact = exact_gram(activations(2 * k + 20, k), shrinkage);
  owned<float> g(k, k);
  std::transform(exact.data.begin(), exact.data.end(), g.data.begin(), [](double x) { return static_cast<float>(x); });
  return g;
}

struct result {
  owned<float> l;
  kernels::factored state;
};

result factorised(const owned<float>& g, const std::vector<float>& s, const std::vector<index_t>& column,
                  double damping, bool floored = false) {
  const blas_handle blas;
  const device_matrix<float> gram(g, g.cols + 3), l(g.rows, g.cols, g.cols + 1);
  const device_array<float> by(s);
  const device_array<index_t> order(column);
  const device_array<kernels::factored> state(1);
  REQUIRE(kernels::factor(gram.const_view(), s.empty() ? nullptr : by.data(), column.empty() ? nullptr : order.data(),
                          damping, floored, l.view(), state.data(), blas) == status::ok);
  return {l.download(), state.download()[0]};
}

/// The matrix that is factorised, in units, in double.
owned<double> damped(const owned<float>& g, const std::vector<float>& s, const std::vector<index_t>& column,
                     double damping, bool floored = false) {
  const index_t k = g.rows;
  owned<double> h(k, k);
  const auto place = [&](index_t i) { return column.empty() ? i : column[static_cast<size_t>(i)]; };
  const auto scale = [&](index_t i) { return s.empty() ? 1.0 : static_cast<double>(s[static_cast<size_t>(place(i))]); };
  double sum = 0, fired = 0;
  for (index_t i = 0; i < k; ++i)
    for (index_t j = 0; j < k; ++j) {
      h.view()(i, j) = static_cast<double>(g.view()(place(i), place(j))) / (scale(i) * scale(j));
      if (i == j && h.view()(i, i) > 0) sum += h.view()(i, i), fired += 1;
    }
  for (double& value : h.data) value /= fired > 0 ? sum / fired : 1;
  for (index_t i = 0; i < k; ++i) h.view()(i, i) = h.view()(i, i) > 0 ? h.view()(i, i) + damping : 1;
  for (index_t i = 0; i < k && floored; ++i) {
    double beside = 0;
    for (index_t j = 0; j < k; ++j) beside += i == j ? 0 : std::fabs(h.view()(i, j));
    h.view()(i, i) = std::max(h.view()(i, i), 1.001 * beside);
  }
  return h;
}

/// Whether Lᵀ·L is h within the bound that is stated: an element goes through k products and sums, a division and a root, in float, and
/// was rounded when it was put in units.
bool multiplies_to(const owned<float>& l, const owned<double>& h) {
  const index_t k = l.rows;
  for (index_t i = 0; i < k; ++i)
    for (index_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (index_t m = i; m < k; ++m) sum += static_cast<double>(l.view()(m, i)) * static_cast<double>(l.view()(m, j));
      const double size = std::sqrt(h.view()(i, i) * h.view()(j, j));
      INFO(k << ": " << i << ", " << j);
      CHECK(std::fabs(sum - h.view()(i, j)) <= static_cast<double>(k + 8) * roundoff * size);
      if (!(std::fabs(sum - h.view()(i, j)) <= static_cast<double>(k + 8) * roundoff * size)) return false;
    }
  return true;
}

std::vector<index_t> mixed(index_t k) {
  std::vector<double> importance(static_cast<size_t>(k));
  for (size_t i = 0; i < importance.size(); ++i) importance[i] = static_cast<double>(i * 37 % 101);
  return host::order_columns(importance, 32, activation_order::group_aware).column;
}

bool is_identity(const owned<float>& l) {
  for (index_t i = 0; i < l.rows; ++i)
    for (index_t j = 0; j <= i; ++j)
      if (l.view()(i, j) != (i == j ? 1.0f : 0.0f)) return false;
  return true;
}

}  // namespace

TEST_CASE("the kernel's factor multiplies to the damped Hessian, scaled and in the order of solving") {
  for (const index_t k : {1, 2, 31, 127, 128, 129, 260, 390})
    for (const bool scaled : {false, true}) {
      if (scaled && k == 127) continue;
      CAPTURE(k, scaled);
      const auto g = gram_of(k);
      const auto s = scaled ? scales(k) : std::vector<float>();
      const auto column = scaled ? mixed(k) : std::vector<index_t>();
      const auto got = factorised(g, s, column, 0.01);
      REQUIRE(got.state.failed == 0);
      const auto h = damped(g, s, column, 0.01);
      REQUIRE(multiplies_to(got.l, h));
      for (index_t i = 0; i < k; ++i) REQUIRE(got.l.view()(i, i) > 0);
    }
}

TEST_CASE("the kernel's factor and unit are those of the host's Hessian but for rounding") {
  const index_t k = 200;
  const auto x = activations(440, k);
  const auto s = scales(k);
  const auto moment = gathered(x, 440, 0.1f);
  owned<float> g(k, k);
  moment.whole(g.view());
  for (const auto how : {activation_order::none, activation_order::descending}) {
    const host::hessian h(moment, s.data(), 32, how, 0.05f);
    const auto got = factorised(g, s, h.order().column, static_cast<double>(0.05f));
    REQUIRE(got.state.failed == 0);
    REQUIRE(got.state.unit == Approx(h.unit()).epsilon(1e-12));
    for (index_t i = 0; i < k; ++i)
      for (index_t j = 0; j <= i; ++j)
        REQUIRE(std::fabs(got.l.view()(i, j) - h.factor()(i, j)) <= 1e-4f * std::fabs(h.factor()(i, i)));
  }
}

TEST_CASE("a matrix that is not positive definite, or not finite, has no factor but the identity, and says so") {
  for (const index_t k : {1, 130, 260})
    for (const index_t at : {index_t(0), k / 2, k - 1})
      for (const float value : {-1.0f, inf, -inf, not_a_number}) {
        CAPTURE(k, at, value);
        owned<float> g(k, k, 0.0f);
        for (index_t i = 0; i < k; ++i) g.view()(i, i) = 1;
        if (at == 0) REQUIRE(factorised(g, {}, {}, 0).state.failed == 0);
        if (value == -1.0f && k > 1) {  // a diagonal of −1 is a channel that never fired; this is no Gram matrix
          g.view()(at, at == 0 ? 1 : 0) = g.view()(at == 0 ? 1 : 0, at) = 2.0f;
        } else if (value == -1.0f) {
          continue;
        } else if (at % 2 == 0 || k == 1) {
          g.view()(at, at) = value;
        } else {
          g.view()(at, at - 1) = g.view()(at - 1, at) = value;
        }
        const auto got = factorised(g, {}, {}, 0);
        REQUIRE(got.state.failed != 0);
        REQUIRE(std::isfinite(got.state.unit));
        REQUIRE(is_identity(got.l));
      }
}

TEST_CASE("a pivot of exactly 0 is no pivot, wherever it comes") {
  for (const index_t k : {2, 129}) {
    owned<float> g(k, k, 0.0f);
    for (index_t i = 0; i < k; ++i) g.view()(i, i) = 1;
    g.view()(0, 1) = g.view()(1, 0) = 1;
    const auto got = factorised(g, {}, {}, 0);
    REQUIRE(got.state.failed != 0);
    REQUIRE(is_identity(got.l));
    REQUIRE(factorised(g, {}, {}, 0.01).state.failed == 0);
  }
}

TEST_CASE("channels that never fired, or all of them, have a pivot of 1 and nothing beside it") {
  const auto zero = factorised(owned<float>(140, 140, 0.0f), {}, {}, 0.01);
  REQUIRE(zero.state.failed == 0);
  REQUIRE(zero.state.unit == 1.0);
  REQUIRE(is_identity(zero.l));
  const auto got = factorised(gram_of(140), {}, {}, 0.01);
  for (const index_t dead : {11, 43, 75, 107, 139})
    for (index_t i = 0; i < 140; ++i) {
      REQUIRE((i > dead || got.l.view()(dead, i) == (i == dead ? 1.0f : 0.0f)));
      REQUIRE((i <= dead || got.l.view()(i, dead) == 0.0f));
    }
}

TEST_CASE("a caller's ladder ends where the host's does") {
  owned<float> x(500, 130);  // every channel the same but for its sign: rank 1
  for (index_t row = 0; row < 500; ++row)
    for (index_t col = 0; col < 130; ++col)
      x.view()(row, col) = (col % 3 == 0 ? -1.0f : 1.0f) * static_cast<float>(row % 7 + 1);
  owned<float> broken(200, 64, 0.0f);
  for (index_t row = 0; row < 200; ++row)
    for (index_t col = 0; col < 64; ++col) broken.view()(row, col) = row < 190 ? 1.0f : col % 2 == 0 ? 1e3f : -1e3f;
  for (const bool floors : {false, true}) {
    const auto moment = floors ? gathered(broken, 200, -2.0f) : gathered(x, 500, 0.0f);
    const index_t k = moment.inputs();
    owned<float> g(k, k);
    moment.whole(g.view());
    const host::hessian h(moment, nullptr, 32, activation_order::none, 0.0f);
    double damping = 0;
    auto got = factorised(g, {}, {}, damping);
    int rungs = 0;
    for (; got.state.failed != 0 && damping < 1; ++rungs) {
      damping = raised_damping(damping);
      got = factorised(g, {}, {}, damping);
    }
    REQUIRE(rungs > 0);
    REQUIRE((got.state.failed != 0) == floors);
    REQUIRE(damping == h.damping());
    REQUIRE(h.floored() == floors);
    if (floors) got = factorised(g, {}, {}, damping, true);
    REQUIRE(got.state.failed == 0);
    REQUIRE(multiplies_to(got.l, damped(g, {}, {}, damping, floors)));
  }
  // wider than a block of threads, scaled and in another order
  owned<float> wide(300, 300, 3.0f);
  for (index_t i = 0; i < 300; ++i) wide.view()(i, i) = 1.0f;
  const auto s = scales(300);
  REQUIRE(factorised(wide, s, mixed(300), 1).state.failed != 0);
  const auto got = factorised(wide, s, mixed(300), 1, true);
  REQUIRE(got.state.failed == 0);
  REQUIRE(multiplies_to(got.l, damped(wide, s, mixed(300), 1, true)));
}

TEST_CASE("the kernel's factor is the same bytes under every schedule and architecture") {
  const auto g = gram_of(160);
  const auto first = factorised(g, {}, {}, 0.01);
  const auto run = [&] {
    const auto again = factorised(g, {}, {}, 0.01);
    for (index_t i = 0; i < 160; ++i)
      for (index_t j = 0; j <= i; ++j) REQUIRE(again.l.view()(i, j) == first.l.view()(i, j));
    REQUIRE(again.state.unit == first.state.unit);
  };
  under_schedules(4, run);
  on_architectures(run);
}

TEST_CASE("the kernel of factor refuses what it cannot do, and says why") {
  const device_matrix<float> g(owned<float>(32, 32, 0.0f)), l(32, 32);
  const device_array<float> s(std::vector<float>(33, 1.0f));
  const device_array<index_t> column(std::vector<index_t>(33, 0));
  const device_array<kernels::factored> state(2);
  const blas_handle blas;
  const auto factor = [&](matrix<const float> of, matrix<float> to, const float* by = nullptr,
                          const index_t* order = nullptr, int state_shift = 0, cublasHandle_t handle = nullptr) {
    auto* const at = reinterpret_cast<kernels::factored*>(reinterpret_cast<char*>(state.data()) + state_shift);
    return kernels::factor(of, by, order, 0.01, false, to, at, handle);
  };
  const auto askew = [](auto* p, int bytes) {
    return reinterpret_cast<decltype(p)>(reinterpret_cast<std::uintptr_t>(p) + static_cast<std::uintptr_t>(bytes));
  };
  const matrix<const float> of = g;
  CHECK(factor(of, l, s.data(), nullptr, 0, blas) == status::ok);
  CHECK(factor(of, l) == status::launch_failed);
  CHECK(factor(of.rows_at(0, 31), l, nullptr, nullptr, 0, blas) == status::bad_shape);
  CHECK(factor(of, l.view().rows_at(0, 31), nullptr, nullptr, 0, blas) == status::bad_shape);
  CHECK(factor(of, l.view().cols_at(0, 31), nullptr, nullptr, 0, blas) == status::bad_shape);
  CHECK(factor({nullptr, 32, 32}, l, nullptr, nullptr, 0, blas) == status::bad_shape);
  CHECK(factor(of, {nullptr, 32, 32}, nullptr, nullptr, 0, blas) == status::bad_shape);
  CHECK(kernels::factor(of, nullptr, nullptr, 0.01, false, l.view(), nullptr, blas) == status::bad_shape);
  CHECK(factor({askew(of.data, 2), 32, 32}, l, nullptr, nullptr, 0, blas) == status::misaligned);
  CHECK(factor(of, {askew(l.view().data, 2), 32, 32}, nullptr, nullptr, 0, blas) == status::misaligned);
  CHECK(factor(of, l, askew(s.data(), 2), nullptr, 0, blas) == status::misaligned);
  CHECK(factor(of, l, nullptr, askew(column.data(), 4), 0, blas) == status::misaligned);
  CHECK(factor(of, l, nullptr, nullptr, 4, blas) == status::misaligned);
  CHECK(factor({nullptr, 0, 0}, {nullptr, 0, 0}, nullptr, nullptr, 0, blas) == status::ok);
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device other(sm);
    CHECK(factor(of, l, nullptr, nullptr, 0, blas) == status::unsupported_device);
  }
  const auto wide = gram_of(130);
  const device_matrix<float> gram(wide), to(130, 130);
  const auto run = [&] {
    return kernels::factor(gram.const_view(), nullptr, nullptr, 0.01, false, to.view(), state.data(), blas);
  };
  REQUIRE(launches_of(run) == 7);  // unit, damping, two diagonal blocks, a panel, a product, settling
#endif
}

}  // namespace hessian_tests
