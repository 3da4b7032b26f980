// SPDX-License-Identifier: Apache-2.0
/// @file
/// Numbers of awq's kernels. By the arithmetic beside them, not by a bench.
#pragma once

#include "nibble/kernels/tuning.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace tuning {

struct awq_policy {
  int threads;       ///< of a block that streams weights
  int across, down;  ///< threads of a block that sums columns
  int rows;          ///< of W that such a block sums. Part of the order of the sums
  int loss_rows;     ///< rows of ΔW whose product with G is in the workspace at once
};

/// Products of 1024 rows by 14336² take 0.6 ms at 700 TFLOP/s, far more than a launch, and 59 MB.
struct awq {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr awq_policy operator()(int) const { return {256, 32, 8, 256, 1024}; }
};

struct clip_policy {
  int threads;  ///< of a block, 4 rows × 8 columns of a product each
  int depth;    ///< channels of a group a block multiplies at a time where the group has more than 128
};

/// 32 products a thread for every 3 loads of 16 bytes. A block of groups of 128 takes 98.5 KiB of shared memory, which an SM with 100 has
/// once; held to the 128 registers a thread that two blocks leave, it spills.
struct clip {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr clip_policy operator()(int) const { return {256, 32}; }
};

struct sweep_policy {
  int warps;  ///< of a block, a row of W each
  int rows;   ///< of W whose products with G are in the workspace at once
};

struct sweep {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr sweep_policy operator()(int) const { return {8, 1024}; }
};

}  // namespace tuning
NIBBLE_NAMESPACE_END
