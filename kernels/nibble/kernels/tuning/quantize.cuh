// SPDX-License-Identifier: Apache-2.0
/// @file
/// Policies of quantize and dequantize, which only stream: each byte is used once.
#pragma once

#include "nibble/kernels/tuning.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace tuning {

struct quantize_policy {
  int threads;  ///< per block, a power of two
  int rows;  ///< of the matrix a thread works on, one 16-byte access of weights each, all loaded before the first is used
  int any_rows;  ///< the same for a scheme chosen at run time, whose code is several times as long and unrolled as often
};

/// 8 blocks fill an SM with 2048 threads; 4 loads of 16 bytes from each are 128 KiB under way, where some 32 KiB an SM cover
/// the latency of an H200's memory at its full bandwidth. By that arithmetic, not by a bench.
struct quantize {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr quantize_policy operator()(int) const { return {256, 4, 1}; }
};

}  // namespace tuning
NIBBLE_NAMESPACE_END
