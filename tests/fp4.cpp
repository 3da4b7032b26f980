// SPDX-License-Identifier: Apache-2.0
#include "nibble/fp4.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <utility>

#include "nibble/host/fp4.hpp"
#include "nibble/reference/fp4.hpp"
#include "support/golden.hpp"
#include "support/weights.hpp"

namespace fp4_tests {

using namespace nibble;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

uint32_t hexadecimal(const std::string& text, std::size_t i, std::size_t digits) {
  return static_cast<uint32_t>(std::stoul(text.substr(i * digits, digits), nullptr, 16));
}

template <class T>
bool same_bytes(const owned<T>& a, const owned<T>& b) {
  return a.data.size() == b.data.size() &&
         (a.data.empty() || std::memcmp(static_cast<const void*>(a.data.data()),
                                        static_cast<const void*>(b.data.data()), a.data.size() * sizeof(T)) == 0);
}

/// The nearest scale that f can store is the block's, every code the nearest to its number, by the mathematics.
template <class T, class BlockFormat>
void mathematics_agree(const owned<T>& w, const owned<uint8_t>& packed, const owned<uint8_t>& scales,
                       const owned<T>& back, BlockFormat f) {
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t first = 0; first < w.cols; first += f.block) {
      const index_t last = std::min(w.cols, first + f.block);
      float amax = 0.0f;
      for (index_t col = first; col < last; ++col) {
        const float x = std::fabs(static_cast<float>(w.view()(row, col)));
        if (is_finite(x)) amax = std::max(amax, x);
      }
      const uint8_t scale_code = block_scale_code(amax, f);
      REQUIRE(int(scale_code) == int(scales.view()(row, first / f.block)));
      const float scale = block_scale(scale_code, f);
      for (index_t col = first; col < last; ++col) {
        const uint8_t code = fp4_code(static_cast<float>(w.view()(row, col)), scale);
        REQUIRE(int(code) == (packed.view()(row, col / 2) >> 4 * (col % 2) & 15));
        const T value = back.view()(row, col), expected = T(fp4_value(code, scale));
        REQUIRE(std::memcmp(&value, &expected, sizeof(T)) == 0);
      }
    }
}

template <class T, class BlockFormat>
void columns_agree(index_t rows, index_t cols, BlockFormat f) {
  CAPTURE(rows, cols, f.block);
  const auto w = nasty_weights<T>(rows, cols);
  owned<uint8_t> packed(rows, ceil_div(cols, 2)), scales(rows, ceil_div(cols, f.block)), host_packed = packed,
                                                                                         host_scales = scales;
  reference::fit_quantize_pack(w.view(), packed.view(), scales.view(), f);
  host::fit_quantize_pack(w.view(), host_packed.view(), host_scales.view(), f);
  REQUIRE(host_scales.data == scales.data);
  REQUIRE(host_packed.data == packed.data);
  owned<T> back(rows, cols), host_back(rows, cols);
  reference::unpack_dequantize(std::as_const(packed).view(), std::as_const(scales).view(), back.view(), f);
  host::unpack_dequantize(std::as_const(packed).view(), std::as_const(scales).view(), host_back.view(), f);
  REQUIRE(same_bytes(back, host_back));
  mathematics_agree(w, packed, scales, back, f);
}

template <class T>
void all_formats_agree(index_t rows, index_t cols) {
  columns_agree<T>(rows, cols, mxfp4{});
  columns_agree<T>(rows, cols, mxfp4{mx_rounding::down});
  columns_agree<T>(rows, cols, nvfp4{});
  columns_agree<T>(rows, cols, nvfp4_of(0.07f, dtype::bf16));
  columns_agree<T>(rows, cols, nvfp4_of(3e38f));
  columns_agree<T>(rows, cols, nvfp4_of(1e-30f));
}

template <class T, class BlockFormat>
void golden_agrees(const nlohmann::json& made, const owned<T>& w, BlockFormat f) {
  owned<uint8_t> packed(w.rows, w.cols / 2), scales(w.rows, w.cols / f.block);
  owned<bf16> back(w.rows, w.cols);
  host::fit_quantize_pack(w.view(), packed.view(), scales.view(), f);
  host::unpack_dequantize(std::as_const(packed).view(), std::as_const(scales).view(), back.view(), f);
  const auto stored_scales = made["scales"].get<std::string>(), stored = made["packed"].get<std::string>(),
             values = made["back"].get<std::string>();
  REQUIRE(stored_scales.size() == 2 * scales.data.size());
  REQUIRE(stored.size() == 2 * packed.data.size());
  for (std::size_t i = 0; i < scales.data.size(); ++i) {
    CAPTURE(i);
    REQUIRE(uint32_t(scales.data[i]) == hexadecimal(stored_scales, i, 2));
  }
  for (std::size_t i = 0; i < packed.data.size(); ++i) {
    CAPTURE(i);
    REQUIRE(uint32_t(packed.data[i]) == hexadecimal(stored, i, 2));
  }
  for (std::size_t i = 0; i < back.data.size(); ++i) {
    CAPTURE(i);
    REQUIRE(uint32_t(back.data[i].bits) == hexadecimal(values, i, 4));
  }
}

}  // namespace

