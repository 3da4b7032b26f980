// SPDX-License-Identifier: Apache-2.0
/// @file
/// Fitting ranges to a 4096 × 14336 matrix, 4 bits asymmetric, group 128, beside a copy: bench_fit. Searches are bound
/// by arithmetic; their figure is nanoseconds for a weight and a thread.
#include <string>

#include "nibble/host/fit.hpp"
#include "support/copy.hpp"
#include "support/matrices.hpp"

using namespace nibble;

namespace {

template <class T, class Method>
void add(const std::string& name, group_shape group, Method method, bool weighted, index_t rows = bench::n) {
  benchmark::RegisterBenchmark(
      name.c_str(),
      [=](benchmark::State& state) {
        const auto weights = bench::normal_weights<T>();
        const std::vector<float> importance(static_cast<std::size_t>(bench::k), 1.5f);
        std::vector<params> found(static_cast<std::size_t>(group.down(rows) * group.across(bench::k)));
        const matrix<const T> w(weights.data(), rows, bench::k);
        const matrix<params> p(found.data(), group.down(rows), group.across(bench::k));
        any_scheme s;
        s.scale_dtype = dtype::bf16;
        double least = 1e9;
        bench::beside_copy(state, w.size() * index_t(sizeof(T)), [&] {
          least = std::min(least, bench::seconds([&] {
                             host::fit(w, p, group, s, method, weighted ? importance.data() : nullptr);
                           }));
        });
        state.counters["ns/weight/thread"] =
            least * 1e9 * static_cast<double>(state.range(0)) / static_cast<double>(w.size());
      })
      ->Arg(2)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
}

}  // namespace

int main(int argc, char** argv) {
  add<bf16>("minmax/bf16/channel", per_channel, minmax{}, false);
  add<bf16>("minmax/bf16/group 128", per_group(128), minmax{}, false);
  add<float>("minmax/f32/group 128", per_group(128), minmax{}, false);
  add<bf16>("ends_search/bf16/group 128", per_group(128), ends_search{}, true);
  add<float>("ends_search/f32/group 128", per_group(128), ends_search{}, true);
  add<bf16>("ends_search/bf16/group 32", per_group(32), ends_search{}, true);
  add<bf16>("mse_search (AutoAWQ's grid)/bf16/group 128, 512 rows", per_group(128), autoawq_grid, false, 512);
  add<bf16>("mse_search (llm-compressor's grid)/bf16/group 128, 512 rows", per_group(128), llm_compressor_grid, false,
            512);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
