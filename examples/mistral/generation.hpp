// SPDX-License-Identifier: Apache-2.0
/// @file
/// Answers to prompts, id by id: greedy, or drawn at a temperature from the most probable ids.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <vector>

#include "config.hpp"
#include "decode.hpp"

namespace nibble::mistral {

struct generation_options {
  index_t max_new_tokens = 50;  ///< at least 0
  std::vector<int32_t> stop;    ///< an id of these ends an answer and is no part of it
  index_t batch = 8;            ///< prompts decoded together; their answers do not depend on it
  double temperature = 0;       ///< 0: the most probable id, the lowest of equals
  double top_p = 1;             ///< draw among the most probable ids whose probabilities first add up to this
  std::uint64_t seed = 0;       ///< prompt i draws from a stream of its own, of (seed, i)
};

/// Why an answer ended.
enum class ending { stop, length, context };
/// "stop", "length", "context"
const char* to_string(ending why);

struct answer {
  std::vector<int32_t> ids;
  ending why = ending::length;
};

/// Told of each id of an answer as it is chosen, and of the end of each: prompt, id (−1 at the end).
using generation_listener = std::function<void(index_t, int32_t)>;

/// Where the time went.
struct generation_times {
  index_t prompt_tokens = 0, stepped_tokens = 0;  ///< read at once, and read one a sequence at a time
  double prompt_seconds = 0, step_seconds = 0;
  double first_token_seconds = 0;  ///< from the call to the first id
};

/// Answers to prompts of ids (BOS included where the model wants one), in their order.
/// @throws error for a prompt that is empty or longer than the context, and when logits are NaN.
std::vector<answer> generate(decoder& model, const std::vector<std::vector<int32_t>>& prompts,
                             const generation_options& options, const generation_listener& listener = nullptr,
                             generation_times* times = nullptr);

/// The ids alone, always the most probable.
std::vector<std::vector<int32_t>> greedy(decoder& model, const std::vector<std::vector<int32_t>>& prompts,
                                         index_t max_new_tokens, const std::vector<int32_t>& stop, index_t batch = 8);

/// The ids that end a text: eos_token_id of generation_config.json, else of config.json; an id or a list of them.
/// @throws error naming the file for anything else.
std::vector<int32_t> stop_ids(const std::filesystem::path& model, const config& settings);

}  // namespace nibble::mistral
