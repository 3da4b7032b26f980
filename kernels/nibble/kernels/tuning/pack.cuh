// SPDX-License-Identifier: Apache-2.0
/// @file
/// Policies of pack, unpack and repack, which only stream: each byte is used once.
#pragma once

#include "nibble/kernels/tuning.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace tuning {

/// Of matrices that go through shared memory a tile a block. Extents are in codes: outputs by inputs.
struct pack_policy {
  int threads;                       ///< per block, a multiple of 32
  int turned_rows, turned_cols;      ///< where words lie across rows: both sides need long rows
  int straight_rows, straight_cols;  ///< where words lie along rows
};

/// A tile of 16 KiB: a thread of 128 starts eight 16-byte loads before it uses the first, so the 14 blocks that an SM of an
/// H200 holds in 228 KiB have up to 224 KiB under way, where some 32 KiB cover the latency of its memory. The 128 outputs of a
/// turned tile are 64 bytes of a row of AWQ GEMM's words, two whole sectors. By that arithmetic, not by a bench.
struct pack {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr pack_policy operator()(int) const { return {128, 128, 128, 16, 1024}; }
};

}  // namespace tuning
NIBBLE_NAMESPACE_END
