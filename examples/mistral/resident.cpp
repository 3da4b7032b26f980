// SPDX-License-Identifier: Apache-2.0
#include "resident.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

#include "nibble/host/gemm.hpp"

namespace nibble::mistral {

namespace {

constexpr index_t line = 64, large_page = index_t(2) << 20;

template <class T>
void multiply_dense(const resident_linear& w, matrix<const float> x, matrix<float> y) {
  host::gemm(x, matrix<const T>(reinterpret_cast<const T*>(w.weights.data()), w.n, w.k), y);
}

template <class Scale>
void multiply_packed(const resident_linear& w, matrix<const float> x, matrix<float> y) {
  const layout::compressed_tensors l{w.bits};
  const layout::extents extents = l.packed(w.n, w.k);
  const index_t groups = layout::groups(w.k, w.group);
  const matrix<const uint32_t> words(reinterpret_cast<const uint32_t*>(w.weights.data()), extents.rows, extents.cols);
  const matrix<const Scale> scales(reinterpret_cast<const Scale*>(w.scales.data()), w.n, groups);
  const matrix<const uint8_t> zeros =
      w.symmetric ? matrix<const uint8_t>()
                  : matrix<const uint8_t>(reinterpret_cast<const uint8_t*>(w.zeros.data()), w.n, groups);
  host::gemm(x, l, words, scales, zeros, w.group, y);
}

template <class T>
void multiply_as(const resident_linear& w, matrix<const float> x, matrix<float> y) {
  return w.bits == 0 ? multiply_dense<T>(w, x, y) : multiply_packed<T>(w, x, y);
}

}  // namespace

resident_bytes::resident_bytes(index_t bytes) : size_(bytes) {
  const index_t unit = bytes >= large_page ? large_page : line;
  const index_t room = round_up(max(bytes, index_t(1)), unit);
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(static_cast<size_t>(unit), static_cast<size_t>(room))));
  if (!data_) throw std::bad_alloc();
  if (unit == large_page) ::madvise(data_.get(), static_cast<size_t>(room), MADV_HUGEPAGE);
}

void resident_bytes::release::operator()(std::byte* data) const {
  std::free(data);
}

void resident_linear::multiply(matrix<const float> x, matrix<float> y) const {
  switch (type) {
    case dtype::f32:
      return multiply_as<float>(*this, x, y);
    case dtype::f16:
      return multiply_as<fp16>(*this, x, y);
    case dtype::bf16:
      return multiply_as<bf16>(*this, x, y);
  }
}

}  // namespace nibble::mistral
