// SPDX-License-Identifier: Apache-2.0
/// @file
/// The steps by which a pass judges codes and rounded inputs, against what they say.
#include "pass/cuda/apart.cuh"

#include "mistral_cuda/support.hpp"

namespace apart_tests {

using namespace nibble;
using namespace nibble::test;
using namespace nibble::mistral;

namespace {

/// Widths of less than a warp, of a block and of more, none a multiple of a warp but for two.
constexpr index_t widths[] = {1, 31, 32, 33, 256, 259, 600};

std::vector<float> scales_of(index_t count) {
  std::vector<float> s;
  for (index_t i = 0; i < count; ++i) s.push_back(0.25f + 0.125f * static_cast<float>(i % 7));
  return s;
}

}  // namespace

TEST_CASE("codes are apart from weights by what the formula says, in groups and blocks, of rows that were divided") {
  const index_t n = 5;
  for (const index_t k : widths)
    for (const group_shape g : {per_channel, per_group(32), group_shape{2, 32}}) {
      CAPTURE(k, g.rows, g.cols);
      const owned<float> w = random_matrix(n, k, "w");
      owned<uint8_t> q(n, k);
      for (size_t i = 0; i < q.data.size(); ++i) q.data[i] = static_cast<uint8_t>(i * 37 % 256);
      owned<params> p(g.down(n), g.across(k));
      for (size_t i = 0; i < p.data.size(); ++i)
        p.data[i] = {0.01f + 0.003f * static_cast<float>(i % 5), static_cast<int32_t>(128 + i % 3)};
      const std::vector<float> s = scales_of(k), of_row = scales_of(n);
      const any_scheme how{8, false};
      const device_matrix<float> weights(w, k + 1, 1);
      const device_matrix<uint8_t> codes(q, k + 2);
      const device_matrix<params> parameters(p, p.cols + 1);
      const device_array<float> scales(s), rows(of_row);
      for (const float* const factors : {static_cast<const float*>(nullptr), static_cast<const float*>(rows.data())}) {
        const device_matrix<bf16> rounded(n, k, k + 3), difference(n, k, k + 1, 1);
        REQUIRE(cuda::apart(weights.const_view(), codes.const_view(), parameters.const_view(), g, how, scales.data(),
                            factors, rounded.view(), difference.view(), nullptr) == status::ok);
        owned<bf16> expected(n, k), apart(n, k);
        for (index_t row = 0; row < n; ++row)
          for (index_t col = 0; col < k; ++col) {
            const float value = dequantize(q.view()(row, col), p.view()(row / g.height(n), col / g.width(k)), how);
            const float times = factors == nullptr ? 1.0f : of_row[static_cast<size_t>(row)];
            const float off = (value - w.view()(row, col)) / s[static_cast<size_t>(col)];
            expected.view()(row, col) = bf16(value * times);
            apart.view()(row, col) = bf16(off * times);
          }
        CHECK(same_bytes(rounded.download(), expected));
        CHECK(same_bytes(difference.download(), apart));
      }
    }
}

TEST_CASE("squares of each row are added to what is there, the same under every schedule") {
  for (const index_t k : widths) {
    CAPTURE(k);
    const owned<float> y = random_matrix(4, k, "y");
    const device_matrix<float> there(y, k + 1, 1);
    std::vector<double> first;
    under_schedules(3, [&] {
      const device_array<double> sums(std::vector<double>{0.5, 0, 3, -1});
      REQUIRE(cuda::add_squares(there.const_view(), sums.data(), nullptr) == status::ok);
      const std::vector<double> got = sums.download();
      if (first.empty()) first = got;
      REQUIRE(got == first);
    });
    for (index_t row = 0; row < 4; ++row) {
      double sum = 0;
      for (index_t col = 0; col < k; ++col) sum += std::pow(double{y.view()(row, col)}, 2);
      const double before[] = {0.5, 0, 3, -1};
      CHECK(first[static_cast<size_t>(row)] == Approx(before[row] + sum).epsilon(1e-13));
    }
  }
}

TEST_CASE("what scales of inputs cost is summed for each scale and token, the same under every schedule") {
  for (const index_t k : widths)
    for (const bool integers : {true, false}) {
      CAPTURE(k, integers);
      const auto x = stored_as<bf16>(random_matrix(3, k, "x"));
      const std::vector<float> by = scales_of(k), scales = {0.5f, 0.02f, 1e-4f, 3e-3f};
      std::vector<double> importance;
      for (index_t col = 0; col < k; ++col) importance.push_back(0.1 + static_cast<double>(col % 3));
      const device_matrix<bf16> there(x, k + 1, 1);
      const device_array<float> divisors(by), tried(scales);
      const device_array<double> weights(importance);
      owned<double> first(0, 3);
      under_schedules(3, [&] {
        const device_matrix<double> costs(4, 3, 5);
        REQUIRE(cuda::input_costs(there.const_view(), divisors.data(), weights.data(), integers, tried.data(),
                                  costs.view(), nullptr) == status::ok);
        const owned<double> got = costs.download();
        if (first.rows == 0) first = got;
        REQUIRE(same_bytes(got, first));
      });
      for (index_t which = 0; which < 4; ++which)
        for (index_t token = 0; token < 3; ++token) {
          double sum = 0;
          for (index_t col = 0; col < k; ++col) {
            const float value = float(x.view()(token, col)) / by[static_cast<size_t>(col)];
            const float rounded = rounded_activation(value, scales[static_cast<size_t>(which)], integers);
            sum += importance[static_cast<size_t>(col)] * std::pow(double{rounded} - double{value}, 2);
          }
          CHECK(first.view()(which, token) == Approx(sum).epsilon(1e-12));
        }
    }
}

TEST_CASE("the steps of judging refuse what they cannot do, and say why") {
  const device_matrix<float> w(owned<float>(4, 32, 1.0f)), y(owned<float>(4, 32, 1.0f));
  const device_matrix<uint8_t> q(owned<uint8_t>(4, 32, 130));
  const device_matrix<bf16> a(4, 32), b(4, 32);
  const device_array<params> p(std::vector<params>(4, params{0.5f, 128}));
  const device_array<float> s(std::vector<float>(32, 1.0f));
  const device_array<double> sums(std::vector<double>(4, 0.0)), importance(std::vector<double>(32, 1.0));
  const any_scheme how{8, true};
  const auto apart = [&](matrix<const float> w_, matrix<const uint8_t> q_, matrix<const params> p_, const float* s_,
                         const float* rows, matrix<bf16> a_, matrix<bf16> b_) {
    return cuda::apart(w_, q_, p_, per_channel, how, s_, rows, a_, b_, nullptr);
  };
  const matrix<const params> ranges(p.data(), 4, 1);
  const auto wv = w.view();
  const auto av = a.view(), bv = b.view();
  const matrix<const uint8_t> qv = q.view();
  CHECK(apart(wv, qv, ranges, s.data(), nullptr, av, bv) == status::ok);
  CHECK(apart({wv.data, 4, 32, 31}, qv, ranges, s.data(), nullptr, av, bv) == status::bad_shape);
  CHECK(apart({wv.data, 3, 32}, qv, ranges, s.data(), nullptr, av, bv) == status::bad_shape);
  CHECK(apart(wv, qv, {p.data(), 3, 1}, s.data(), nullptr, av, bv) == status::bad_shape);
  CHECK(apart(wv, qv, ranges, nullptr, nullptr, av, bv) == status::bad_shape);
  CHECK(apart(wv, qv, ranges, s.data(), nullptr, {av.data, 4, 31, 32}, bv) == status::bad_shape);
  CHECK(apart(wv, qv, ranges, s.data(), nullptr, av, {bv.data, 3, 32}) == status::bad_shape);
  CHECK(apart({askew(wv.data), 4, 32}, qv, ranges, s.data(), nullptr, av, bv) == status::misaligned);
  CHECK(apart(wv, qv, ranges, askew(s.data()), nullptr, av, bv) == status::misaligned);
  CHECK(apart(wv, qv, ranges, s.data(), askew(s.data()), av, bv) == status::misaligned);
  CHECK(apart(wv, qv, ranges, s.data(), nullptr, {askew(av.data), 4, 32}, bv) == status::misaligned);
  CHECK(apart({nullptr, 0, 32}, {nullptr, 0, 32}, {nullptr, 0, 1}, nullptr, nullptr, {nullptr, 0, 32},
              {nullptr, 0, 32}) == status::ok);

  const auto squares = [&](matrix<const float> of, double* to) { return cuda::add_squares(of, to, nullptr); };
  CHECK(squares(y.view(), sums.data()) == status::ok);
  CHECK(squares({y.view().data, 4, 32, 31}, sums.data()) == status::bad_shape);
  CHECK(squares(y.view(), nullptr) == status::bad_shape);
  CHECK(squares({askew(y.view().data), 4, 32}, sums.data()) == status::misaligned);
  CHECK(squares(y.view(), askew(sums.data())) == status::misaligned);
  CHECK(squares({nullptr, 0, 32}, nullptr) == status::ok);

  const auto costs = [&](matrix<const bf16> x, const float* by, const double* weight, const float* scales,
                         matrix<double> to) { return cuda::input_costs(x, by, weight, true, scales, to, nullptr); };
  const matrix<double> out(sums.data(), 1, 4);
  CHECK(costs(av, s.data(), importance.data(), s.data(), out) == status::ok);
  CHECK(costs({av.data, 4, 32, 31}, s.data(), importance.data(), s.data(), out) == status::bad_shape);
  CHECK(costs(av, nullptr, importance.data(), s.data(), out) == status::bad_shape);
  CHECK(costs(av, s.data(), nullptr, s.data(), out) == status::bad_shape);
  CHECK(costs(av, s.data(), importance.data(), nullptr, out) == status::bad_shape);
  CHECK(costs(av, s.data(), importance.data(), s.data(), {sums.data(), 1, 3}) == status::bad_shape);
  CHECK(costs({askew(av.data), 4, 32}, s.data(), importance.data(), s.data(), out) == status::misaligned);
  CHECK(costs(av, askew(s.data()), importance.data(), s.data(), out) == status::misaligned);
  CHECK(costs(av, s.data(), askew(importance.data()), s.data(), out) == status::misaligned);
  CHECK(costs(av, s.data(), importance.data(), askew(s.data()), out) == status::misaligned);
  CHECK(costs({av.data, 4, 32}, s.data(), importance.data(), s.data(), {sums.data(), index_t{1} << 40, 4}) ==
        status::too_large);
#if defined(NIBBLE_SIMT)
  const pretended_device old(75);
  CHECK(apart(wv, qv, ranges, s.data(), nullptr, av, bv) == status::unsupported_device);
  CHECK(squares(y.view(), sums.data()) == status::unsupported_device);
  CHECK(costs(av, s.data(), importance.data(), s.data(), out) == status::unsupported_device);
#endif
}

}  // namespace apart_tests
