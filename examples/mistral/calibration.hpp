// SPDX-License-Identifier: Apache-2.0
/// @file
/// Calibration samples: sequences of token ids from a file a user has.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "chat.hpp"
#include "tokenizer.hpp"

namespace nibble::mistral {

struct calibration_options {
  index_t samples = 256;         ///< sequences wanted; fewer come back when the file has fewer
  index_t max_length = 512;      ///< tokens a sequence at most
  std::uint64_t seed = 42;       ///< which samples of a longer .jsonl are drawn, and in what order
};

struct calibration_set {
  std::vector<std::vector<std::int32_t>> sequences;
  index_t tokens() const;
  index_t longest() const;
};

/// Reads `file`:
///  - .txt: the whole text's ids cut into windows of max_length without overlap; the first `samples` windows in order
///    (the last, shorter one only if it is the only one);
///  - .jsonl with "text", "messages" (through the chat template), or "instruction"/"input"(/"output"): a sequence a
///    line, truncated to max_length; when there are more lines than samples, a sample of them drawn with `seed`.
/// @throws error naming file and line for anything else, and for a file that gives no tokens.
calibration_set read_calibration(const std::filesystem::path& file, const tokenizer& tok, const chat_template* chat,
                                 const calibration_options& options);

}  // namespace nibble::mistral
