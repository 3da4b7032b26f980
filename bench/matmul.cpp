// SPDX-License-Identifier: Apache-2.0
/// @file
/// Products of 512 tokens with linears of Mistral-7B's shapes, in float32 and in bfloat16, beside the BLAS's own rate.
#include <benchmark/benchmark.h>

#include <string>
#include <utility>
#include <vector>

#include "nibble/host/matmul.hpp"
#include "support/sgemm.hpp"

using namespace nibble;

namespace {

constexpr index_t tokens = 512;

void matmul_nt(benchmark::State& state, host::matmul_precision how, index_t n, index_t k) {
  const std::vector<float> x = bench::normal(tokens * k, 3), w = bench::normal(n * k, 4);
  std::vector<float> y(static_cast<size_t>(tokens * n));
  bench::beside_sgemm(state, 2 * static_cast<double>(tokens) * static_cast<double>(n * k), [&] {
    host::matmul_nt({x.data(), tokens, k}, {w.data(), n, k}, {y.data(), tokens, n}, how);
  });
}

const struct {
  const char* name;
  host::matmul_precision how;
} precisions[] = {{"float32", host::matmul_precision::float32}, {"bfloat16", host::matmul_precision::bfloat16}};

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  for (const auto& [n, k] : {std::pair<index_t, index_t>{1024, 4096}, {4096, 4096}, {14336, 4096}, {4096, 14336}})
    for (const auto& each : precisions) {
      const std::string name =
          std::string("matmul_nt/") + each.name + "/" + std::to_string(n) + "x" + std::to_string(k);
      benchmark::RegisterBenchmark(
          name.c_str(), [n = n, k = k, how = each.how](benchmark::State& state) { matmul_nt(state, how, n, k); })
          ->Arg(2)
          ->UseManualTime()
          ->Unit(benchmark::kMillisecond);
    }
  benchmark::RunSpecifiedBenchmarks();
}
