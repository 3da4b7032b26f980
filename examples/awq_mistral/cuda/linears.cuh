// SPDX-License-Identifier: Apache-2.0
/// @file
/// A linear on a GPU: what rounding it loses under the Gram matrix of what it reads, and its codes. Losses are taken of
/// differences and Gram matrices rounded to bf16, for tensor cores; ranges, codes and sweeps see floats. Given the same
/// statistics and scale, ranges and codes are the host's but for ties within float's rounding of a loss.
#pragma once

#include <cstddef>
#include <vector>

#include "cuda/clock.cuh"
#include "engine.hpp"
#include "mistral/cuda/runtime.cuh"
#include "nibble/half.hpp"
#include "options.hpp"

namespace nibble::mistral::cuda {

/// What linears read, over all tokens.
struct input_statistics {
  device_memory<float> gram;         ///< (k, k); shrunk when finished
  device_memory<float> diagonal;     ///< (k)
  device_memory<double> magnitudes;  ///< (k), sums of |x|
  std::vector<float> mean, energy;   ///< x̄, E[x²], on the host

  explicit input_statistics(index_t k)
      : gram(k * k, "a Gram matrix"), diagonal(k, "statistics"), magnitudes(k, "statistics") {}
  index_t k() const { return diagonal.size(); }
  matrix<float> gram_matrix() const { return {gram.data(), k(), k()}; }
};

/// Device memory that grows to what a launcher asks for.
class workspace {
 public:
  /// launcher(pointer, bytes), asked first how much it needs.
  template <class F>
  void run(F&& launcher, const char* what) {
    index_t bytes = 0;
    check(launcher(nullptr, bytes), what);
    reserve(memory_, bytes, "a workspace");
    check(launcher(static_cast<void*>(memory_.data()), bytes), what);
  }
  template <class T>
  static void reserve(device_memory<T>& memory, index_t count, const char* what) {
    if (memory.size() >= count) return;
    memory = {};  // the old one goes first
    memory = device_memory<T>(count, what);
  }

 private:
  device_memory<std::byte> memory_;
};

class linear_search {
 public:
  /// For linears of at most `elements` weights and `widest` inputs, in `in` and in the stream of `products`, which are one.
  linear_search(index_t elements, index_t widest, cudaStream_t in, cublasHandle_t products);
  /// Of what the stream does, for the engine too. Read up to the last wait().
  phase_clock& clock() { return clock_; }
  const phase_clock& clock() const { return clock_; }
  /// Device memory that it takes, workspaces included.
  static index_t bytes(index_t elements, index_t widest);

  /// The statistics that the calls below judge under; they outlive the next use().
  void use(const input_statistics& x);
  /// Forgets them, as they change.
  void forget() { x_ = nullptr; }

  /// w (n, k) on the device.
  double unscaled_loss(matrix<const float> w, const packed& as);
  void add_importance(matrix<const float> w, const packed& as, double* sum);
  double scaled_loss(matrix<const float> w, const packed& as, clip_search clip, const float* s);
  /// w (n, k) on the host, whose columns are scaled by s (k) already.
  chosen_codes choose_codes(matrix<const float> w, const packed& as, clip_search clip, int sweeps,
                            const std::vector<float>& s);

  /// Copies w from the host when the device is done with `to`.
  void upload(float* to, matrix<const float> w);
  template <class T>
  void copy_back(T* to, const T* from, index_t count) {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(T), cudaMemcpyDeviceToHost, in_),
          "copy from the GPU");
  }
  void wait() {
    check(cudaStreamSynchronize(in_), "search a linear");
    clock_.collect();
  }

 private:
  template <class T>
  void copy_there(T* to, const T* from, index_t count) {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(T), cudaMemcpyHostToDevice, in_),
          "copy to the GPU");
  }
  template <class F>
  void for_tiles(index_t n, index_t k, index_t group, F f);
  void use_scale(const float* s);
  void fit_ranges(matrix<const float> w, matrix<params> p, const packed& as, clip_search clip);
  void choose_nearest(matrix<const float> w, matrix<const params> p, const packed& as, matrix<uint8_t> codes);
  void judge(matrix<const float> w, matrix<const uint8_t> codes, matrix<const params> p, const packed& as);
  void add_loss(matrix<const bf16> difference);
  double total_loss();

  cudaStream_t in_;
  cublasHandle_t products_;
  phase_clock clock_;
  staging staging_;
  event arrived_;
  const input_statistics* x_ = nullptr;
  device_memory<bf16> gram_, difference_;  ///< the Gram matrix in use, a tile
  device_memory<float> tile_, scale_, importance_;
  device_memory<double> sum_, losses_;
  device_memory<uint8_t> codes_;
  device_memory<params> parameters_;
  workspace workspace_;
  index_t judged_ = 0;  ///< tiles whose losses lie in losses_
};

}  // namespace nibble::mistral::cuda
