// SPDX-License-Identifier: Apache-2.0
/// @file
/// The little of the CUDA runtime that kernels, launchers and their tests use, for a host compiler: a launch runs on
/// the SIMT executor, at once or when its stream comes to it, and device memory is the heap.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "simt/executor.hpp"
#include "simt/streams.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

// NOLINTBEGIN(readability-identifier-naming): CUDA's names
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) noexcept : x(x_), y(y_), z(z_) {}
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};

/// Of the running thread; the executor sets them whenever it goes from one to another.
inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorLaunchOutOfResources = 701
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

using cudaStream_t = struct simt_stream*;
struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : error == cudaErrorNoDevice ? "no device" : "an error";
}
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = simt::architecture() < 0 ? 0 : 1;
  return *count == 0 ? cudaErrorNoDevice : cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return simt::architecture() < 0 ? cudaErrorNoDevice : cudaSuccess;
}
struct cudaDeviceProp {
  char name[256];
};
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::snprintf(properties->name, sizeof(properties->name), "the SIMT executor");
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const int sm = simt::architecture();
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = sm / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = sm % 10;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = (sm >= 90 ? 227 : sm == 80 ? 163 : 99) * 1024;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

inline cudaError_t cudaMalloc(void** p, std::size_t bytes) {
  *p = bytes > simt::free_device_memory() ? nullptr : simt::device_heap.take(bytes, 256);
  return *p != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}
template <class T>
cudaError_t cudaMalloc(T** p, std::size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(p), bytes);
}
inline cudaError_t cudaFree(void* p) {
  simt::finish_all();
  simt::device_heap.give_back(p);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  if (bytes > 0) std::memmove(to, from, bytes);
  return cudaSuccess;
}
/// Memory of the host that is not pinned is read at once, and written before this returns.
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t in = nullptr) {
  if (in != nullptr && kind == cudaMemcpyHostToDevice && !simt::pinned_heap.holds(from)) {
    const auto* const first = static_cast<const std::byte*>(from);
    simt::give(in, [to, taken = std::vector<std::byte>(first, first + bytes)] {
      cudaMemcpy(to, taken.data(), taken.size(), cudaMemcpyHostToDevice);
    });
    return cudaSuccess;
  }
  simt::give(in, [=] { cudaMemcpy(to, from, bytes, kind); });
  if (in != nullptr && kind == cudaMemcpyDeviceToHost && !simt::pinned_heap.holds(to)) simt::finish(in);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                                     std::size_t bytes, std::size_t rows, cudaMemcpyKind kind,
                                     cudaStream_t in = nullptr) {
  if (bytes > to_pitch || bytes > from_pitch) return cudaErrorInvalidValue;
  for (std::size_t row = 0; row < rows; ++row)
    cudaMemcpyAsync(static_cast<std::byte*>(to) + row * to_pitch,
                    static_cast<const std::byte*>(from) + row * from_pitch, bytes, kind, in);
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* p, int value, std::size_t bytes) {
  if (bytes > 0) std::memset(p, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, std::size_t bytes, cudaStream_t in = nullptr) {
  simt::give(in, [=] { cudaMemset(p, value, bytes); });
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t in) {
  if (in != nullptr) simt::finish(in);
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (simt::architecture() < 0) return cudaErrorNoDevice;
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

inline cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = simt::free_device_memory();
  *total = simt::device_capacity;
  return simt::architecture() < 0 ? cudaErrorNoDevice : cudaSuccess;
}
inline cudaError_t cudaMallocHost(void** p, std::size_t bytes) {
  *p = simt::pinned_heap.take(bytes, 4096);
  return *p != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFreeHost(void* p) {
  simt::finish_all();
  simt::pinned_heap.give_back(p);
  return cudaSuccess;
}

using cudaEvent_t = simt_event*;
inline constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDefault = 0, cudaEventDisableTiming = 2;
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  simt::streams.push_back(*stream = new simt_stream);
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  simt::finish(stream);
  simt::streams.erase(std::find(simt::streams.begin(), simt::streams.end(), stream));
  delete stream;
  return cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new simt_event;
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t in = nullptr) {
  if (event == nullptr) return cudaErrorInvalidResourceHandle;
  simt::give(in, [state = event->state, number = ++event->state->recorded] {
    state->happened = number;
    state->when = std::chrono::steady_clock::now();
  });
  return cudaSuccess;
}
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  if (from == nullptr || to == nullptr) return cudaErrorInvalidResourceHandle;
  for (const cudaEvent_t each : {from, to})
    if (each->state->happened == 0 || each->state->happened < each->state->recorded) return cudaErrorNotReady;
  *milliseconds = std::chrono::duration<float, std::milli>(to->state->when - from->state->when).count();
  return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event == nullptr) return cudaErrorInvalidResourceHandle;
  simt::advance([&] { return event->state->happened == event->state->recorded; });
  return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t in, cudaEvent_t event, unsigned = 0) {
  if (event == nullptr || in == nullptr) return cudaErrorInvalidResourceHandle;
  in->work.emplace_back(
      [state = event->state, number = event->state->recorded] { return state->happened >= number; });
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
  simt::finish_all();
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

namespace simt {
/// Launches and products until one is refused, for tests to set; below 0, none will be.
inline int launches_before_refusal = -1;
inline bool refuses_launch() {
  return launches_before_refusal >= 0 && launches_before_refusal-- == 0;
}
}  // namespace simt

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* how, void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (simt::refuses_launch()) return cudaErrorLaunchOutOfResources;
  struct call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  };
  const call of{kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
  simt::give(how->stream, [of, grid = how->gridDim, block = how->blockDim, shared = how->dynamicSmemBytes] {
    const auto body = [](const void* p) {
      const auto& c = *static_cast<const call*>(p);
      std::apply(c.kernel, c.arguments);
    };
    simt::run({{grid.x, grid.y, grid.z},
               {block.x, block.y, block.z},
               shared,
               body,
               &of,
               reinterpret_cast<const void*>(of.kernel)});
  });
  return cudaSuccess;
}
// NOLINTEND(readability-identifier-naming)
