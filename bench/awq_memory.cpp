// SPDX-License-Identifier: Apache-2.0
/// @file
/// Peak resident memory of awq_mistral on checkpoints with random weights of Mistral-7B's shape, cut to a few layers,
/// beside the bound that it is to stay under whatever the number of layers:
///     2 · tokens · hidden · 4 B + 3 layers in bf16 + the largest Gram matrix in fp32 + the embedding or head in bf16
///     bench_awq_memory DIRECTORY [LAYERS …]       default: 2 4 8
/// DIRECTORY takes 1.4 to 4 GB for a while. Weights repeat every million, which no size depends on.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "mistral/file.hpp"
#include "mistral/forward.hpp"
#include "mistral/places.hpp"
#include "mistral/safetensors.hpp"
#include "nibble/half.hpp"

namespace fs = std::filesystem;
using namespace nibble;
using namespace nibble::mistral;

namespace {

constexpr index_t samples = 8, length = 512;

nlohmann::ordered_json shape_of_mistral_7b(index_t layers) {
  return {{"architectures", {"MistralForCausalLM"}},
          {"model_type", "mistral"},
          {"vocab_size", 32768},
          {"hidden_size", 4096},
          {"intermediate_size", 14336},
          {"num_hidden_layers", layers},
          {"num_attention_heads", 32},
          {"num_key_value_heads", 8},
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

std::vector<bf16> random_weights(index_t count, float middle, float scale) {
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

void write_random_model(const fs::path& directory, index_t layers) {
  fs::create_directories(directory);
  write_file(directory / "config.json", shape_of_mistral_7b(layers).dump(1));
  const fs::path tokenizer = fs::path(source_directory) / "examples/awq_mistral/model";
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"})
    fs::copy_file(tokenizer / name, directory / name, fs::copy_options::overwrite_existing);
  const config c = read_config(directory);
  safetensors_writer out(directory, 5'000'000'000);
  const auto add = [&](const std::string& name, const std::vector<index_t>& shape, float middle, float scale) {
    const auto values = random_weights(shape.size() == 1 ? shape[0] : shape[0] * shape[1], middle, scale);
    out.add(name, "BF16", shape, values.data(), values.size() * sizeof(bf16));
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

double bound(const config& c, bool calibrated) {
  double layer = 0, gram = 0;
  for (const projection p : projections) {
    layer += 2.0 * static_cast<double>(outputs(c, p) * inputs(c, p));
    gram = std::max(gram, 4.0 * static_cast<double>(inputs(c, p)) * static_cast<double>(inputs(c, p)));
  }
  const double activations = 4.0 * static_cast<double>(samples * length * c.hidden);
  return (calibrated ? 2 * activations + gram : 0) + 3 * layer + 2.0 * static_cast<double>(c.vocabulary * c.hidden);
}

nlohmann::json run(const fs::path& program, const fs::path& directory, const std::vector<std::string>& more) {
  std::vector<std::string> words = {program.string(),
                                    "--model",
                                    (directory / "model").string(),
                                    "--output",
                                    (directory / "out").string(),
                                    "--overwrite",
                                    "--restart",
                                    "--json",
                                    (directory / "figures.json").string(),
                                    "--num-calibration-samples",
                                    std::to_string(samples),
                                    "--max-seq-length",
                                    std::to_string(length)};
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
    std::fprintf(stderr, "bench_awq_memory: awq_mistral failed; see %s\n", (directory / "log").c_str());
    std::exit(1);
  }
  std::ifstream figures(directory / "figures.json");
  return nlohmann::json::parse(figures);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: bench_awq_memory DIRECTORY [LAYERS ...]\n");
    return 2;
  }
  const fs::path directory = fs::absolute(argv[1]) / "awq_memory";
  std::vector<index_t> counts;
  for (int i = 2; i < argc; ++i) counts.push_back(std::atoll(argv[i]));
  if (counts.empty()) counts = {2, 4, 8};
  const fs::path program = fs::read_symlink("/proc/self/exe").parent_path() / "awq_mistral";
  std::printf("%-24s %7s %10s %10s %9s %9s\n", "", "layers", "peak, MB", "bound, MB", "of bound", "seconds");
  for (const index_t layers : counts) {
    write_random_model(directory / "model", layers);
    const config c = read_config(directory / "model");
    const auto measure = [&](const char* name, bool calibrated, const std::vector<std::string>& more) {
      const auto figures = run(program, directory, more);
      const double peak = figures.at("peak_resident_bytes").get<double>();
      std::printf("%-24s %7lld %10.0f %10.0f %9.2f %9.1f\n", name, static_cast<long long>(layers), peak / 1e6,
                  bound(c, calibrated) / 1e6, peak / bound(c, calibrated),
                  figures.at("seconds").at("quantization").get<double>());
      std::fflush(stdout);
    };
    measure("round to nearest", false, {"--method", "rtn"});
    // The grid and the sweeps cost time only: one candidate of each kind, one sweep.
    measure("AWQ, 8 x 512 tokens", true, {"--n-grid", "4", "--sweeps", "1"});
    fs::remove_all(directory / "model");
    fs::remove_all(directory / "out");
  }
  fs::remove_all(directory);
}
