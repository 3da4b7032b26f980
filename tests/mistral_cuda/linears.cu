// SPDX-License-Identifier: Apache-2.0
/// @file
/// awq_mistral's searches on a GPU against the host's, under the same statistics and scales.
#include "pass/cuda/linears.cuh"

#include <cmath>
#include <random>

#include "mistral_cuda/support.hpp"
#include "nibble/host/awq.hpp"

namespace linears_tests {

using namespace nibble;
using namespace nibble::test;
using namespace nibble::mistral;

namespace {

/// A linear with heavy-tailed weights, and tokens it read, whose channels are correlated and of several magnitudes.
struct problem {
  owned<float> w, x;
  host::second_moment moment;
  std::vector<float> s;

  problem(index_t n, index_t k)
      : w(n, k), x(random_matrix(2 * k, k, "activations")), moment(k, 2 * k, 0.5f), s(static_cast<size_t>(k)) {
    std::mt19937 engine(3);
    std::student_t_distribution<float> draw(4.0f);
    for (float& value : w.data) value = 0.02f * draw(engine);
    for (index_t row = 0; row < x.rows; ++row)
      for (index_t col = 0; col < k; ++col) {
        if (col > 0) x.view()(row, col) += 0.5f * x.view()(row, col - 1);
        if (col % 13 == 5) x.view()(row, col) *= 6.0f;
      }
    moment.add(std::as_const(x).view());
    moment.finish();
    for (float& value : w.data) value = static_cast<float>(bf16(value));  // so that either type holds it
    for (size_t j = 0; j < s.size(); ++j) s[j] = 0.5f + 0.37f * static_cast<float>(j % 7);
  }

