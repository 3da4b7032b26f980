// SPDX-License-Identifier: Apache-2.0
/// @file
/// Checkpoints with random weights of known models' shapes, cut to a few layers, and runs of passes on them. Weights repeat
/// every million, which no size and no time depends on.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "mistral/file.hpp"
#include "mistral/forward.hpp"
#include "mistral/places.hpp"
#include "mistral/safetensors.hpp"
#include "nibble/half.hpp"

namespace bench {

namespace fs = std::filesystem;
using namespace nibble;
using namespace nibble::mistral;

struct model_shape {
  const char* name;
  index_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocabulary;
};
inline constexpr model_shape mistral_7b = {"Mistral-7B", 4096, 14336, 32, 32, 8, 128, 32768},
                             mistral_small_24b = {"Mistral-Small-24B", 5120, 32768, 40, 32, 8, 128, 131072};

inline nlohmann::ordered_json config_of(const model_shape& s, index_t layers) {
  return {{"architectures", {"MistralForCausalLM"}},
          {"model_type", "mistral"},
          {"vocab_size", s.vocabulary},
          {"hidden_size", s.hidden},
          {"intermediate_size", s.intermediate},
          {"num_hidden_layers", layers},
          {"num_attention_heads", s.heads},
          {"num_key_value_heads", s.kv_heads},
          {"head_dim", s.head_dim},
          {"hidden_act", "silu"},
          {"max_position_embeddings", 32768},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 1e6},
          {"sliding_window", nullptr},
          {"tie_word_embeddings", false},
          {"bos_token_id", 1},
          {"eos_token_id", 2},
          {"torch_dtype", "bfloat16"}};
}

inline std::vector<bf16> random_weights(index_t count, float middle, float scale) {
  static const std::vector<float> period = [] {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> values(1'000'003);
    for (float& x : values) x = normal(random);
    return values;
  }();
  std::vector<bf16> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) values[i] = bf16(middle + scale * period[i % period.size()]);
  return values;
}

/// With the embedded model's tokenizer.
inline void write_random_model(const fs::path& directory, const model_shape& shape, index_t layers) {
  fs::create_directories(directory);
  write_file(directory / "config.json", config_of(shape, layers).dump(1));
  const fs::path tokenizer = fs::path(source_directory) / "examples/awq_mistral/model";
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"})
    fs::copy_file(tokenizer / name, directory / name, fs::copy_options::overwrite_existing);
  const config c = read_config(directory);
  safetensors_writer out(directory, 5'000'000'000);
  const auto add = [&](const std::string& name, const std::vector<index_t>& extents, float middle, float scale) {
    const auto values = random_weights(extents.size() == 1 ? extents[0] : extents[0] * extents[1], middle, scale);
    out.add(name, "BF16", extents, values.data(), values.size() * sizeof(bf16));
  };
  add("model.embed_tokens.weight", {c.vocabulary, c.hidden}, 0, 0.02f);
  for (index_t layer = 0; layer < layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    add(prefix + "input_layernorm.weight", {c.hidden}, 1, 0.1f);
    add(prefix + "post_attention_layernorm.weight", {c.hidden}, 1, 0.1f);
    for (const projection p : projections)
      add(projection_name(layer, p) + ".weight", {outputs(c, p), inputs(c, p)}, 0, 0.02f);
  }
  add("model.norm.weight", {c.hidden}, 1, 0.1f);
  add("lm_head.weight", {c.vocabulary, c.hidden}, 0, 0.02f);
  out.finish();
}

/// Runs a pass, which lies beside this program, on DIRECTORY/model. @returns what --json tells; ends this program when it failed.
inline nlohmann::ordered_json run_pass(const char* bench, const std::string& pass, const fs::path& directory,
                                       const std::vector<std::string>& more) {
  const fs::path program = fs::read_symlink("/proc/self/exe").parent_path() / pass;
  std::vector<std::string> words = {program.string(),
                                    "--model",
                                    (directory / "model").string(),
                                    "--output",
                                    (directory / "out").string(),
                                    "--overwrite",
                                    "--restart",
                                    "--json",
                                    (directory / "figures.json").string()};
  words.insert(words.end(), more.begin(), more.end());
  const pid_t child = ::fork();
  if (child == 0) {
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    if (std::freopen((directory / "log").c_str(), "w", stdout) != nullptr) ::dup2(1, 2);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child || status != 0) {
    std::fprintf(stderr, "%s: %s failed; see %s\n", bench, pass.c_str(), (directory / "log").c_str());
    std::exit(1);
  }
  std::ifstream figures(directory / "figures.json");
  return nlohmann::ordered_json::parse(figures);
}

}  // namespace bench
