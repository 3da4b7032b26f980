// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the tests of kernels share, on a GPU and on the SIMT executor alike: buffers in device memory that tell when a
/// kernel wrote where it should not or left something unwritten, and repetition under several schedules.
#pragma once

#include <cuda_runtime.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <utility>
#include <vector>

#include "nibble/kernels/status.hpp"
#include "nibble/matrix.hpp"
#include "support/weights.hpp"

namespace nibble::test {

inline void succeeds(cudaError_t error) {
  INFO(cudaGetErrorString(error));
  REQUIRE(error == cudaSuccess);
}

template <class T>
bool same_bytes(const owned<T>& a, const owned<T>& b) {
  return a.data.size() == b.data.size() &&
         std::memcmp(static_cast<const void*>(a.data.data()), static_cast<const void*>(b.data.data()),
                     a.data.size() * sizeof(T)) == 0;
}

/// `count` T in device memory, all bytes 0xff at first (NaN as float, fp16, bf16), between guard bands of 0xff. On the
/// executor under AddressSanitizer the bands fault.
template <class T>
class device_array {
 public:
  explicit device_array(index_t count) : count_(count) {
    succeeds(cudaMalloc(&base_, bytes() + 2 * guard));
    poison();
    forbid_bands(true);
  }
  explicit device_array(const std::vector<T>& host) : device_array(static_cast<index_t>(host.size())) { upload(host); }
  ~device_array() {
    forbid_bands(false);
    cudaFree(base_);
  }
  device_array(device_array&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  device_array(const device_array&) = delete;
  device_array& operator=(const device_array&) = delete;

  T* data() const { return reinterpret_cast<T*>(base_ + guard); }
  index_t size() const { return count_; }

  void poison() { succeeds(cudaMemset(base_, 0xff, bytes() + 2 * guard)); }
  void upload(const std::vector<T>& host) {
    REQUIRE(static_cast<index_t>(host.size()) == count_);
    succeeds(cudaMemcpy(data(), host.data(), bytes(), cudaMemcpyHostToDevice));
  }
  /// Waits for the kernels before, and checks the guard bands.
  std::vector<T> download() const {
    std::vector<unsigned char> all(bytes() + 2 * guard);
    forbid_bands(false);
    succeeds(cudaMemcpy(all.data(), base_, all.size(), cudaMemcpyDeviceToHost));
    forbid_bands(true);
    for (std::size_t i = 0; i < guard; ++i) {
      if (all[i] != 0xff) FAIL("a kernel wrote " << guard - i << " bytes before the buffer");
      if (all[guard + bytes() + i] != 0xff) FAIL("a kernel wrote " << i << " bytes past the buffer");
    }
    std::vector<T> host(static_cast<std::size_t>(count_));
    if (count_ > 0) std::memcpy(static_cast<void*>(host.data()), all.data() + guard, bytes());
    return host;
  }

 private:
  static constexpr std::size_t guard = 256;  ///< keeps cudaMalloc's alignment
  std::size_t bytes() const { return static_cast<std::size_t>(count_) * sizeof(T); }
  void forbid_bands([[maybe_unused]] bool on) const {
#if defined(NIBBLE_SIMT)
    if (base_ == nullptr) return;
    const auto set = on ? simt::forbid : simt::allow;
    set(base_, guard);
    set(base_ + guard + bytes(), guard);
#endif
  }

  unsigned char* base_ = nullptr;
  index_t count_ = 0;
};

/// A matrix in device memory, `offset` elements past a 256-byte boundary, rows `stride` elements apart. What lies between
/// its rows must stay as it was.
template <class T>
class device_matrix {
 public:
  device_matrix(index_t rows, index_t cols, index_t stride = -1, index_t offset = 0)
      : rows_(rows),
        cols_(cols),
        stride_(stride < 0 ? cols : stride),
        offset_(offset),
        array_(offset + (rows > 0 ? (rows - 1) * stride_ + cols : 0)) {}
  explicit device_matrix(const owned<T>& host, index_t stride = -1, index_t offset = 0)
      : device_matrix(host.rows, host.cols, stride, offset) {
    auto all = array_.download();
    for (index_t row = 0; row < rows_; ++row)
      for (index_t col = 0; col < cols_; ++col) all[place(row, col)] = host.view()(row, col);
    array_.upload(all);
  }

