// SPDX-License-Identifier: Apache-2.0
/// @file
/// Statistics of bf16 activations, tokens × channels: sums and maxima, ranges and histograms beside a copy, the
/// Gram matrix beside cuBLAS's product, and searches over 224 histograms, seven linears of 32 layers: bench_observe_cuda.
#include "nibble/kernels/observe.cuh"

#include "nibble/kernels/histogram.cuh"

#include "support/blas.cuh"
#include "support/device.cuh"

using namespace nibble;

namespace {

struct statistics_job {
  bench::extents shape;
  bool cleans;
  bench::buffer<bf16> x, clean;
  bench::buffer<double> sum;
  bench::buffer<float> most;
  bench::buffer<uint64_t> bad;
  bench::buffer<unsigned char> workspace;

  statistics_job(bench::extents e, unsigned seed, bool cleans_)
      : shape(e),
        cleans(cleans_),
        x(e.size()),
        clean(cleans ? e.size() : 1),
        sum(e.k),
        most(e.k),
        bad(1),
        workspace(bench::workspace_of([&](void* to, index_t& bytes) { return start(to, bytes, nullptr); })) {
    bench::fill(x, bench::normal<bf16>{1.0f}, seed);
    bench::zero(sum);
    bench::zero(most);
    bench::zero(bad);
  }
  status start(void* scratch, index_t& bytes, cudaStream_t stream) const {
    const matrix<const bf16> from(x.data(), shape.n, shape.k);
    const matrix<bf16> to = cleans ? matrix<bf16>(clean.data(), shape.n, shape.k) : matrix<bf16>();
    return kernels::observe(from, {sum.data(), most.data(), bad.data()}, to, scratch, bytes, stream);
  }
  status operator()(cudaStream_t stream) const {
    index_t bytes = workspace.size();
    return start(workspace.data(), bytes, stream);
  }
};

enum class observed { range, channels, histogram };

struct range_job {
  bench::extents shape;
  observed what;
  bench::buffer<bf16> x;
  bench::buffer<value_range> ranges;
  bench::buffer<histogram_counts> counts;
  bench::buffer<unsigned char> workspace;

  range_job(bench::extents e, unsigned seed, observed what_)
      : shape(e),
        what(what_),
        x(e.size()),
        ranges(e.k),
        counts(1),
        workspace(bench::workspace_of([&](void* to, index_t& bytes) {
          bytes = 1;
          return what == observed::histogram ? status::ok : start(to, bytes, nullptr);
        })) {
    bench::fill(x, bench::normal<bf16>{1.0f}, seed);
    bench::zero(ranges);
    bench::zero(counts);
  }
  status start(void* scratch, index_t& bytes, cudaStream_t stream) const {
    const matrix<const bf16> from(x.data(), shape.n, shape.k);
    if (what == observed::histogram) return kernels::add_to_histogram(from, counts.data(), stream);
    if (what == observed::range) return kernels::range_of(from, ranges.data(), scratch, bytes, stream);
    return kernels::channel_ranges(from, ranges.data(), scratch, bytes, stream);
  }
  status operator()(cudaStream_t stream) const {
    index_t bytes = workspace.size();
    return start(workspace.data(), bytes, stream);
  }
};

/// start(histograms, count, thresholds, workspace, bytes, stream) over histograms of normal activations.
template <class F>
void search(benchmark::State& state, F start) {
  constexpr index_t count = 224;
  const bench::buffer<bf16> x(index_t{1} << 20);
  const bench::buffer<histogram_counts> h(count);
  const bench::buffer<float> thresholds(count);
  bench::zero(h);
  for (index_t i = 0; i < count; ++i) {
    bench::fill(x, bench::normal<bf16>{1.0f}, static_cast<unsigned>(i));
    bench::need(
        kernels::add_to_histogram(matrix<const bf16>(x.data(), 1024, 1024), h.data() + i, bench::device().stream));
  }
  const auto workspace = bench::workspace_of(
      [&](void* to, index_t& bytes) { return start(h.data(), count, thresholds.data(), to, bytes, nullptr); });
  const bench::replay all(4, [&](index_t, cudaStream_t stream) {
    index_t bytes = workspace.size();
    return start(h.data(), count, thresholds.data(), workspace.data(), bytes, stream);
  });
  std::vector<double> times;
  for (auto _ : state) {
    times.push_back(all.seconds());
    state.SetIterationTime(times.back());
  }
  state.counters["us"] = 1e6 * bench::median(times);
}

template <class Levels>
void l2(benchmark::State& state, Levels levels) {
  search(state, [levels](const histogram_counts* h, index_t count, float* to, void* scratch, index_t& bytes,
                         cudaStream_t stream) {
    return kernels::l2_thresholds(h, count, levels, to, scratch, bytes, stream);
  });
}
void kl(benchmark::State& state) {
  search(state, [](const histogram_counts* h, index_t count, float* to, void* scratch, index_t& bytes,
                   cudaStream_t stream) { return kernels::kl_thresholds(h, count, 128, to, scratch, bytes, stream); });
}
void percentile(benchmark::State& state) {
  search(state, [](const histogram_counts* h, index_t count, float* to, void*, index_t& bytes, cudaStream_t stream) {
    bytes = 1;
    return kernels::percentile_thresholds(h, count, 0.9999, to, stream);
  });
}

void gram(benchmark::State& state, bench::extents e) {
  const bench::buffer<bf16> x(e.size());
  const bench::buffer<float> g(e.k * e.k);
  bench::fill(x, bench::normal<bf16>{1.0f}, 1);
  bench::zero(g);
  const matrix<const bf16> from(x.data(), e.n, e.k);
  const matrix<float> to(g.data(), e.k, e.k);
  const auto start = [&](void* scratch, index_t& bytes) {
    return kernels::gram(from, to, scratch, bytes, bench::blas());
  };
  const auto workspace = bench::workspace_of(start);
  const auto ours = [&](cudaStream_t) {
    index_t bytes = workspace.size();
    return start(workspace.data(), bytes);
  };
  const double flop = static_cast<double>(e.n) * static_cast<double>(e.k * (e.k + 1));  // of the upper triangle
  bench::beside_product(state, flop, ours, from, kernels::reading::transposed, from, e.k, e.n, e.k);
}

void add_all() {
  for (const bool cleans : {false, true})
    bench::add_streaming(
        cleans ? "observe, cleaned copy" : "observe",
        [cleans](bench::extents e, unsigned seed) {
          return statistics_job{e, seed, cleans};
        },
        [cleans](bench::extents e) { return (cleans ? 4 : 2) * e.size(); });
  for (const auto& [name, what] :
       {std::pair("range_of", observed::range), std::pair("channel_ranges", observed::channels),
        std::pair("add_to_histogram, two passes", observed::histogram)})
    bench::add_streaming(
        name,
        [what = what](bench::extents e, unsigned seed) {
          return range_job{e, seed, what};
        },
        [what = what](bench::extents e) { return (what == observed::histogram ? 4 : 2) * e.size(); });
  bench::add("percentile_thresholds/224", percentile);
  bench::add("l2_thresholds/224/int8", [](benchmark::State& state) { l2(state, 127); });
  bench::add("l2_thresholds/224/e4m3", [](benchmark::State& state) { l2(state, float_format::e4m3); });
  bench::add("kl_thresholds/224", kl);
  for (const bench::extents& e : bench::shapes())
    bench::add("gram/" + e.name(), [e](benchmark::State& state) { gram(state, e); });
}

}  // namespace

int main(int count, char** arguments) {
  return bench::run(count, arguments, add_all);
}
