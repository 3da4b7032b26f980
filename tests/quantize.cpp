// SPDX-License-Identifier: Apache-2.0
#include "nibble/quantize.hpp"

#include <catch2/catch.hpp>
#include <limits>
#include <utility>

#include "nibble/host/quantize.hpp"
#include "nibble/reference/quantize.hpp"
#include "support/golden.hpp"
#include "support/weights.hpp"

namespace quantize_tests {

using namespace nibble;

namespace {

constexpr convention conventions[] = {convention::compressed_tensors, convention::autoawq, convention::gptq,
                                      convention::torchao};
constexpr dtype dtypes[] = {dtype::f32, dtype::f16, dtype::bf16};
constexpr float inf = std::numeric_limits<float>::infinity();

dtype dtype_named(const std::string& name) {
  return name == "f32" ? dtype::f32 : name == "f16" ? dtype::f16 : dtype::bf16;
}

/// Parameters of every magnitude, with every zero point in turn.
owned<params> some_params(index_t rows, index_t cols, any_scheme s) {
  owned<params> p(rows, cols, params{});
  const float scales[] = {0.01f, 0.0071f, 1.0f, 1e-38f, 3e-6f, 0.5f, 250.0f, 1e-44f};
  for (std::size_t i = 0; i < p.data.size(); ++i)
    p.data[i] = {scales[i % 8], static_cast<int32_t>(i * 7 % (static_cast<std::size_t>(max_code(s)) + 1))};
  return p;
}

template <class T>
void columns_agree(any_scheme s, group_shape g, index_t rows, index_t cols) {
  const auto w = nasty_weights<T>(rows, cols);
  const auto p = some_params(g.down(rows), g.across(cols), s);
  owned<uint8_t> expected(rows, cols), got(rows, cols);
  reference::quantize(w.view(), p.view(), expected.view(), g, s);
  host::quantize(w.view(), p.view(), got.view(), g, s);
  REQUIRE(got.data == expected.data);

  owned<T> read_back(rows, cols), host_read_back(rows, cols);
  reference::dequantize(std::as_const(expected).view(), p.view(), read_back.view(), g, s);
  host::dequantize(std::as_const(expected).view(), p.view(), host_read_back.view(), g, s);
  for (index_t row = 0; row < rows; ++row)
    for (index_t col = 0; col < cols; ++col) {
      const params of_group = p.view()(row / g.height(rows), col / g.width(cols));
      const auto x = static_cast<float>(w.view()(row, col));
      const uint8_t code = quantize(x, of_group, s);
      REQUIRE(int(code) == int(expected.view()(row, col)));
      const auto wanted = static_cast<float>(T(dequantize(code, of_group, s)));
      REQUIRE(static_cast<float>(read_back.view()(row, col)) == wanted);
      REQUIRE(static_cast<float>(host_read_back.view()(row, col)) == wanted);
    }
}

}  // namespace

TEST_CASE("mathematics, reference and host choose the same codes and read back the same weights") {
  const group_shape shapes[] = {per_tensor, per_channel, per_group(32), per_group(19), per_group(1), {3, 7}, {-1, 16}};
  any_scheme s;
  int turn = 0;
  for (const auto rule : conventions)
    for (const auto compute : dtypes)
      for (const int bits : {1, 2, 3, 4, 5, 6, 7, 8}) {
        s.rule = rule;
        s.compute_dtype = compute;
        s.bits = bits;
        const group_shape g = shapes[turn++ % 7];
        const index_t cols = 61 + turn % 40;
        columns_agree<float>(s, g, 11, cols);
        columns_agree<bf16>(s, g, 11, cols);
        columns_agree<fp16>(s, g, 11, cols);
      }
}

TEST_CASE("quantizing many tiles, one row, one column or nothing is no special case") {
  const any_scheme s;
  columns_agree<bf16>(s, per_group(128), 70, 1000);
  columns_agree<float>(s, per_group(128), 1, 66000);
  columns_agree<float>(s, per_channel, 300, 1);
  columns_agree<float>(s, per_tensor, 0, 5);
  columns_agree<float>(s, per_group(4), 5, 0);
}

TEST_CASE("a view with a stride leaves what lies between its rows alone") {
  owned<float> w(4, 10, 1.0f);
  owned<uint8_t> q(4, 12, 77);
  const owned<params> p(4, 1, params{1.0f, 3});
  host::quantize<any_scheme, float>(w.view().cols_at(2, 5), p.view(), q.view().cols_at(1, 5), per_channel, {});
  for (index_t row = 0; row < 4; ++row)
    for (index_t col = 0; col < 12; ++col) REQUIRE(int(q.view()(row, col)) == (col >= 1 && col < 6 ? 4 : 77));
}

TEST_CASE("every code of every width survives reading back and quantizing again") {
  any_scheme s;
  for (const auto rule : conventions)
    for (const auto compute : dtypes)
      for (int bits = 1; bits <= 8; ++bits) {
        s.rule = rule;
        s.compute_dtype = compute;
        s.bits = bits;
        for (int32_t zero = 0; zero <= max_code(s); ++zero)
          for (int32_t code = 0; code <= max_code(s); ++code)
            for (const float scale : {0.0078125f, 1.0f, 16.0f, 3.0f, 0.1f}) {
              // Narrower dtypes read 8 bits times an odd scale back up to half a step off.
              if (compute != dtype::f32 && (scale == 3.0f || scale == 0.1f)) continue;
              const params p{scale, zero};
              REQUIRE(int(quantize(dequantize(static_cast<uint8_t>(code), p, s), p, s)) == code);
            }
      }
}

TEST_CASE("NaN reads back as zero and infinities saturate by their sign") {
  any_scheme s;
  for (const auto rule : conventions)
    for (const auto compute : dtypes)
      for (const int bits : {1, 2, 3, 4, 5, 6, 8})
        for (int32_t zero = 0; zero < (1 << bits); ++zero) {
          s.rule = rule;
          s.compute_dtype = compute;
          s.bits = bits;
          const params p{0.1f, zero};
          REQUIRE(dequantize(quantize(std::nanf(""), p, s), p, s) == 0.0f);
          REQUIRE(dequantize(quantize(-std::nanf(""), p, s), p, s) == 0.0f);
          REQUIRE(int(quantize(inf, p, s)) == max_code(s));
          REQUIRE(int(quantize(-inf, p, s)) == 0);
          REQUIRE(int(quantize(0.0f, p, s)) == zero);
          REQUIRE(int(quantize(-0.0f, p, s)) == zero);
        }
}

TEST_CASE("a weight inside the range reads back within half a step") {
  // In float: x / scale is off by at most 2^-24 of itself, so by 255 · 2^-24 steps; the zero point's sum by as much
  // again.
  std::mt19937 engine(3);
  std::uniform_real_distribution<float> place(0.0f, 1.0f);
  any_scheme s;
  for (const auto rule : conventions)
    for (const int bits : {2, 3, 4, 5, 6, 8})
      for (int i = 0; i < 2000; ++i) {
        s.rule = rule;
        s.bits = bits;
        const params p{std::exp(20.0f * place(engine) - 15.0f), static_cast<int32_t>(engine()) & max_code(s)};
        const auto top = static_cast<float>(max_code(s));
        const float x = (place(engine) * top - static_cast<float>(p.zero)) * p.scale;
        const float error = std::fabs(dequantize(quantize(x, p, s), p, s) - x);
        REQUIRE(error <= p.scale * (0.5f + 1e-4f));
      }
}

TEST_CASE("adding the zero point before rounding differs exactly at ties with an odd zero") {
  constexpr scheme<4, false, convention::compressed_tensors> before;
  constexpr scheme<4, false, convention::gptq> after;
  static_assert(quantize(0.5f, params{1.0f, 7}, before) == 8, "0.5 − 1 rounds to −0, which is code 8");
  static_assert(quantize(0.5f, params{1.0f, 7}, after) == 7, "0.5 rounds to 0, plus 7");
  for (int32_t zero = 0; zero < 16; ++zero)
    for (int step = -40; step <= 40; ++step) {
      const float x = static_cast<float>(step) * 0.25f;
      const params p{1.0f, zero};
      const bool tie = step % 4 == 2 || step % 4 == -2;
      const float unrounded = x + static_cast<float>(zero);
      const bool inside = unrounded > 0.0f && unrounded < 15.0f;
      const bool differ = quantize(x, p, before) != quantize(x, p, after);
      REQUIRE(differ == (tie && inside && zero % 2 != 0));
    }
}

TEST_CASE("a scheme known at compile time gives the codes of the same scheme chosen at run time") {
  constexpr scheme<3, true, convention::compressed_tensors, dtype::bf16, dtype::bf16> fixed;
  any_scheme chosen;
  chosen.bits = 3;
  chosen.symmetric = true;
  chosen.scale_dtype = chosen.compute_dtype = dtype::bf16;
  for (float x = -2.0f; x < 2.0f; x += 0.001f) {
    const params p{0.0859375f, 4};
    REQUIRE(quantize(x, p, fixed) == quantize(x, p, chosen));
    REQUIRE(dequantize(quantize(x, p, fixed), p, fixed) == dequantize(quantize(x, p, chosen), p, chosen));
  }
}

namespace {

/// Codes of a golden file's cases from its own scales and zero points.
void golden_codes(const std::string& file, convention rule) {
  const auto source = golden("fit/weights.json")["weights"];
  const auto cases = golden("fit/" + file)["cases"];
  int checked = 0;
  for (const auto& of : cases) {
    if (!of.contains("codes")) continue;
    any_scheme s;
    s.rule = rule;
    s.bits = of["bits"];
    s.symmetric = of["symmetric"];
    s.scale_dtype = s.compute_dtype = dtype_named(of["dtype"]);
    const index_t group = of["group"] == 0 ? index_t(64) : of["group"].get<index_t>();
    const group_shape g = per_group(group);
    owned<float> w(8, 64);
    owned<params> p(8, g.across(64), params{});
    for (index_t i = 0; i < 512; ++i) w.data[i] = round_to(s.compute_dtype, source[i / 64][i % 64].get<float>());
    for (std::size_t i = 0; i < p.data.size(); ++i)
      p.data[i] = {round_to(s.scale_dtype, of["scales"][i].get<float>()), of["zeros"][i].get<int32_t>()};
    owned<uint8_t> q(8, 64);
    host::quantize(std::as_const(w).view(), std::as_const(p).view(), q.view(), g, s);
    const std::string text = of["codes"];
    const std::size_t digits = text.size() / 512;
    for (std::size_t i = 0; i < 512; ++i) {
      INFO(file << " bits " << s.bits << " symmetric " << s.symmetric << " " << of["dtype"] << " group " << group
                << " element " << i);
      REQUIRE(int(q.data[i]) == std::stoi(text.substr(i * digits, digits), nullptr, 16));
    }
    ++checked;
  }
  REQUIRE(checked >= 12);
}

}  // namespace

TEST_CASE("codes equal those of compressed-tensors in fp32, bf16 and fp16") {
  golden_codes("compressed_tensors.json", convention::compressed_tensors);
}
TEST_CASE("codes equal those of AutoAWQ in fp32 and fp16") {
  golden_codes("autoawq.json", convention::autoawq);
}
TEST_CASE("codes equal those of GPTQModel") {
  golden_codes("gptqmodel.json", convention::gptq);
}

}  // namespace quantize_tests
