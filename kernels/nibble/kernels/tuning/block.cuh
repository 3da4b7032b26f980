// SPDX-License-Identifier: Apache-2.0
/// @file
/// Policies of decoding and encoding ggml's blocks.
#pragma once

#include "nibble/kernels/tuning.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace tuning {

struct block_policy {
  int threads;  ///< per block, a power of two of at least 32
};

/// Reading: a thread makes 16 bytes of weights, which are most of what moves, and 2048 threads an SM keep 32 KiB under way. By that
/// arithmetic, not by a bench.
struct dequantize_blocks {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr block_policy operator()(int) const { return {256}; }
};

}  // namespace tuning
NIBBLE_NAMESPACE_END
