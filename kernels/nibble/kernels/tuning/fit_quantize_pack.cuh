// SPDX-License-Identifier: Apache-2.0
/// @file
/// Policies of fit_quantize_pack, which only streams.
#pragma once

#include "nibble/kernels/tuning.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace tuning {

struct fit_quantize_pack_policy {
  int threads;   ///< per block, a power of two of at least 32
  int rows;      ///< a thread works on, 8 weights each, all loaded before the first is used
  int any_rows;  ///< the same for a scheme chosen at run time, whose code is several times as long and unrolled as often
};

/// 4 × 8 bf16 are 64 bytes under way a thread; at 75 registers 768 threads share an SM, 48 KiB, where some 32 KiB cover the latency
/// of an H200's memory at its full bandwidth. By that arithmetic, not by a bench.
struct fit_quantize_pack {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr fit_quantize_pack_policy operator()(int) const { return {256, 4, 1}; }
};

}  // namespace tuning
NIBBLE_NAMESPACE_END
