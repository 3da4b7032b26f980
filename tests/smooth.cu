// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/smooth.cuh"

#include <cmath>
#include <limits>

#include "nibble/reference/smooth.hpp"
#include "support/device.hpp"

namespace smooth_tests {

using namespace nibble;
using namespace nibble::test;

namespace {

constexpr activation_rule rules[] = {{}, vllm_activations, vllm_cpu_activations, {-128, activation_ratio::quotient}};

/// How the matrices lie in memory: elements between rows beyond the columns, and before the first.
struct place {
  index_t padding = 0, offset = 0;
};

template <class T>
owned<uint8_t> expected_codes(const owned<T>& x, const owned<float>& scales, bool dynamic, activation_rule rule) {
  owned<uint8_t> q(x.rows, x.cols);
  for (index_t t = 0; t < x.rows; ++t) {
    float amax = 0;
    for (index_t j = 0; j < x.cols; ++j) amax = max(amax, nibble::abs(observed(static_cast<float>(x.view()(t, j)))));
    const activation_rule used = dynamic ? rule : under_static_scale(rule);
    const float factor = activation_factor(scales.view()(scales.rows == 1 ? 0 : t, 0), amax, used);
    for (index_t j = 0; j < x.cols; ++j)
      q.view()(t, j) = activation_code(static_cast<float>(x.view()(t, j)), factor, used);
  }
  return q;
}

template <class T>
void activations_agree(const owned<T>& x, place x_at = {}, place q_at = {}, activation_rule rule = {}) {
  CAPTURE(x.rows, x.cols, int(dtype_of<T>::value), x_at.padding, x_at.offset, q_at.padding, q_at.offset, rule.least,
          int(rule.ratio));
  owned<float> scales(x.rows, 1);
  owned<uint8_t> q(x.rows, x.cols);
  reference::quantize_tokens(x.view(), scales.view(), q.view());
  if (rule.least != -127 || rule.ratio != activation_ratio::quotient) q = expected_codes(x, scales, true, rule);

  const device_matrix<T> there(x, x.cols + x_at.padding, x_at.offset);
  const device_matrix<float> found(x.rows, 1, 3, 1);
  const device_matrix<uint8_t> codes(x.rows, x.cols, x.cols + q_at.padding, q_at.offset);
  REQUIRE(kernels::quantize_tokens(there.const_view(), found.view(), codes.view(), rule, nullptr) == status::ok);
  REQUIRE(same_bytes(found.download(), scales));
  REQUIRE(codes.download().data == q.data);

  const owned<float> one(1, 1, 0.013f);
  for (const auto& given : {scales, one}) {
    const device_matrix<float> given_there(given);
    const device_matrix<uint8_t> again(x.rows, x.cols, x.cols + q_at.padding, q_at.offset);
    REQUIRE(kernels::quantize_activations(there.const_view(), given_there.const_view(), again.view(), rule, nullptr) ==
            status::ok);
    REQUIRE(again.download().data == expected_codes(x, given, false, rule).data);
  }
}

/// Codes, all of them, of activations from 1 on; their scales.
struct codes_of {
  owned<uint8_t> x, w;
  owned<float> scales;
  owned<params> p;

