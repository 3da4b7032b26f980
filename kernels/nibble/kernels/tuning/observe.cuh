// SPDX-License-Identifier: Apache-2.0
/// @file
/// Numbers of the statistics of activations. By the arithmetic beside them, not by a bench.
#pragma once

#include "nibble/kernels/tuning.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace tuning {

struct observe_policy {
  int across, down;  ///< threads of a block: 16 bytes of columns each, and every `down`-th token
  int ahead;         ///< tokens that a thread loads before it uses the first
  int tokens;        ///< of a block: its partial sums are 8 bytes for this many elements. Part of the order of the sums
};

/// 256 tokens leave 448 blocks of 2048 × 14336 activations, three on each SM of an H200, and write 1.6 % of what bf16 reads.
struct observe {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr observe_policy operator()(int) const { return {32, 8, 4, 256}; }
};

struct gram_policy {
  int tokens;  ///< that one product adds to the Gram matrix
  int panel;   ///< rows of the Gram matrix that one product fills, from their diagonal on
  int tile;    ///< edge of the tiles that are mirrored
  int down;    ///< threads along it, `tile` across
};

/// A product of t tokens takes k²·t FLOP and moves 4·k² bytes of the upper triangle: at 700 TFLOP/s and 4 TB/s of an H200 it is bound
/// by arithmetic from 700 tokens on. Panels of 1024 compute 5/8 of all of a matrix of 4096, 0.54 of 14336; half is needed.
struct gram {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr gram_policy operator()(int) const { return {2048, 1024, 32, 8}; }
};

}  // namespace tuning
NIBBLE_NAMESPACE_END
