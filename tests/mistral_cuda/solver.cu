// SPDX-License-Identifier: Apache-2.0
/// @file
/// GPTQ as a pass does it on a GPU, against the host's, under the same statistics and scales.
#include "pass/cuda/solver.cuh"

#include <array>
#include <cmath>
#include <random>

#include "mistral_cuda/support.hpp"
#include "nibble/host/awq.hpp"
#include "pass/host_solver.hpp"

namespace solver_tests {

using namespace nibble;
using namespace nibble::test;
using namespace nibble::mistral;

namespace {

constexpr std::array orders = {activation_order::none, activation_order::static_groups, activation_order::group_aware,
                               activation_order::descending};

/// Linears with heavy-tailed weights, tokens that they read, and what they would have read of the original model; what their outputs
/// join, which follows x in part, and what that would have been.
struct problem {
  owned<float> w, x, before, residual, residual_before;
  host::second_moment moment;
  std::vector<float> s;

  /// Tokens of `rank` hidden factors; 0: of as many as there are inputs.
  problem(index_t n, index_t k, float shrinkage = 0.5f, index_t rank = 0)
      : w(n, k),
        x(random_matrix(2 * k, k, "activations")),
        before(x),
        residual(random_matrix(2 * k, n, "residual")),
        residual_before(residual),
        moment(k, 2 * k, shrinkage),
        s(static_cast<size_t>(k)) {
    std::mt19937 engine(3);
    std::student_t_distribution<float> draw(4.0f);
    for (float& value : w.data) value = 0.02f * draw(engine);
    if (rank > 0) {
      const owned<float> mix = random_matrix(rank, k, "mix");
      for (index_t row = 0; row < x.rows; ++row) {
        const std::vector<float> factors(x.view().row(row), x.view().row(row) + rank);
        for (index_t col = 0; col < k; ++col) {
          x.view()(row, col) = 0;
          for (index_t i = 0; i < rank; ++i) x.view()(row, col) += factors[static_cast<size_t>(i)] * mix.view()(i, col);
        }
      }
    }
    const owned<float> noise = random_matrix(2 * k, k, "noise", 0.2f);
    for (index_t row = 0; row < x.rows; ++row)
      for (index_t col = 0; col < k; ++col) {
        if (col > 0 && rank == 0) x.view()(row, col) += 0.5f * x.view()(row, col - 1);
        if (col % 13 == 5) x.view()(row, col) *= 6.0f;
        before.view()(row, col) = 1.1f * x.view()(row, col) + noise.view()(row, col);
      }
    for (index_t row = 0; row < x.rows; ++row)
      for (index_t col = 0; col < n; ++col) residual_before.view()(row, col) += 0.2f * x.view()(row, (7 * col + 3) % k);
    moment.add(std::as_const(x).view());
    moment.finish();
    for (size_t j = 0; j < s.size(); ++j) s[j] = 0.5f + 0.37f * static_cast<float>(j % 7);
  }

  index_t tokens() const { return x.rows; }
  host::drift drift(bool joined = false) const {
    host::drift d(x.cols, joined ? w.rows : 0);
    const auto from = [](const owned<float>& of) { return of.view(); };
    d.add(from(before), from(x), from(residual_before), from(residual));
    return d;
  }
  /// @param joined  whether the linear makes up for a residual stream.
  cuda::input_statistics statistics(bool followed, bool joined = false) const {
    cuda::input_statistics to(moment.inputs(), followed, joined ? w.rows : 0);
    const auto copy = [](const cuda::device_memory<float>& there, matrix<const float> from) {
      succeeds(cudaMemcpy(there.data(), from.data, static_cast<size_t>(from.size()) * sizeof(float),
                          cudaMemcpyHostToDevice));
    };
    copy(to.gram, moment.gram_matrix());
    const host::drift d = drift(joined);
    if (followed) copy(to.drift, d.sum());
    if (joined) copy(to.residual_drift, d.residual_sum());
    to.energy = moment.diagonal();
    to.mean = moment.absolute_mean();
    return to;
  }
};

struct on_device {
  cuda::stream stream;
  cuda::blas blas{stream};
  cuda::linear_search search;
  cuda::linear_solver solver;

