// SPDX-License-Identifier: Apache-2.0
/// @file
/// Matrices to ggml's blocks and back, in the bytes and numbers of ggml's own encoders and decoders.
///
/// Weights must be finite, small enough that every d is (at most 65504 in fp16), and importance finite and not negative: the caller
/// checks. Other weights make blocks of no stated bytes, in which d may be NaN or infinite, without undefined behaviour.
#pragma once

#include <cstring>
#include <vector>

#include "nibble/block_layout.hpp"
#include "nibble/matrix.hpp"
#include "nibble/reference/block/encode.hpp"
#include "nibble/reference/block/unpacked.hpp"

NIBBLE_NAMESPACE_BEGIN
namespace reference {

/// w (n, k) row-major; blocks (n, k / Block::weights); importance (k) of columns, or null. @pre Block::weights divides k.
template <class Block, class T>
void quantize_blocks(matrix<const T> w, matrix<Block> blocks, const float* importance = nullptr) {
  std::vector<float> x(static_cast<std::size_t>(w.cols));
  for (index_t row = 0; row < w.rows; ++row) {
    for (index_t col = 0; col < w.cols; ++col) x[static_cast<std::size_t>(col)] = static_cast<float>(w(row, col));
    const float sigma2 = ggml::sum_of_squares(x.data(), w.cols) / static_cast<float>(w.cols);
    for (index_t block = 0; block < blocks.cols; ++block) {
      const index_t first = block * Block::weights;
      ggml::unpacked u;
      ggml::encode(x.data() + first, importance != nullptr ? importance + first : nullptr, sigma2, u,
                   block_tag<Block>{});
      blocks(row, block) = ggml::packed<Block>(u);
    }
  }
}

/// The inverse: w (n, k) receives the blocks' weights, rounded to T.
template <class Block, class T>
void dequantize_blocks(matrix<const Block> blocks, matrix<T> w) {
  for (index_t row = 0; row < blocks.rows; ++row)
    for (index_t block = 0; block < blocks.cols; ++block) {
      const ggml::unpacked u = ggml::read(blocks(row, block));
      for (int i = 0; i < Block::weights; ++i)
        w(row, block * Block::weights + i) = static_cast<T>(ggml::value<Block>(u, i));
    }
}

/// The same for a type chosen at run time: bytes (n, k / weights · bytes of a block), of any alignment.
template <class T>
void quantize_blocks(matrix<const T> w, matrix<uint8_t> bytes, block_type type, const float* importance = nullptr) {
  with_block(type, [&](auto tag) {
    using Block = typename decltype(tag)::type;
    std::vector<Block> blocks(static_cast<std::size_t>(w.cols / Block::weights));
    for (index_t row = 0; row < w.rows && !blocks.empty(); ++row) {
      quantize_blocks(w.rows_at(row, 1), matrix<Block>(blocks.data(), 1, w.cols / Block::weights), importance);
      std::memcpy(bytes.row(row), blocks.data(), blocks.size() * sizeof(Block));
    }
  });
}
template <class T>
void dequantize_blocks(matrix<const uint8_t> bytes, matrix<T> w, block_type type) {
  with_block(type, [&](auto tag) {
    using Block = typename decltype(tag)::type;
    std::vector<Block> blocks(static_cast<std::size_t>(w.cols / Block::weights));
    for (index_t row = 0; row < w.rows && !blocks.empty(); ++row) {
      std::memcpy(blocks.data(), bytes.row(row), blocks.size() * sizeof(Block));
      dequantize_blocks(matrix<const Block>(blocks.data(), 1, w.cols / Block::weights), w.rows_at(row, 1));
    }
  });
}

}  // namespace reference
NIBBLE_NAMESPACE_END