  codes_of(index_t m, index_t n, index_t k, bool one_scale = false)
      : x(m, k), w(n, k), scales(one_scale ? 1 : m, 1), p(n, 1, params{1.0f, 128}) {
    std::mt19937 engine(static_cast<unsigned>(m + 64 * n + 4096 * k));
    for (uint8_t& code : x.data) code = static_cast<uint8_t>(1 + engine() % 255);
    for (uint8_t& code : w.data) code = static_cast<uint8_t>(engine() % 256);
    for (float& scale : scales.data) scale = 0.01f + static_cast<float>(engine() % 99) / 1000;
    for (params& of : p.data) of.scale = 0.001f + static_cast<float>(engine() % 99) / 10000;
  }
};

template <class To>
owned<To> expected_product(const codes_of& c) {
  owned<To> y(c.x.rows, c.w.rows);
  for (index_t t = 0; t < c.x.rows; ++t)
    for (index_t i = 0; i < c.w.rows; ++i) {
      int32_t sum = 0;
      for (index_t j = 0; j < c.x.cols; ++j)
        sum += (int32_t(c.x.view()(t, j)) - 128) * (int32_t(c.w.view()(i, j)) - 128);
      y.view()(t, i) = To(int8_output(sum, c.scales.view()(c.scales.rows == 1 ? 0 : t, 0), c.p.view()(i, 0).scale));
    }
  return y;
}

template <class To = float>
void products_agree(const codes_of& c, place x_at = {}, place w_at = {}, place y_at = {}) {
  CAPTURE(c.x.rows, c.w.rows, c.x.cols, x_at.padding, x_at.offset, w_at.padding, w_at.offset);
  const device_matrix<uint8_t> x(c.x, c.x.cols + x_at.padding, x_at.offset);
  const device_matrix<uint8_t> w(c.w, c.w.cols + w_at.padding, w_at.offset);
  const device_matrix<float> scales(c.scales, 2);
  const device_matrix<params> p(c.p, 2);
  const device_matrix<To> y(c.x.rows, c.w.rows, c.w.rows + y_at.padding, y_at.offset);
  REQUIRE(kernels::int8_matmul(x.const_view(), scales.const_view(), w.const_view(), p.const_view(), y.view(),
                               nullptr) == status::ok);
  REQUIRE(same_bytes(y.download(), expected_product<To>(c)));
}

}  // namespace

TEST_CASE("smoothing scales of a device are the reference's within the bound of smooth_scale, for every length") {
  for (const index_t k : {1, 31, 256, 257, 700}) {
    owned<float> activation(1, k), weight(1, k);
    for (index_t j = 0; j < k; ++j) {
      activation.data[static_cast<size_t>(j)] =
          j % 7 == 0 ? 0.0f : std::ldexp(1.0f + 0.01f * static_cast<float>(j % 90), static_cast<int>(j % 20) - 10);
      weight.data[static_cast<size_t>(j)] = j % 11 == 0 ? 0.0f : 0.003f * static_cast<float>(j % 50);
    }
    const device_array<float> a(activation.data), w(weight.data), s(k);
    for (const float alpha : {0.0f, 0.5f, 0.8f, 1.0f}) {
      REQUIRE(kernels::smooth_scales(a.data(), w.data(), alpha, k, s.data(), nullptr) == status::ok);
      const auto got = s.download();
      const auto exact = reference::smooth_scales<float>(activation.data, {weight.view()}, static_cast<double>(alpha));
      for (size_t j = 0; j < got.size(); ++j) {
        // As tests/smooth.cpp derives it: 1 − α is off by 2^-25, which |ln w| multiplies; two powers and a quotient.
        const double log = std::fabs(std::log(std::max(1e-5, static_cast<double>(weight.data[j]))));
        REQUIRE(std::fabs(static_cast<double>(got[j]) - exact[j]) <= exact[j] * (log * 0x1p-25 + 6 * 0x1p-24));
      }
    }
  }
}

TEST_CASE("activation kernels give the reference's codes and scales for every remainder of columns and tokens") {
  for (index_t cols = 1; cols <= 34; ++cols) {
    const place whole{(8 - cols % 8) % 8};
    activations_agree(nasty_weights<bf16>(3, cols), whole, whole);
    activations_agree(nasty_weights<bf16>(2, cols), whole);
  }
  for (index_t cols = 1; cols <= 20; ++cols) {
    activations_agree(nasty_weights<float>(2, cols), {(4 - cols % 4) % 4}, {(4 - cols % 4) % 4});
    activations_agree(nasty_weights<fp16>(2, cols));
  }
  for (index_t rows = 1; rows <= 18; ++rows) activations_agree(nasty_weights<bf16>(rows, 5));
}

TEST_CASE("activation kernels take tokens that a warp holds, a block holds, and a block reads twice") {
  for (const index_t cols : {255, 256, 257, 1023, 1024, 1025, 8191, 8192, 8193, 8200, 10250}) {
    const place whole{(8 - cols % 8) % 8};
    activations_agree(nasty_weights<bf16>(2, cols), whole, whole);
    activations_agree(nasty_weights<bf16>(2, cols));
  }
  activations_agree(nasty_weights<float>(2, 512));
  activations_agree(nasty_weights<float>(2, 5000));
}

TEST_CASE("a token's greatest activation is found wherever it lies") {
  for (const index_t cols : {257, 1025, 8193, 10241})
    for (const index_t at : {index_t{0}, cols / 2, cols - 2, cols - 1}) {
      CAPTURE(cols, at);
      owned<bf16> x(2, cols, bf16(0.5f));
      x.view()(1, at) = bf16(-8.0f);
      activations_agree(x, {(8 - cols % 8) % 8}, {(8 - cols % 8) % 8});
    }
}

TEST_CASE("activation kernels follow every rule, take any stride and offset") {
  for (const activation_rule rule : rules) {
    activations_agree(nasty_weights<float>(9, 67), {}, {}, rule);
    activations_agree(nasty_weights<bf16>(9, 1031), {}, {}, rule);
  }
  for (const index_t offset : {0, 1, 2, 4, 8})
    for (const index_t padding : {0, 1, 4, 8}) {
      activations_agree(nasty_weights<bf16>(6, 64), {padding, offset});
      activations_agree(nasty_weights<bf16>(6, 64), {}, {padding, offset});
    }
}

TEST_CASE("integer products of few tokens are exact for every remainder of tokens, outputs and inputs") {
  for (index_t k = 0; k <= 40; ++k) products_agree(codes_of(2, 3, k), {(16 - k % 16) % 16}, {(16 - k % 16) % 16});
  for (const index_t k : {127, 128, 129, 255, 256, 257, 400, 528}) {
    products_agree(codes_of(3, 9, k), {(16 - k % 16) % 16}, {(16 - k % 16) % 16});
    products_agree(codes_of(3, 9, k));
  }
  for (index_t m = 1; m <= 16; ++m) products_agree(codes_of(m, 5, 48, m % 2 == 0));
  for (const index_t n : {1, 7, 8, 9, 16, 17, 31, 33, 63, 64, 65, 129}) products_agree(codes_of(2, n, 32));
}

TEST_CASE("integer products of many tokens are exact for every remainder of tokens, outputs and inputs") {
  products_agree(codes_of(17, 5, 64));
  products_agree(codes_of(33, 40, 80, true));
  products_agree(codes_of(65, 33, 47));
  products_agree(codes_of(127, 9, 16));
  products_agree(codes_of(129, 129, 130));
  products_agree(codes_of(40, 128, 272));
}

TEST_CASE("integer products take any stride and offset, and round to every dtype") {
  for (const index_t offset : {0, 1, 4, 16})
    for (const index_t padding : {0, 3, 16}) {
      products_agree(codes_of(3, 10, 48), {padding, offset});
      products_agree(codes_of(3, 10, 48), {}, {padding, offset}, {padding, offset});
    }
  for (const index_t m : {5, 20}) {
    products_agree<fp16>(codes_of(m, 11, 48), {}, {}, {2, 1});
    products_agree<bf16>(codes_of(m, 11, 48), {}, {}, {3, 3});
  }
}

TEST_CASE("integer sums of as many inputs as there may be are exact at both ends of the codes") {
  codes_of c(2, 1, int8_inputs);
  std::fill_n(c.x.data.begin(), int8_inputs, uint8_t(1));
  std::fill(c.w.data.begin(), c.w.data.end(), uint8_t(0));
  products_agree(c);
}

TEST_CASE("codes, scales and products are the same under every schedule and on every architecture") {
  on_architectures([] {
    under_schedules(3, [] {
      activations_agree(nasty_weights<bf16>(3, 1500), {4}, {4});
      products_agree(codes_of(9, 70, 400));
      products_agree(codes_of(20, 12, 272));
    });
  });
}

TEST_CASE("kernels of smooth have nothing to do in empty matrices, and give no inputs a product of 0") {
  const matrix<const float> none(nullptr, 0, 8), narrow(nullptr, 2, 0);
  const device_matrix<float> scales(2, 1);
  REQUIRE(kernels::smooth_scales(nullptr, nullptr, 0.5f, 0, nullptr, nullptr) == status::ok);
  REQUIRE(kernels::quantize_tokens(none, {nullptr, 0, 1}, {nullptr, 0, 8}, {}, nullptr) == status::ok);
  REQUIRE(kernels::quantize_activations(none, {nullptr, 0, 1}, {nullptr, 0, 8}, {}, nullptr) == status::ok);
  REQUIRE(kernels::quantize_activations(narrow, scales, {nullptr, 2, 0}, {}, nullptr) == status::ok);
  REQUIRE(kernels::quantize_tokens(narrow, scales.view(), {nullptr, 2, 0}, {}, nullptr) == status::ok);
  REQUIRE(scales.download().data == std::vector<float>(2, 0x1p-126f));
  REQUIRE(kernels::int8_matmul({nullptr, 0, 8}, {nullptr, 0, 1}, {nullptr, 0, 8}, {nullptr, 0, 1},
                               matrix<float>(nullptr, 0, 0), nullptr) == status::ok);
  products_agree(codes_of(2, 3, 0));
}

TEST_CASE("launchers of activations refuse what they cannot do, and say why") {
  const device_matrix<float> x(4, 32), scales(4, 1);
  const device_matrix<uint8_t> q(4, 32);
  const auto both = [&](matrix<const float> x_, matrix<float> s, matrix<uint8_t> q_) {
    const status there = kernels::quantize_tokens(x_, s, q_, {}, nullptr);
    REQUIRE(kernels::quantize_activations(x_, matrix<const float>(s), q_, {}, nullptr) == there);
    return there;
  };
  float* const askew = reinterpret_cast<float*>(reinterpret_cast<char*>(x.view().data) + 2);
  CHECK(both({x.view().data, -1, 32}, scales, q) == status::bad_shape);
  CHECK(both({x.view().data, 4, 32, 31}, scales, q) == status::bad_shape);
  CHECK(both({nullptr, 4, 32}, scales, q) == status::bad_shape);
  CHECK(both(x, scales, {q.view().data, 4, 31}) == status::bad_shape);
  CHECK(both(x, scales, {q.view().data, 3, 32}) == status::bad_shape);
  CHECK(both(x, scales, {q.view().data, 4, 32, 30}) == status::bad_shape);
  CHECK(both(x, scales, {nullptr, 4, 32}) == status::bad_shape);
  CHECK(both(x, {scales.view().data, 3, 1}, q) == status::bad_shape);
  CHECK(both(x, {scales.view().data, 4, 2}, q) == status::bad_shape);
  CHECK(both(x, {nullptr, 4, 1}, q) == status::bad_shape);
  CHECK(both({askew, 4, 32}, scales, q) == status::misaligned);
  CHECK(both(x, {askew, 4, 1}, q) == status::misaligned);
  CHECK(kernels::quantize_tokens(x.const_view(), {scales.view().data, 1, 1}, q.view(), {}, nullptr) ==
        status::bad_shape);
  const index_t many = index_t{1} << 50;
  CHECK(both({x.view().data, many, 1}, {scales.view().data, many, 1}, {q.view().data, many, 1}) == status::too_large);
  CHECK(both({x.view().data, many, 9000}, {scales.view().data, many, 1}, {q.view().data, many, 9000}) ==
        status::too_large);
  const auto s = [&](const float* a, const float* w, index_t k, float* to) {
    return kernels::smooth_scales(a, w, 0.5f, k, to, nullptr);
  };
  float* const there = scales.view().data;
  CHECK(s(there, there, -1, there) == status::bad_shape);
  CHECK(s(nullptr, there, 1, there) == status::bad_shape);
  CHECK(s(there, nullptr, 1, there) == status::bad_shape);
  CHECK(s(there, there, 1, nullptr) == status::bad_shape);
  CHECK(s(askew, there, 1, there) == status::misaligned);
  CHECK(s(there, askew, 1, there) == status::misaligned);
  CHECK(s(there, there, 1, askew) == status::misaligned);
  CHECK(s(there, there, index_t{1} << 50, there) == status::too_large);
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device other(sm);
    CHECK(both(x, scales, q) == status::unsupported_device);
    CHECK(s(there, there, 1, there) == status::unsupported_device);
  }
#endif
}

