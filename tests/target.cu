// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/target.cuh"

#include <limits>
#include <random>

#include "nibble/host/target.hpp"
#include "support/activations.hpp"
#include "support/blas.hpp"
#include "support/linears.hpp"

namespace target_tests {

using namespace nibble;
using namespace nibble::test;

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

template <class T>
owned<T> as(const owned<float>& x) {
  owned<T> out(x.rows, x.cols);
  for (size_t i = 0; i < x.data.size(); ++i) out.data[i] = T(x.data[i]);
  return out;
}

/// Added to `sum` by the kernels; rows `apart` elements longer than they need to be.
template <class T>
owned<float> drift_on_device(const owned<T>& original, const owned<T>& x, const owned<float>& sum, index_t apart = 0) {
  const blas_handle blas;
  const device_matrix<T> a(original, x.cols + apart), b(x, x.cols + apart);
  const device_matrix<float> to(sum, sum.cols + 1);
  with_workspace([&](void* workspace, index_t& bytes) {
    return kernels::drift(a.const_view(), b.const_view(), to.view(), workspace, bytes, blas);
  });
  return to.download();
}

/// As that, of a residual stream beside x.
template <class T>
owned<float> drift_on_device(const owned<float>& original, const owned<float>& residual, const owned<T>& x,
                             const owned<float>& sum, index_t apart = 0) {
  const blas_handle blas;
  const device_matrix<float> a(original, residual.cols + apart), b(residual, residual.cols + apart);
  const device_matrix<T> of(x, x.cols + apart);
  const device_matrix<float> to(sum, sum.cols + 1);
  with_workspace([&](void* workspace, index_t& bytes) {
    return kernels::drift(a.const_view(), b.const_view(), of.const_view(), to.view(), workspace, bytes, blas);
  });
  return to.download();
}

struct problem {
  owned<float> x, original, w, residual, original_residual;
  std::vector<float> s;
  host::second_moment moment;
  host::drift d;

  problem(index_t tokens, index_t k, index_t rows)
      : x(activations(tokens, k)),
        original(drifted(x)),
        w(weights<float>(rows, k)),
        residual(weights<float>(tokens, rows)),
        original_residual(drifted(residual)),
        s(scales(k)),
        d(k, rows) {
    moment = gathered(x, tokens, 0.2f);
    d.add(std::as_const(original).view(), std::as_const(x).view(), std::as_const(original_residual).view(),
          std::as_const(residual).view());
  }
  host::hessian hessian(activation_order how) const { return {moment, s.data(), 32, how, 0.05f}; }
  static owned<float> copied(matrix<const float> from) {
    owned<float> out(from.rows, from.cols);
    std::copy(from.data, from.data + from.size(), out.data.begin());
    return out;
  }
  owned<float> sum() const { return copied(d.sum()); }
  owned<float> residual_sum() const { return copied(d.residual_sum()); }
  /// By the kernels from h's factor, which has NaN above its diagonal.
  owned<float> on_device(const host::hessian& h, host::drift_shares share, bool failed = false) const {
    const blas_handle blas;
    owned<float> l(w.cols, w.cols, std::numeric_limits<float>::quiet_NaN());
    for (index_t i = 0; i < l.rows; ++i) std::copy(h.factor().row(i), h.factor().row(i) + i + 1, l.view().row(i));
    const device_matrix<float> weights(w, w.cols + 3), factor(l, l.cols + 1), drift(sum(), w.cols + 2),
        joined(residual_sum(), w.cols + 5), target(w.rows, w.cols, w.cols + 1);
    const device_array<float> by(s);
    const device_array<index_t> column(h.order().column);
    const device_array<kernels::factored> state({kernels::factored{h.unit(), failed ? 1u : 0u}});
    with_workspace([&](void* workspace, index_t& bytes) {
      return kernels::moved_target(weights.const_view(), by.data(), drift.const_view(), d.tokens(), column.data(),
                                   factor.const_view(), state.data(), share.inputs, 0.2f,
                                   {joined.const_view(), column.data(), share.residual}, target.view(), workspace,
                                   bytes, blas);
    });
    return target.download();
  }
};

}  // namespace

TEST_CASE("the kernel's drift is the host's but for the rounding of sums") {
  for (const index_t k : {1, 37, 64, 130})
    for (const index_t tokens : {5, 512, 700}) {
      const problem of(tokens, k, 1);
      const owned<float> before(k, k, 1.5f);
      const auto got = drift_on_device(of.original, of.x, before, k == 37 ? 3 : 0);
      for (index_t i = 0; i < k; ++i)
        for (index_t j = 0; j < k; ++j) {
          double size = 2;
          for (index_t token = 0; token < tokens; ++token)
            size += std::fabs(static_cast<double>(of.original.view()(token, i) - of.x.view()(token, i))) *
                    std::fabs(static_cast<double>(of.x.view()(token, j)));
          CAPTURE(k, tokens, i, j);
          REQUIRE(std::fabs(got.view()(i, j) - 1.5f - of.d.sum()(i, j)) <=
                  2 * static_cast<double>(tokens + 2) * roundoff * size);
        }
    }
}

