// SPDX-License-Identifier: Apache-2.0
#include "nibble/fp8.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <utility>

#include "nibble/host/fp8.hpp"
#include "nibble/reference/fp8.hpp"
#include "support/golden.hpp"
#include "support/weights.hpp"

namespace fp8_tests {

using namespace nibble;

namespace {

constexpr float_format formats[] = {float_format::e4m3, float_format::e5m2, float_format::e2m1};
constexpr dtype dtypes[] = {dtype::f32, dtype::f16, dtype::bf16};
constexpr float inf = std::numeric_limits<float>::infinity();

int codes_of(float_format format) {
  return format == float_format::e2m1 ? 16 : 256;
}

bool same_bits(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || bit_cast<uint32_t>(a) == bit_cast<uint32_t>(b);
}

float_format format_named(const std::string& name) {
  return name == "e4m3" ? float_format::e4m3 : float_format::e5m2;
}

dtype dtype_named(const std::string& name) {
  return name == "f32" ? dtype::f32 : name == "f16" ? dtype::f16 : dtype::bf16;
}

/// Number `i`, of `digits` hexadecimal digits each.
uint32_t hexadecimal(const std::string& text, std::size_t i, std::size_t digits) {
  return static_cast<uint32_t>(std::stoul(text.substr(i * digits, digits), nullptr, 16));
}

/// Scales of every magnitude.
owned<float> some_scales(index_t rows, index_t cols) {
  owned<float> scales(rows, cols, 1.0f);
  const float values[] = {0.01f, 0.0071f, 1.0f, 1e-38f, 3e-6f, 0.5f, 250.0f, 1e-44f, 3e38f};
  for (std::size_t i = 0; i < scales.data.size(); ++i) scales.data[i] = values[i % 9];
  return scales;
}

template <class T>
bool same_bytes(const owned<T>& a, const owned<T>& b) {
  return a.data.size() == b.data.size() &&
         (a.data.empty() || std::memcmp(static_cast<const void*>(a.data.data()),
                                        static_cast<const void*>(b.data.data()), a.data.size() * sizeof(T)) == 0);
}

/// a and b element for element, whichever NaN a NaN is.
template <class T>
bool same_numbers(const owned<T>& a, const owned<T>& b) {
  for (std::size_t i = 0; i < a.data.size(); ++i)
    if (!same_bits(static_cast<float>(a.data[i]), static_cast<float>(b.data[i]))) return false;
  return true;
}

template <class T, class Scheme>
void columns_agree(Scheme s, group_shape g, index_t rows, index_t cols) {
  CAPTURE(int(s.format), int(s.scale_dtype), int(s.compute_dtype), g.rows, g.cols, rows, cols);
  const auto w = nasty_weights<T>(rows, cols);
  owned<float> found(g.down(rows), g.across(cols)), host_found = found;
  reference::fit(w.view(), found.view(), g, s, minmax{});
  host::fit(w.view(), host_found.view(), g, s, minmax{});
  REQUIRE(same_bytes(found, host_found));

  for (const auto& scales : {found, some_scales(g.down(rows), g.across(cols))}) {
    owned<uint8_t> expected(rows, cols), got(rows, cols);
    reference::quantize(w.view(), scales.view(), expected.view(), g, s);
    host::quantize(w.view(), scales.view(), got.view(), g, s);
    REQUIRE(got.data == expected.data);

    owned<T> read_back(rows, cols), host_read_back(rows, cols);
    reference::dequantize(std::as_const(expected).view(), scales.view(), read_back.view(), g, s);
    host::dequantize(std::as_const(expected).view(), scales.view(), host_read_back.view(), g, s);
    REQUIRE(same_numbers(read_back, host_read_back));
    for (index_t row = 0; row < rows; ++row)
      for (index_t col = 0; col < cols; ++col) {
        const float scale = scales.view()(row / g.height(rows), col / g.width(cols));
        const uint8_t code = quantize(static_cast<float>(w.view()(row, col)), scale, s);
        REQUIRE(int(code) == int(expected.view()(row, col)));
        REQUIRE(same_bits(static_cast<float>(read_back.view()(row, col)),
                          static_cast<float>(T(dequantize(code, scale, s)))));
      }
  }
}

}  // namespace

TEST_CASE("every floating-point code has the value of the format's definition and is its own nearest code") {
  for (const auto format : formats)
    for (int code = 0; code < codes_of(format); ++code) {
      CAPTURE(int(format), code);
      const auto bits = static_cast<uint8_t>(code);
      const float value = float_value(bits, format);
      REQUIRE(same_bits(value, reference::float_value(bits, format)));
      REQUIRE(std::signbit(value) == (code >= codes_of(format) / 2));
      if (std::isfinite(value)) {
        REQUIRE(int(float_code(value, format)) == code);
        REQUIRE(int(reference::float_code(value, format)) == code);
      }
    }
  REQUIRE(float_value(0x7e, float_format::e4m3) == largest(float_format::e4m3));
  REQUIRE(float_value(0x7b, float_format::e5m2) == largest(float_format::e5m2));
  REQUIRE(float_value(7, float_format::e2m1) == largest(float_format::e2m1));
}

TEST_CASE("a number between two codes takes the nearer one and a tie the even one") {
  for (const auto format : formats)
    for (int code = 0; float_value(static_cast<uint8_t>(code), format) < largest(format); ++code) {
      CAPTURE(int(format), code);
      const float low = float_value(static_cast<uint8_t>(code), format);
      const float high = float_value(static_cast<uint8_t>(code + 1), format), middle = 0.5f * (low + high);
      const int sign = codes_of(format) / 2, even = code % 2 == 0 ? code : code + 1;
      REQUIRE(int(float_code(middle, format)) == even);
      REQUIRE(int(float_code(-middle, format)) == even + sign);
      REQUIRE(int(float_code(std::nextafter(middle, 0.0f), format)) == code);
      REQUIRE(int(float_code(std::nextafter(middle, inf), format)) == code + 1);
      REQUIRE(int(float_code(-std::nextafter(middle, 0.0f), format)) == code + sign);
      REQUIRE(int(float_code(-std::nextafter(middle, inf), format)) == code + 1 + sign);
    }
}

TEST_CASE("infinities and numbers past the largest saturate, NaN has one code, and zero keeps its sign") {
  for (const auto format : formats) {
    const int sign = codes_of(format) / 2;
    const int last = format == float_format::e4m3 ? 0x7e : format == float_format::e5m2 ? 0x7b : 7;
    for (const float x : {inf, std::numeric_limits<float>::max(), std::nextafter(largest(format), inf),
                          largest(format) * 1.0625f, largest(format) * 2.0f}) {
      REQUIRE(int(float_code(x, format)) == last);
      REQUIRE(int(float_code(-x, format)) == last + sign);
    }
    const int nan = format == float_format::e2m1 ? 0 : 0x7f;
    for (const uint32_t bits : {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffffffffu}) {
      REQUIRE(int(float_code(bit_cast<float>(bits), format)) == nan);
      REQUIRE(int(reference::float_code(bit_cast<float>(bits), format)) == nan);
    }
    REQUIRE(int(float_code(0.0f, format)) == 0);
    REQUIRE(int(float_code(-0.0f, format)) == sign);
    REQUIRE(int(float_code(1e-45f, format)) == 0);
    REQUIRE(int(float_code(-1e-45f, format)) == sign);
  }
}

TEST_CASE("all bfloat16 and fp16 numbers and many floats take the codes that a search among the values finds") {
  std::mt19937 random(3);
  for (const auto format : formats) {
    const auto agrees = [&](float x) { return float_code(x, format) == reference::float_code(x, format); };
    uint32_t wrong = 0;
    for (uint32_t bits = 0; bits < 65536; ++bits)
      wrong += !agrees(bf16_value(static_cast<uint16_t>(bits))) + !agrees(fp16_value(static_cast<uint16_t>(bits)));
    for (int i = 0; i < 200000; ++i) wrong += !agrees(bit_cast<float>(static_cast<uint32_t>(random())));
    REQUIRE(wrong == 0);
  }
}

TEST_CASE("codes and values are those of torch's float8 types") {
  const auto made = golden("fp8/torch.json");
  for (const std::string name : {"e4m3", "e5m2"}) {
    const auto format = format_named(name);
    const auto values = made[name]["values"].get<std::string>();
    for (uint32_t code = 0; code < 256; ++code) {
      CAPTURE(name, code);
      const auto expected = bit_cast<float>(hexadecimal(values, code, 8));
      REQUIRE(same_bits(float_value(static_cast<uint8_t>(code), format), expected));
    }
    const auto& runs = made[name]["runs"];
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const uint32_t first = runs[i][0], code = runs[i][1];
      const uint32_t last = first < 0x8000 ? 0x7f80 : 0xff80;
      const uint32_t end = i + 1 < runs.size() && runs[i + 1][0] < last ? runs[i + 1][0].get<uint32_t>() : last + 1;
      for (uint32_t bits = first; bits < end; ++bits) {
        CAPTURE(name, bits);
        REQUIRE(uint32_t(float_code(bf16_value(static_cast<uint16_t>(bits)), format)) == code);
      }
    }
    for (const uint32_t code : made[name]["nan"]) REQUIRE(std::isnan(float_value(static_cast<uint8_t>(code), format)));
  }
}