TEST_CASE("the scale of an mxfp4 block is the power of two of its definition for every exponent and both roundings") {
  for (int exponent = -126; exponent <= 127; ++exponent)
    for (const double part : {1.0, 1.2, 1.5, 1.7499, 1.75, 1.9999}) {
      const auto amax = static_cast<float>(std::ldexp(part, exponent));
      CAPTURE(exponent, part);
      const int down = std::max(exponent - 2 + 127, 0), up = part >= 1.75 ? std::max(exponent - 1 + 127, 0) : down;
      REQUIRE(int(block_scale_code(amax, mxfp4{mx_rounding::down})) == down);
      REQUIRE(int(block_scale_code(amax, mxfp4{mx_rounding::nearest})) == up);
    }
  for (const float amax : {0.0f, 1e-45f, 1e-40f, 2e-38f}) REQUIRE(int(block_scale_code(amax, mxfp4{})) <= 1);
  for (int code = 0; code < 255; ++code)
    REQUIRE(static_cast<double>(block_scale(static_cast<uint8_t>(code), mxfp4{})) == std::ldexp(1.0, code - 127));
  REQUIRE(std::isnan(block_scale(255, mxfp4{})));
}

TEST_CASE("the scales of nvfp4 blocks fill e4m3 up to its end, and none is zero") {
  for (const float tensor : {1e-38f, 1e-20f, 0.07f, 1.0f, 3e4f, 3e38f}) {
    const auto f = nvfp4_of(tensor);
    CAPTURE(tensor, f.global);
    REQUIRE(std::isfinite(f.global));
    REQUIRE(f.global > 0.0f);
    if (tensor > 1e-34f) {
      REQUIRE(int(block_scale_code(tensor, f)) == 0x7e);
      REQUIRE(int(fp4_code(tensor, block_scale(0x7e, f))) == 7);
    }
    for (const float share : {0.0f, 1e-9f, 1e-4f, 0.1f, 1.0f}) {
      const float scale = block_scale(block_scale_code(tensor * share, f), f);
      REQUIRE(scale > 0.0f);
      REQUIRE(std::isfinite(scale));
    }
  }
  REQUIRE(nvfp4_of(0.0f).global == 1.0f);
  REQUIRE(nvfp4_of(inf).global > 0.0f);
}

TEST_CASE("block scales, packed codes and numbers read back are those of compressed-tensors and llm-compressor") {
  const auto made = golden("fp4/compressed_tensors.json");
  const auto& weights = made["weights"];
  REQUIRE(made["cases"].size() == 8);
  for (const auto& one : made["cases"]) {
    const bool brain = one["dtype"] == "bf16", mx = one["format"] == "mxfp4";
    CAPTURE(brain, mx, one["rows"].size());
    const auto rows = static_cast<index_t>(one["rows"].size());
    owned<float> w(rows, 64);
    float amax = 0.0f;
    for (index_t row = 0; row < rows; ++row)
      for (index_t col = 0; col < 64; ++col) {
        const auto bits = weights[one["rows"][std::size_t(row)].get<std::size_t>()][std::size_t(col)].get<uint32_t>();
        const float x = round_to(brain ? dtype::bf16 : dtype::f32, bit_cast<float>(bits));
        w.view()(row, col) = x;
        amax = std::max(amax, std::fabs(x));
      }
    if (mx) {
      golden_agrees(one, w, mxfp4{});
      continue;
    }
    const auto f = nvfp4_of(amax, brain ? dtype::bf16 : dtype::f32);
    REQUIRE(bit_cast<uint32_t>(f.global) == one["global"].get<uint32_t>());
    golden_agrees(one, w, f);
  }
}