  matrix<T> view() const { return {array_.data() + offset_, rows_, cols_, stride_}; }
  matrix<const T> const_view() const { return view(); }
  operator matrix<T>() const { return view(); }
  operator matrix<const T>() const { return view(); }
  /// Every byte 0xff again, as before a first run.
  void poison() { array_.poison(); }

  owned<T> download() const {
    const auto all = array_.download();
    owned<T> host(rows_, cols_);
    std::vector<bool> inside(all.size());
    for (index_t row = 0; row < rows_; ++row)
      for (index_t col = 0; col < cols_; ++col) {
        host.view()(row, col) = all[place(row, col)];
        inside[place(row, col)] = true;
      }
    for (std::size_t i = 0; i < all.size(); ++i) {
      unsigned char bytes[sizeof(T)];
      std::memcpy(bytes, static_cast<const void*>(&all[i]), sizeof(T));
      for (const unsigned char byte : bytes)
        if (!inside[i] && byte != 0xff) FAIL("a kernel wrote between the rows, at element " << i);
    }
    return host;
  }

 private:
  std::size_t place(index_t row, index_t col) const { return static_cast<std::size_t>(offset_ + row * stride_ + col); }

  index_t rows_, cols_, stride_, offset_;
  device_array<T> array_;
};

/// Runs f, which launches and checks, several times: under other schedules on the executor, and on a GPU twice, for results
/// must not depend on the run.
template <class F>
void under_every_schedule(int count, F f) {
#if defined(NIBBLE_SIMT)
  for (unsigned schedule = 1; schedule <= static_cast<unsigned>(count); ++schedule) {
    CAPTURE(schedule);
    simt::set_schedule(schedule);
    f();
  }
#else
  for (int run = 0; run < (count < 2 ? count : 2); ++run) f();
#endif
}

/// The same, under a sanitizer once: it is accesses that are watched there, and a wrong one is told under any schedule.
template <class F>
void under_schedules(int count, F f) {
#if defined(NIBBLE_SIMT_ASAN) || defined(NIBBLE_SIMT_TSAN)
  count = 1;
#endif
  under_every_schedule(count, f);
}

/// Runs f once for each architecture that tunings tell apart: on a GPU for its own only.
template <class F>
void on_architectures(F f) {
#if defined(NIBBLE_SIMT)
  for (const int sm : {80, 86, 90}) {
    CAPTURE(sm);
    simt::set_architecture(sm);
    f();
  }
  simt::set_architecture(90);
#else
  f();
#endif
}

#if defined(NIBBLE_SIMT)
/// While one lives, the device is of architecture `sm`, or there is none (−1).
struct pretended_device {
  explicit pretended_device(int sm) : before(simt::architecture()) { simt::set_architecture(sm); }
  ~pretended_device() { simt::set_architecture(before); }
  pretended_device(const pretended_device&) = delete;
  pretended_device& operator=(const pretended_device&) = delete;
  int before;
};

/// How many kernels and products f() launches, after each of them was refused once, for which f() must say launch_failed.
template <class F>
int launches_of(F f) {
  for (int before = 0;; ++before) {
    CAPTURE(before);
    simt::launches_before_refusal = before;
    const status got = f();
    const bool refused = simt::launches_before_refusal < 0;
    simt::launches_before_refusal = -1;
    REQUIRE(got == (refused ? status::launch_failed : status::ok));
    if (!refused) return before;
  }
}
#endif

}  // namespace nibble::test
