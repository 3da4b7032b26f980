// SPDX-License-Identifier: Apache-2.0
#include "resident_blocks.hpp"

#include <algorithm>
#include <vector>

#include "gguf_model.hpp"
#include "nibble/host/gemm_blocks.hpp"

namespace nibble::mistral {
namespace {

/// Columns of y from the file's order of outputs into a checkpoint's.
void put_in_order(matrix<float> y, index_t head_dim) {
  std::vector<float> stored(static_cast<size_t>(y.cols));
  for (index_t token = 0; token < y.rows; ++token) {
    std::copy_n(y.row(token), y.cols, stored.data());
    for (index_t i = 0; i < y.cols; ++i) y(token, i) = stored[static_cast<size_t>(paired_row(i, head_dim))];
  }
}

}  // namespace

void mapped_blocks::multiply(matrix<const float> x, matrix<float> y) const {
  const index_t row_bytes = bytes / y.cols;
  host::gemm(x, {reinterpret_cast<const uint8_t*>(data), y.cols, row_bytes}, static_cast<block_type>(type), y);
  if (paired_heads > 0) put_in_order(y, paired_heads);
}

}  // namespace nibble::mistral
