// SPDX-License-Identifier: Apache-2.0
/// @file
/// A linear held in memory in as few bytes as its checkpoint has it, and multiplied from there: what decoding reads once
/// for every token. Dense weights keep their dtype; packed ones of every format become one string of codes along each
/// row, with scales in the dtype they were stored in and zero points one a byte; those in blocks stay in their file's map.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "nibble/half.hpp"
#include "nibble/matrix.hpp"
#include "nibble/scheme.hpp"
#include "quantization.hpp"
#include "resident_blocks.hpp"

namespace nibble::mistral {

/// Bytes aligned to a cache line, on large pages where the kernel has them: a weight matrix of pages of 4 KiB costs a
/// third of its bandwidth in address translation.
class resident_bytes {
 public:
  resident_bytes() = default;
  /// @throws std::bad_alloc.
  explicit resident_bytes(index_t bytes);
  std::byte* data() const { return data_.get(); }
  index_t size() const { return size_; }

 private:
  struct release {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, release> data_;
  index_t size_ = 0;
};

struct resident_linear {
  index_t n = 0, k = 0;
  int bits = 0;              ///< of a code; 0: dense
  index_t group = -1;        ///< inputs that share a scale; −1: all
  dtype type = dtype::bf16;  ///< of dense weights; of scales where packed
  bool symmetric = false;
  rounded_inputs inputs;
  resident_bytes weights;      ///< (n, k) of `type`, or 32-bit words (n, ⌈k·bits/32⌉)
  resident_bytes scales;       ///< (n, groups) of `type`
  resident_bytes zeros;        ///< (n, groups), one a byte; none where symmetric
  mapped_blocks blocks;        ///< in the place of weights, scales and zeros
  std::vector<int32_t> order;  ///< (k), the input that column j of the weights multiplies; empty: input j

  index_t bytes() const {
    return weights.size() + scales.size() + zeros.size() + blocks.bytes +
           static_cast<index_t>(order.size() * sizeof(int32_t));
  }
  /// y (m, n) = x (m, k) · Wᵀ in fp32, x rounded as `inputs` says; a row of y depends on its row of x alone.
  void multiply(matrix<const float> x, matrix<float> y) const;
  /// Fills scales and zeros from p (n, groups), whose scales `type` holds exactly. @pre type and symmetric are set.
  void set_params(matrix<const params> p);
};

/// From codes (n, k), one a byte, and params (n, groups). @param group inputs that share a scale; −1: all.
/// @param type of the scales.
resident_linear pack_resident(matrix<const uint8_t> codes, matrix<const params> p, int bits, index_t group,
                              bool symmetric, dtype type);

}  // namespace nibble::mistral
