// SPDX-License-Identifier: Apache-2.0
/// @file
/// Numbers of ranges, histograms and thresholds. By the arithmetic beside them, not by a bench.
#pragma once

#include "nibble/kernels/tuning.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace tuning {

struct histogram_policy {
  int across,
      down;        ///< threads of a block: 16 bytes of columns each, and every `down`-th token; a power of two together
  int ahead;       ///< tokens that a thread loads before it uses the first
  int tokens;      ///< of a block
  int joining;     ///< threads of the one block that joins what blocks found, widens a histogram or looks through one
  int candidates;  ///< thresholds of a block, one a thread
};

/// A block counts 65536 activations in bf16 into 8 KiB of its own before it adds 2048 bins to global memory: 3 % of its atomics.
/// 2048 × 14336 activations are 448 blocks, three on each SM of an H200. A histogram's thresholds are 16 blocks.
struct histogram {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr histogram_policy operator()(int) const { return {32, 8, 4, 256, 256, 128}; }
};

}  // namespace tuning
NIBBLE_NAMESPACE_END
