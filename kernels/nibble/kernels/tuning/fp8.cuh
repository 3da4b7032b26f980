// SPDX-License-Identifier: Apache-2.0
/// @file
/// Policies of fit and fit_quantize for floating-point codes; quantize and dequantize stream as those of integers do.
#pragma once

#include "nibble/kernels/tuning.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace tuning {

struct fp8_policy {
  int threads;  ///< per block, a power of two of at least 32
  int in_flight;  ///< 16-byte accesses of weights a thread starts before it uses the first, and keeps until they are codes
};

/// 8 blocks fill an SM with 2048 threads; 4 loads of 16 bytes from each are 128 KiB under way, where some 32 KiB an SM cover
/// the latency of an H200's memory at its full bandwidth. By that arithmetic, not by a bench. So kept, a token of 8192
/// numbers of 16 bits is read once.
struct fp8 {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr fp8_policy operator()(int) const { return {256, 4}; }
};

}  // namespace tuning
NIBBLE_NAMESPACE_END
