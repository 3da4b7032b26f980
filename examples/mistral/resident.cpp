// SPDX-License-Identifier: Apache-2.0
#include "resident.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "nibble/host/gemm.hpp"
#include "nibble/host/pack.hpp"
#include "rounding.hpp"

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
  if (blocks.data) return blocks.multiply(x, y);
  std::vector<float> changed;
  if (inputs.how != input_rounding::none) {
    for (index_t row = 0; row < x.rows; ++row) changed.insert(changed.end(), x.row(row), x.row(row) + x.cols);
    round_inputs({changed.data(), x.rows, x.cols}, inputs);
    x = {changed.data(), x.rows, x.cols};
  }
  std::vector<float> ordered;
  if (!order.empty()) {
    ordered.reserve(static_cast<size_t>(x.size()));
    for (index_t row = 0; row < x.rows; ++row)
      for (const int32_t input : order) ordered.push_back(x(row, input));
    x = {ordered.data(), x.rows, x.cols};
  }
  switch (type) {
    case dtype::f32:
      return multiply_as<float>(*this, x, y);
    case dtype::f16:
      return multiply_as<fp16>(*this, x, y);
    case dtype::bf16:
      return multiply_as<bf16>(*this, x, y);
  }
}

void resident_linear::set_params(matrix<const params> p) {
  const index_t count = p.rows * p.cols;
  scales = resident_bytes(count * size_of(type));
  for (index_t i = 0; i < count; ++i) {
    const float scale = p.data[i].scale;
    const uint16_t half = type == dtype::f16 ? fp16_bits(scale) : bf16_bits(scale);
    if (type == dtype::f32)
      std::memcpy(scales.data() + 4 * i, &scale, 4);
    else
      std::memcpy(scales.data() + 2 * i, &half, 2);
  }
  if (symmetric) return;
  zeros = resident_bytes(count);
  for (index_t i = 0; i < count; ++i) zeros.data()[i] = static_cast<std::byte>(p.data[i].zero);
}

resident_linear pack_resident(matrix<const uint8_t> codes, matrix<const params> p, int bits, index_t group,
                              bool symmetric, dtype type) {
  resident_linear w;
  w.n = codes.rows, w.k = codes.cols, w.bits = bits, w.group = group < w.k ? group : -1;
  w.type = type, w.symmetric = symmetric;
  const layout::compressed_tensors along{bits};
  const index_t words = along.packed(w.n, w.k).cols;
  w.weights = resident_bytes(4 * w.n * words);
  host::pack(along, codes, {reinterpret_cast<uint32_t*>(w.weights.data()), w.n, words});
  w.set_params(p);
  return w;
}

}  // namespace nibble::mistral
