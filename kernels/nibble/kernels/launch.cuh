// SPDX-License-Identifier: Apache-2.0
/// @file
/// The only way a kernel of nibble starts: checked first, asynchronous in its stream, answered by a status. Nothing here
/// throws, prints, allocates or synchronises.
#pragma once

#include <cuda_runtime.h>

#include "nibble/kernels/grid.hpp"
#include "nibble/kernels/status.hpp"
#include "nibble/kernels/tuning.hpp"

NIBBLE_NAMESPACE_BEGIN

namespace detail {

/// An attribute of the current device; `missing` where the runtime has no answer.
inline int device_attribute(cudaDeviceAttr attribute, int missing) noexcept {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess)
    return value;
  static_cast<void>(cudaGetLastError());  // or a later launch would be blamed for it
  return missing;
}

constexpr dim3 to_dim3(extent3 e) noexcept {
  return dim3(static_cast<unsigned>(e.x), static_cast<unsigned>(e.y), static_cast<unsigned>(e.z));
}

}  // namespace detail

/// Architecture of the current device, 10 · major + minor; 0 without a device.
inline int sm_version() noexcept {
  const int major = detail::device_attribute(cudaDevAttrComputeCapabilityMajor, 0);
  return 10 * major + detail::device_attribute(cudaDevAttrComputeCapabilityMinor, 0);
}

/// Starts kernel(args…) in `stream`; an empty grid starts nothing and is ok. Dynamic shared memory beyond 48 KiB is
/// asked for here.
/// @param shared_bytes dynamic shared memory a block.
/// @returns bad_shape or too_large as check_launch says, too_large also when the kernel's own static shared memory
/// leaves too little, unsupported_device without a device, launch_failed when the runtime refuses.
template <class... Parameters, class... Arguments>
status launch(void (*kernel)(Parameters...), extent3 grid, extent3 block, index_t shared_bytes, cudaStream_t stream,
              Arguments&&... arguments) noexcept {
  const int most_shared_bytes = detail::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, -1);
  if (most_shared_bytes < 0) return status::unsupported_device;
  const status checked = check_launch(grid, block, shared_bytes, most_shared_bytes);
  if (checked != status::ok || grid.empty()) return checked;
  if (shared_bytes > plain_shared_bytes) {
    const auto bytes = static_cast<int>(shared_bytes);
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return status::too_large;
    }
  }
  cudaLaunchConfig_t how{};
  how.gridDim = detail::to_dim3(grid);
  how.blockDim = detail::to_dim3(block);
  how.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  how.stream = stream;
  const cudaError_t started = cudaLaunchKernelEx(&how, kernel, static_cast<Arguments&&>(arguments)...);
  return started == cudaSuccess ? status::ok : status::launch_failed;
}

/// f(tuned<…>) with the policy that `tuning` has for the current device. @returns unsupported_device where it has none.
template <class Tuning, class F>
status dispatch(Tuning tuning, F&& f) {
  return choose(sm_version(), tuning, f);
}

NIBBLE_NAMESPACE_END
