// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/refit.cuh"

#include <limits>

#include "nibble/host/refit.hpp"
#include "nibble/reference/awq.hpp"
#include "nibble/reference/gptq.hpp"
#include "nibble/reference/quantize.hpp"
#include "support/activations.hpp"
#include "support/blas.hpp"
#include "support/linears.hpp"

namespace refit_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

/// A scaled linear, rounded to nearest with min-max ranges, and its statistics: G in float for kernel, host and reference.
struct rounded {
  owned<float> w, x, g;
  std::vector<float> s;
  index_t group;
  any_scheme scheme;
  float shrinkage = 0.25f;
  owned<params> p;
  owned<uint8_t> q;

  rounded(owned<float> w_, index_t group_, any_scheme scheme_)
      : w(std::move(w_)),
        x(activations(2 * w.cols + 30, w.cols)),
        g(w.cols, w.cols),
        s(scales(w.cols)),
        group(group_),
        scheme(scheme_),
        p(w.rows, per_group(group).across(w.cols), params{}),
        q(w.rows, w.cols) {
    moment().whole(g.view());
    for (index_t row = 0; row < w.rows; ++row)
      for (index_t col = 0; col < w.cols; ++col) w.view()(row, col) *= s[static_cast<size_t>(col)];
    reference::fit(std::as_const(w).view(), p.view(), per_group(group), scheme, minmax{}, nullptr);
    reference::quantize(std::as_const(w).view(), std::as_const(p).view(), q.view(), per_group(group), scheme);
  }
  host::second_moment moment() const { return gathered(x, x.rows, shrinkage); }
  owned<double> exact() const {
    owned<double> out(g.rows, g.cols);
    for (size_t i = 0; i < g.data.size(); ++i) out.data[i] = static_cast<double>(g.data[i]);
    return out;
  }
  /// Refitted by the kernels, after a sweep each time where `sweeps`.
  rounded on_device(int rounds, bool sweeps) const {
    const blas_handle blas;
    const device_matrix<float> weights(w, w.cols + 1), gram(g, g.cols + 3);
    const device_matrix<params> of(p, p.cols + 1);
    const device_matrix<uint8_t> codes(q, q.cols + 5, 3);
    const device_array<float> by(s);
    with_workspace([&](void* workspace, index_t& bytes) {
      if (sweeps)
        return kernels::sweep_and_refit(weights.const_view(), by.data(), gram.const_view(), group, scheme, rounds,
                                        of.view(), codes.view(), workspace, bytes, blas);
      return kernels::refit(weights.const_view(), by.data(), gram.const_view(), codes.const_view(), group, scheme,
                            rounds, of.view(), workspace, bytes, blas);
    });
    rounded out = *this;
    out.p = of.download(), out.q = codes.download();
    return out;
  }
  double loss(index_t row) const {
    owned<float> d(1, w.cols);
    for (index_t col = 0; col < w.cols; ++col) {
      const params of = p.view()(row, col / per_group(group).width(w.cols));
      d.view()(0, col) =
          (dequantize(q.view()(row, col), of, scheme) - w.view()(row, col)) / s[static_cast<size_t>(col)];
    }
    return reference::gram_loss(matrix<const float>(d.view()), exact().view());
  }
  double magnitude(index_t row) const {
    owned<float> d(1, w.cols);
    for (index_t col = 0; col < w.cols; ++col) d.view()(0, col) = w.view()(row, col) / s[static_cast<size_t>(col)];
    return loss_magnitude(matrix<const float>(d.view()), exact());
  }
  /// What float may do to a loss, some roundings a term.
  double rounding(index_t row) const { return 16 * roundoff * roundoff * static_cast<double>(w.cols) * magnitude(row); }
};

struct shape {
  index_t rows, cols, group;
};
constexpr shape shapes[] = {{3, 1, -1},    {5, 63, 32},  {4, 64, 128}, {17, 65, 32},
                            {9, 130, 128}, {6, 140, -1}, {3, 20, 1}};

}  // namespace

