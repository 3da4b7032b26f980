// SPDX-License-Identifier: Apache-2.0
/// @file
/// Part of device.cuh: floats to floating-point codes. Source: PTX ISA 7.8, cvt (sm_89 and later), whose rounding,
/// saturation and NaN are those of nibble::float_code.
#pragma once

#include "nibble/core.hpp"
#include "nibble/float_code.hpp"
#include "nibble/float_scheme.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace device {

/// nibble::float_code, by the one instruction where the device and the format have it.
__device__ inline uint8_t float_code(float x, float_format format) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t two;
  if (format == float_format::e4m3) {
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(two) : "f"(0.0f), "f"(x));
    return static_cast<uint8_t>(two);
  }
  if (format == float_format::e5m2) {
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(two) : "f"(0.0f), "f"(x));
    return static_cast<uint8_t>(two);
  }
#endif
  return nibble::float_code(x, format);
}

}  // namespace device
NIBBLE_NAMESPACE_END
