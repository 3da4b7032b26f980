// SPDX-License-Identifier: Apache-2.0
/// @file
/// The text of ids as they come, in whole characters. An id may be a byte of a character, and what an id reads as may
/// depend on those before it (a first space is left out), so the last few ids are decoded together, and text is given out
/// once it no longer ends in a character that is not complete.
#pragma once

#include <string>
#include <vector>

#include "tokenizer.hpp"

namespace nibble::mistral {

class text_stream {
 public:
  /// What comes continues `prompt`. `tok` outlives the stream.
  text_stream(const tokenizer& tok, const std::vector<int32_t>& prompt);

  /// Text that is certain once `id` follows; may be empty.
  std::string add(int32_t id);
  /// The rest, when no id follows; what never became a character reads U+FFFD.
  std::string finish();

 private:
  std::string take(bool all);

  const tokenizer& tok_;
  std::vector<int32_t> ids_;  ///< those whose text counts for what follows
  std::string given_;         ///< text of ids_ that was given out, or was the prompt's
};

}  // namespace nibble::mistral
