// SPDX-License-Identifier: Apache-2.0
/// @file
/// Activations rounded on the device against the mathematics of rows smooth and fp8, number for number.
#include "mistral/cuda/rounding.cuh"

#include <cmath>

#include "mistral_cuda/support.hpp"

namespace rounding_tests {

using namespace nibble;
using namespace nibble::test;
using namespace nibble::mistral;
using cuda::activation_rounding;
using cuda::round_activations;

namespace {

constexpr index_t whole = std::numeric_limits<index_t>::max();

struct rule {
  rounded_inputs host;
  activation_rounding device;
};
const rule rules[] = {
    {{input_rounding::token, code_type::integer, 0}, {true, 0, whole, nullptr}},
    {{input_rounding::token, code_type::e4m3, 0}, {false, 0, whole, nullptr}},
    {{input_rounding::token_block, code_type::integer, 0}, {true, 0, coded_block, nullptr}},
    {{input_rounding::token_block, code_type::e4m3, 0}, {false, 0, coded_block, nullptr}},
    {{input_rounding::tensor, code_type::integer, 0.004f}, {true, 0.004f, whole, nullptr}},
    {{input_rounding::tensor, code_type::e4m3, 0.0013f}, {false, 0.0013f, whole, nullptr}},
};

/// A token's, in place, unless it holds NaN or infinity.
void round_token(matrix<float> x, const rounded_inputs& how) {
  for (index_t col = 0; col < x.cols; ++col)
    if (!is_finite(x(0, col))) return;
  const bool integers = how.type == code_type::integer;
  const index_t size = how.how == input_rounding::token_block ? coded_block : x.cols;
  for (index_t first = 0; first < x.cols; first += size) {
    const matrix<float> piece = x.cols_at(first, min(size, x.cols - first));
    float scale = how.scale, amax = 0;
    for (index_t col = 0; col < piece.cols; ++col) amax = max(amax, std::fabs(piece(0, col)));
    if (how.how != input_rounding::tensor)
      scale = integers ? activation_scale(amax) : fit(amax, float_scheme<float_format::e4m3>{});
    for (index_t col = 0; col < piece.cols; ++col) piece(0, col) = rounded_activation(piece(0, col), scale, integers);
  }
}

/// What becomes of x / by, before it is stored; with what it was, side by side.
struct expectation {
  owned<float> rounded, before;
  expectation(const owned<bf16>& x, const std::vector<float>& by, const rounded_inputs& how)
      : rounded(x.rows, x.cols), before(x.rows, x.cols) {
    for (index_t row = 0; row < x.rows; ++row)
      for (index_t col = 0; col < x.cols; ++col)
        before.view()(row, col) =
            static_cast<float>(x.view()(row, col)) / (by.empty() ? 1.0f : by[static_cast<std::size_t>(col)]);
    rounded.data = before.data;
    for (index_t row = 0; row < x.rows; ++row) round_token(rounded.view().rows_at(row, 1), how);
  }
  owned<float> more() const {
    owned<float> out = rounded;
    for (std::size_t i = 0; i < out.data.size(); ++i) out.data[i] -= before.data[i];
    return out;
  }
};

bool alike(const owned<bf16>& a, const owned<bf16>& b) {
  for (std::size_t i = 0; i < a.data.size(); ++i) {
    const auto x = static_cast<float>(a.data[i]), y = static_cast<float>(b.data[i]);
    if (!(x == y || (std::isnan(x) && std::isnan(y)))) return false;
  }
  return true;
}

void rounds_as_the_rule(const owned<bf16>& x, const std::vector<float>& by, index_t unit, index_t offset) {
  const device_matrix<bf16> there(x, round_up(x.cols, unit), offset);
  const device_array<float> divisors(by);
  for (const rule& each : rules) {
    CAPTURE(x.rows, x.cols, unit, offset, static_cast<int>(each.host.how), static_cast<int>(each.host.type));
    const expectation expected(x, by, each.host);
    activation_rounding how = each.device;
    if (!by.empty()) how.by = divisors.data();
    const device_matrix<bf16> y(x.rows, x.cols, round_up(x.cols, unit), offset);
    const device_matrix<bf16> off(x.rows, x.cols, round_up(x.cols, unit), offset);
    REQUIRE(round_activations(there.const_view(), how, y.view(), off.view(), nullptr) == status::ok);
    REQUIRE(alike(y.download(), stored_as<bf16>(expected.rounded)));
    REQUIRE(alike(off.download(), stored_as<bf16>(expected.more())));
    const device_matrix<bf16> alone(x.rows, x.cols, round_up(x.cols, unit), offset);
    REQUIRE(round_activations(there.const_view(), how, {}, alone.view(), nullptr) == status::ok);
    REQUIRE(alike(alone.download(), stored_as<bf16>(expected.more())));
  }
}

owned<bf16> activations(index_t rows, index_t cols) {
  owned<float> x = random_matrix(rows, cols, "x");
  for (index_t row = 0; row < rows; ++row)
    for (index_t col = 0; col < cols; ++col) x.view()(row, col) *= std::exp2(static_cast<float>((row + col) % 9 - 6));
  return stored_as<bf16>(x);
}

}  // namespace

TEST_CASE("activations are rounded as the mathematics says, whatever the rule, the width and the place") {
  for (index_t cols = 1; cols <= 9; ++cols) rounds_as_the_rule(activations(3, cols), {}, 1, 0);
  for (const index_t cols : {127, 128, 129, 255, 256, 260, 1023, 1024, 1028, 1160, 2051})
    rounds_as_the_rule(activations(2, cols), {}, 1, 0);
  for (const index_t unit : {1, 3, 4, 16})
    for (const index_t offset : {0, 1, 4}) rounds_as_the_rule(activations(5, 264), {}, unit, offset);
}

TEST_CASE("activations that are divided first are rounded as quotients") {
  for (const index_t cols : {5, 64, 300}) {
    std::vector<float> by;
    for (index_t col = 0; col < cols; ++col) by.push_back(0.03f + 0.7f * static_cast<float>(col % 11));
    rounds_as_the_rule(activations(4, cols), by, 4, 0);
    rounds_as_the_rule(activations(4, cols), by, 1, 1);
  }
}

TEST_CASE("tokens of zeros, of the smallest numbers and of the largest are rounded, those with NaN or infinity stay") {
  owned<bf16> x = activations(9, 140);
  const float infinity = std::numeric_limits<float>::infinity();
  const float each[] = {0.0f, 1e-40f, 3e38f, not_a_number, infinity, -infinity};
  for (index_t row = 0; row < 6; ++row) {
    if (row < 3)
      for (index_t col = 0; col < x.cols; ++col) x.view()(row, col) = bf16(each[row]);
    x.view()(row, 17 * row + 3) = bf16(each[row]);
  }
  rounds_as_the_rule(x, {}, 4, 0);
  const device_matrix<bf16> y(x, 140);
  REQUIRE(round_activations(y.const_view(), rules[2].device, y.view(), {}, nullptr) == status::ok);
  const owned<bf16> got = y.download();
  for (index_t row = 3; row < 6; ++row)
    for (index_t col = 0; col < x.cols; ++col)
      if (col != 17 * row + 3) REQUIRE(float(got.view()(row, col)) == float(x.view()(row, col)));
}

TEST_CASE("activations may be rounded where they are, a part of the columns, under every schedule alike") {
  const owned<bf16> x = activations(3, 700);
  for (const rule& each : rules) {
    owned<bf16> first(3, 700);
    bool known = false;
    under_schedules(4, [&] {
      const device_matrix<bf16> y(x, 700);
      REQUIRE(round_activations(y.const_view().cols_at(4, 516), each.device, y.view().cols_at(4, 516), {}, nullptr) ==
              status::ok);
      const owned<bf16> got = y.download();
      if (known) REQUIRE(same_bytes(got, first));
      first = got, known = true;
    });
    owned<bf16> part(3, 516);
    for (index_t row = 0; row < 3; ++row) {
      for (index_t col = 0; col < 516; ++col) part.view()(row, col) = x.view()(row, col + 4);
      for (const index_t col : {3, 520}) CHECK(float(first.view()(row, col)) == float(x.view()(row, col)));
    }
    const owned<bf16> expected = stored_as<bf16>(expectation(part, {}, each.host).rounded);
    for (index_t row = 0; row < 3; ++row)
      for (index_t col = 0; col < 516; ++col)
        REQUIRE(float(first.view()(row, col + 4)) == float(expected.view()(row, col)));
  }
}

TEST_CASE("rounding activations refuses what it cannot do, and says why") {
  const device_matrix<bf16> x(4, 32), y(4, 32);
  const device_array<float> by(std::vector<float>(32, 1.0f));
  const auto in = x.view();
  const auto out = y.view();
  const auto round = [&](matrix<const bf16> from, activation_rounding how, matrix<bf16> to, matrix<bf16> off = {}) {
    return round_activations(from, how, to, off, nullptr);
  };
  const activation_rounding tokens{true, 0, 32, nullptr};
  CHECK(round(in, tokens, out, out) == status::ok);
  CHECK(round({nullptr, 4, 32}, tokens, out) == status::bad_shape);
  CHECK(round({in.data, 4, 32, 31}, tokens, out) == status::bad_shape);
  CHECK(round(in, tokens, {out.data, 3, 32}) == status::bad_shape);
  CHECK(round(in, tokens, {out.data, 4, 31, 32}) == status::bad_shape);
  CHECK(round(in, tokens, out, {out.data, 4, 31, 32}) == status::bad_shape);
  CHECK(round(in, {true, -1.0f, 32, nullptr}, out) == status::bad_shape);
  CHECK(round(in, {true, not_a_number, 32, nullptr}, out) == status::bad_shape);
  CHECK(round(in, {true, std::numeric_limits<float>::infinity(), 32, nullptr}, out) == status::bad_shape);
  CHECK(round(in, {true, 0, 0, nullptr}, out) == status::bad_group);
  CHECK(round(in, {true, 1.0f, 0, nullptr}, out) == status::ok);
  CHECK(round({askew(in.data), 4, 32}, tokens, out) == status::misaligned);
  CHECK(round(in, tokens, {askew(out.data), 4, 32}) == status::misaligned);
  CHECK(round(in, tokens, out, {askew(out.data), 4, 32}) == status::misaligned);
  CHECK(round(in, {true, 0, 32, askew(by.data())}, out) == status::misaligned);
  CHECK(round({nullptr, 0, 32}, tokens, {}) == status::ok);
  CHECK(round({in.data, index_t{1} << 40, 32}, tokens, {out.data, index_t{1} << 40, 32}) == status::too_large);
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device old(sm);
    CHECK(round(in, tokens, out) == status::unsupported_device);
  }
#endif
}

}  // namespace rounding_tests
