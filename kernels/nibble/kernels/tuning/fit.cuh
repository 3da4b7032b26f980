// SPDX-License-Identifier: Apache-2.0
/// @file
/// Policies of fit.
#pragma once

#include "nibble/kernels/tuning.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace tuning {

struct fit_policy {
  int threads;    ///< per block, a power of two of at least 32
  int in_flight;  ///< 16-byte accesses of weights a thread starts before it uses the first
};

/// 8 blocks fill an SM with 2048 threads; 4 loads of 16 bytes from each are 128 KiB under way, where some 32 KiB an SM cover
/// the latency of an H200's memory at its full bandwidth. By that arithmetic, not by a bench.
struct fit {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr fit_policy operator()(int) const { return {256, 4}; }
};

struct fit_search_policy {
  int threads;  ///< per block, a power of two of at least 32
  int blocks;   ///< of which an SM holds at least so many
};

/// Sixteen teams of sixteen lanes a block, whose groups' weights take 32 KiB of shared memory. Left to itself, nvcc 13.0 spills
/// registers to fit a third or fourth block, that of percentiles too on sm_86 and sm_89.
struct fit_search {
  static constexpr int architectures[] = {80};
  NIBBLE_HOST_DEVICE constexpr fit_search_policy operator()(int) const { return {256, 2}; }
};

}  // namespace tuning
NIBBLE_NAMESPACE_END