TEST_CASE("the launcher of integer products refuses what it cannot do, and says why") {
  const device_matrix<uint8_t> x(4, 32), w(6, 32);
  const device_matrix<float> scales(4, 1), y(4, 6);
  const device_matrix<params> p(6, 1);
  const auto multiply = [](matrix<const uint8_t> x_, matrix<const float> s, matrix<const uint8_t> w_,
                           matrix<const params> p_,
                           matrix<float> y_) { return kernels::int8_matmul(x_, s, w_, p_, y_, nullptr); };
  CHECK(multiply({x.view().data, 4, 32, 31}, scales, w, p, y) == status::bad_shape);
  CHECK(multiply({nullptr, 4, 32}, scales, w, p, y) == status::bad_shape);
  CHECK(multiply({x.view().data, 3, 32}, scales, w, p, y) == status::bad_shape);
  CHECK(multiply({x.view().data, 4, 31, 32}, scales, w, p, y) == status::bad_shape);
  CHECK(multiply(x, scales, {w.view().data, 6, 32, 31}, p, y) == status::bad_shape);
  CHECK(multiply(x, scales, {w.view().data, 5, 32}, p, y) == status::bad_shape);
  CHECK(multiply(x, {scales.view().data, 3, 1}, w, p, y) == status::bad_shape);
  CHECK(multiply(x, {scales.view().data, 1, 2}, w, p, y) == status::bad_shape);
  CHECK(multiply(x, {nullptr, 4, 1}, w, p, y) == status::bad_shape);
  CHECK(multiply(x, scales, w, {p.view().data, 5, 1}, y) == status::bad_shape);
  CHECK(multiply(x, scales, w, {p.view().data, 6, 2}, y) == status::bad_shape);
  CHECK(multiply(x, scales, w, {nullptr, 6, 1}, y) == status::bad_shape);
  CHECK(multiply(x, scales, w, p, {y.view().data, 4, 6, 5}) == status::bad_shape);
  CHECK(multiply(x, scales, w, p, {y.view().data, 4, 5}) == status::bad_shape);
  CHECK(multiply({x.view().data, 4, int8_inputs + 1}, scales, {w.view().data, 6, int8_inputs + 1}, p, y) ==
        status::bad_shape);
  const auto askew = [](auto* of) { return reinterpret_cast<decltype(of)>(reinterpret_cast<char*>(of) + 2); };
  CHECK(multiply(x, {askew(scales.view().data), 4, 1}, w, p, y) == status::misaligned);
  CHECK(multiply(x, scales, w, {askew(p.view().data), 6, 1}, y) == status::misaligned);
  CHECK(multiply(x, scales, w, p, {askew(y.view().data), 4, 6}) == status::misaligned);
  const index_t many = index_t{1} << 31, most = index_t{1} << 55;
  CHECK(multiply({x.view().data, many, 1}, {scales.view().data, many, 1}, {w.view().data, many, 1},
                 {p.view().data, many, 1}, {y.view().data, many, many}) == status::too_large);
  CHECK(multiply({x.view().data, 4, 1}, scales, {w.view().data, most, 1}, {p.view().data, most, 1},
                 {y.view().data, 4, most}) == status::too_large);
#if defined(NIBBLE_SIMT)
  for (const int sm : {75, -1}) {
    const pretended_device other(sm);
    CHECK(multiply(x, scales, w, p, y) == status::unsupported_device);
  }
  CHECK(launches_of([&] { return multiply(x, scales, w, p, y); }) == 1);
  CHECK(launches_of([&] {
          return kernels::quantize_tokens(y.const_view(), {scales.view().data, 4, 1},
                                          {const_cast<uint8_t*>(x.view().data), 4, 6}, {}, nullptr);
        }) == 1);
#endif
}

}  // namespace smooth_tests
