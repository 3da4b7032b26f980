// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the forward pass holds of the CUDA runtime, each freed with its owner, and errors as sentences.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <string>
#include <utility>

#include "mistral/error.hpp"
#include "nibble/core.hpp"
#include "nibble/kernels/launch.cuh"

namespace nibble::mistral::cuda {

inline void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // or a later call would be blamed for it
  throw error(std::string("CUDA could not ") + what + ": " + cudaGetErrorString(result));
}
inline void check(status result, const char* what) {
  if (result != status::ok) throw error(std::string("CUDA could not ") + what + ": " + to_string(result));
}

/// "3.4 GiB", "96.0 MiB".
inline std::string gibibytes(index_t bytes) {
  char text[32];
  const auto mebibytes = static_cast<double>(bytes) / static_cast<double>(1 << 20);
  if (mebibytes < 1024)
    std::snprintf(text, sizeof(text), "%.1f MiB", mebibytes);
  else
    std::snprintf(text, sizeof(text), "%.1f GiB", mebibytes / 1024);
  return text;
}

/// Makes `device` the current one. @throws error when there is none, or its architecture is too old for the kernels.
inline void use_device(int device) {
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found != cudaSuccess || count == 0) {
    static_cast<void>(cudaGetLastError());
    throw gpu_unusable("no GPU was found (" + std::string(cudaGetErrorString(found)) +
                       "); the CPU does the same with --backend cpu");
  }
  if (device < 0 || device >= count)
    throw gpu_unusable("there is no GPU " + std::to_string(device) + ": they are numbered 0 to " +
                       std::to_string(count - 1));
  check(cudaSetDevice(device), "use the GPU");
  if (const int sm = sm_version(); sm < 80)
    throw gpu_unusable("the GPU " + std::to_string(device) + " has compute capability " + std::to_string(sm / 10) +
                       "." + std::to_string(sm % 10) + ", but 8.0 is needed; the CPU does the same with --backend cpu");
}

/// `count` T, uninitialised, on the device or, Pinned, in host memory that it copies from by itself.
template <class T, bool Pinned>
class memory {
 public:
  memory() = default;
  memory(index_t count, const char* what) : count_(count) {
    const auto bytes = static_cast<std::size_t>(max(count, index_t(1))) * sizeof(T);
    void* p = nullptr;
    const cudaError_t result = Pinned ? cudaMallocHost(&p, bytes) : cudaMalloc(&p, bytes);
    if (result != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      throw gpu_unusable(std::string(Pinned ? "no host memory" : "no GPU memory") + " is left for " + what + ", " +
                         gibibytes(static_cast<index_t>(bytes)) + " (" + cudaGetErrorString(result) + ")");
    }
    data_ = static_cast<T*>(p);
  }
  memory(memory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  memory& operator=(memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~memory() {
    if (data_ == nullptr) return;
    if constexpr (Pinned)
      cudaFreeHost(data_);
    else
      cudaFree(data_);
  }
  T* data() const { return data_; }
  index_t size() const { return count_; }

 private:
  T* data_ = nullptr;
  index_t count_ = 0;
};
template <class T>
using device_memory = memory<T, false>;
template <class T>
using pinned_memory = memory<T, true>;

class stream {
 public:
  stream() { check(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "make a stream"); }
  ~stream() { cudaStreamDestroy(handle_); }
  stream(const stream&) = delete;
  stream& operator=(const stream&) = delete;
  operator cudaStream_t() const { return handle_; }
  void synchronise() const { check(cudaStreamSynchronize(handle_), "run the forward pass"); }

 private:
  cudaStream_t handle_ = nullptr;
};

/// A point in a stream; one that was never recorded is past.
class event {
 public:
  event() { check(cudaEventCreateWithFlags(&handle_, cudaEventDisableTiming), "make an event"); }
  ~event() { cudaEventDestroy(handle_); }
  event(const event&) = delete;
  event& operator=(const event&) = delete;
  void record(cudaStream_t in) { check(cudaEventRecord(handle_, in), "record an event"); }
  /// What `in` does from now on waits for it.
  void hold(cudaStream_t in) const { check(cudaStreamWaitEvent(in, handle_, 0), "wait for an event"); }
  void wait() const { check(cudaEventSynchronize(handle_), "copy weights"); }

 private:
  cudaEvent_t handle_ = nullptr;
};

class blas {
 public:
  explicit blas(cudaStream_t in) {
    if (cublasCreate(&handle_) != CUBLAS_STATUS_SUCCESS)
      throw gpu_unusable("cuBLAS could not start; is the GPU's memory full?");
    cublasSetStream(handle_, in);
  }
  ~blas() { cublasDestroy(handle_); }
  blas(const blas&) = delete;
  blas& operator=(const blas&) = delete;
  operator cublasHandle_t() const { return handle_; }

 private:
  cublasHandle_t handle_ = nullptr;
};

/// Two pinned buffers by turns: one is filled by the host while the other's copy to the device is under way.
class staging {
 public:
  explicit staging(index_t piece_bytes) : bytes_(piece_bytes) {
    for (piece& p : pieces_) p.memory = pinned_memory<std::byte>(bytes_, "copies of weights");
  }
  /// Copies `rows` rows of `row_bytes` to `to`, after fill(first, count, buffer) wrote them. Returns when the host's part is
  /// done; copies end in in(). @pre row_bytes is at most piece_bytes.
  template <class F>
  void copy(void* to, index_t rows, index_t row_bytes, F fill) {
    const index_t most = bytes_ / row_bytes;
    for (index_t first = 0; first < rows; first += most) {
      const index_t count = min(most, rows - first);
      piece& p = pieces_[turn_];
      turn_ = 1 - turn_;
      p.gone.wait();
      fill(first, count, static_cast<void*>(p.memory.data()));
      check(cudaMemcpyAsync(static_cast<std::byte*>(to) + first * row_bytes, p.memory.data(),
                            static_cast<std::size_t>(count * row_bytes), cudaMemcpyHostToDevice, in_),
            "copy weights");
      p.gone.record(in_);
    }
  }
  const stream& in() const { return in_; }

 private:
  struct piece {
    pinned_memory<std::byte> memory;
    event gone;
  };
  index_t bytes_;
  stream in_;
  piece pieces_[2];
  int turn_ = 0;
};

}  // namespace nibble::mistral::cuda
