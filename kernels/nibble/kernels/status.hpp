// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a launcher answers. Launchers never throw, print, allocate or synchronise: they check, choose, launch, and say.
#pragma once

#include "nibble/core.hpp"

NIBBLE_NAMESPACE_BEGIN

/// One enumerator per reason.
// clang-format off
enum class [[nodiscard]] status : uint8_t {
  ok,
  bad_shape,            ///< an extent, a stride or the sizes of two arguments do not fit the operation
  bad_group,            ///< the group size does not suit the layout
  bad_bits,             ///< the number of bits has no implementation in this layout
  misaligned,           ///< a pointer or stride breaks the alignment the kernel's vector accesses need
  too_large,            ///< the launch would exceed the device's grid or shared memory
  workspace_too_small,  ///< the caller's workspace is smaller than the first call asked for
  unsupported_device,   ///< no kernel for this architecture
  launch_failed,        ///< the CUDA runtime refused the launch; cudaGetLastError tells more
};
// clang-format on

/// A sentence a person can read.
NIBBLE_HOST_DEVICE constexpr const char* to_string(status value) noexcept {
  switch (value) {
    case status::ok:
      return "ok";
    case status::bad_shape:
      return "the shapes do not fit the operation";
    case status::bad_group:
      return "the group size does not suit the layout";
    case status::bad_bits:
      return "this layout does not take that many bits";
    case status::misaligned:
      return "a pointer or stride is not aligned as the kernel needs";
    case status::too_large:
      return "the launch exceeds the device's limits";
    case status::workspace_too_small:
      return "the workspace is smaller than needed";
    case status::unsupported_device:
      return "no kernel for this device's architecture";
    case status::launch_failed:
      return "the CUDA runtime refused the launch";
  }
  return "unknown status";
}

NIBBLE_NAMESPACE_END
