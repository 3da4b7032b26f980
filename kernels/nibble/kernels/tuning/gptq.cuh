// SPDX-License-Identifier: Apache-2.0
/// @file
/// Numbers of gptq's kernels. By the arithmetic beside them, not by a bench.
#pragma once

#include "nibble/kernels/tuning.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace tuning {

struct factor_policy {
  int threads;  ///< of a block that fills, a power of two; the diagonal block's too
  int cols;     ///< of a panel that a warp solves: so many registers for each quarter of its 128 rows
  int edge;     ///< columns of what is left that one product updates
};

/// A panel of 14336 columns is 448 blocks of 8 warps, some 3 an SM. Products of 128 × 1024 by up to 14336 fill a GPU, and what they
/// compute above the diagonal is 1/14 of them.
struct factor {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr factor_policy operator()(int) const { return {256, 4, 1024}; }
};

struct gptq_policy {
  int threads;  ///< of a block, a power of two; a warp has a row of W
  int rows;     ///< of W whose errors are in the workspace at once
};

/// With up to 63 registers a thread on sm_80, 48 on sm_90a, and 33 KiB of shared memory a block, an SM has four blocks or five: 32 rows
/// at least, 4224 on 132 of them. Every block of columns takes 128 steps one after another, so the more rows at once the better: errors
/// of 16384 by 4096 are 268 MB.
struct gptq {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr gptq_policy operator()(int) const { return {256, 16384}; }
};

struct refit_policy {
  int threads;  ///< of a block; a warp a row where rows are summed
  int rows;     ///< of W whose products with G are in the workspace at once
};

struct refit {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr refit_policy operator()(int) const { return {256, 1024}; }
};

}  // namespace tuning
NIBBLE_NAMESPACE_END
