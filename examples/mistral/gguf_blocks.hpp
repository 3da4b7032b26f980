// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows of floats ↔ the bytes of a GGUF tensor's type.
#pragma once

#include <cstddef>
#include <string_view>

#include "gguf.hpp"
#include "nibble/matrix.hpp"

namespace nibble::mistral {

/// Whether `dtype` names a type of blocks that share scales, "Q4_K" and its like.
bool is_block_type(std::string_view dtype);

/// `blocks` blocks as stored into floats, as many as a block has elements each.
void decode_blocks(gguf_type type, const std::byte* from, index_t blocks, float* out);

/// How blocks are searched for: as ggml's encoders do, byte for byte, or for the least error under their layout.
enum class block_search_kind { ggml, exhaustive };

/// Rows (n, k) into out, n·k / elements blocks. @pre whole blocks a row; w finite, and in F16's range there.
/// @param importance (k) weights of squared errors, or null.
void encode_rows(gguf_type type, matrix<const float> w, const float* importance, std::byte* out,
                 block_search_kind search = block_search_kind::ggml);

}  // namespace nibble::mistral
