// SPDX-License-Identifier: Apache-2.0
/// @file
/// What smoothquant_mistral is judged by, on a GPU against the host, under the same sample.
#include "pass/cuda/rounded.cuh"

#include "mistral/rounding.hpp"
#include "mistral_cuda/support.hpp"
#include "pass/host_rounding.hpp"
#include "pass/input_scale.hpp"

namespace rounded_tests {

using namespace nibble;
using namespace nibble::test;
using namespace nibble::mistral;

namespace {

/// Differences are taken in bf16: the relative error of each factor is 2^-9 at most, and they are as often too large as too small.
constexpr double loss_bound = 0.005;

packing packed_as(code_type type, index_t rows, index_t group, input_rounding inputs) {
  return {packed_format::compressed_tensors, 8, true, group, type, rows, inputs};
}
const packing packings[] = {
    packed_as(code_type::integer, 1, -1, input_rounding::token),
    packed_as(code_type::integer, 1, -1, input_rounding::tensor),
    packed_as(code_type::integer, 1, -1, input_rounding::none),
    packed_as(code_type::e4m3, -1, -1, input_rounding::tensor),
    packed_as(code_type::e4m3, 1, -1, input_rounding::token),
    packed_as(code_type::e4m3, 128, 128, input_rounding::token_block),
};

/// A down projection of more outputs than are multiplied at a time, and tokens that it reads, a channel of which is loud.
struct problem {
  config c;
  layer_weights w;
  owned<bf16> x;
  std::vector<float> s;
  host_rounding host{c};

  problem() : x(21, 256) {
    c.hidden = 1100, c.intermediate = 256, c.heads = 1, c.kv_heads = 1, c.head_dim = 2;
    auto& weights = w.w[static_cast<size_t>(projection::down)];
    weights = random_values(3, "w", c.hidden * c.intermediate, 0.0f, 0.05f);
    for (float& value : weights) value = static_cast<float>(bf16(value));
    owned<float> tokens = random_matrix(21, 256, "x");
    for (index_t row = 0; row < tokens.rows; ++row) tokens.view()(row, 9) *= 20.0f;
    x = stored_as<bf16>(tokens);
    for (std::size_t i = 0; i < tokens.data.size(); ++i) tokens.data[i] = static_cast<float>(x.data[i]);
    host.begin(1);
    host.take(layer_input::down, tokens.view());
    for (index_t col = 0; col < 256; ++col) s.push_back(col == 9 ? 5.0f : 0.5f + 0.1f * static_cast<float>(col % 7));
  }
  rounded_inputs inputs(const packing& how) const {
    const bool fixed = how.inputs == input_rounding::tensor;
    return {how.inputs, how.type, fixed ? (how.type == code_type::integer ? 0.03f : 0.009f) : 0.0f};
  }
  cuda::rounding_limits limits() const { return {1100 * 256, 1100, 256, 1100 * 2, 21, 25}; }
};

struct on_device {
  cuda::stream stream;
  cuda::blas blas{stream};
  cuda::linear_search search{{1100 * 256, 256, 256}, stream, blas};
  cuda::rounding_search rounding;
  explicit on_device(const problem& p) : rounding(p.limits(), search) {}
};

}  // namespace

TEST_CASE("a GPU judges linears and inputs that are rounded together as the host does, to half a percent") {
  problem p;
  on_device gpu(p);
  const device_matrix<bf16> x(p.x, p.x.cols);
  const matrix<const float> w = std::as_const(p.w).at(p.c, projection::down);
  owned<float> weights(w.rows, w.cols);
  weights.data.assign(w.data, w.data + w.size());
  const device_matrix<float> there(weights, w.cols);
  const device_matrix<bf16> narrow(stored_as<bf16>(weights), w.cols);
  p.host.hold(p.w, {projection::down});
  for (const packing& how : packings) {
    CAPTURE(static_cast<int>(how.type), static_cast<int>(how.inputs));
    layer_packing layer;
    layer[static_cast<size_t>(projection::down)] = how;
    const rounded_inputs inputs = p.inputs(how);
    const double expected = p.host.losses(layer, dtype::bf16, p.s, {inputs}).front();
    gpu.rounding.use(x.const_view(), p.s.data(), inputs);
    CHECK(gpu.rounding.whole_loss(there.const_view(), how, dtype::bf16) == Approx(expected).epsilon(loss_bound));
    CHECK(gpu.rounding.whole_loss(narrow.const_view(), how, dtype::bf16) == Approx(expected).epsilon(loss_bound));
  }
}

TEST_CASE("a GPU judges codes that were chosen, of rows that were divided, as the host does, to half a percent") {
  problem p;
  on_device gpu(p);
  const device_matrix<bf16> x(p.x, p.x.cols);
  std::vector<float> of_row;
  for (index_t row = 0; row < p.c.hidden; ++row) of_row.push_back(0.5f + static_cast<float>(row % 5));
  const matrix<float> w = p.w.at(p.c, projection::down);
  for (index_t row = 0; row < w.rows; ++row)
    for (index_t col = 0; col < w.cols; ++col) w(row, col) *= p.s[static_cast<size_t>(col)];
  for (const packing& how : packings) {
    CAPTURE(static_cast<int>(how.type), static_cast<int>(how.inputs));
    const rounded_inputs inputs = p.inputs(how);
    const quantized_linear q = round_weights(matrix<const float>(w), how, dtype::bf16);
    for (const float* const rows : {static_cast<const float*>(nullptr), static_cast<const float*>(of_row.data())}) {
      gpu.rounding.use(x.const_view(), p.s.data(), inputs);
      CHECK(gpu.rounding.loss(w, how, dtype::bf16, q, rows) ==
            Approx(p.host.loss(p.w, projection::down, how, dtype::bf16, q, p.s, inputs, rows)).epsilon(loss_bound));
    }
  }
}

TEST_CASE("a GPU's costs of scales of inputs are the host's but for the order of sums") {
  const problem p;
  on_device gpu(p);
  const device_matrix<bf16> x(p.x, p.x.cols);
  std::vector<double> importance;
  for (index_t col = 0; col < 256; ++col) importance.push_back(0.1 + static_cast<double>(col % 3));
  for (const code_type type : {code_type::integer, code_type::e4m3}) {
    const std::vector<float> scales = {0.5f, 0.02f, 0.01f, 1e-4f};
    const auto got = gpu.rounding.costs(x.const_view(), p.s.data(), importance, type, scales);
    const auto expected = p.host.costs(layer_input::down, p.s, importance, type, scales);
    REQUIRE(got.size() == expected.size());
    for (std::size_t i = 0; i < got.size(); ++i) CHECK(got[i] == Approx(expected[i]).epsilon(1e-12));
  }
}

}  // namespace rounded_tests
