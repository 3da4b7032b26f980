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
  index_t samples = 256;     ///< sequences wanted; fewer come back when the file has fewer
  index_t max_length = 512;  ///< tokens a sequence at most
  std::uint64_t seed = 42;   ///< which samples of a longer .jsonl are drawn, and in what order
};

struct calibration_set {
  std::vector<std::vector<std::int32_t>> sequences;
  index_t tokens() const;
  index_t longest() const;
};

/// Reads `file`, which must be UTF-8:
///  - .txt: the whole text's ids, nothing added, cut into windows of max_length without overlap; the first `samples`
///    windows in order (a shorter last one only if it is the only one);
///  - .jsonl: an object a line (blank lines skipped), a sequence each, truncated to max_length. The first key counts of
///      "text"         the text, with what the tokenizer adds of its own accord (BOS);
///      "messages"     through the chat template, which writes BOS itself;
///      "instruction"  with "input" and "output", which may be missing: Alpaca's prompt, then the output, BOS in front:
///                     "Below is an instruction that describes a task[, paired with an input that provides further
///                     context]. Write a response that appropriately completes the request.\n\n### Instruction:\n…
///                     [\n\n### Input:\n…]\n\n### Response:\n…".
///    Of more lines than `samples`, the lines are those, in that order, that a Fisher–Yates shuffle puts first:
///    for i = 0, 1, …: swap lines i and i + r, r uniform in [0, lines − i) by SplitMix64 from state `seed` (a draw is
///    taken modulo, draws from the incomplete last run rejected). Lines without tokens are passed over; only lines
///    drawn are parsed.
/// @throws error naming file and line for anything else, and for a file that gives no tokens.
calibration_set read_calibration(const std::filesystem::path& file, const tokenizer& tok, const chat_template* chat,
                                 const calibration_options& options);

}  // namespace nibble::mistral
