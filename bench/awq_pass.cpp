// SPDX-License-Identifier: Apache-2.0
/// @file
/// The whole pass of awq_mistral, or with --method of gptq_mistral or smoothquant_mistral, on random weights of the shape of Mistral-7B
/// or Mistral-Small-24B, cut to a few layers, by phase, and what that makes for all layers.
///     bench_awq_pass DIRECTORY [--method awq|gptq|awq+gptq|smoothquant|smoothquant+gptq] [--shape 7b|24b] [--layers N] [--samples N]
///                    [--length N] [OPTION OF THE PROGRAM …]
/// DIRECTORY takes 2 GB for a while (24b: 5 GB) and 0.55 GB (1.4 GB) for each layer more than the first.
#include <algorithm>
#include <CLI/CLI.hpp>

#include "support/random_model.hpp"

using namespace bench;

namespace {

/// A line of the table. "copy" is what computation waited for; on a GPU the other phases of an engine are the device's own time.
void print(const char* name, double seconds, const model_shape& shape, index_t layers, double whole) {
  const double each = seconds / static_cast<double>(layers);
  std::printf("%-12s %12.3f %12.4f %14.1f %8.1f %%\n", name, seconds, each, each * static_cast<double>(shape.layers),
              100 * seconds / whole);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("A pass by phase, on random weights of a known shape.", "bench_awq_pass");
  std::string directory, name = "7b", method = "awq";
  index_t layers = 2, samples = 256, length = 512;
  app.add_option("directory", directory, "Where the model and the output go for a while")->required();
  app.add_option("--shape", name)->check(CLI::IsMember({"7b", "24b"}))->capture_default_str();
  app.add_option(
         "--method", method,
         "awq: awq_mistral; gptq or awq+gptq: gptq_mistral; smoothquant or smoothquant+gptq: smoothquant_mistral")
      ->check(CLI::IsMember({"awq", "gptq", "awq+gptq", "smoothquant", "smoothquant+gptq"}))
      ->capture_default_str();
  app.add_option("--layers", layers)->check(CLI::Range(index_t(1), index_t(64)))->capture_default_str();
  app.add_option("--samples", samples)->check(CLI::Range(index_t(1), index_t(4096)))->capture_default_str();
  app.add_option("--length", length)->check(CLI::Range(index_t(1), index_t(32768)))->capture_default_str();
  app.allow_extras();
  CLI11_PARSE(app, argc, argv);

  const model_shape& shape = name == "7b" ? mistral_7b : mistral_small_24b;
  const fs::path root = fs::absolute(directory) / "awq_pass";
  write_random_model(root / "model", shape, layers);
  std::vector<std::string> words = app.remaining();
  for (const std::string& word :
       {std::string("--num-calibration-samples"), std::to_string(samples), std::string("--max-seq-length"),
        std::to_string(length), std::string("--method"), method})
    words.push_back(word);
  const char* const program = method == "awq"                       ? "awq_mistral"
                              : method.rfind("smoothquant", 0) == 0 ? "smoothquant_mistral"
                                                                    : "gptq_mistral";
  const auto figures = run_pass("bench_awq_pass", program, root, words);
  const auto& machine = figures.at("machine");
  const auto& seconds = figures.at("seconds");
  const double whole = seconds.at("quantization").get<double>();

  std::printf("%s of %s, %lld of %lld layers, %lld tokens, on %s\n\n", method.c_str(), shape.name,
              static_cast<long long>(layers), static_cast<long long>(shape.layers),
              figures["calibration"]["tokens"].get<long long>(), machine.at("name").get<std::string>().c_str());
  std::printf("%-12s %12s %12s %14s %10s\n", "phase", "seconds", "a layer", "all layers*", "share");
  double rest = whole;
  const auto add = [&](const std::string& phase, double spent) {
    print(phase.c_str(), spent, shape, layers, whole);
    rest -= spent;
  };
  add("read", seconds.at("read").get<double>());
  for (const auto& [phase, spent] : machine.at("seconds").items()) add(phase, spent.get<double>());
  add("write", seconds.at("write").get<double>());
  print("other", std::max(rest, 0.0), shape, layers, whole);
  print("all", whole, shape, layers, whole);
  std::printf("\n* the time of a layer times %lld; embedding, start and the shard's end are counted with every layer\n",
              static_cast<long long>(shape.layers));
  std::printf("host memory %.2f GB", figures.at("peak_resident_bytes").get<double>() / 1e9);
  if (machine.contains("gpu_bytes")) std::printf(", GPU memory %.2f GB", machine["gpu_bytes"].get<double>() / 1e9);
  std::printf("\n");
  fs::remove_all(root);
  return 0;
}
