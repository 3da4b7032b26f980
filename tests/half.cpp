// SPDX-License-Identifier: Apache-2.0
#include "nibble/half.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

namespace half_tests {

using namespace nibble;

TEST_CASE("every fp16 survives the way through float and back") {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = fp16_value(half);
    if (std::isnan(value)) {
      REQUIRE((fp16_bits(value) & 0x7e00u) == 0x7e00u);
      continue;
    }
    REQUIRE(fp16_bits(value) == half);
  }
}

TEST_CASE("every bf16 survives the way through float and back") {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = bf16_value(static_cast<uint16_t>(bits));
    if (!std::isnan(value)) REQUIRE(bf16_bits(value) == bits);
  }
}

TEST_CASE("halfway between two halves goes to the even one, anything beyond to the nearer") {
  for (uint32_t bits = 0; bits < 0x7c00u; ++bits) {
    const auto low = static_cast<uint16_t>(bits), high = static_cast<uint16_t>(bits + 1);
    const float upper = high == 0x7c00u ? 65536.0f : fp16_value(high);
    const float middle = (fp16_value(low) + upper) / 2;  // exact: one more significand bit
    REQUIRE(fp16_bits(middle) == (bits % 2 == 0 ? low : high));
    REQUIRE(fp16_bits(std::nextafter(middle, 0.0f)) == low);
    REQUIRE(fp16_bits(std::nextafter(middle, 1e9f)) == high);
    REQUIRE(fp16_bits(-middle) == (0x8000u | (bits % 2 == 0 ? low : high)));
  }
}

TEST_CASE("round_even equals nearbyint and keeps the sign of zero") {
  for (int64_t step = -70000; step <= 70000; ++step) {
    const float x = static_cast<float>(step) * 0.25f;
    REQUIRE(bit_cast<uint32_t>(round_even(x)) == bit_cast<uint32_t>(std::nearbyint(x)));
  }
  for (const float x : {8388607.5f, 8388608.0f, 1e30f, std::numeric_limits<float>::infinity()}) {
    REQUIRE(round_even(x) == std::nearbyint(x));
    REQUIRE(round_even(-x) == std::nearbyint(-x));
  }
  REQUIRE(std::isnan(round_even(std::nanf(""))));
}

}  // namespace half_tests