TEST_CASE("the kernel's parameters are the reference's, group after group") {
  index_t groups = 0, others = 0;
  for (const auto& [rows, cols, group] : shapes)
    for (const bool symmetric : {false, true}) {
      any_scheme scheme = scheme_of(3, symmetric);
      scheme.scale_dtype = dtype::bf16;
      const rounded before(weights<float>(rows, cols), group, scheme), got = before.on_device(1, false);
      auto expected = before;
      reference::refit(std::as_const(expected.w).view(), expected.s.data(), matrix<const double>(before.exact().view()),
                       std::as_const(expected.q).view(), group, scheme, expected.p.view());
      REQUIRE(got.q.data == before.q.data);
      for (index_t row = 0; row < rows; ++row) {
        // A lone weight is met by several pairs of scale and zero point.
        for (index_t at = 0; at < got.p.cols && cols > 1 && group != 1; ++at, ++groups) {
          const params a = got.p.view()(row, at), b = expected.p.view()(row, at);
          others += a.scale == b.scale && a.zero == b.zero ? 0 : 1;
        }
        INFO(rows << " x " << cols << ", group " << group << ", row " << row);
        // A zero point is not moved for a gain below 10⁻⁶ of the group's own size.
        REQUIRE(got.loss(row) <= 1.01 * expected.loss(row) + 2e-6 * before.magnitude(row));
      }
    }
  INFO(others << " of " << groups);
  REQUIRE(groups > 150);
  REQUIRE(others * 25 <= groups);  // a scale between two stored ones, and what follows from it in the row
}

TEST_CASE("no row's loss rises when the kernel refits its parameters, nor when codes and parameters move by turns") {
  for (const auto& [rows, cols, group] : shapes)
    for (const int bits : {2, 3, 4, 8}) {
      for (const bool symmetric : {false, true}) {
        if (symmetric && bits % 2 == 0 && cols > 130) continue;
        any_scheme scheme = scheme_of(bits, symmetric);
        scheme.scale_dtype = bits == 3 ? dtype::f16 : dtype::f32;
        const rounded before(weights<float>(rows, cols), group, scheme);
        const rounded refitted = before.on_device(2, false), both = refitted.on_device(2, true);
        for (index_t row = 0; row < rows; ++row) {
          CAPTURE(rows, cols, group, bits, symmetric, row);
          const double own = before.rounding(row);
          REQUIRE(refitted.loss(row) <= before.loss(row) * (1 + 1e-4) + own);
          REQUIRE(both.loss(row) <= refitted.loss(row) * (1 + 1e-4) + own);
        }
      }
    }
}

TEST_CASE("codes and parameters by turns are the host's but for a share of ties, and lose less than codes alone") {
  const rounded before(weights<float>(40, 130), 32, scheme_of(3, false));
  const rounded got = before.on_device(3, true);
  rounded expected = before, swept = before;
  const auto moment = before.moment();
  host::sweep_and_refit(std::as_const(before.w).view(), before.s.data(), moment, 32, before.scheme, 3,
                        expected.p.view(), expected.q.view());
  host::sweep(std::as_const(before.w).view(), before.s.data(), moment, std::as_const(before.p).view(), 32,
              before.scheme, 4, swept.q.view());
  double ours = 0, theirs = 0, codes_alone = 0;
  int others = 0;
  for (index_t row = 0; row < 40; ++row) {
    ours += got.loss(row), theirs += expected.loss(row), codes_alone += swept.loss(row);
    others += std::equal(got.q.view().row(row), got.q.view().row(row + 1), expected.q.view().row(row)) ? 0 : 1;
  }
  CHECK(others <= 4);
  CHECK(ours == Approx(theirs).epsilon(0.01));
  CHECK(ours < 0.95 * codes_alone);
}

TEST_CASE("rows beyond what the workspace holds at once are refitted too, and no rounds change nothing") {
  const rounded before(weights<float>(1030, 5), 4, scheme_of(4, false));
  const rounded got = before.on_device(1, true), first(weights<float>(1030, 5), 4, scheme_of(4, false));
  rounded last = first;  // the last rows, by themselves
  last.w = owned<float>(9, 5), last.q = owned<uint8_t>(9, 5), last.p = owned<params>(9, 2, params{});
  for (index_t row = 0; row < 9; ++row) {
    std::copy(first.w.view().row(1021 + row), first.w.view().row(1022 + row), last.w.view().row(row));
    std::copy(first.q.view().row(1021 + row), first.q.view().row(1022 + row), last.q.view().row(row));
    std::copy(first.p.view().row(1021 + row), first.p.view().row(1022 + row), last.p.view().row(row));
  }
  const auto alone = last.on_device(1, true);
  REQUIRE(std::equal(alone.q.data.begin(), alone.q.data.end(), got.q.data.end() - 45));
  for (size_t i = 0; i < 18; ++i) {
    const params a = alone.p.data[i], b = got.p.data[got.p.data.size() - 18 + i];
    REQUIRE((a.scale == Approx(b.scale).epsilon(1e-5) && a.zero == b.zero));
  }
  const auto same = first.on_device(0, true);
  REQUIRE((same.q.data == first.q.data && same_bytes(same.p, first.p)));
}