TEST_CASE("scales, codes and weights read back are those of compressed-tensors and llm-compressor") {
  const auto weights = golden("fit/weights.json")["weights"];
  const auto rows = static_cast<index_t>(weights.size()), cols = static_cast<index_t>(weights[0].size());
  const auto cases = golden("fp8/compressed_tensors.json")["cases"];
  REQUIRE(cases.size() == 12);
  for (const auto& made : cases) {
    any_float_scheme s;
    s.scale_dtype = s.compute_dtype = dtype_named(made["dtype"]);
    const group_shape g{made["group"][0], made["group"][1]};
    CAPTURE(made["strategy"].get<std::string>(), made["dtype"].get<std::string>());
    owned<float> w(rows, cols), scales(g.down(rows), g.across(cols)), back(rows, cols);
    for (index_t row = 0; row < rows; ++row)
      for (index_t col = 0; col < cols; ++col)
        w.view()(row, col) = round_to(s.compute_dtype, weights[std::size_t(row)][std::size_t(col)]);
    owned<uint8_t> codes(rows, cols);
    host::fit(std::as_const(w).view(), scales.view(), g, s, minmax{});
    host::quantize(std::as_const(w).view(), std::as_const(scales).view(), codes.view(), g, s);
    host::dequantize(std::as_const(codes).view(), std::as_const(scales).view(), back.view(), g, s);
    REQUIRE(made["scales"].size() == scales.data.size());
    for (std::size_t i = 0; i < scales.data.size(); ++i)
      REQUIRE(bit_cast<uint32_t>(scales.data[i]) == made["scales"][i].get<uint32_t>());
    const auto expected = made["codes"].get<std::string>();
    for (std::size_t i = 0; i < codes.data.size(); ++i) REQUIRE(uint32_t(codes.data[i]) == hexadecimal(expected, i, 2));
    if (!made.contains("back")) continue;
    const auto values = made["back"].get<std::string>();
    for (std::size_t i = 0; i < back.data.size(); ++i)
      REQUIRE(bit_cast<uint32_t>(back.data[i]) == hexadecimal(values, i, 8));
  }
}

