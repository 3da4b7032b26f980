// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "gguf_blocks.hpp"
#include "nibble/half.hpp"
#include "nibble/host/block.hpp"
#include "nibble/host/block_refine.hpp"

namespace nibble::mistral {
namespace {

template <class Stored>
void narrow(matrix<const float> w, std::byte* out) {
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t col = 0; col < w.cols; ++col) {
      const auto value = static_cast<Stored>(w(row, col));
      std::memcpy(out, &value, sizeof(value));
      out += sizeof(value);
    }
}

}  // namespace

void encode_rows(gguf_type type, matrix<const float> w, const float* importance, std::byte* out,
                 block_search_kind search) {
  if (type == gguf_type::f32) return narrow<float>(w, out);
  if (type == gguf_type::f16) return narrow<fp16>(w, out);
  if (type == gguf_type::bf16) return narrow<bf16>(w, out);
  const auto block = static_cast<block_type>(type);
  const index_t bytes = w.cols / block_weights(block) * block_bytes(block);
  const matrix<uint8_t> blocks(reinterpret_cast<uint8_t*>(out), w.rows, bytes);
  host::quantize_blocks(w, blocks, block, importance);
  if (search == block_search_kind::exhaustive) host::refine_blocks(w, blocks, block, importance);
}

}  // namespace nibble::mistral
