// SPDX-License-Identifier: Apache-2.0
/// @file
/// Kernels of AWQ's search over bf16 weights, 4 bits, groups of 128: bench_awq_cuda. What streams weights runs beside a copy,
/// importance counted as one reading though the kernel makes two; what multiplies, beside cuBLAS's product of the same dtype.
#include "nibble/kernels/awq.cuh"

#include "nibble/kernels/clip.cuh"
#include "nibble/kernels/sweep.cuh"
#include "support/blas.cuh"
#include "support/gram.cuh"
#include "support/linear.cuh"

using namespace nibble;

namespace {

constexpr scheme<4> coded{};
constexpr index_t group_size = 128;

/// Scales within [0.5, 1.5).
struct uniform_scale {
  __device__ float operator()(uint64_t random) const { return 0.5f + static_cast<float>(random >> 40) * 0x1p-24f; }
};

/// A linear, scales, and a matrix of its shape to write.
struct candidate {
  bench::linear on;
  bench::buffer<float> scale;
  bench::buffer<bf16> out;

  candidate(bench::extents e, unsigned seed) : on(e, seed), scale(e.k), out(e.size()) {
    bench::fill(scale, uniform_scale{}, seed);
  }
  matrix<const bf16> w() const { return on.weights(); }
  matrix<bf16> to() const { return {out.data(), on.shape.n, on.shape.k}; }
};

struct importance_job {
  bench::linear on;
  bench::buffer<double> sum;
  bench::buffer<unsigned char> workspace;

  importance_job(bench::extents e, unsigned seed)
      : on(e, seed),
        sum(e.k),
        workspace(bench::workspace_of([&](void* to, index_t& bytes) { return start(to, bytes, nullptr); })) {
    bench::zero(sum);
  }
  status start(void* scratch, index_t& bytes, cudaStream_t stream) const {
    return kernels::weight_importance(matrix<const bf16>(on.weights()), group_size, sum.data(), scratch, bytes, stream);
  }
  status operator()(cudaStream_t stream) const {
    index_t bytes = workspace.size();
    return start(workspace.data(), bytes, stream);
  }
};

void gram_loss(benchmark::State& state, bench::extents e) {
  const bench::buffer<bf16> d(e.size()), g = bench::gram_of<bf16>(e.k);
  const bench::buffer<double> loss(1);
  bench::fill(d, bench::normal<bf16>{0.1f * bench::deviation}, 1);
  const matrix<const bf16> difference(d.data(), e.n, e.k), gram(g.data(), e.k, e.k);
  const auto start = [&](void* scratch, index_t& bytes) {
    return kernels::gram_loss(difference, gram, loss.data(), scratch, bytes, bench::blas());
  };
  const auto workspace = bench::workspace_of(start);
  const auto ours = [&](cudaStream_t) {
    index_t bytes = workspace.size();
    return start(workspace.data(), bytes);
  };
  const double flop = 2 * static_cast<double>(e.size()) * static_cast<double>(e.k);
  bench::beside_product(state, flop, ours, difference, kernels::reading::plain, gram, e.n, e.k, e.k);
}

/// What clip and sweep read, in float.
struct ranges {
  bench::extents shape;
  bench::buffer<float> w, scale, g;
  bench::buffer<params> p;
  bench::buffer<uint8_t> q;

  explicit ranges(bench::extents e)
      : shape(e),
        w(e.size()),
        scale(e.k),
        g(bench::gram_of<float>(e.k)),
        p(e.n * bench::group.across(e.k)),
        q(e.size()) {
    bench::fill(w, bench::normal<float>{bench::deviation}, 1);
    bench::fill(scale, uniform_scale{}, 2);
    bench::fill(p, bench::uniform_params{6 * bench::deviation / 15, 8}, 3);
    bench::fill(q, bench::uniform_bits<uint8_t>{4}, 4);
  }
  matrix<const float> weights() const { return {w.data(), shape.n, shape.k}; }
  matrix<const float> gram() const { return {g.data(), shape.k, shape.k}; }
  matrix<params> parameters() const { return {p.data(), shape.n, bench::group.across(shape.k)}; }
};

/// Flop of all candidates' quadratic forms, those that are better and make the search move on not counted.
void clip(benchmark::State& state, bench::extents e) {
  constexpr int steps = 6;
  constexpr double candidates = 1 + (steps + 1) * (steps + 1) + 2 * 9;
  const ranges on(e);
  const auto ours = [&](cudaStream_t stream) {
    return kernels::clip_under_gram(on.weights(), on.scale.data(), on.gram(), group_size, coded, on.parameters(), steps,
                                    stream);
  };
  const double flop = candidates * 2 * static_cast<double>(e.size()) * static_cast<double>(group_size);
  bench::beside_product(state, flop, ours, on.weights(), kernels::reading::plain, on.gram(), e.n, e.k, e.k);
}

/// One round: slopes D·G from nothing, then kept up to date, 2·n·k² each.
void sweep(benchmark::State& state, bench::extents e) {
  const ranges on(e);
  const auto start = [&](void* scratch, index_t& bytes) {
    return kernels::sweep(on.weights(), on.scale.data(), on.gram(), matrix<const params>(on.parameters()), group_size,
                          coded, 1, matrix<uint8_t>(on.q.data(), e.n, e.k), scratch, bytes, bench::blas());
  };
  const auto workspace = bench::workspace_of(start);
  const auto ours = [&](cudaStream_t) {
    index_t bytes = workspace.size();
    return start(workspace.data(), bytes);
  };
  const double flop = 4 * static_cast<double>(e.size()) * static_cast<double>(e.k);
  bench::beside_product(state, flop, ours, on.weights(), kernels::reading::plain, on.gram(), e.n, e.k, e.k);
}

/// f(candidate, stream) → status, which moves `bytes` a weight, parameters aside, and `of_params` bytes a group.
template <class F>
void add_candidate(const std::string& name, index_t bytes, index_t of_params, F f) {
  bench::add_streaming(
      name,
      [f](bench::extents e, unsigned seed) {
        return [f, on = candidate(e, seed)](cudaStream_t stream) { return f(on, stream); };
      },
      [=](bench::extents e) {
        return bytes * e.size() + of_params * e.n * bench::group.across(e.k) + index_t{sizeof(float)} * e.k;
      });
}

void add_all() {
  bench::add_streaming(
      "importance", [](bench::extents e, unsigned seed) { return importance_job(e, seed); },
      [](bench::extents e) { return 2 * e.size(); });
  add_candidate("scale_columns", 4, 0, [](const candidate& c, cudaStream_t stream) {
    return kernels::scale_columns(c.w(), c.scale.data(), c.to(), stream);
  });
  add_candidate("scaled_error", 4, 0, [](const candidate& c, cudaStream_t stream) {
    return kernels::scaled_error(c.w(), c.scale.data(), c.to(), matrix<params>(), group_size, coded, stream);
  });
  add_candidate("codes_error", 5, 8, [](const candidate& c, cudaStream_t stream) {
    return kernels::codes_error(c.w(), c.on.codes(), c.on.parameters(), c.scale.data(), nullptr, c.to(), group_size,
                                coded, stream);
  });
  for (const bench::extents& e : bench::shapes()) {
    bench::add("gram_loss/" + e.name(), [e](benchmark::State& state) { gram_loss(state, e); });
    bench::add("clip/" + e.name(), [e](benchmark::State& state) { clip(state, e); });
    bench::add("sweep/" + e.name(), [e](benchmark::State& state) { sweep(state, e); });
  }
}

}  // namespace

int main(int count, char** arguments) {
  return bench::run(count, arguments, add_all);
}
