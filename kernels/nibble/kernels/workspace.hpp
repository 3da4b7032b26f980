// SPDX-License-Identifier: Apache-2.0
/// @file
/// Scratch memory is the caller's. A launcher that needs some takes `void* workspace, index_t& workspace_bytes`, as CUB does:
/// a first call with a null pointer only writes how many bytes it needs for these arguments, at least 1; a second one launches.
#pragma once

#include "nibble/core.hpp"
#include "nibble/kernels/status.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace kernels {

/// What a workspace has to be a multiple of, as cudaMalloc's memory is.
inline constexpr index_t workspace_alignment = 256;

namespace detail {

/// @returns workspace_too_small, misaligned, or ok, also for a call that only asks.
inline status check_workspace(const void* workspace, index_t& bytes, index_t needed) noexcept {
  if (workspace == nullptr) {
    bytes = needed > 0 ? needed : 1;
    return status::ok;
  }
  if (bytes < needed) return status::workspace_too_small;
  return reinterpret_cast<size_t>(workspace) % workspace_alignment == 0 ? status::ok : status::misaligned;
}

}  // namespace detail
}  // namespace kernels
NIBBLE_NAMESPACE_END
