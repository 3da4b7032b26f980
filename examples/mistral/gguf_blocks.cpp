// SPDX-License-Identifier: Apache-2.0
#include "gguf_blocks.hpp"

#include <cstring>

#include "nibble/block.hpp"
#include "nibble/half.hpp"

namespace nibble::mistral {
namespace {

template <class Stored>
void widen(const std::byte* from, index_t count, float* out) {
  for (index_t i = 0; i < count; ++i) {
    Stored value;
    std::memcpy(&value, from + i * static_cast<index_t>(sizeof(Stored)), sizeof(Stored));
    out[i] = static_cast<float>(value);
  }
}

}  // namespace

bool is_block_type(std::string_view dtype) {
  const gguf_type_info* info = find_gguf_type(dtype);
  return info && info->elements > 1;
}

void decode_blocks(gguf_type type, const std::byte* from, index_t blocks, float* out) {
  if (type == gguf_type::f32) return widen<float>(from, blocks, out);
  if (type == gguf_type::f16) return widen<fp16>(from, blocks, out);
  if (type == gguf_type::bf16) return widen<bf16>(from, blocks, out);
  with_block(static_cast<block_type>(type), [&](auto tag) {
    using Block = typename decltype(tag)::type;
    for (index_t i = 0; i < blocks; ++i) {
      Block block;  // a map may be unaligned
      std::memcpy(static_cast<void*>(&block), from + i * static_cast<index_t>(sizeof(Block)), sizeof(Block));
      decode(block, out + i * Block::weights);
    }
  });
}

}  // namespace nibble::mistral
