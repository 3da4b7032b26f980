// SPDX-License-Identifier: Apache-2.0
/// @file
/// GPTQ by phase and as a whole, 4 bits, groups of 128: bench_gptq_cuda. Each beside cuBLAS's product of W by a (k, k) in fp32, by the
/// flop that the phase takes at least: what its kernels wait for shows in the share.
#include "nibble/kernels/gptq.cuh"

#include "nibble/kernels/refit.cuh"
#include "nibble/kernels/target.cuh"
#include "support/blas.cuh"
#include "support/gram.cuh"
#include "support/linear.cuh"

using namespace nibble;

namespace {

constexpr scheme<4> coded{};
constexpr index_t group_size = 128, tokens = 4096;

struct one {
  __device__ float operator()(uint64_t) const { return 1.0f; }
};

/// A linear, its Hessian's factor, and where its codes go.
struct problem {
  bench::extents shape;
  bench::buffer<float> w, scale, g, l;
  bench::buffer<kernels::factored> state;
  bench::buffer<params> p;
  bench::buffer<uint8_t> q;
  bench::buffer<double> loss;

  explicit problem(bench::extents e)
      : shape(e),
        w(e.size()),
        scale(e.k),
        g(bench::gram_of<float>(e.k)),
        l(e.k * e.k),
        state(1),
        p(e.n * bench::group.across(e.k)),
        q(e.size()),
        loss(1) {
    bench::fill(w, bench::normal<float>{bench::deviation}, 1);
    bench::fill(scale, one{}, 2);
    bench::fill(p, bench::uniform_params{6 * bench::deviation / 15, 8}, 3);
    bench::fill(q, bench::uniform_bits<uint8_t>{4}, 4);
    bench::need(factor());
  }
  matrix<const float> weights() const { return {w.data(), shape.n, shape.k}; }
  matrix<const float> gram() const { return {g.data(), shape.k, shape.k}; }
  matrix<float> triangle() const { return {l.data(), shape.k, shape.k}; }
  matrix<params> parameters() const { return {p.data(), shape.n, bench::group.across(shape.k)}; }
  matrix<uint8_t> codes() const { return {q.data(), shape.n, shape.k}; }