  on_device(const problem& p, const pass_options& o, index_t tile = index_t(1) << 25)
      : search({p.w.rows * p.w.cols, p.w.cols, p.w.cols, tile}, stream, blas), solver(o, p.w.cols, search) {
    solver.begin(3);
  }
};

packed packed_as(int bits, bool symmetric, index_t group) {
  layer_packing how;
  how[0] = packing{packed_format::compressed_tensors, bits, symmetric, group};
  return {how, projection::q, dtype::bf16};
}

pass_options solved(activation_order order, clip_search clip, int sweeps, bool followed = true) {
  pass_options o;
  o.program = "gptq_mistral";
  o.how_found = methods::gptq;
  o.propagate = followed ? propagation::quantized : propagation::original;
  o.drift = followed ? 1.0f : 0.0f;
  o.order = order, o.clip = clip, o.sweeps = sweeps;
  return o;
}

struct by_host {
  quantized_linear q;
  double loss = 0;

  by_host(const problem& p, const pass_options& o, const packed& as, bool joined = false) : q(blank(p, as)) {
    host_solver solver(o);
    solver.begin(3);
    const projection which = joined ? projection::down : projection::q;
    if (o.drift_followed()) solver.drift_of(input_of(which), shape_of(p)) = p.drift(joined);
    loss = solver.choose(which, p.w.view(), p.s, nullptr, p.moment, as, q);
  }
  static config shape_of(const problem& p) {
    config c;
    c.hidden = c.intermediate = p.x.cols;
    return c;
  }
  static quantized_linear blank(const problem& p, const packed& as) {
    return quantized_linear::blank(p.w.rows, p.w.cols, as.group);
  }
};

chosen_codes by_device(on_device& gpu, const cuda::input_statistics& x, const problem& p, const packed& as,
                       layer_input input = layer_input::attention) {
  return gpu.solver.choose_codes(input, x, p.tokens(), p.w.view(), as, p.s);
}

quantized_linear nearest(const problem& p, const packed& as) {
  quantized_linear q = by_host::blank(p, as);
  host::fit(p.w.view(), q.param_matrix(), per_group(as.group), as.scheme, minmax{}, nullptr);
  host::quantize(p.w.view(), matrix<const params>(q.param_matrix()), q.code_matrix(), per_group(as.group), as.scheme);
  return q;
}

index_t others(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b) {
  REQUIRE(a.size() == b.size());
  index_t count = 0;
  for (size_t i = 0; i < a.size(); ++i) count += a[i] != b[i] ? 1 : 0;
  return count;
}

}  // namespace

TEST_CASE("under the same statistics a GPU solves for the host's codes but for one in a thousand, and loses as much") {
  const problem p(24, 160);
  index_t codes = 0, other = 0;
  const auto compare = [&](activation_order order, clip_search clip, int sweeps, const packed& as, bool followed) {
    CAPTURE(static_cast<int>(order), static_cast<int>(clip), sweeps, as.scheme.bits, as.group, followed);
    const pass_options o = solved(order, clip, sweeps, followed);
    on_device gpu(p, o);
    const cuda::input_statistics x = p.statistics(followed);
    const chosen_codes chosen = by_device(gpu, x, p, as);
    const by_host expected(p, o, as);
    CHECK(gpu.solver.found().usable);
    CHECK(chosen.q.group_of == expected.q.group_of);
    const index_t apart = others(chosen.q.codes, expected.q.codes);
    UNSCOPED_INFO(apart << " of " << p.w.rows * p.w.cols << " codes");
    other += apart, codes += p.w.rows * p.w.cols;
    CHECK(chosen.loss == Approx(expected.loss).epsilon(0.02));
  };
  for (const activation_order order : orders) {
    compare(order, clip_search::none, 2, packed_as(4, false, 32), true);
    compare(order, clip_search::mse, 0, packed_as(3, true, 64), false);
  }
  compare(activation_order::static_groups, clip_search::gram, 1, packed_as(3, true, 32), true);
  compare(activation_order::group_aware, clip_search::gram, 0, packed_as(3, true, 32), true);
  compare(activation_order::descending, clip_search::none, 1, packed_as(4, false, -1), true);
  INFO(other << " of " << codes << " codes");
  CHECK(other * 1000 <= codes);  // measured: none
}

TEST_CASE(
    "a GPU makes up for the residual stream's drift as the host does, whatever the order, also in tiles of rows") {
  const problem p(24, 160);
  for (const activation_order order : orders) {
    CAPTURE(static_cast<int>(order));
    const pass_options o = solved(order, clip_search::none, 1);
    const packed as = packed_as(3, false, 32);
    const cuda::input_statistics x = p.statistics(true, true), alone = p.statistics(true);
    on_device gpu(p, o), tiled(p, o, 5 * p.w.cols), without(p, o);
    const chosen_codes chosen = by_device(gpu, x, p, as, layer_input::down);
    const by_host expected(p, o, as, true);
    CHECK(others(chosen.q.codes, expected.q.codes) * 1000 <= p.w.rows * p.w.cols);
    CHECK(chosen.loss == Approx(expected.loss).epsilon(0.02));
    CHECK(by_device(tiled, x, p, as, layer_input::down).q.codes == chosen.q.codes);
    CHECK(others(by_device(without, alone, p, as, layer_input::down).q.codes, chosen.q.codes) * 50 >
          p.w.rows * p.w.cols);
  }
}

TEST_CASE("a GPU judges a scale as the host does, and codes that are chosen afterwards know nothing of it") {
  const problem p(24, 160);
  for (const activation_order order : orders) {
    CAPTURE(static_cast<int>(order));
    const pass_options o = solved(order, clip_search::none, 1);
    const packed as = packed_as(3, false, 32);
    on_device gpu(p, o), fresh(p, o);
    const cuda::input_statistics x = p.statistics(true);
    host_solver solver(o);
    solver.begin(3);
    solver.drift_of(layer_input::attention, by_host::shape_of(p)) = p.drift();
    owned<float> w = p.w;
    const std::vector<float> ones(p.s.size(), 1.0f);
    const double unscaled = solver.judge(projection::q, p.w.view(), ones, p.moment, as);
    CHECK(gpu.solver.judge(layer_input::attention, x, p.w.view(), as, ones) == Approx(unscaled).epsilon(0.02));
    for (index_t row = 0; row < w.rows; ++row)
      for (index_t col = 0; col < w.cols; ++col) w.view()(row, col) *= p.s[static_cast<size_t>(col)];
    const matrix<const float> scaled = std::as_const(w).view();
    const double judged = solver.judge(projection::q, scaled, p.s, p.moment, as);
    CHECK(std::fabs(judged / unscaled - 1) > 0.05);
    CHECK(gpu.solver.judge(layer_input::attention, x, scaled, as, p.s) == Approx(judged).epsilon(0.02));
    CHECK(by_device(gpu, x, p, as).q.codes == by_device(fresh, x, p, as).q.codes);
  }
}

TEST_CASE(
    "linears that read one input share its factor, and a linear that is solved in tiles of rows has the same codes") {
  const problem p(33, 96);
  for (const activation_order order : {activation_order::static_groups, activation_order::descending}) {
    const pass_options o = solved(order, clip_search::none, 1);
    const packed as = packed_as(4, false, 32), other = packed_as(3, true, 64);
    on_device whole(p, o), cut(p, o, 9 * 96);
    const cuda::input_statistics x = p.statistics(true);
    const chosen_codes a = by_device(whole, x, p, as);
    CHECK(by_device(whole, x, p, as).q.codes == a.q.codes);
    const chosen_codes b = by_device(whole, x, p, other);  // of other groups, and so of another order
    CHECK(by_device(whole, x, p, as).q.codes == a.q.codes);
    const chosen_codes in_tiles = by_device(cut, x, p, as);
    CHECK(others(in_tiles.q.codes, a.q.codes) <= 10);
    CHECK(in_tiles.loss == Approx(a.loss).epsilon(0.01));
    on_device fresh(p, o);
    CHECK(by_device(fresh, x, p, other).q.codes == b.q.codes);
    // Another layer's statistics, in the same place.
    const problem q(33, 96, 0.25f);
    const cuda::input_statistics y = q.statistics(true);
    whole.search.forget();
    whole.solver.begin(4);
    fresh.search.forget();
    fresh.solver.begin(4);
    CHECK(by_device(whole, y, q, as).q.codes == by_device(fresh, y, q, as).q.codes);
  }
}

TEST_CASE("where inputs have a lower rank than there are, damping climbs as far as the host's and codes come out") {
  const problem p(12, 64, 0.0f, 3);
  pass_options o = solved(activation_order::static_groups, clip_search::none, 0);
  o.damping = 0, o.shrinkage = 0;
  const packed as = packed_as(4, false, 32);
  on_device gpu(p, o);
  const cuda::input_statistics x = p.statistics(true);
  const chosen_codes chosen = by_device(gpu, x, p, as);
  const host::hessian h(p.moment, p.s.data(), as.group, o.order, o.damping);
  REQUIRE(h.usable());
  CHECK(h.damping() > 0);
  CHECK(gpu.solver.found().usable);
  CHECK_FALSE(gpu.solver.found().floored);
  CHECK(gpu.solver.found().damping == h.damping());
  // All of what is left is rounding, for codes have 61 directions in which they lose nothing.
  const by_host expected(p, o, as);
  const quantized_linear near = nearest(p, as);
  const double rounded =
      host::codes_loss(p.w.view(), near.code_matrix(), near.param_matrix(), p.s.data(), p.moment, as.group, as.scheme);
  CHECK(chosen.loss < 0.01 * rounded);
  CHECK(expected.loss < 0.01 * rounded);
}

TEST_CASE(
    "a Hessian that no damping helps has its diagonal raised, and one that is no numbers leaves the nearest codes") {
  const problem p(12, 64);
  pass_options o = solved(activation_order::none, clip_search::none, 0, false);
  const packed as = packed_as(4, false, 32);
  on_device gpu(p, o);
  cuda::input_statistics x = p.statistics(false);
  owned<float> g(64, 64, 3.0f);  // as indefinite as can be: -2 · 63 times
  for (index_t i = 0; i < 64; ++i) g.view()(i, i) = 1.0f;
  const auto put = [&] {
    succeeds(cudaMemcpy(x.gram.data(), g.data.data(), g.data.size() * sizeof(float), cudaMemcpyHostToDevice));
    gpu.search.forget();
    gpu.solver.begin(3);
  };
  put();
  x.energy.assign(64, 1.0f);
  const chosen_codes raised = by_device(gpu, x, p, as);
  CHECK(gpu.solver.found().floored);
  CHECK(gpu.solver.found().usable);
  CHECK(gpu.solver.found().damping == 1.0);

  const std::vector<uint8_t> near = nearest(p, as).codes;
  CHECK(raised.q.codes != near);
  for (float& value : g.data) value = not_a_number;
  put();
  CHECK(by_device(gpu, x, p, as).q.codes == near);
  CHECK_FALSE(gpu.solver.found().usable);
  x.energy.assign(64, std::numeric_limits<float>::infinity());
  put();
  CHECK(by_device(gpu, x, p, as).q.codes == near);
  CHECK_FALSE(gpu.solver.found().usable);
}

}  // namespace solver_tests
