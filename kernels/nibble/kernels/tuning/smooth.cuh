// SPDX-License-Identifier: Apache-2.0
/// @file
/// Policies of activations in int8 and of integer products. By the arithmetic beside them, not by a bench.
#pragma once

#include "nibble/kernels/tuning.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace tuning {

struct smooth_policy {
  int threads;    ///< per block, a power of two of at least 32
  int in_flight;  ///< 16-byte accesses of activations a thread keeps until they are codes
};

/// A block holds a token of 8192 numbers of 16 bits, as fp8's does, and reads it once; a warp one of 1024.
struct smooth {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr smooth_policy operator()(int) const { return {256, 4}; }
};

struct int8_tile {
  int tokens, outputs;  ///< of a block
  int depth;            ///< inputs of a stage, a multiple of 32
  int stages;           ///< in shared memory, of which all but one are under way
  int down, across;     ///< warps over tokens and over outputs: a warp's are multiples of 16
};

/// Threads of a block.
NIBBLE_HOST_DEVICE constexpr int threads_of(int8_tile t) {
  return 32 * t.down * t.across;
}
/// Bytes from a row of a stage to the next: 16 more than its inputs, so that eight rows of 16 bytes lie in all 32 banks once.
NIBBLE_HOST_DEVICE constexpr int stride_of(int8_tile t) {
  return t.depth + 16;
}
NIBBLE_HOST_DEVICE constexpr int stage_bytes(int8_tile t) {
  return (t.tokens + t.outputs) * stride_of(t);
}

struct int8_policy {
  int8_tile large;  ///< for many tokens
  int8_tile small;  ///< for few, who wait for weights
  int few;          ///< most tokens of the small one
};

/// 128 × 128 outputs of a block are 128 operations a byte that it loads, most of which the second-level cache has. A warp's 64 × 32
/// sums are 64 registers. Three stages of 20 KiB leave room for two blocks on an SM of sm_80.
struct int8_matmul {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr int8_policy operator()(int) const {
    return {{128, 128, 64, 3, 2, 4}, {16, 64, 128, 3, 1, 4}, 16};
  }
};

}  // namespace tuning
NIBBLE_NAMESPACE_END
