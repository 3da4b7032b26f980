// SPDX-License-Identifier: Apache-2.0
/// @file
/// Peak resident memory of awq_mistral on checkpoints with random weights of Mistral-7B's shape, cut to a few layers,
/// beside the bound that it is to stay under whatever the number of layers:
///     2 · tokens · hidden · 4 B + 3 layers in bf16 + the largest Gram matrix in fp32 + the embedding or head in bf16
///     bench_awq_memory DIRECTORY [LAYERS …]       default: 2 4 8
/// DIRECTORY takes 1.4 to 4 GB for a while.
#include <algorithm>

#include "support/random_model.hpp"

using namespace bench;

namespace {

constexpr index_t samples = 8, length = 512;

double bound(const config& c, bool calibrated) {
  double layer = 0, gram = 0;
  for (const projection p : projections) {
    layer += 2.0 * static_cast<double>(outputs(c, p) * inputs(c, p));
    gram = std::max(gram, 4.0 * static_cast<double>(inputs(c, p)) * static_cast<double>(inputs(c, p)));
  }
  const double activations = 4.0 * static_cast<double>(samples * length * c.hidden);
  return (calibrated ? 2 * activations + gram : 0) + 3 * layer + 2.0 * static_cast<double>(c.vocabulary * c.hidden);
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
  std::printf("%-24s %7s %10s %10s %9s %9s\n", "", "layers", "peak, MB", "bound, MB", "of bound", "seconds");
  for (const index_t layers : counts) {
    write_random_model(directory / "model", mistral_7b, layers);
    const config c = read_config(directory / "model");
    const auto measure = [&](const char* name, bool calibrated, std::vector<std::string> more) {
      for (const char* word : {"--num-calibration-samples", "8", "--max-seq-length", "512"}) more.push_back(word);
      const auto figures = run_pass("bench_awq_memory", "awq_mistral", directory, more);
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
