// SPDX-License-Identifier: Apache-2.0
/// @file
/// Policies of the forward pass's kernels. Chosen by arithmetic from what an SM holds, not yet by a bench.
#pragma once

#include "nibble/kernels/tuning.hpp"

namespace nibble::mistral::cuda::tuning {

struct rows_policy {
  int threads;  ///< per block, a multiple of 32; a block has one row
};

/// Norm, rotary embedding, SwiGLU, embedding: rows of thousands of elements, 16 bytes an access. 8 blocks fill an SM.
struct rows {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr rows_policy operator()(int) const { return {256}; }
};

}  // namespace nibble::mistral::cuda::tuning
