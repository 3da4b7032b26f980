// SPDX-License-Identifier: Apache-2.0
/// @file
/// Matrices whose rows lie more than 2^31 elements apart, for the SIMT executor, where device memory is the process's own: memory
/// is only reserved, and the rows' own pages are the only ones that are ever there.
#pragma once

#include <sys/mman.h>

#include <string>

#include "support/device.hpp"

namespace nibble::test {

template <class T>
class far_matrix {
 public:
  /// No 32-bit number holds twice this, and cut down to 32 bits as a signed one it is negative.
  static constexpr index_t apart = (index_t{1} << 31) + 24;

  explicit far_matrix(const owned<T>& host)
      : rows_(host.rows), cols_(host.cols), bytes_(static_cast<std::size_t>((rows_ - 1) * apart + cols_) * sizeof(T)) {
    const int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    there_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, how, -1, 0);
    REQUIRE(there_ != MAP_FAILED);
    for (index_t row = 0; row < rows_; ++row)
      for (index_t col = 0; col < cols_; ++col) view()(row, col) = host.view()(row, col);
  }
  ~far_matrix() { ::munmap(there_, bytes_); }
  far_matrix(const far_matrix&) = delete;
  far_matrix& operator=(const far_matrix&) = delete;

  matrix<T> view() const { return {static_cast<T*>(there_), rows_, cols_, apart}; }
  matrix<const T> const_view() const { return view(); }
  owned<T> download() const {
    owned<T> host(rows_, cols_);
    for (index_t row = 0; row < rows_; ++row)
      for (index_t col = 0; col < cols_; ++col) host.view()(row, col) = view()(row, col);
    return host;
  }

 private:
  index_t rows_, cols_;
  std::size_t bytes_;
  void* there_ = nullptr;
};

template <class T>
const std::vector<T>& elements_of(const std::vector<T>& all) {
  return all;
}
template <class T>
const std::vector<T>& elements_of(const owned<T>& all) {
  return all.data;
}
/// Of matrices and vectors, one after the other.
template <class... All>
std::string bytes_of(const All&... all) {
  std::string bytes;
  const auto add = [&](const auto& of) {
    bytes.append(reinterpret_cast<const char*>(of.data()), of.size() * sizeof(of[0]));
  };
  (add(elements_of(all)), ...);
  return bytes;
}

/// run(place), where place(host matrix) is that matrix in device memory, returns the bytes of its results: the same for rows that
/// follow one another and for rows that are far apart.
template <class F>
void same_near_and_far(F run) {
  const auto near = run([](const auto& host) { return device_matrix(host); });
  const auto far = run([](const auto& host) { return far_matrix(host); });
  REQUIRE(!near.empty());
  REQUIRE(far == near);
}

}  // namespace nibble::test
