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

struct attention_policy {
  int warps;          ///< per block
  int queries;        ///< per block
  int keys;           ///< whose scores are held at a time
  int most_head_dim;  ///< that the registers hold
};

/// Attention by plain arithmetic: a lane has a key and up to 8 columns of the output of 4 queries.
struct attention {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr attention_policy operator()(int) const { return {4, 16, 32, 256}; }
};

/// Attention by mma: a warp has 16 queries. A block keeps one tile of queries, keys and values each: 27 KiB for heads of 64,
/// 51 for 128, 66 for 256, so that several blocks share an SM and one copies while another multiplies. A lane accumulates
/// MostHeadDim / 2 outputs and keys / 2 scores, which leaves room in 255 registers.
template <int MostHeadDim>
struct attention_mma {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr attention_policy operator()(int) const {
    return {4, 64, MostHeadDim > 128 ? 32 : 64, MostHeadDim};
  }
};

}  // namespace nibble::mistral::cuda::tuning
