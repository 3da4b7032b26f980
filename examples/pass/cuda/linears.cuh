// SPDX-License-Identifier: Apache-2.0
/// @file
/// A linear on a GPU: what rounding it loses under the Gram matrix of what it reads, and its codes, nearest or however a caller finds
/// them. Losses are taken of differences and Gram matrices rounded to bf16, for tensor cores; ranges, codes and sweeps see floats.
/// Given the same statistics and scale, ranges and codes are the host's but for ties within float's rounding of a loss.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "mistral/cuda/runtime.cuh"
#include "nibble/half.hpp"
#include "pass/cuda/clock.cuh"
#include "pass/engine.hpp"
#include "pass/options.hpp"

namespace nibble::mistral::cuda {

/// What linears read, over all tokens.
struct input_statistics {
  device_memory<float> gram;         ///< (k, k); shrunk when finished
  device_memory<float> diagonal;     ///< (k)
  device_memory<double> magnitudes;  ///< (k), sums of |x|
  device_memory<float> drift;  ///< (k, k), sums of (x₀ − x)·xᵀ; nothing where the original's inputs are not followed
  device_memory<float>
      residual_drift;  ///< (n, k), sums of (r₀ − r)·xᵀ; nothing where the residual stream's is not followed
  std::vector<float> mean, energy;  ///< x̄, E[x²], on the host