TEST_CASE(
    "the kernel's drift of a residual stream is the host's but for the rounding of sums, and reads 16 bits as they "
    "are") {
  for (const index_t k : {1, 37, 130})
    for (const index_t rows : {1, 64, 77})
      for (const index_t tokens : {5, 512, 700}) {
        const problem of(tokens, k, rows);
        const owned<float> before(rows, k, 1.5f);
        const auto got = drift_on_device(of.original_residual, of.residual, of.x, before, k == 37 ? 3 : 0);
        for (index_t i = 0; i < rows; ++i)
          for (index_t j = 0; j < k; ++j) {
            double size = 2;
            for (index_t token = 0; token < tokens; ++token)
              size +=
                  std::fabs(static_cast<double>(of.original_residual.view()(token, i) - of.residual.view()(token, i))) *
                  std::fabs(static_cast<double>(of.x.view()(token, j)));
            CAPTURE(k, rows, tokens, i, j);
            REQUIRE(std::fabs(got.view()(i, j) - 1.5f - of.d.residual_sum()(i, j)) <=
                    2 * static_cast<double>(tokens + 2) * roundoff * size);
          }
      }
  const problem of(40, 50, 24);
  const auto narrow = as<bf16>(of.x);
  auto x = of.x, residual = of.residual, clean = of.residual;
  for (size_t i = 0; i < x.data.size(); ++i) x.data[i] = static_cast<float>(narrow.data[i]);
  for (size_t i = 0; i < residual.data.size(); i += 11)
    residual.data[i] = std::numeric_limits<float>::infinity(), clean.data[i] = 0;
  const owned<float> zero(24, 50, 0.0f);
  const auto expected = drift_on_device(of.original_residual, clean, x, zero);
  REQUIRE(drift_on_device(of.original_residual, residual, narrow, zero).data == expected.data);
}

TEST_CASE("drift reads activations of 16 bits as what they are, and those that are no numbers as 0 on their side") {
  const problem of(40, 50, 1);
  const auto check = [&](auto of_type) {
    using T = decltype(of_type);
    auto original = as<T>(of.original), x = as<T>(of.x);
    auto clean_original = as<float>(of.original), clean = as<float>(of.x);
    for (size_t i = 0; i < x.data.size(); ++i) {
      clean_original.data[i] = static_cast<float>(original.data[i]), clean.data[i] = static_cast<float>(x.data[i]);
      if (i % 41 == 0) original.data[i] = T(std::numeric_limits<float>::infinity()), clean_original.data[i] = 0;
      if (i % 43 == 0) x.data[i] = T(std::numeric_limits<float>::quiet_NaN()), clean.data[i] = 0;
    }
    const owned<float> zero(50, 50, 0.0f);
    REQUIRE(drift_on_device(original, x, zero).data == drift_on_device(clean_original, clean, zero).data);
  };
  check(bf16{});
  check(fp16{});
}

TEST_CASE("the kernel's targets are the host's but for rounding, whatever the order and the scales of columns") {
  for (const index_t k : {1, 33, 128, 130, 300})
    for (const auto how : {activation_order::none, activation_order::descending}) {
      const problem of(300, k, 17);
      const auto h = of.hessian(how);
      REQUIRE(h.usable());
      owned<float> expected(17, k);
      host::moved_target(of.w.view(), of.s.data(), of.d, h, {0.75f, 0.5f}, 0.2f, expected.view());
      const auto got = of.on_device(h, {0.75f, 0.5f});
      for (index_t row = 0; row < 17; ++row) {
        float size = 0;
        for (index_t col = 0; col < k; ++col) size = std::max(size, std::fabs(expected.view()(row, col)));
        for (index_t col = 0; col < k; ++col) {
          CAPTURE(k, static_cast<int>(how), row, col);
          REQUIRE(std::fabs(got.view()(row, col) - expected.view()(row, col)) <= 1e-4f * size);
        }
      }
      if (k > 1) REQUIRE(got.data != of.w.data);
      REQUIRE(of.on_device(h, {0.0f, 0.0f}).data == of.w.data);
      REQUIRE(of.on_device(h, {0.75f, 0.5f}, true).data == of.w.data);
    }
}

TEST_CASE("a drift that overflowed leaves the target where it was, weight by weight or altogether") {
  problem of(300, 64, 9);
  const owned<float> large(300, 64, 3e38f);
  of.d.add(large.view(), std::as_const(of.x).view(), owned<float>(300, 9, 3e38f).view(), of.residual.view());
  const auto target = of.on_device(of.hessian(activation_order::none), {1.0f});
  for (const float value : target.data) REQUIRE(is_finite(value));
}