  cuda::input_statistics statistics() const {
    cuda::input_statistics to(moment.inputs());
    const matrix<const float> g = moment.gram_matrix();
    succeeds(cudaMemcpy(to.gram.data(), g.data, static_cast<size_t>(g.size()) * sizeof(float), cudaMemcpyHostToDevice));
    to.energy = moment.diagonal();
    to.mean = moment.absolute_mean();
    return to;
  }
  owned<float> scaled() const {
    owned<float> out = w;
    for (index_t row = 0; row < w.rows; ++row)
      for (index_t col = 0; col < w.cols; ++col) out.view()(row, col) *= s[static_cast<size_t>(col)];
    return out;
  }
};

struct on_device {
  cuda::stream stream;
  cuda::blas blas{stream};
  cuda::linear_search search;
  explicit on_device(const problem& p) : search({p.w.rows * p.w.cols, p.w.cols, p.w.cols}, stream, blas) {}
};

packed packed_as(int bits, bool symmetric, index_t group) {
  layer_packing how;
  how[0] = packing{packed_format::compressed_tensors, bits, symmetric, group};
  return {how, projection::q, dtype::bf16};
}

/// Losses are of D and G in bf16: the relative error of each term is 3·2^-9 at most, and they are as often too large as too small.
constexpr double loss_bound = 0.005;

/// The host's codes for scaled weights, as its engine chooses them.
quantized_linear host_codes(const problem& p, const owned<float>& w, const packed& as, clip_search clip, int sweeps) {
  quantized_linear q = quantized_linear::blank(w.rows, w.cols, as.group);
  std::vector<float> importance(p.s.size());
  for (size_t j = 0; j < p.s.size(); ++j) importance[j] = p.moment.diagonal()[j] / (p.s[j] * p.s[j]);
  const group_shape g = per_group(as.group);
  if (clip == clip_search::none)
    host::fit(w.view(), q.param_matrix(), g, as.scheme, minmax{}, nullptr);
  else
    host::fit(w.view(), q.param_matrix(), g, as.scheme, ends_search{}, importance.data());
  if (clip == clip_search::gram)
    host::clip_under_gram(w.view(), p.s.data(), p.moment, as.group, as.scheme, q.param_matrix(), clip_steps);
  const matrix<const params> ranges = q.param_matrix();
  host::quantize(w.view(), ranges, q.code_matrix(), g, as.scheme);
  host::sweep(w.view(), p.s.data(), p.moment, ranges, as.group, as.scheme, sweeps, q.code_matrix());
  return q;
}

}  // namespace

TEST_CASE("under the same statistics and scales a GPU chooses the host's codes but for one in ten thousand") {
  const problem p(96, 128);
  const cuda::input_statistics x = p.statistics();
  const owned<float> w = p.scaled();
  on_device gpu(p);
  index_t codes = 0, other = 0;
  for (const clip_search clip : {clip_search::none, clip_search::mse, clip_search::gram})
    for (const int sweeps : {0, 2})
      for (const bool symmetric : {false, true}) {
        const packed as = packed_as(4, symmetric, 32);
        CAPTURE(static_cast<int>(clip), sweeps, symmetric);
        gpu.search.use(x);
        const chosen_codes chosen = gpu.search.choose_codes(w.view(), as, clip, sweeps, p.s);
        const quantized_linear expected = host_codes(p, w, as, clip, sweeps);
        REQUIRE(chosen.q.codes.size() == expected.codes.size());
        for (size_t i = 0; i < expected.codes.size(); ++i) other += chosen.q.codes[i] != expected.codes[i] ? 1 : 0;
        codes += w.rows * w.cols;
        const double loss = host::codes_loss(w.view(), expected.code_matrix(), expected.param_matrix(), p.s.data(),
                                             p.moment, as.group, as.scheme);
        CHECK(chosen.loss == Approx(loss).epsilon(loss_bound));
        CHECK((clip == clip_search::none ? chosen.range.mean == 1.0 : chosen.range.mean < 1.0));
      }
  CAPTURE(codes, other);
  CHECK(other * 10000 <= codes);
}

TEST_CASE("under the same statistics and scales a GPU chooses the host's int8 codes but for one in ten thousand") {
  const problem p(96, 128);
  const cuda::input_statistics x = p.statistics();
  const owned<float> w = p.scaled();
  on_device gpu(p);
  const packed as = packed_as(8, true, -1);
  index_t codes = 0, other = 0;
  for (const clip_search clip : {clip_search::none, clip_search::mse, clip_search::gram})
    for (const int sweeps : {0, 2}) {
      CAPTURE(static_cast<int>(clip), sweeps);
      gpu.search.use(x);
      const chosen_codes chosen = gpu.search.choose_codes(w.view(), as, clip, sweeps, p.s);
      const quantized_linear expected = host_codes(p, w, as, clip, sweeps);
      for (size_t i = 0; i < expected.codes.size(); ++i) other += chosen.q.codes[i] != expected.codes[i] ? 1 : 0;
      codes += w.rows * w.cols;
    }
  CAPTURE(codes, other);
  CHECK(other * 10000 <= codes);
}

TEST_CASE("a GPU's losses of candidate scales are the host's to half a percent") {
  const problem p(40, 96);
  const cuda::input_statistics x = p.statistics();
  on_device gpu(p);
  const device_matrix<float> there(p.w, p.w.cols);
  gpu.search.use(x);
  for (const index_t group : {index_t(32), index_t(-1)})
    for (const int bits : {3, 8}) {
      CAPTURE(group, bits);
      const packed as = packed_as(bits, false, group);
      const std::vector<float> ones(p.s.size(), 1.0f);
      CHECK(
          gpu.search.unscaled_loss(there.const_view(), as) ==
          Approx(host::scaled_loss(p.w.view(), ones.data(), p.moment, group, as.scheme, minmax{})).epsilon(loss_bound));
      CHECK(
          gpu.search.scaled_loss(there.const_view(), as, clip_search::none, p.s.data()) ==
          Approx(host::scaled_loss(p.w.view(), p.s.data(), p.moment, group, as.scheme, minmax{})).epsilon(loss_bound));
      CHECK(gpu.search.scaled_loss(there.const_view(), as, clip_search::gram, p.s.data()) ==
            Approx(host::scaled_loss(p.w.view(), p.s.data(), p.moment, group, as.scheme, ends_search{}))
                .epsilon(loss_bound));
      std::vector<double> sum(p.s.size(), 1.0), expected = sum;
      gpu.search.add_importance(there.const_view(), as, sum.data());
      host::weight_importance(p.w.view(), group, expected.data());
      for (size_t j = 0; j < sum.size(); ++j) CHECK(sum[j] == Approx(expected[j]).epsilon(1e-6));
      const device_matrix<bf16> narrow(stored_as<bf16>(p.w), p.w.cols);
      CHECK(gpu.search.unscaled_loss(narrow.const_view(), as) == gpu.search.unscaled_loss(there.const_view(), as));
      CHECK(gpu.search.scaled_loss(narrow.const_view(), as, clip_search::gram, p.s.data()) ==
            gpu.search.scaled_loss(there.const_view(), as, clip_search::gram, p.s.data()));
    }
}

TEST_CASE(
    "a linear that is cut into tiles of rows, its Gram matrix into panels, has the codes and the loss of one that is "
    "not") {
  const problem p(70, 64);
  const cuda::input_statistics x = p.statistics();
  const owned<float> w = p.scaled();
  const packed as = packed_as(4, false, 32);
  cuda::stream stream;
  cuda::blas blas(stream);
  cuda::linear_search whole({70 * 64, 64, 64}, stream, blas), cut({70 * 64, 64, 24, 9 * 64}, stream, blas);
  whole.use(x);
  cut.use(x);
  const chosen_codes a = whole.choose_codes(w.view(), as, clip_search::gram, 1, p.s),
                     b = cut.choose_codes(w.view(), as, clip_search::gram, 1, p.s);
  CHECK(a.q.codes == b.q.codes);
  CHECK(a.loss == Approx(b.loss).epsilon(1e-6));
  const device_matrix<float> there(p.w, p.w.cols);
  CHECK(whole.scaled_loss(there.const_view(), as, clip_search::gram, p.s.data()) ==
        Approx(cut.scaled_loss(there.const_view(), as, clip_search::gram, p.s.data())).epsilon(1e-6));
  CHECK(whole.unscaled_loss(there.const_view(), as) == Approx(cut.unscaled_loss(there.const_view(), as)).epsilon(1e-6));
}

}  // namespace linears_tests
