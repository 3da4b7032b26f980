// SPDX-License-Identifier: Apache-2.0
/// @file
/// Kernels distortion and kl_divergence between bf16 matrices beside a copy: bench_distortion_cuda. Logits have as many rows as
/// a shape has inputs, and its outputs for a vocabulary.
#include "nibble/kernels/distortion.cuh"

#include "support/device.cuh"

using namespace nibble;

namespace {

struct pair {
  bench::extents shape;
  bench::buffer<bf16> first, second;

  pair(bench::extents e, unsigned seed, float deviation) : shape(e), first(e.size()), second(e.size()) {
    bench::fill(first, bench::normal<bf16>{deviation}, 2 * seed);
    bench::fill(second, bench::normal<bf16>{deviation}, 2 * seed + 1);
  }
  matrix<const bf16> x() const { return {first.data(), shape.n, shape.k}; }
  matrix<const bf16> y() const { return {second.data(), shape.n, shape.k}; }
};

struct distortion_job {
  pair of;
  bench::buffer<distortion_sums> sums;
  bench::buffer<unsigned char> workspace;

  distortion_job(bench::extents e, unsigned seed)
      : of(e, seed, 0.02f),
        sums(1),
        workspace(bench::workspace_of([&](void* to, index_t& bytes) { return start(to, bytes, nullptr); })) {}
  status start(void* scratch, index_t& bytes, cudaStream_t stream) const {
    return kernels::distortion(of.x(), of.y(), sums.data(), scratch, bytes, stream);
  }
  status operator()(cudaStream_t stream) const {
    index_t bytes = workspace.size();
    return start(workspace.data(), bytes, stream);
  }
};

struct divergence_job {
  pair of;
  bench::buffer<double> divergence;

  divergence_job(bench::extents e, unsigned seed) : of({e.k, e.n}, seed, 2.0f), divergence(e.k) {}
  status operator()(cudaStream_t stream) const {
    return kernels::kl_divergence(of.x(), of.y(), divergence.data(), stream);
  }
};

void add_all() {
  const auto bytes = [](bench::extents e) { return 4 * e.size(); };
  bench::add_streaming(
      "distortion", [](bench::extents e, unsigned seed) { return distortion_job(e, seed); }, bytes);
  bench::add_streaming(
      "kl_divergence", [](bench::extents e, unsigned seed) { return divergence_job(e, seed); }, bytes);
}

}  // namespace

int main(int count, char** arguments) {
  return bench::run(count, arguments, add_all);
}