TEST_CASE("the kernel's targets are the same bytes under every schedule and architecture") {
  const problem of(300, 140, 10);
  const auto h = of.hessian(activation_order::descending);
  const auto first = of.on_device(h, {1.0f, 0.5f});
  const auto sum = drift_on_device(of.original, of.x, of.sum());
  const auto joined = drift_on_device(of.original_residual, of.residual, of.x, of.residual_sum());
  const auto run = [&] {
    REQUIRE(of.on_device(h, {1.0f, 0.5f}).data == first.data);
    REQUIRE(drift_on_device(of.original, of.x, of.sum()).data == sum.data);
    REQUIRE(drift_on_device(of.original_residual, of.residual, of.x, of.residual_sum()).data == joined.data);
  };
  under_schedules(3, run);
  on_architectures(run);
}

TEST_CASE("the kernels of drift and moved_target refuse what they cannot do, and say why") {
  const device_matrix<float> x(owned<float>(8, 32, 1.0f)), square(owned<float>(32, 32, 1.0f)), w(8, 32);
  const device_array<float> s(std::vector<float>(33, 1.0f));
  const device_array<index_t> column(std::vector<index_t>(33, 0));
  const device_array<kernels::factored> state(2);
  const blas_handle blas;
  const auto askew = [](auto* p, int bytes) {
    return reinterpret_cast<decltype(p)>(reinterpret_cast<std::uintptr_t>(p) + static_cast<std::uintptr_t>(bytes));
  };
  const matrix<const float> all = x, of = square;
  const matrix<const float> shifted(askew(all.data, 2), 8, 32), shifted_square(askew(of.data, 2), 32, 32);
  const auto drift = [&](matrix<const float> a, matrix<const float> b, matrix<float> to) {
    index_t bytes = 0;
    return kernels::drift(a, b, to, nullptr, bytes, blas);
  };
  CHECK(drift(all, all, square) == status::ok);
  CHECK(drift(all.rows_at(0, 7), all, square) == status::bad_shape);
  CHECK(drift(all.cols_at(0, 31), all, square) == status::bad_shape);
  CHECK(drift({nullptr, 8, 32}, all, square) == status::bad_shape);
  CHECK(drift(all, {nullptr, 8, 32}, square) == status::bad_shape);
  CHECK(drift(all, all, square.view().rows_at(0, 31)) == status::bad_shape);
  CHECK(drift(all, all, square.view().cols_at(0, 31)) == status::bad_shape);
  CHECK(drift(all, all, {nullptr, 32, 32}) == status::bad_shape);
  CHECK(drift(shifted, all, square) == status::misaligned);
  CHECK(drift(all, shifted, square) == status::misaligned);
  CHECK(drift(all, all, {askew(square.view().data, 2), 32, 32}) == status::misaligned);
  CHECK(drift({nullptr, 0, 32}, {nullptr, 0, 32}, square) == status::ok);
  refuses_bad_workspaces(
      [&](void* workspace, index_t& bytes) { return kernels::drift(all, all, square.view(), workspace, bytes, blas); });

  const auto joined = [&](matrix<const float> a, matrix<const float> b, matrix<const float> c, matrix<float> to) {
    index_t bytes = 0;
    return kernels::drift(a, b, c, to, nullptr, bytes, blas);
  };
  const matrix<const float> half = all.cols_at(0, 16);
  const matrix<float> upper = square.view().rows_at(0, 16);
  CHECK(joined(half, half, all, upper) == status::ok);
  CHECK(joined(half.rows_at(0, 7), half, all, upper) == status::bad_shape);
  CHECK(joined(half, half.rows_at(0, 7), all, upper) == status::bad_shape);
  CHECK(joined(half, half, all.rows_at(0, 7), upper) == status::bad_shape);
  CHECK(joined(half.cols_at(0, 15), half, all, upper) == status::bad_shape);
  CHECK(joined(half, half.cols_at(0, 15), all, upper) == status::bad_shape);
  CHECK(joined(half, half, all.cols_at(0, 31), upper) == status::bad_shape);
  CHECK(joined({nullptr, 8, 16}, half, all, upper) == status::bad_shape);
  CHECK(joined(half, {nullptr, 8, 16}, all, upper) == status::bad_shape);
  CHECK(joined(half, half, {nullptr, 8, 32}, upper) == status::bad_shape);
  CHECK(joined(half, half, all, upper.rows_at(0, 15)) == status::bad_shape);
  CHECK(joined(half, half, all, {nullptr, 16, 32}) == status::bad_shape);
  CHECK(joined(shifted.cols_at(0, 16), half, all, upper) == status::misaligned);
  CHECK(joined(half, shifted.cols_at(0, 16), all, upper) == status::misaligned);
  CHECK(joined(half, half, shifted, upper) == status::misaligned);
  CHECK(joined(half, half, all, {askew(upper.data, 2), 16, 32}) == status::misaligned);
  CHECK(joined(all.cols_at(0, 0), all.cols_at(0, 0), all, square.view().rows_at(0, 0)) == status::ok);
  refuses_bad_workspaces(
      [&](void* workspace, index_t& bytes) { return kernels::drift(half, half, all, upper, workspace, bytes, blas); });

  const auto made_up = [&](const kernels::residual_drift& residual) {
    index_t bytes = 0;
    return kernels::moved_target(all, nullptr, of, 5, nullptr, of, state.data(), 1.0f, 0.0f, residual, w.view(),
                                 nullptr, bytes, blas);
  };
  CHECK(made_up({all, column.data(), 1.0f}) == status::ok);
  CHECK(made_up({all.rows_at(0, 7), column.data(), 1.0f}) == status::bad_shape);
  CHECK(made_up({all.cols_at(0, 31), column.data(), 1.0f}) == status::bad_shape);
  CHECK(made_up({{nullptr, 8, 32}, column.data(), 1.0f}) == status::bad_shape);
  CHECK(made_up({shifted, column.data(), 1.0f}) == status::misaligned);
  CHECK(made_up({all, askew(column.data(), 4), 1.0f}) == status::misaligned);

  const auto target = [&](matrix<const float> from, matrix<const float> sum, matrix<const float> l, matrix<float> to,
                          index_t tokens = 5, const float* by = nullptr, const index_t* order = nullptr,
                          int state_shift = 0) {
    index_t bytes = 0;
    return kernels::moved_target(from, by, sum, tokens, order, l, askew(state.data(), state_shift), 1.0f, 0.0f, to,
                                 nullptr, bytes, blas);
  };
  CHECK(target(all, of, of, w) == status::ok);
  CHECK(target(all, of, of, w, 0) == status::bad_shape);
  CHECK(target({nullptr, 8, 32}, of, of, w) == status::bad_shape);
  CHECK(target(all, of.rows_at(0, 31), of, w) == status::bad_shape);
  CHECK(target(all, of.cols_at(0, 31), of, w) == status::bad_shape);
  CHECK(target(all, of, of.rows_at(0, 31), w) == status::bad_shape);
  CHECK(target(all, of, {nullptr, 32, 32}, w) == status::bad_shape);
  CHECK(target(all, of, of, w.view().rows_at(0, 7)) == status::bad_shape);
  CHECK(target(all, of, of, w.view().cols_at(0, 31)) == status::bad_shape);
  CHECK(target(all, of, of, {nullptr, 8, 32}) == status::bad_shape);
  CHECK(target(shifted, of, of, w) == status::misaligned);
  CHECK(target(all, shifted_square, of, w) == status::misaligned);
  CHECK(target(all, of, shifted_square, w) == status::misaligned);
  CHECK(target(all, of, of, {askew(w.view().data, 2), 8, 32}) == status::misaligned);
  CHECK(target(all, of, of, w, 5, askew(s.data(), 2)) == status::misaligned);
  CHECK(target(all, of, of, w, 5, nullptr, askew(column.data(), 4)) == status::misaligned);
  CHECK(target(all, of, of, w, 5, nullptr, nullptr, 4) == status::misaligned);
  index_t size = 0;
  CHECK(kernels::moved_target(all, nullptr, of, 5, nullptr, of, nullptr, 1.0f, 0.0f, w.view(), nullptr, size, blas) ==
        status::bad_shape);
  const auto run = [&](void* workspace, index_t& bytes) {
    return kernels::moved_target(all, nullptr, of, 5, nullptr, of, state.data(), 1.0f, 0.0f, w.view(), workspace, bytes,
                                 blas);
  };
  refuses_bad_workspaces(run);
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device other(sm);
    CHECK(drift(all, all, square) == status::unsupported_device);
    CHECK(joined(half, half, all, upper) == status::unsupported_device);
    CHECK(target(all, of, of, w) == status::unsupported_device);
  }
  index_t bytes = 0;
  REQUIRE(run(nullptr, bytes) == status::ok);
  const device_array<unsigned char> workspace(bytes);
  REQUIRE(launches_of([&] { return run(workspace.data(), bytes); }) == 5);
  REQUIRE(kernels::drift(all, all, square.view(), nullptr, bytes, blas) == status::ok);
  REQUIRE(launches_of([&] { return kernels::drift(all, all, square.view(), workspace.data(), bytes, blas); }) == 2);
#endif
}

}  // namespace target_tests
