// SPDX-License-Identifier: Apache-2.0
/// @file
/// A linear of a GGUF file, multiplied from the blocks in the file's map: nothing of it is copied.
#pragma once

#include <cstddef>

#include "gguf.hpp"
#include "nibble/matrix.hpp"

namespace nibble::mistral {

struct mapped_blocks {
  const std::byte* data = nullptr;  ///< rows as the file has them; null: none
  gguf_type type = gguf_type::f32;
  index_t bytes = 0;         ///< of all rows
  index_t paired_heads = 0;  ///< rows of a head where the file has them in pairs (gguf_model.hpp)

  /// y (m, n) = x (m, k) · Wᵀ, y in a checkpoint's order: host::gemm of blocks.
  void multiply(matrix<const float> x, matrix<float> y) const;
};

}  // namespace nibble::mistral