  status factor() const {
    return kernels::factor(gram(), scale.data(), nullptr, 0.01, false, triangle(), state.data(), bench::blas());
  }
  status solve(gptq_ranges ranges, void* scratch, index_t& bytes) const {
    return kernels::gptq(weights(), matrix<const float>(triangle()), {}, group_size, ranges, coded, parameters(),
                         codes(), loss.data(), scratch, bytes, bench::blas());
  }
  status refine(void* scratch, index_t& bytes) const {
    return kernels::sweep_and_refit(weights(), scale.data(), gram(), group_size, coded, 1, parameters(), codes(),
                                    scratch, bytes, bench::blas());
  }
  double flop_of(double per_weight) const {
    return per_weight * static_cast<double>(shape.size()) * static_cast<double>(shape.k);
  }
  double factor_flop() const {
    const auto k = static_cast<double>(shape.k);
    return k * k * k / 3;
  }
};

/// start() → status, `flop` at least, beside the product.
template <class F>
void beside(benchmark::State& state, const problem& on, double flop, F start) {
  bench::beside_product(
      state, flop, [&](cudaStream_t) { return start(); }, on.weights(), kernels::reading::plain, on.gram(), on.shape.n,
      on.shape.k, on.shape.k);
}

void factor(benchmark::State& state, bench::extents e) {
  const problem on(e);
  beside(state, on, on.factor_flop(), [&] { return on.factor(); });
}

void codes(benchmark::State& state, bench::extents e, gptq_ranges ranges) {
  const problem on(e);
  const auto start = [&](void* scratch, index_t& bytes) { return on.solve(ranges, scratch, bytes); };
  const auto workspace = bench::workspace_of(start);
  beside(state, on, on.flop_of(1), [&] {
    index_t bytes = workspace.size();
    return start(workspace.data(), bytes);
  });
}

/// One round: a product from nothing, and two that keep it up to date.
void refine(benchmark::State& state, bench::extents e) {
  const problem on(e);
  const auto start = [&](void* scratch, index_t& bytes) { return on.refine(scratch, bytes); };
  const auto workspace = bench::workspace_of(start);
  beside(state, on, on.flop_of(6), [&] {
    index_t bytes = workspace.size();
    return start(workspace.data(), bytes);
  });
}

/// The drift of 4096 tokens.
void drift(benchmark::State& state, bench::extents e) {
  const problem on(e);
  const bench::buffer<bf16> original(tokens * e.k), x(tokens * e.k);
  bench::fill(original, bench::normal<bf16>{1.0f}, 5);
  bench::fill(x, bench::normal<bf16>{1.0f}, 6);
  const bench::buffer<float> sum(e.k * e.k);
  bench::zero(sum);
  const auto start = [&](void* scratch, index_t& bytes) {
    return kernels::drift(matrix<const bf16>(original.data(), tokens, e.k), matrix<const bf16>(x.data(), tokens, e.k),
                          matrix<float>(sum.data(), e.k, e.k), scratch, bytes, bench::blas());
  };
  const auto workspace = bench::workspace_of(start);
  const auto k = static_cast<double>(e.k);
  beside(state, on, 2 * k * k * static_cast<double>(tokens), [&] {
    index_t bytes = workspace.size();
    return start(workspace.data(), bytes);
  });
}

/// The drift of the residual stream that n outputs join.
void residual_drift(benchmark::State& state, bench::extents e) {
  const problem on(e);
  const bench::buffer<float> original(tokens * e.n), residual(tokens * e.n), sum(e.size());
  const bench::buffer<bf16> x(tokens * e.k);
  bench::fill(original, bench::normal<float>{1.0f}, 5);
  bench::fill(residual, bench::normal<float>{1.0f}, 6);
  bench::fill(x, bench::normal<bf16>{1.0f}, 7);
  bench::zero(sum);
  const auto start = [&](void* scratch, index_t& bytes) {
    return kernels::drift(matrix<const float>(original.data(), tokens, e.n),
                          matrix<const float>(residual.data(), tokens, e.n), matrix<const bf16>(x.data(), tokens, e.k),
                          matrix<float>(sum.data(), e.n, e.k), scratch, bytes, bench::blas());
  };
  const auto workspace = bench::workspace_of(start);
  beside(state, on, 2 * static_cast<double>(e.size()) * static_cast<double>(tokens), [&] {
    index_t bytes = workspace.size();
    return start(workspace.data(), bytes);
  });
}

/// One product, and two triangular solves.
void target(benchmark::State& state, bench::extents e) {
  const problem on(e);
  const bench::buffer<float> sum = bench::gram_of<float>(e.k), out(e.size());
  const auto start = [&](void* scratch, index_t& bytes) {
    return kernels::moved_target(on.weights(), on.scale.data(), matrix<const float>(sum.data(), e.k, e.k), tokens,
                                 nullptr, matrix<const float>(on.triangle()), on.state.data(), 1.0f, 0.5f,
                                 matrix<float>(out.data(), e.n, e.k), scratch, bytes, bench::blas());
  };
  const auto workspace = bench::workspace_of(start);
  beside(state, on, on.flop_of(4), [&] {
    index_t bytes = workspace.size();
    return start(workspace.data(), bytes);
  });
}

/// Factor, codes in searched ranges, a sweep and a refit.
void whole(benchmark::State& state, bench::extents e) {
  const problem on(e);
  const auto solve = [&](void* scratch, index_t& bytes) { return on.solve(gptq_ranges::gram, scratch, bytes); };
  const auto refine = [&](void* scratch, index_t& bytes) { return on.refine(scratch, bytes); };
  const auto solving = bench::workspace_of(solve), refining = bench::workspace_of(refine);
  beside(state, on, on.factor_flop() + on.flop_of(7), [&] {
    index_t bytes = solving.size();
    status done = on.factor();
    if (done == status::ok) done = solve(solving.data(), bytes);
    bytes = refining.size();
    return done == status::ok ? refine(refining.data(), bytes) : done;
  });
}

void add_all() {
  for (const bench::extents& e : bench::shapes()) {
    const auto add = [&](const char* name, auto f) {
      bench::add(name + ("/" + e.name()), [e, f](benchmark::State& state) { f(state, e); });
    };
    add("factor", factor);
    add("codes_given", [](benchmark::State& state, bench::extents of) { codes(state, of, gptq_ranges::given); });
    add("codes_minmax", [](benchmark::State& state, bench::extents of) { codes(state, of, gptq_ranges::minmax); });
    add("codes_mse", [](benchmark::State& state, bench::extents of) { codes(state, of, gptq_ranges::mse); });
    add("codes_gram", [](benchmark::State& state, bench::extents of) { codes(state, of, gptq_ranges::gram); });
    add("sweep_and_refit", refine);
    add("drift", drift);
    add("residual_drift", residual_drift);
    add("target", target);
    add("whole", whole);
  }
}

}  // namespace

int main(int count, char** arguments) {
  return bench::run(count, arguments, add_all);
}
