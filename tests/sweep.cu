// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/sweep.cuh"

#include <limits>

#include "nibble/reference/awq.hpp"
#include "nibble/reference/quantize.hpp"
#include "support/activations.hpp"
#include "support/blas.hpp"
#include "support/linears.hpp"

namespace sweep_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

/// A linear as a sweep finds it: scaled weights, rounded to nearest; G in float for kernel and reference alike.
struct rounded {
  owned<float> w, g;
  owned<double> exact;
  std::vector<float> s;
  index_t group;
  any_scheme scheme;
  owned<params> p;
  owned<uint8_t> q;

  rounded(owned<float> w_, std::vector<float> s_, owned<double> exact_, index_t group_, any_scheme scheme_,
          float scale = 0)
      : w(std::move(w_)),
        g(w.cols, w.cols),
        exact(std::move(exact_)),
        s(std::move(s_)),
        group(group_),
        scheme(scheme_),
        p(w.rows, per_group(group).across(w.cols), params{}),
        q(w.rows, w.cols) {
    for (size_t i = 0; i < g.data.size(); ++i) {
      g.data[i] = static_cast<float>(exact.data[i]);
      exact.data[i] = static_cast<double>(g.data[i]);
    }
    for (index_t row = 0; row < w.rows; ++row)
      for (index_t col = 0; col < w.cols; ++col) w.view()(row, col) *= s[static_cast<size_t>(col)];
    reference::fit(std::as_const(w).view(), p.view(), per_group(group), scheme, minmax{}, nullptr);
    reference::quantize(std::as_const(w).view(), std::as_const(p).view(), q.view(), per_group(group), scheme);
    for (params& of : p.data) of.scale = scale > 0 ? scale : of.scale;
  }
  std::vector<uint8_t> expected(int rounds) const {
    auto codes = q;
    reference::sweep(w.view(), s.data(), exact.view(), p.view(), group, scheme, rounds, codes.view());
    return codes.data;
  }
  std::vector<uint8_t> on_device(int rounds) const {
    const blas_handle blas;
    const device_matrix<float> weights(w, w.cols + 1), gram(g, g.cols + 3);
    const device_matrix<params> of(p, p.cols + 1);
    const device_matrix<uint8_t> codes(q, q.cols + 5, 3);
    const device_array<float> by(s);
    with_workspace([&](void* workspace, index_t& bytes) {
      return kernels::sweep(weights.const_view(), by.data(), gram.const_view(), of.const_view(), group, scheme, rounds,
                            codes.view(), workspace, bytes, blas);
    });
    return codes.download().data;
  }
  double loss(const std::vector<uint8_t>& codes, index_t row) const {
    owned<float> d(1, w.cols);
    for (index_t col = 0; col < w.cols; ++col) {
      const params of = p.view()(row, col / per_group(group).width(w.cols));
      const float back = dequantize(codes[static_cast<size_t>(row * w.cols + col)], of, scheme);
      d.view()(0, col) = (back - w.view()(row, col)) / s[static_cast<size_t>(col)];
    }
    return reference::gram_loss(std::as_const(d).view(), exact.view());
  }
};

struct shape {
  index_t rows, cols, group;
};
constexpr shape shapes[] = {{3, 1, -1}, {5, 63, 32}, {4, 64, 128}, {9, 65, 32}, {17, 130, 128}, {6, 200, -1}};

}  // namespace

TEST_CASE("on numbers that float holds exactly the kernel's sweep gives the reference's codes") {
  for (const auto& [rows, cols, group] : shapes)
    for (const int bits : {2, 3, 4})
      for (const bool symmetric : {false, true})
        for (const float shrinkage : {0.0f, 0.5f}) {
          CAPTURE(rows, cols, group, bits, symmetric, shrinkage);
          const rounded linear(eighths(rows, cols), scales(cols, true),
                               exact_gram(integer_activations(cols), shrinkage), group, scheme_of(bits, symmetric),
                               0.5f);
          const auto expected = linear.expected(2);
          if (cols > 1) REQUIRE(expected != linear.q.data);
          REQUIRE(linear.on_device(2) == expected);
        }
  const rounded many(eighths(1027, 5), scales(5, true), exact_gram(integer_activations(5), 0.0f), 4,
                     scheme_of(3, false), 0.5f);  // two runs of rows
  REQUIRE(many.on_device(1) == many.expected(1));
  REQUIRE(many.on_device(0) == many.q.data);
}

TEST_CASE(
    "on ordinary numbers nearly every row of the kernel's sweep is the reference's, and the others lose no more") {
  const rounded linear(weights<float>(270, 200), scales(200, false), exact_gram(activations(300, 200), 0.5f), 32,
                       scheme_of(4, false));
  const auto got = linear.on_device(1), expected = linear.expected(1);
  int other_rows = 0;
  for (index_t row = 0; row < 270; ++row) {
    if (std::equal(got.begin() + row * 200, got.begin() + (row + 1) * 200, expected.begin() + row * 200)) continue;
    ++other_rows;  // one code went to the other side of a tie, and the codes after it followed
    REQUIRE(linear.loss(got, row) <= 1.2 * linear.loss(expected, row));
  }
  REQUIRE(other_rows <= 3);  // of 54,000 codes, some 1e-5 lie as near to a tie as slopes in float can tell
}