TEST_CASE("mathematics, reference and host find the same scales, codes and read-back numbers in every format") {
  const group_shape shapes[] = {per_tensor, per_channel, per_group(32), per_group(19), per_group(1), {3, 7}, {-1, 16}};
  int turn = 0;
  for (const auto format : formats)
    for (const auto scale : dtypes)
      for (const auto compute : dtypes) {
        const any_float_scheme s{format, scale, compute};
        const group_shape g = shapes[turn++ % 7];
        const index_t cols = 61 + turn % 40;
        columns_agree<float>(s, g, 11, cols);
        columns_agree<bf16>(s, g, 11, cols);
        columns_agree<fp16>(s, g, 11, cols);
      }
  for (const group_shape g : shapes) {
    columns_agree<bf16>(float_scheme<float_format::e4m3>{}, g, 12, 100);
    columns_agree<fp16>(float_scheme<float_format::e5m2, dtype::f16, dtype::f16>{}, g, 12, 100);
  }
}

TEST_CASE("floating-point codes of many tiles, blocks of 128 by 128, one row, one column or nothing") {
  const any_float_scheme s;
  columns_agree<bf16>(s, {128, 128}, 200, 300);
  columns_agree<bf16>(s, per_channel, 70, 1000);
  columns_agree<bf16>(s, per_tensor, 300, 1000);
  columns_agree<float>(s, per_channel, 1, 66000);
  columns_agree<fp16>(s, per_channel, 300, 1);
  columns_agree<float>(s, per_tensor, 0, 5);
  columns_agree<float>(s, per_group(4), 5, 0);
}

TEST_CASE("floating-point codes in a view with a stride leave what lies between its rows alone") {
  const owned<float> w(4, 10, 1.0f), scales(4, 1, 1.0f);
  owned<uint8_t> q(4, 12, 77);
  host::quantize(w.view().cols_at(2, 5), scales.view(), q.view().cols_at(1, 5), per_channel, any_float_scheme{});
  for (index_t row = 0; row < 4; ++row)
    for (index_t col = 0; col < 12; ++col) REQUIRE(int(q.view()(row, col)) == (col >= 1 && col < 6 ? 0x38 : 77));
}

TEST_CASE("every scale of floating-point codes is finite and above zero, whatever the group holds") {
  for (const auto format : formats)
    for (const auto scale : dtypes)
      for (const auto compute : dtypes)
        for (const float amax : {0.0f, 1e-45f, 1e-40f, 1e-30f, 6e-8f, 1.0f, 65504.0f, 3e38f, inf, std::nanf("")}) {
          const float found = fit(amax, any_float_scheme{format, scale, compute});
          CAPTURE(int(format), int(scale), int(compute), amax, found);
          REQUIRE(std::isfinite(found));
          REQUIRE(found > 0.0f);
          REQUIRE(round_to(scale, found) == found);
        }
}

TEST_CASE("a number within the range reads back within half a unit in the last place of its format") {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (const auto format : formats) {
    const any_float_scheme s{format, dtype::f32, dtype::f32};
    const float half_unit = std::ldexp(1.0f, -mantissa_bits(format) - 1), least = float_value(1, format);
    for (int i = 0; i < 20000; ++i) {
      const float x = normal(random), scale = fit(5.0f, s);
      if (std::fabs(x) > 5.0f) continue;
      const float back = dequantize(quantize(x, scale, s), scale, s);
      // The quotient and the product round by 2^-24 each.
      const float bound =
          std::max(half_unit * std::fabs(x), 0.5f * least * scale) * (1.0f + 1e-5f) + 2e-7f * std::fabs(x);
      REQUIRE(std::fabs(back - x) <= bound);
    }
  }
}

}  // namespace fp8_tests
