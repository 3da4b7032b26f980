// SPDX-License-Identifier: Apache-2.0
// float_formats
// Holds nibble's floating-point codes to the conversions of CUDA's own types, whose host functions need no GPU: all codes read,
// all numbers of 16 bits written, and the floats about every number that a format has and about the middle of any two. Exit status 0
// when all agree.
#include <cuda_fp4.h>
#include <cuda_fp8.h>

#include <cmath>
#include <cstdio>
#include <limits>

#include "nibble/float_code.hpp"
#include "nibble/half.hpp"

using namespace nibble;

namespace {

int disagreements = 0;

void expect(bool same, const char* what, float_format format, double at) {
  if (same || ++disagreements > 20) return;
  std::fprintf(stderr, "%s of format %d differ at %.9g\n", what, static_cast<int>(format), at);
}

uint8_t their_code(float x, float_format format) {
  if (format == float_format::e2m1) return __nv_cvt_float_to_fp4(x, __NV_E2M1, cudaRoundNearest);
  return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, format == float_format::e4m3 ? __NV_E4M3 : __NV_E5M2);
}

float their_value(uint8_t code, float_format format) {
  const __half_raw half = format == float_format::e2m1
                              ? __nv_cvt_fp4_to_halfraw(code, __NV_E2M1)
                              : __nv_cvt_fp8_to_halfraw(code, format == float_format::e4m3 ? __NV_E4M3 : __NV_E5M2);
  return fp16_value(half.x);
}

void compare_code(float x, float_format format) {
  if (is_nan(x) && format == float_format::e2m1) {  // theirs is 6, for want of a NaN; ours 0, as everywhere
    expect(their_code(x, format) == 7 && float_code(x, format) == 0, "codes of NaN", format, x);
    return;
  }
  expect(float_code(x, format) == their_code(x, format), "codes", format, x);
}

void compare_about(float x, float_format format) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float y : {x, std::nextafter(x, infinity), std::nextafter(x, -infinity)}) {
    compare_code(y, format);
    compare_code(-y, format);
  }
}

void compare(float_format format) {
  const int codes = 1 << bits_of(format);
  for (int i = 0; i < codes; ++i) {
    const auto code = static_cast<uint8_t>(i);
    const float ours = float_value(code, format), theirs = their_value(code, format);
    const bool same = is_nan(ours) ? is_nan(theirs) : bit_cast<uint32_t>(ours) == bit_cast<uint32_t>(theirs);
    expect(same, "values", format, i);
    if (!is_finite(ours)) continue;
    compare_about(ours, format);
    const float next = float_value(static_cast<uint8_t>(i + 1), format);
    compare_about(is_finite(next) ? 0.5f * (ours + next) : 1.0625f * ours, format);
  }
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    compare_code(bf16_value(static_cast<uint16_t>(bits)), format);
    compare_code(fp16_value(static_cast<uint16_t>(bits)), format);
  }
  for (uint32_t bits = 0; bits < 0xffff0000u; bits += 9973) compare_code(bit_cast<float>(bits), format);
}

}  // namespace

int main() {
  for (const auto format : {float_format::e4m3, float_format::e5m2, float_format::e2m1}) compare(format);
  if (disagreements > 0) std::fprintf(stderr, "%d disagreements\n", disagreements);
  return disagreements == 0 ? 0 : 1;
}