TEST_CASE("mathematics, reference and host pack the same mxfp4 and nvfp4 blocks for every remainder of the columns") {
  for (index_t cols = 1; cols <= 70; ++cols) {
    columns_agree<float>(3, cols, mxfp4{});
    columns_agree<bf16>(3, cols, nvfp4{});
  }
  for (const index_t cols : {96, 101}) {
    all_formats_agree<float>(11, cols);
    all_formats_agree<bf16>(11, cols);
    all_formats_agree<fp16>(11, cols);
  }
  columns_agree<bf16>(70, 1000, mxfp4{});
  columns_agree<float>(1, 66000, nvfp4{});
  columns_agree<float>(0, 32, mxfp4{});
  columns_agree<float>(32, 0, nvfp4{});
}

TEST_CASE(
    "a block of nothing finite reads back as zeros and infinities, and one infinity does not touch its neighbours") {
  for (const bool all : {true, false}) {
    owned<float> w(1, 32, all ? std::nanf("") : 1.0f);
    w.data[3] = inf;
    w.data[4] = -inf;
    w.data[5] = std::nanf("");
    owned<uint8_t> packed(1, 16), scales(1, 1);
    owned<float> back(1, 32);
    host::fit_quantize_pack(std::as_const(w).view(), packed.view(), scales.view(), mxfp4{});
    host::unpack_dequantize(std::as_const(packed).view(), std::as_const(scales).view(), back.view(), mxfp4{});
    REQUIRE(back.data[0] == (all ? 0.0f : 1.0f));
    REQUIRE(back.data[5] == 0.0f);
    REQUIRE(back.data[3] == (all ? std::ldexp(6.0f, -127) : 1.5f));
    REQUIRE(back.data[4] == -back.data[3]);
  }
}

TEST_CASE("a number in a block reads back within a fifth of itself or a quarter of the scale") {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  owned<float> w(64, 96);
  for (float& x : w.data) x = normal(random);
  const auto bounded = [&](auto f) {
    owned<uint8_t> packed(64, 48), scales(64, 96 / f.block);
    owned<float> back(64, 96);
    host::fit_quantize_pack(std::as_const(w).view(), packed.view(), scales.view(), f);
    host::unpack_dequantize(std::as_const(packed).view(), std::as_const(scales).view(), back.view(), f);
    for (index_t row = 0; row < 64; ++row)
      for (index_t col = 0; col < 96; ++col) {
        const float x = w.view()(row, col), scale = block_scale(scales.view()(row, col / f.block), f);
        if (std::fabs(x) > 6 * scale) continue;
        const float bound = std::max(0.2f * std::fabs(x), 0.25f * scale) * (1 + 1e-5f);
        REQUIRE(std::fabs(back.view()(row, col) - x) <= bound);
      }
  };
  bounded(mxfp4{});
  bounded(mxfp4{mx_rounding::down});
  bounded(nvfp4_of(5.0f));
}

TEST_CASE("a block whose scale is NaN reads back as NaN in every dtype") {
  const auto reads_nan = [](auto zero, auto f, uint8_t nan) {
    using T = decltype(zero);
    const owned<uint8_t> packed(1, 24, 0x35), scales(1, ceil_div(48, f.block), nan);
    owned<T> back(1, 48), host_back(1, 48);
    reference::unpack_dequantize(packed.view(), scales.view(), back.view(), f);
    host::unpack_dequantize(packed.view(), scales.view(), host_back.view(), f);
    for (std::size_t i = 0; i < 48; ++i) {
      REQUIRE(std::isnan(static_cast<float>(back.data[i])));
      REQUIRE(std::isnan(static_cast<float>(host_back.data[i])));
    }
  };
  reads_nan(0.0f, nvfp4{}, uint8_t{0x7f});
  reads_nan(bf16(0.0f), nvfp4{}, uint8_t{0x7f});
  reads_nan(fp16(0.0f), nvfp4{}, uint8_t{0xff});
  reads_nan(fp16(0.0f), mxfp4{}, uint8_t{255});
}

TEST_CASE("packed fp4 codes in views with a stride leave what lies between their rows alone") {
  const owned<float> w(4, 70, 1.0f);
  owned<uint8_t> packed(4, 30, 77), scales(4, 5, 66);
  host::fit_quantize_pack(w.view().cols_at(3, 33), packed.view().cols_at(2, 17), scales.view().cols_at(1, 2), mxfp4{});
  for (index_t row = 0; row < 4; ++row) {
    for (index_t col = 0; col < 30; ++col) {
      const int expected = col < 2 || col >= 19 ? 77 : col == 18 ? 0x06 : 0x66;
      REQUIRE(int(packed.view()(row, col)) == expected);
    }
    for (index_t col = 0; col < 5; ++col) REQUIRE(int(scales.view()(row, col)) == (col == 1 || col == 2 ? 125 : 66));
  }
}

}  // namespace fp4_tests
