// SPDX-License-Identifier: Apache-2.0
/// @file
/// Part of device.cuh: arithmetic that rounds once an operation whatever flags a kernel is compiled with, so that it gives the
/// bits of the reference. A plain a · b + c becomes one fused operation unless --fmad=false says otherwise.
#pragma once

#include "nibble/core.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace device {

// clang-format off
__device__ inline float add(float a, float b) { return __fadd_rn(a, b); }
__device__ inline float subtract(float a, float b) { return __fsub_rn(a, b); }
__device__ inline float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float divide(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline float square_root(float a) { return __fsqrt_rn(a); }
/// a · b + c, rounded once.
__device__ inline float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }

__device__ inline double add(double a, double b) { return __dadd_rn(a, b); }
__device__ inline double subtract(double a, double b) { return __dsub_rn(a, b); }
__device__ inline double multiply(double a, double b) { return __dmul_rn(a, b); }
__device__ inline double divide(double a, double b) { return __ddiv_rn(a, b); }
__device__ inline double square_root(double a) { return __dsqrt_rn(a); }
__device__ inline double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
// clang-format on

/// a^b, rounded once but for one result in 2^27 or so. A C library's powf, and so the executor, is off by up to a unit in the last
/// place: of all that takes part in a reference's results this alone need not have the same bits.
__device__ inline float power(float a, float b) {
  return static_cast<float>(pow(static_cast<double>(a), static_cast<double>(b)));
}

/// 2^x to 2 units in the last place; what is below 2^-126 becomes 0. One instruction, not the same bits everywhere.
__device__ inline float exp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

}  // namespace device
NIBBLE_NAMESPACE_END