TEST_CASE("parameters stay under a Gram matrix that overflowed, and in rows of weights that are no numbers") {
  rounded before(weights<float>(9, 70), 32, scheme_of(4, false));
  const auto clean = before.on_device(1, true);
  before.w.view()(4, 40) = std::numeric_limits<float>::quiet_NaN();
  const auto got = before.on_device(1, true);
  for (index_t row = 0; row < 9; ++row)
    for (index_t i = 0; i < 3; ++i) {
      const params a = got.p.view()(row, i), b = (row == 4 ? before : clean).p.view()(row, i);
      REQUIRE((a.scale == b.scale && a.zero == b.zero));
    }
  before.g.data.assign(before.g.data.size(), std::numeric_limits<float>::infinity());
  REQUIRE(same_bytes(before.on_device(1, true).p, before.p));
}

TEST_CASE("the kernel's refitted parameters are the same bytes under every schedule and architecture") {
  const rounded before(weights<float>(12, 100), 32, scheme_of(3, false));
  const auto first = before.on_device(2, true);
  const auto run = [&] {
    const auto again = before.on_device(2, true);
    REQUIRE((again.q.data == first.q.data && same_bytes(again.p, first.p)));
  };
  under_schedules(4, run);
  on_architectures(run);
}

TEST_CASE("the kernel of refit refuses what it cannot do, and says why") {
  const device_matrix<float> w(owned<float>(4, 32, 1.0f)), g(owned<float>(32, 32, 0.0f));
  const device_matrix<params> p(owned<params>(4, 2, params{1.0f, 8}));
  const device_matrix<uint8_t> q(owned<uint8_t>(4, 32, 3));
  const device_array<float> s(std::vector<float>(32, 1.0f));
  const blas_handle blas;
  const auto refit = [&](matrix<const float> of, const float* by, matrix<const float> under, matrix<params> with,
                         matrix<uint8_t> to, index_t group = 16, int bits = 4, int rounds = 1) {
    index_t bytes = 0;
    const status both =
        kernels::sweep_and_refit(of, by, under, group, scheme_of(bits, false), rounds, with, to, nullptr, bytes, blas);
    CHECK(kernels::refit(of, by, under, matrix<const uint8_t>(to), group, scheme_of(bits, false), rounds, with, nullptr,
                         bytes, blas) == both);
    return both;
  };
  const matrix<const float> all = w;
  const auto askew = reinterpret_cast<float*>(reinterpret_cast<char*>(w.view().data) + 2);
  CHECK(refit(all, s.data(), g, p, q) == status::ok);
  CHECK(refit(all, s.data(), g, p, q, 16, 0) == status::bad_bits);
  CHECK(refit(all, s.data(), g, p, q, 16, 9) == status::bad_bits);
  CHECK(refit(all, s.data(), g, p, q, 0) == status::bad_group);
  CHECK(refit(all, s.data(), g, p, q, -2) == status::bad_group);
  CHECK(refit(all, s.data(), g, p, q, 8) == status::bad_shape);
  CHECK(refit(all, s.data(), g, p, q, 16, 4, -1) == status::bad_shape);
  CHECK(refit(all, nullptr, g, p, q) == status::bad_shape);
  CHECK(refit(all, s.data(), g.const_view().rows_at(0, 31), p, q) == status::bad_shape);
  CHECK(refit(all, s.data(), g, p, q.view().rows_at(0, 3)) == status::bad_shape);
  CHECK(refit({nullptr, 4, 32}, s.data(), g, p, q) == status::bad_shape);
  CHECK(refit(all, s.data(), {askew, 32, 32}, p, q) == status::misaligned);
  CHECK(refit({askew, 4, 32}, s.data(), g, p, q) == status::misaligned);
  CHECK(refit(all, askew, g, p, q) == status::misaligned);
  CHECK(refit({nullptr, 0, 32}, s.data(), g, {nullptr, 0, 2}, {nullptr, 0, 32}) == status::ok);
  const auto run = [&](void* workspace, index_t& size) {
    return kernels::sweep_and_refit(all, s.data(), g.const_view(), 16, scheme_of(4, false), 1, p.view(), q.view(),
                                    workspace, size, blas);
  };
  refuses_bad_workspaces(run);
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device other(sm);
    CHECK(refit(all, s.data(), g, p, q) == status::unsupported_device);
  }
  index_t bytes = 0;
  REQUIRE(run(nullptr, bytes) == status::ok);
  const device_array<unsigned char> workspace(bytes);
  // D and its product, a sweep and its product, and for each of two groups two kernels and two products
  REQUIRE(launches_of([&] { return run(workspace.data(), bytes); }) == 2 + 2 + 2 * 4);
#endif
}

}  // namespace refit_tests