  /// @param joined channels of the residual stream whose drift is followed.
  explicit input_statistics(index_t k, bool followed = false, index_t joined = 0)
      : gram(k * k, "a Gram matrix"), diagonal(k, "statistics"), magnitudes(k, "statistics") {
    if (followed) drift = device_memory<float>(k * k, "the drift of inputs");
    if (joined > 0) residual_drift = device_memory<float>(joined * k, "the residual stream's drift");
  }
  index_t k() const { return diagonal.size(); }
  bool followed() const { return drift.size() > 0; }
  matrix<float> gram_matrix() const { return {gram.data(), k(), k()}; }
  matrix<float> drift_matrix() const { return {drift.data(), k(), k()}; }
  matrix<float> residual_matrix() const { return {residual_drift.data(), residual_drift.size() / k(), k()}; }
  static index_t bytes(index_t k, bool followed, index_t joined = 0) {
    return k * ((followed ? 8 : 4) * k + 4 * joined + 12);
  }
};

/// Device memory that grows to what a launcher asks for.
class workspace {
 public:
  /// launcher(pointer, bytes), asked first how much it needs.
  template <class F>
  void run(F&& launcher, const char* what) {
    index_t bytes = 0;
    check(launcher(nullptr, bytes), what);
    reserve(memory_, max(bytes, index_t(1)), "a workspace");  // null would ask again
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

/// What memory of a search is for.
struct search_limits {
  index_t elements;  ///< weights of a linear at most
  index_t widest;    ///< its inputs at most
  /// Columns of a Gram matrix that are there in bf16 at a time: with all of them the matrix is rounded once, with fewer for
  /// every loss again.
  index_t panel;
  index_t tile;           ///< weights that are rounded at a time, in whole rows
  index_t workspace = 0;  ///< bytes that a caller's launchers need

  search_limits(index_t elements_, index_t widest_, index_t panel_, index_t tile_ = index_t(1) << 25)
      : elements(elements_), widest(widest_), panel(min(panel_, widest_)), tile(min(elements_, max(tile_, widest_))) {}
  /// Rows of k weights that are rounded at a time.
  index_t rows(index_t n, index_t k) const { return max(index_t(1), min(n, tile / k)); }
  /// Device memory, workspaces included.
  index_t bytes() const;
};

/// Finds codes, and parameters, of rows from `first` on, on the device: w (rows, k), scaled, which may become what codes are to stand for.
using tile_rounding = std::function<void(index_t first, matrix<float> w, matrix<params> p, matrix<uint8_t> codes)>;

class linear_search {
 public:
  /// In `in` and in the stream of `products`, which are one.
  linear_search(const search_limits& limits, cudaStream_t in, cublasHandle_t products);
  /// Of what the stream does, for the engine too. Read up to the last wait().
  phase_clock& clock() { return clock_; }
  const phase_clock& clock() const { return clock_; }
  /// The statistics that the calls below judge under; they outlive the next use().
  void use(const input_statistics& x);
  /// Forgets them, as they change.
  void forget() { x_ = nullptr; }

  /// w (n, k) on the device, float or, where that is exact, bf16.
  template <class T>
  double unscaled_loss(matrix<const T> w, const packed& as);
  template <class T>
  void add_importance(matrix<const T> w, const packed& as, double* sum);
  template <class T>
  double scaled_loss(matrix<const T> w, const packed& as, clip_search clip, const float* s);
  /// What w's rounding under s is apart from w, scales undone, as scaled_loss judges it: in rows of differences() from `first` on.
  template <class T>
  void find_differences(matrix<const T> w, const packed& as, clip_search clip, const float* s, index_t first = 0);
  /// Rows [row, row + rows) of k inputs, until other ones are found.
  matrix<bf16> differences(index_t row, index_t rows, index_t k) const {
    return {difference_.data() + row * k, rows, k};
  }
  /// What the next codes' errors are multiplied by, a number a row: what rows were divided by. Null for 1, which it is at first.
  void multiply_rows(const float* of_row, index_t n);
  /// w (n, k) on the host, whose columns are scaled by s (k) already.
  chosen_codes choose_codes(matrix<const float> w, const packed& as, clip_search clip, int sweeps,
                            const std::vector<float>& s);
  /// As that, by `round`. Columns are taken in the order of `column` (k), unless null, which is that of s and of the statistics in use;
  /// codes are in it too.
  chosen_codes choose_codes(matrix<const float> w, const packed& as, const std::vector<float>& s,
                            const tile_rounding& round, const index_t* column = nullptr);
  /// s (k) on the device, for what follows.
  const float* use_scale(const float* s);
  /// Ranges of a tile under the scale and the statistics in use.
  void find_ranges(matrix<const float> w, matrix<params> p, const packed& as, clip_search clip);
  void choose_nearest(matrix<const float> w, matrix<const params> p, const packed& as, matrix<uint8_t> codes);

  /// Copies w from the host, rounded to T, when the device is done with `to`; unless null, columns in the order of `column`.
  template <class T>
  void upload(T* to, matrix<const float> w, const index_t* column = nullptr);
  /// From memory that is not pinned, which is read before this returns.
  template <class T>
  void copy_there(T* to, const T* from, index_t count) {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(T), cudaMemcpyHostToDevice, in_),
          "copy to the GPU");
  }
  template <class T>
  void copy_back(T* to, const T* from, index_t count) {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(T), cudaMemcpyDeviceToHost, in_),
          "copy from the GPU");
  }
  void wait() {
    check(cudaStreamSynchronize(in_), "search a linear");
    clock_.collect();
  }

  /// launcher(pointer, bytes), as workspace::run.
  template <class F>
  void run(F&& launcher, const char* what) {
    workspace_.run(std::forward<F>(launcher), what);
  }
  cudaStream_t in() const { return in_; }
  cublasHandle_t products() const { return products_; }

 private:
  template <class F>
  void for_tiles(index_t n, index_t k, index_t group, F f);
  void fit_ranges(matrix<const float> w, matrix<params> p, const packed& as, clip_search clip);
  void judge(matrix<const float> w, matrix<const uint8_t> codes, matrix<const params> p, const packed& as, index_t row,
             const float* of_row);
  void round_gram(index_t first, index_t count);
  double loss(index_t n, index_t k);

  cudaStream_t in_;
  cublasHandle_t products_;
  phase_clock clock_;
  staging staging_;
  event arrived_;
  const input_statistics* x_ = nullptr;
  search_limits limits_;
  device_memory<bf16> gram_, difference_;  ///< of the Gram matrix in use; of all rows of a linear, or of several
  device_memory<float> tile_, scale_, importance_, of_row_;
  bool rows_multiplied_ = false;
  device_memory<double> sum_, losses_;
  device_memory<uint8_t> codes_;
  device_memory<params> parameters_;
  workspace workspace_;
};

}  // namespace nibble::mistral::cuda