TEST_CASE("the kernel's sweeps lower the loss of correlated channels and leave dead ones alone") {
  const rounded linear(weights<float>(24, 130), scales(130, false), exact_gram(activations(600, 130), 0.1f), 32,
                       scheme_of(3, false));
  const auto got = linear.on_device(4);
  double before = 0, after = 0;
  for (index_t row = 0; row < 24; ++row) {
    before += linear.loss(linear.q.data, row);
    after += linear.loss(got, row);
    for (index_t col = 11; col < 130; col += 32) {
      const auto i = static_cast<size_t>(row * 130 + col);
      REQUIRE(got[i] == linear.q.data[i]);
    }
  }
  REQUIRE(after < 0.4 * before);
}

TEST_CASE(
    "the kernel leaves codes alone where the Gram matrix overflowed, and in rows of weights that are no numbers") {
  rounded linear(weights<float>(9, 70), scales(70, false), exact_gram(activations(100, 70), 0.5f), 32,
                 scheme_of(4, false));
  const auto clean = linear.on_device(2);
  linear.w.view()(7, 40) = std::nanf("");
  const auto got = linear.on_device(2);
  for (index_t row = 0; row < 9; ++row)
    for (index_t col = 0; col < 70; ++col) {
      const auto i = static_cast<size_t>(row * 70 + col);
      REQUIRE(got[i] == (row == 7 ? linear.q.data[i] : clean[i]));
    }
  linear.g.data.assign(linear.g.data.size(), std::numeric_limits<float>::infinity());
  REQUIRE(linear.on_device(2) == linear.q.data);
}

TEST_CASE("the kernel's sweep gives the same bytes under every schedule and architecture") {
  const rounded linear(weights<float>(20, 100), scales(100, false), exact_gram(activations(200, 100), 0.5f), 32,
                       scheme_of(3, false));
  const auto first = linear.on_device(2);
  const auto run = [&] { REQUIRE(linear.on_device(2) == first); };
  under_schedules(4, run);
  on_architectures(run);
}

TEST_CASE("the kernel of sweep refuses what it cannot do, and says why") {
  const device_matrix<float> w(owned<float>(4, 32, 1.0f)), g(owned<float>(32, 32, 0.0f));
  const device_matrix<params> p(owned<params>(4, 2, params{1.0f, 8}));
  const device_matrix<uint8_t> q(owned<uint8_t>(4, 32, 3));
  const device_array<float> s(std::vector<float>(32, 1.0f));
  const blas_handle blas;
  const auto sweep = [&](matrix<const float> of, const float* by, matrix<const float> under, matrix<const params> with,
                         matrix<uint8_t> to, index_t group = 16, int bits = 4, int rounds = 1) {
    index_t bytes = 0;
    return kernels::sweep(of, by, under, with, group, scheme_of(bits, false), rounds, to, nullptr, bytes, blas);
  };
  const matrix<const float> all = w;
  const auto askew = reinterpret_cast<float*>(reinterpret_cast<char*>(w.view().data) + 2);
  CHECK(sweep(all, s.data(), g, p, q) == status::ok);
  CHECK(sweep(all, s.data(), g, p, q, 16, 0) == status::bad_bits);
  CHECK(sweep(all, s.data(), g, p, q, 16, 9) == status::bad_bits);
  CHECK(sweep(all, s.data(), g, p, q, 0) == status::bad_group);
  CHECK(sweep(all, s.data(), g, p, q, -2) == status::bad_group);
  CHECK(sweep(all, s.data(), g, p, q, 8) == status::bad_shape);
  CHECK(sweep(all, s.data(), g, p, q, 16, 4, -1) == status::bad_shape);
  CHECK(sweep(all, nullptr, g, p, q) == status::bad_shape);
  CHECK(sweep(all, s.data(), g.const_view().rows_at(0, 31), p, q) == status::bad_shape);
  CHECK(sweep(all, s.data(), g, p, q.view().rows_at(0, 3)) == status::bad_shape);
  CHECK(sweep({nullptr, 4, 32}, s.data(), g, p, q) == status::bad_shape);
  CHECK(sweep(all, s.data(), {askew, 32, 32}, p, q) == status::misaligned);
  CHECK(sweep({askew, 4, 32}, s.data(), g, p, q) == status::misaligned);
  CHECK(sweep(all, askew, g, p, q) == status::misaligned);
  CHECK(sweep({nullptr, 0, 32}, s.data(), g, {nullptr, 0, 2}, {nullptr, 0, 32}) == status::ok);
  refuses_bad_workspaces([&](void* workspace, index_t& size) {
    return kernels::sweep(all, s.data(), g.const_view(), p.const_view(), 16, scheme_of(4, false), 1, q.view(),
                          workspace, size, blas);
  });
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device other(sm);
    CHECK(sweep(all, s.data(), g, p, q) == status::unsupported_device);
  }
#endif
}

}  // namespace sweep_tests
