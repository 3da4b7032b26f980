// SPDX-License-Identifier: Apache-2.0
/// @file
/// What reads files that nobody vouches for, as functions of a file's bytes. A target returns whatever the bytes are: what
/// it calls may refuse them with a mistral::error and nothing else, and what it accepts must keep the promises that the
/// target checks. libfuzzer.cpp makes a fuzzer of each; tests/mistral/fuzz.cpp replays corpus/NAME and finds/NAME.
#pragma once

#include <string_view>

namespace nibble::fuzz {

struct target {
  const char* name;  ///< of its folders in corpus/ and finds/
  void (*run)(std::string_view bytes);
};

void read_json_text(std::string_view bytes);      ///< any JSON
void read_config_file(std::string_view bytes);    ///< config.json
void read_quantization(std::string_view bytes);   ///< quantization_config
void read_safetensors(std::string_view bytes);    ///< model.safetensors
void read_packed_linear(std::string_view bytes);  ///< quantization_config, then, behind a zero byte, model.safetensors
void read_index(std::string_view bytes);          ///< model.safetensors.index.json
void read_gguf(std::string_view bytes);           ///< a GGUF file: a model's, or an importance matrix
void read_tokenizer_json_file(std::string_view bytes);   ///< tokenizer.json, then, behind a zero byte, a text to encode
void read_tokenizer_model_file(std::string_view bytes);  ///< tokenizer.model
void encode_text(std::string_view bytes);             ///< a text for both kinds of tokenizer.json and a tokenizer.model
void read_calibration_lines(std::string_view bytes);  ///< a .jsonl
void read_questions(std::string_view bytes);          ///< a .jsonl of texts and questions to evaluate
void read_recipe_file(std::string_view bytes);        ///< recipe.yaml
void render_template(std::string_view bytes);         ///< a chat template
void match_pattern(std::string_view bytes);           ///< a regular expression, then, behind a zero byte, a text

inline constexpr target targets[] = {{"json", read_json_text},
                                     {"config", read_config_file},
                                     {"quantization", read_quantization},
                                     {"safetensors", read_safetensors},
                                     {"packed", read_packed_linear},
                                     {"index", read_index},
                                     {"gguf", read_gguf},
                                     {"tokenizer_json", read_tokenizer_json_file},
                                     {"tokenizer_model", read_tokenizer_model_file},
                                     {"text", encode_text},
                                     {"calibration", read_calibration_lines},
                                     {"evaluation", read_questions},
                                     {"recipe", read_recipe_file},
                                     {"chat_template", render_template},
                                     {"regex", match_pattern}};

}  // namespace nibble::fuzz
