// SPDX-License-Identifier: Apache-2.0
/// @file
/// Numbers of the measures of distortion. By the arithmetic beside them, not by a bench.
#pragma once

#include "nibble/kernels/tuning.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace tuning {

struct distortion_policy {
  int threads;      ///< of a block, a power of two
  int ahead;        ///< rows that a thread loads before it uses the first
  int rounds;       ///< times it does so. Both are part of the order of the sums
  int row_threads;  ///< of the block that has a row of logits
  int row_blocks;   ///< such blocks an SM must be able to hold: asked for none, ptxas 13.0 spills to hold three
};

/// A block of 256 threads has 32,768 pairs of bf16, 16,384 of float: 1,792 or 3,584 blocks of a 4096 × 14336 matrix.
struct distortion {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr distortion_policy operator()(int) const { return {256, 4, 4, 512, 2}; }
};

}  // namespace tuning
NIBBLE_NAMESPACE_END
