// SPDX-License-Identifier: Apache-2.0
/// @file
/// Statistics of bf16 activations, tokens × channels: sums and maxima beside a copy, the Gram matrix beside cuBLAS's
/// product: bench_observe_cuda.
#include "nibble/kernels/observe.cuh"

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
  for (const bench::extents& e : bench::shapes())
    bench::add("gram/" + e.name(), [e](benchmark::State& state) { gram(state, e); });
}

}  // namespace

int main(int count, char** arguments) {
  return bench::run(count, arguments, add_all);
}
