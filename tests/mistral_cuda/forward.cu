// SPDX-License-Identifier: Apache-2.0
#include "mistral/cuda/forward.cuh"

#include <cmath>
#include <memory>

#include "mistral/evaluation_text.hpp"
#include "mistral/tokenizer.hpp"
#include "mistral_cuda/support.hpp"

namespace forward_tests {

using namespace nibble;
using namespace nibble::test;
using namespace nibble::mistral;
namespace cuda_forward = nibble::mistral::cuda;
using Catch::Matchers::Contains;

namespace {

/// A model opened from files, on the host and on the device.
struct opened {
  config c;
  checkpoint files;
  explicit opened(const fs::path& directory) : c(read_config(directory)), files(directory) {}

  std::vector<float> on_host(const batch& b, const observer& observe = nullptr) const {
    std::vector<float> data(static_cast<size_t>(b.tokens() * c.hidden));
    const matrix<float> x(data.data(), b.tokens(), c.hidden);
    embed(files, c, b, x);
    for (index_t layer = 0; layer < c.layers; ++layer)
      forward_layer(c, load_layer(files, c, layer), x, b.starts, observe);
    return data;
  }
  /// Through all layers, weights staged while the layer before runs.
  void run(cuda_forward::forward_pass& pass, const batch& b, const cuda_forward::device_observer& observe = nullptr) {
    pass.embed(files, b.ids);
    pass.stage(files, 0);
    for (index_t layer = 0; layer < c.layers; ++layer) {
      pass.forward_layer(observe);
      if (layer + 1 < c.layers) pass.stage(files, layer + 1);
    }
  }
  std::vector<float> downloaded(const cuda_forward::forward_pass& pass) const {
    std::vector<float> data(static_cast<size_t>(pass.x().rows * c.hidden));
    pass.download({data.data(), pass.x().rows, c.hidden});
    return data;
  }
  std::vector<float> on_device(const batch& b) {
    cuda_forward::forward_pass pass(c, b.starts);
    run(pass, b);
    return downloaded(pass);
  }
};

struct made_model {
  temporary_directory directory;
  opened model;
  explicit made_model(const model_spec& spec)
      : model((write_weights(spec, directory / "model"), directory / "model")) {}
};

batch random_batch(const std::vector<index_t>& lengths, index_t vocabulary, std::uint64_t seed = 5) {
  batch b;
  for (const index_t length : lengths) {
    std::vector<int32_t> ids;
    for (index_t i = 0; i < length; ++i)
      ids.push_back(static_cast<int32_t>(mixed(seed++) % static_cast<std::uint64_t>(vocabulary)));
    b.append(ids.data(), length);
  }
  return b;
}

/// How far activations may be apart, as a share of their size. What a product reads is rounded to bf16, at most 2^-8 and
/// 2^-8 / √3 on average, and roundings are independent: a layer's four products leave some √4 · 2^-8 / √3 in what it adds,
/// layers add up as roots of their number, and norms, attention and the gate keep relative errors about as they are.
double rounding_bound(const config& c) {
  return 2 * 0x1p-8 / std::sqrt(3.0) * std::sqrt(static_cast<double>(c.layers));
}

/// The first ids of the held-out text, with a target each.
std::vector<int32_t> text_ids(size_t count) {
  auto ids = read_evaluation_text(embedded("text/heldout-state-of-the-union-2013-2021.txt"),
                                  *open_tokenizer(embedded("model")))
                 .ids;
  ids.resize(count);
  return ids;
}

double mean_nll(const std::vector<token_score>& scores) {
  double sum = 0;
  for (const token_score& s : scores) sum += s.nll;
  return sum / static_cast<double>(scores.size());
}

}  // namespace

TEST_CASE(
    "the embedded model gives on the device what it gives on the host, but for bf16, and its perplexity to 0.2 %") {
  opened model(embedded("model"));
  const auto ids = text_ids(65);
  batch b;
  b.append(ids.data(), 64);
  const auto host = model.on_host(b);
  cuda_forward::forward_pass pass(model.c, b.starts);
  model.run(pass, b);
  const double apart = distance(model.downloaded(pass), host);
  CAPTURE(apart);
  CHECK(apart < rounding_bound(model.c));

  const lm_head head = load_head(model.files, model.c);
  std::vector<token_score> own(64), expected(64);
  score(head, {host.data(), 64, model.c.hidden}, ids.data() + 1, expected.data());
  pass.score(head, {{0, 64}}, ids.data() + 1, own.data());
  CAPTURE(std::exp(mean_nll(own)), std::exp(mean_nll(expected)));
  CHECK(std::exp(mean_nll(own)) == Approx(std::exp(mean_nll(expected))).epsilon(0.002));
}

TEST_CASE("models of every kind agree with the host: windows, groups, tied heads, odd sizes, fp16 and fp32 weights") {
  model_spec plain;
  plain.vocabulary = 300, plain.scale = 0.125f;
  model_spec window = plain, odd = plain, full = plain, half = plain;
  window.sliding_window = 5, window.tied = true;
  odd.hidden = 30, odd.intermediate = 50, odd.heads = 3, odd.kv_heads = 3, odd.head_dim = 6;
  full.stored = dtype::f32, full.heads = 4, full.kv_heads = 1;
  half.stored = dtype::f16, half.head_dim = 32, half.llama = true;
  for (const model_spec& spec : {plain, window, odd, full, half}) {
    CAPTURE(spec.hidden, spec.head_dim, spec.sliding_window);
    made_model made(spec);
    const batch b = random_batch({9, 1, 30}, spec.vocabulary);
    const double apart = distance(made.model.on_device(b), made.model.on_host(b));
    CAPTURE(apart);
    CHECK(apart < rounding_bound(made.model.c));
  }
}

TEST_CASE("sequences do not see each other on the device, whatever chunks they go through in") {
  model_spec spec;
  spec.vocabulary = 50;
  made_model made(spec);
  const batch together = random_batch({7, 20, 1, 12}, 50);
  const auto all = made.model.on_device(together);
  for (size_t s = 0; s < 4; ++s) {
    const index_t first = together.starts[s], length = together.starts[s + 1] - first;
    batch alone;
    alone.append(together.ids.data() + first, length);
    const auto own = made.model.on_device(alone);
    // Sums of a product may be taken in an order that depends on its shape; a rounding to bf16 makes 2^-8 of that.
    const auto begin = all.begin() + first * spec.hidden;
    CHECK(distance(own, std::vector<float>(begin, begin + length * spec.hidden)) < rounding_bound(made.model.c) / 2);
  }
#if defined(NIBBLE_SIMT)
  cuda_forward::memory_plan least = cuda_forward::plan_memory(made.model.c, together.starts, index_t{1} << 30);
  CHECK(least.chunk_tokens == 40);
  least.chunk_tokens = 20;
  {
    const simt::pretended_memory little(static_cast<std::size_t>(least.total() + cuda_forward::runtime_bytes));
    cuda_forward::forward_pass pass(made.model.c, together.starts);
    CHECK(pass.memory().chunk_tokens == 20);
    made.model.run(pass, together);
    CHECK(distance(made.model.downloaded(pass), all) < rounding_bound(made.model.c) / 2);
  }
#endif
}

#if defined(NIBBLE_SIMT)
TEST_CASE("a residual stream that the device has no room for stays on the host, and ends with the same bytes") {
  model_spec spec;
  spec.vocabulary = 50, spec.layers = 3;
  made_model made(spec);
  const batch b = random_batch({7, 20, 1, 12, 9, 16, 20}, 50);
  cuda_forward::memory_plan least =
      cuda_forward::plan_memory(made.model.c, b.starts, index_t{1} << 30, cuda_forward::residual::on_host);
  least.chunk_tokens = 20;
  const index_t enough = least.total();
  CHECK(enough < cuda_forward::plan_memory(made.model.c, b.starts, index_t{1} << 30).total());
  CHECK(cuda_forward::plan_either(made.model.c, b.starts, index_t{1} << 30).where == cuda_forward::residual::on_device);
  const auto with = [&](index_t bytes, bool either) {
    const simt::pretended_memory little(static_cast<std::size_t>(bytes + cuda_forward::runtime_bytes));
    return std::make_unique<cuda_forward::forward_pass>(made.model.c, b.starts, 0, 0, either);
  };
  const auto far_pass = with(enough, true);
  cuda_forward::forward_pass& far = *far_pass;
  REQUIRE(far.memory().where == cuda_forward::residual::on_host);
  REQUIRE(far.memory().chunk_tokens == 20);
  // Chunks of the same tokens, whose products have the same shapes: a device with little room beside the stream.
  cuda_forward::memory_plan near_plan = cuda_forward::plan_memory(made.model.c, b.starts, index_t{1} << 30);
  near_plan.chunk_tokens = 20;
  const auto near_pass = with(near_plan.total(), false);
  cuda_forward::forward_pass& near = *near_pass;
  REQUIRE(near.memory().chunk_tokens == 20);
  made.model.run(near, b);
  const auto expected = made.model.downloaded(near);
  made.model.run(far, b);
  std::vector<float> got(expected.size());
  const matrix<float> x(got.data(), b.tokens(), made.model.c.hidden);
  far.download(x);
  CHECK(got == expected);
  // What was taken down can be put back.
  far.upload(x);
  std::vector<float> again(got.size());
  far.download({again.data(), x.rows, x.cols});
  CHECK(again == got);
  const lm_head head = load_head(made.model.files, made.model.c);
  CHECK_THROWS_WITH(far.score(head, {{0, 1}}, b.ids.data(), nullptr), Contains("cannot be scored"));
}
#endif

TEST_CASE("an observer on the device sees what the host's sees, in the same order") {
  model_spec spec;
  spec.vocabulary = 50, spec.scale = 0.125f;
  made_model made(spec);
  const batch b = random_batch({11, 6}, 50);
  std::vector<layer_input> host_order, device_order;
  std::vector<std::vector<float>> host_seen, device_seen;
  made.model.on_host(b, [&](layer_input which, matrix<const float> x) {
    host_order.push_back(which);
    host_seen.emplace_back(x.data, x.data + x.size());
  });
  cuda_forward::forward_pass pass(made.model.c, b.starts);
  made.model.run(pass, b, [&](layer_input which, matrix<const bf16> x, cudaStream_t in) {
    std::vector<bf16> values(static_cast<size_t>(x.size()));
    succeeds(cudaMemcpyAsync(values.data(), x.data, values.size() * sizeof(bf16), cudaMemcpyDeviceToHost, in));
    succeeds(cudaStreamSynchronize(in));
    device_order.push_back(which);
    device_seen.emplace_back(values.begin(), values.end());
  });
  REQUIRE((device_order == host_order));
  for (size_t i = 0; i < host_seen.size(); ++i) {
    CAPTURE(i);
    CHECK(distance(device_seen[i], host_seen[i]) < rounding_bound(made.model.c) + bf16_rounding);
  }
}

namespace {

/// What linears read of all tokens of a batch, by layer_input, brought from the device.
struct seen_inputs {
  std::array<std::vector<bf16>, 4> values;

  cuda_forward::device_observer observer() {
    return [this](layer_input which, matrix<const bf16> x, cudaStream_t in) {
      std::vector<bf16>& to = values[static_cast<size_t>(which)];
      const size_t before = to.size();
      to.resize(before + static_cast<size_t>(x.size()));
      succeeds(cudaMemcpyAsync(to.data() + before, x.data, static_cast<size_t>(x.size()) * sizeof(bf16),
                               cudaMemcpyDeviceToHost, in));
      succeeds(cudaStreamSynchronize(in));
    };
  }
  owned<bf16> rows(layer_input which, index_t count, index_t cols) const {
    owned<bf16> x(count, cols);
    const auto first = values[static_cast<size_t>(which)].begin();
    x.data.assign(first, first + count * cols);
    return x;
  }
};

/// A block's output on the host, of what its linears read.
std::vector<float> block_on_host(const config& c, const layer_weights& w, bool attention, const owned<bf16>& read,
                                 const std::vector<index_t>& starts) {
  std::vector<float> x(read.data.begin(), read.data.end()), y(x.size());
  const matrix<const float> from(x.data(), read.rows, read.cols);
  const matrix<float> to(y.data(), read.rows, read.cols);
  attention ? attention_block(c, w, from, starts, to) : mlp_block(c, w, from, to);
  return y;
}

}  // namespace

TEST_CASE("a block's output changes on the device as on the host when weights do, on the first sequences of a batch") {
  model_spec usual, narrow;  // one whose outputs are more than the room beside them
  usual.vocabulary = 50, usual.layers = 1, usual.intermediate = 80;
  narrow = usual;
  narrow.intermediate = 24, narrow.heads = 2, narrow.kv_heads = 1, narrow.head_dim = 8;
  for (const model_spec& spec : {usual, narrow})
    for (const index_t chunk_tokens : {27, 13}) {  // all at once, of which some are left out, and two chunks of three
      made_model made(spec);
      const config& c = made.model.c;
      const batch b = random_batch({11, 1, 9, 6}, 50);
      const std::vector<index_t> starts(b.starts.begin(), b.starts.begin() + 4);
      const index_t tokens = starts.back(), hidden = c.hidden;
#if defined(NIBBLE_SIMT)
      cuda_forward::memory_plan least = cuda_forward::plan_memory(c, b.starts, index_t{1} << 30);
      least.chunk_tokens = chunk_tokens;
      const simt::pretended_memory little(static_cast<std::size_t>(least.total() + cuda_forward::runtime_bytes));
#endif
      cuda_forward::forward_pass pass(c, b.starts);
      CHECK_THROWS_WITH(pass.change_block(layer_input::mlp, {}, {}, nullptr), Contains("has to run"));
      seen_inputs seen;
      made.model.run(pass, b, seen.observer());
      const layer_weights before = load_layer(made.model.files, c, 0);
      for (const bool attention : {true, false}) {
        CAPTURE(spec.intermediate, chunk_tokens, attention);
        layer_weights after = before;
        owned<bf16> more(0, hidden);
        for (const projection p : projections) {
          if (input_of(p) != (attention ? layer_input::attention : layer_input::mlp)) continue;
          auto& w = after.w[static_cast<size_t>(p)];
          const auto added = stored_as<bf16>(random_matrix(outputs(c, p), hidden, to_string(p), 0.02f));
          std::transform(w.begin(), w.end(), added.data.begin(), w.begin(),
                         [](float x, bf16 y) { return x + static_cast<float>(y); });
          more.data.insert(more.data.end(), added.data.begin(), added.data.end());
          more.rows += added.rows;
        }
        const owned<bf16> read = seen.rows(attention ? layer_input::attention : layer_input::mlp, tokens, hidden);
        const owned<bf16> made_of = attention ? seen.rows(layer_input::o, tokens, c.q_width())
                                              : seen.rows(layer_input::down, tokens, c.intermediate);
        const device_matrix<bf16> read_there(read, read.cols), made_there(made_of, made_of.cols),
            more_there(more, more.cols);
        std::vector<std::vector<float>> rows(static_cast<size_t>(tokens));
        pass.change_block(attention ? layer_input::attention : layer_input::mlp,
                          {read_there.const_view(), made_there.const_view()}, more_there.const_view(),
                          [&](index_t first, matrix<const float> change) {
                            std::vector<float> values(static_cast<size_t>(change.size()));
                            succeeds(cudaMemcpyAsync(values.data(), change.data, values.size() * sizeof(float),
                                                     cudaMemcpyDeviceToHost, pass.compute()));
                            pass.wait();
                            for (index_t row = 0; row < change.rows; ++row) {
                              const auto from = values.begin() + row * change.cols;
                              auto& to = rows.at(static_cast<size_t>(first + row));
                              to.insert(to.end(), from, from + change.cols);
                            }
                          });
        std::vector<float> got, expected = block_on_host(c, after, attention, read, starts);
        for (const auto& row : rows) got.insert(got.end(), row.begin(), row.end());
        const std::vector<float> old = block_on_host(c, before, attention, read, starts);
        for (size_t i = 0; i < old.size(); ++i) expected[i] -= old[i];
        const double moved = distance(block_on_host(c, after, attention, read, starts), old);
        const double apart = distance(got, expected);
        CAPTURE(moved, apart);
        CHECK(apart * moved < 2 * rounding_bound(c));  // outputs before and after are each off by a share of themselves
        CHECK(apart < 0.1);
      }
    }
}

namespace {

/// A layer that reads its inputs, and keeps keys and values, as it is told to.
struct rounded_layer {
  config c;
  layer_weights w;
  batch b = random_batch({9, 1, 30}, 300);

  rounded_layer() {
    model_spec spec;
    spec.vocabulary = 300, spec.layers = 1, spec.intermediate = 160;
    const made_model made(spec);
    c = made.model.c, w = load_layer(made.model.files, c, 0);
  }
  std::vector<float> x() const { return random_matrix(b.tokens(), c.hidden, "x").data; }
  std::vector<float> on_host(const layer_weights& as) const {
    std::vector<float> out = x();
    forward_layer(c, as, {out.data(), b.tokens(), c.hidden}, b.starts);
    return out;
  }
  std::vector<float> on_device(const layer_weights& as) const {
    cuda_forward::forward_pass pass(c, b.starts);
    std::vector<float> out = x();
    const matrix<float> there(out.data(), b.tokens(), c.hidden);
    pass.upload(there);
    pass.stage(as);
    pass.forward_layer();
    pass.download(there);
    return out;
  }
  /// The device is where the host is under `as`, and far from where it is when nothing is rounded. Numbers near a tie go to its other
  /// side in bf16, which moves them by a step: the more the coarser the steps, as the steps' own errors do.
  void follows(const layer_weights& as) const {
    const auto host = on_host(as), device = on_device(as);
    const double moved = distance(host, on_host(w)), apart = distance(device, host);
    CAPTURE(moved, apart);
    CHECK(moved > 2 * rounding_bound(c));
    CHECK(apart < 0.5 * moved);
  }
};

}  // namespace

TEST_CASE("each linear reads on the device what it reads on the host, rounded for it alone") {
  const rounded_layer layer;
  for (const projection p : projections)
    for (const code_type type : {code_type::integer, code_type::e4m3}) {
      CAPTURE(to_string(p), static_cast<int>(type));
      layer_weights as = layer.w;
      // Steps of about the numbers' size: integers, and e4m3's below its least normal number.
      const float step = p == projection::down ? 0.6f : p == projection::o ? 0.5f : 1.0f;
      as.rounded[static_cast<size_t>(p)] = {input_rounding::tensor, type,
                                            type == code_type::integer ? step : step * 512.0f};
      layer.follows(as);
    }
}

TEST_CASE("linears of one input may round it each in its way, by tokens, by pieces of them and by one scale") {
  const rounded_layer layer;
  for (const input_rounding how : {input_rounding::token, input_rounding::token_block})
    for (const code_type type : {code_type::integer, code_type::e4m3}) {
      layer_weights as = layer.w;
      for (rounded_inputs& each : as.rounded) each = {how, type, 0};
      as.rounded[static_cast<size_t>(projection::k)] = {input_rounding::tensor, code_type::integer, 1.0f};
      as.rounded[static_cast<size_t>(projection::up)] = {};
      as.rounded[static_cast<size_t>(projection::gate)] = {input_rounding::tensor, code_type::integer, 1.0f};
      layer.follows(as);
    }
}

TEST_CASE("keys and values in fp8 are rounded on the device as on the host, and seen before that") {
  const rounded_layer layer;
  const std::vector<float> x = layer.x();
  const cache_maxima by_channel =
      largest_cached(layer.c, layer.w, {x.data(), layer.b.tokens(), layer.c.hidden}, layer.b.starts);
  const cache_scales largest = {*std::max_element(by_channel.k.begin(), by_channel.k.end()),
                                *std::max_element(by_channel.v.begin(), by_channel.v.end())};
  for (const cache_scales scales : {cache_scales{largest.k * 200, 0}, cache_scales{0, largest.v * 200}}) {
    CAPTURE(scales.k, scales.v);
    layer_weights as = layer.w;
    as.cache = scales;
    layer.follows(as);
    cuda_forward::forward_pass pass(layer.c, layer.b.starts);
    pass.upload({x.data(), layer.b.tokens(), layer.c.hidden});
    pass.stage(as);
    double k_seen = 0, v_seen = 0;
    pass.forward_layer(nullptr, [&](matrix<const bf16> k, matrix<const bf16> v, cudaStream_t in) {
      succeeds(cudaStreamSynchronize(in));
      const auto most = [&](matrix<const bf16> of) {
        double found = 0;
        for (index_t row = 0; row < of.rows; ++row) {
          std::vector<bf16> values(static_cast<size_t>(of.cols));
          succeeds(cudaMemcpy(values.data(), of.row(row), values.size() * sizeof(bf16), cudaMemcpyDeviceToHost));
          for (const bf16 each : values) found = std::max(found, std::fabs(double{float(each)}));
        }
        return found;
      };
      CHECK(k.rows == layer.b.tokens());
      k_seen = most(k), v_seen = most(v);
    });
    pass.wait();
    CHECK(k_seen == Approx(double{largest.k}).epsilon(2 * bf16_rounding));
    CHECK(v_seen == Approx(double{largest.v}).epsilon(2 * bf16_rounding));
  }
}

namespace {

/// What an observer is told, by input and in turn.
using told = std::vector<std::pair<layer_input, std::vector<float>>>;

void note(told& to, layer_input which, matrix<const bf16> x, cudaStream_t in) {
  std::vector<bf16> values(static_cast<size_t>(x.size()));
  succeeds(cudaMemcpyAsync(values.data(), x.data, values.size() * sizeof(bf16), cudaMemcpyDeviceToHost, in));
  succeeds(cudaStreamSynchronize(in));
  to.emplace_back(which, std::vector<float>(values.begin(), values.end()));
}

std::vector<float> noted(matrix<const float> x, cudaStream_t in) {
  std::vector<float> values(static_cast<size_t>(x.size()));
  succeeds(cudaMemcpyAsync(values.data(), x.data, values.size() * sizeof(float), cudaMemcpyDeviceToHost, in));
  succeeds(cudaStreamSynchronize(in));
  return values;
}

/// Two streams of a batch through a model by halves of layers: x through its own, the second through another's, which x is beside.
struct beside {
  told first, second;
  std::vector<std::vector<float>> residuals;  ///< that down's output is added to: x's and the second's, by layer
  std::vector<float> ends;

  /// @param followed  tokens that have a second stream.
  beside(cuda_forward::forward_pass& pass, opened& model, opened& other, const batch& b, index_t followed) {
    pass.embed(model.files, b.ids);
    for (index_t layer = 0; layer < model.c.layers; ++layer) {
      for (const layer_part half : {layer_part::attention, layer_part::mlp}) {
        pass.stage(other.files, layer);
        pass.forward_beside(half, [&](layer_input which, const cuda_forward::read_of_both& read, cudaStream_t in) {
          if (!read.beside.empty()) note(second, which, read.beside, in);
          note(first, which, read.x, in);
          if (which != layer_input::down) return;
          residuals.push_back(noted(read.residual, in));
          residuals.push_back(noted(read.residual_beside, in));
        });
        pass.stage(model.files, layer);
        pass.forward_layer(nullptr, nullptr, half);
      }
    }
    ends.resize(static_cast<size_t>((b.tokens() + followed) * model.c.hidden));
    pass.download({ends.data(), b.tokens() + followed, model.c.hidden});
  }
};

}  // namespace

TEST_CASE("linears of a half are staged over those of the layer that ran, which a second stream still goes through") {
  model_spec spec;
  spec.vocabulary = 50;
  made_model made(spec);
  spec.seed = 2;
  made_model second(spec);
  opened& model = made.model;
  const batch b = random_batch({4, 7, 1, 12}, 50);
  const index_t tokens = b.tokens();
  cuda_forward::forward_pass pass(model.c, b.starts, 0, 0, false, tokens), alone(model.c, b.starts),
      was(model.c, b.starts);
  CHECK_THROWS_WITH(pass.stage_over({}, layer_part::mlp), Contains("has to run before"));
  for (cuda_forward::forward_pass* const each : {&pass, &alone, &was}) each->embed(model.files, b.ids);
  const layer_weights original = load_layer(model.files, model.c, 0),
                      other = load_layer(second.model.files, model.c, 0);
  layer_weights w = original;
  told first, beside, of_first, of_beside;
  const auto both = [&](layer_input which, const cuda_forward::read_of_both& read, cudaStream_t in) {
    note(first, which, read.x, in);
    note(beside, which, read.beside, in);
  };
  const auto tell = [](told& to) {
    return [&to](layer_input which, matrix<const bf16> x, cudaStream_t in) { note(to, which, x, in); };
  };
  const auto streams = [&] {
    std::vector<float> all(static_cast<size_t>(2 * tokens * model.c.hidden));
    pass.download({all.data(), 2 * tokens, model.c.hidden});
    return all;
  };
  pass.stage(model.files, 0);
  for (const layer_part half : {layer_part::attention, layer_part::mlp}) {
    CAPTURE(static_cast<int>(half));
    if (half == layer_part::mlp) pass.stage_again();
    const std::vector<float> before = streams();
    pass.forward_beside(half, both, nullptr, half_inputs::first);
    CHECK(streams() == before);
    for (const projection p : projections)
      if (belongs(input_of(p), half)) w.w[static_cast<size_t>(p)] = other.w[static_cast<size_t>(p)];
    (half == layer_part::attention ? w.input_norm : w.post_norm) =
        half == layer_part::attention ? other.input_norm : other.post_norm;
    pass.stage_over(w, half);
    pass.forward_beside(half, both, nullptr, half_inputs::last);
    pass.stage_over(w, half);
    pass.forward_layer(nullptr, nullptr, half);
    // What each reads alone: the first input before the half is changed.
    alone.stage(original);
    alone.observe_half(half, tell(of_first), nullptr, half_inputs::first);
    alone.stage(w);
    alone.observe_half(half, tell(of_first), nullptr, half_inputs::last);
    alone.stage_again();
    alone.forward_layer(nullptr, nullptr, half);
    was.stage(original);
    was.forward_layer(tell(of_beside), nullptr, half);
  }
  CHECK(first == of_first);
  CHECK(beside == of_beside);
  CHECK(first[1].second != beside[1].second);
  std::vector<float> expected = model.downloaded(alone);
  const std::vector<float> of_was = model.downloaded(was);
  expected.insert(expected.end(), of_was.begin(), of_was.end());
  CHECK(streams() == expected);
}

TEST_CASE("of two streams each ends where it would alone, and what linears read of both is told by pairs") {
  model_spec spec;
  spec.vocabulary = 50;
  made_model made(spec);
  spec.seed = 2;
  made_model second(spec);
  opened &model = made.model, &other = second.model;
  const batch b = random_batch({4, 7, 1, 12}, 50);
  // Alone, and what linears of `other` read of x before each half of its own layers.
  cuda_forward::forward_pass alone(model.c, b.starts), aside(model.c, b.starts), third(model.c, b.starts);
  told of_x, of_other;
  std::vector<std::vector<float>> residuals;
  const auto tell = [](told& to) {
    return [&to](layer_input which, matrix<const bf16> x, cudaStream_t in) { note(to, which, x, in); };
  };
  alone.embed(model.files, b.ids);
  third.embed(model.files, b.ids);
  for (index_t layer = 0; layer < model.c.layers; ++layer) {
    for (const layer_part half : {layer_part::attention, layer_part::mlp}) {
      const auto x = model.downloaded(alone);
      if (half == layer_part::mlp) residuals.insert(residuals.end(), {x, other.downloaded(third)});
      aside.upload({x.data(), b.tokens(), model.c.hidden});
      aside.wait();
      for (cuda_forward::forward_pass* const each : {&alone, &aside, &third})
        if (half == layer_part::attention)
          each->stage((each == &alone ? model : other).files, layer);
        else
          each->stage_again();
      aside.observe_half(half, tell(of_x));
      CHECK(other.downloaded(aside) == x);
      third.forward_layer(tell(of_other), nullptr, half);
      alone.forward_layer(nullptr, nullptr, half);
    }
  }
  const auto expected = model.downloaded(alone), beside_ends = other.downloaded(third);
  CHECK(expected == model.on_device(b));

  const auto holds = [&](cuda_forward::forward_pass& pass, bool whole) {
    const beside got(pass, model, other, b, b.tokens());
    const auto half = got.ends.begin() + static_cast<std::ptrdiff_t>(expected.size());
    const std::vector<float> of_first(got.ends.begin(), half), of_second(half, got.ends.end());
    CHECK(distance(of_first, expected) < rounding_bound(model.c) / 2);
    CHECK(distance(of_second, beside_ends) < rounding_bound(model.c) / 2);
    if (!whole) return got.ends;
    CHECK(got.residuals == residuals);
    REQUIRE(got.first.size() == of_x.size());
    for (size_t i = 0; i < of_x.size(); ++i) {
      CAPTURE(i);
      CHECK((got.first[i].first == of_x[i].first && got.second[i].first == of_x[i].first));
      CHECK(got.first[i].second == of_x[i].second);
      CHECK(got.second[i].second == of_other[i].second);
    }
    return got.ends;
  };
  cuda_forward::forward_pass both(model.c, b.starts, 0, 0, false, b.tokens());
  REQUIRE(both.memory().chunk_tokens == b.tokens());
  const auto ends = holds(both, true);
  std::vector<float> again(ends.size());
  both.upload({ends.data(), 2 * b.tokens(), model.c.hidden});
  both.download({again.data(), 2 * b.tokens(), model.c.hidden});
  CHECK(again == ends);

  // The first two sequences alone have a second stream.
  const index_t followed = 11;
  const auto holds_in_part = [&](cuda_forward::forward_pass& pass) {
    beside got(pass, model, other, b, followed);
    const auto half = got.ends.begin() + static_cast<std::ptrdiff_t>(expected.size());
    const auto rows_of = [&](const std::vector<float>& all, index_t of) {
      return std::vector<float>(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(all.size()) * of / b.tokens());
    };
    CHECK(distance({got.ends.begin(), half}, expected) < rounding_bound(model.c) / 2);
    CHECK(distance({half, got.ends.end()}, rows_of(beside_ends, followed)) < rounding_bound(model.c) / 2);
    REQUIRE(got.second.size() == of_other.size());
    for (size_t i = 0; i < of_other.size(); ++i) {
      CAPTURE(i);
      CHECK(got.second[i].first == of_other[i].first);
      CHECK(distance(got.second[i].second, rows_of(of_other[i].second, followed)) < rounding_bound(model.c) / 2);
    }
    // By halves: both inputs of the first chunk, then of the next ones.
    const size_t chunks = got.first.size() / of_x.size();
    REQUIRE(chunks * of_x.size() == got.first.size());
    CHECK(chunks > 1);
    for (size_t i = 0; i < of_x.size(); ++i) {
      CAPTURE(i);
      std::vector<float> read;
      for (size_t chunk = 0; chunk < chunks; ++chunk) {
        const auto& [which, rows] = got.first[(i / 2 * chunks + chunk) * 2 + i % 2];
        CHECK(which == of_x[i].first);
        read.insert(read.end(), rows.begin(), rows.end());
      }
      CHECK(distance(read, of_x[i].second) < rounding_bound(model.c) / 2);
    }
    return got.ends;
  };
  cuda_forward::forward_pass in_part(model.c, b.starts, 0, 0, false, followed);
  holds_in_part(in_part);
  CHECK_THROWS_WITH(cuda_forward::forward_pass(model.c, b.starts, 0, 0, false, followed + 3),
                    Contains("whole sequences"));
  alone.stage(model.files, 0);
  CHECK_THROWS_WITH(alone.forward_beside(layer_part::mlp, nullptr), Contains("no second stream"));
#if defined(NIBBLE_SIMT)
  std::vector<std::vector<float>> by_chunks, by_chunks_in_part;
  for (const auto where : {cuda_forward::residual::on_device, cuda_forward::residual::on_host}) {
    cuda_forward::memory_plan plan = cuda_forward::plan_memory(model.c, b.starts, index_t{1} << 30, where, b.tokens());
    plan.chunk_tokens = 12;
    const simt::pretended_memory little(static_cast<std::size_t>(plan.total() + cuda_forward::runtime_bytes));
    cuda_forward::forward_pass pass(model.c, b.starts, 0, 0, true, b.tokens());
    REQUIRE(pass.memory().where == where);
    REQUIRE(pass.memory().chunk_tokens == 12);
    by_chunks.push_back(holds(pass, false));
    const index_t second =
        where == cuda_forward::residual::on_device ? 4 * model.c.hidden * (b.tokens() - followed) : 0;
    CHECK(plan.batch_bytes -
              cuda_forward::plan_memory(model.c, b.starts, index_t{1} << 30, where, followed).batch_bytes ==
          second);
    const simt::pretended_memory less(static_cast<std::size_t>(plan.total() - second + cuda_forward::runtime_bytes));
    cuda_forward::forward_pass in_parts(model.c, b.starts, 0, 0, true, followed);
    REQUIRE(in_parts.memory().where == where);
    by_chunks_in_part.push_back(holds_in_part(in_parts));
  }
  CHECK(by_chunks[0] == by_chunks[1]);
  CHECK(by_chunks_in_part[0] == by_chunks_in_part[1]);
#endif
}

TEST_CASE("weights from memory and weights from files give the same bytes, and a batch can be gone on with") {
  model_spec spec;
  spec.vocabulary = 50;
  made_model made(spec);
  const config& c = made.model.c;
  const batch b = random_batch({13, 4}, 50);
  const auto from_files = made.model.on_device(b);
  cuda_forward::forward_pass pass(c, b.starts);
  pass.embed(made.model.files, b.ids);
  pass.stage(load_layer(made.model.files, c, 0));
  pass.forward_layer();
  const auto halfway = made.model.downloaded(pass);
  cuda_forward::forward_pass other(c, b.starts);
  other.upload({halfway.data(), b.tokens(), c.hidden});
  other.stage(load_layer(made.model.files, c, 1));
  other.forward_layer();
  CHECK((made.model.downloaded(other) == from_files));
  CHECK_THROWS_WITH(other.forward_layer(), Contains("staged"));
  other.stage_again();
  CHECK_NOTHROW(other.forward_layer());
  CHECK_THROWS_WITH(cuda_forward::forward_pass(c, b.starts).stage_again(), Contains("has to run"));
}

TEST_CASE("scores of some rows, against a reference model too, are the host's but for bf16") {
  model_spec spec;
  spec.vocabulary = 700;  // several tiles of what a slot holds
  model_spec other_spec = spec;
  other_spec.seed = 2;
  made_model made(spec), other(other_spec);
  const config& c = made.model.c;
  const batch b = random_batch({24, 17}, 700);
  cuda_forward::forward_pass pass(c, b.starts), second(c, b.starts);
  made.model.run(pass, b);
  other.model.run(second, b);
  const auto x = made.model.downloaded(pass), y = other.model.downloaded(second);
  const std::vector<row_range> rows = {{3, 20}, {30, 1}, {33, 8}};
  std::vector<float> x_rows, y_rows;
  std::vector<int32_t> targets;
  for (const auto& r : rows)
    for (index_t row = r.first; row < r.first + r.count; ++row) {
      x_rows.insert(x_rows.end(), x.begin() + row * c.hidden, x.begin() + (row + 1) * c.hidden);
      y_rows.insert(y_rows.end(), y.begin() + row * c.hidden, y.begin() + (row + 1) * c.hidden);
      targets.push_back(static_cast<int32_t>(row * 17 % 700));
    }
  const auto count = static_cast<index_t>(targets.size());
  const lm_head head = load_head(made.model.files, c), reference = load_head(other.model.files, c);
  std::vector<token_score> expected(targets.size()), own(targets.size()), itself(targets.size());
  score(head, {x_rows.data(), count, c.hidden}, targets.data(), expected.data(), &reference,
        {y_rows.data(), count, c.hidden});
  pass.score(head, rows, targets.data(), own.data(), &reference, second.x());
  pass.score(head, rows, targets.data(), itself.data(), &head, pass.x());
  for (size_t i = 0; i < targets.size(); ++i) {
    CAPTURE(i);
    // Logits are sums of 64 products of a normed activation rounded to bf16 (up to 2^-8, of about 1.25) and weights up to 1/4.
    const double logit_error = 64 * 0.25 * 1.25 * 0x1p-8;
    CHECK(own[i].nll == Approx(expected[i].nll).margin(2 * logit_error));
    CHECK(own[i].divergence == Approx(expected[i].divergence).margin(4 * logit_error));
    CHECK(itself[i].nll == own[i].nll);
    CHECK(itself[i].divergence == Approx(0).margin(1e-5));
    CHECK(itself[i].same_top);
  }
  double own_sum = 0, expected_sum = 0;
  for (size_t i = 0; i < targets.size(); ++i) own_sum += own[i].nll, expected_sum += expected[i].nll;
  CHECK(own_sum == Approx(expected_sum).epsilon(0.002));
}

TEST_CASE("memory is planned for a chunk of whole sequences, and too little of it is told in one sentence") {
  config c;
  c.hidden = 4096, c.intermediate = 14336, c.layers = 32, c.heads = 32, c.kv_heads = 8, c.head_dim = 128;
  c.vocabulary = 32768;
  std::vector<index_t> starts = {0};
  for (int i = 0; i < 256; ++i) starts.push_back(starts.back() + 512);
  const index_t gib = index_t{1} << 30;
  const auto roomy = cuda_forward::plan_memory(c, starts, 80 * gib);
  CHECK(roomy.chunk_tokens == cuda_forward::chunk_goal);
  CHECK(roomy.total() < 6 * gib);
  CHECK(2 * roomy.layer_bytes > index_t{2} * 2 * 218'000'000);
  const index_t some = roomy.total() - roomy.token_bytes * 1000;
  const auto tight = cuda_forward::plan_memory(c, starts, some);
  CHECK(tight.total() <= some);
  CHECK(tight.total() + tight.token_bytes > some);
  CHECK(tight.chunk_tokens >= 512);
  CHECK(cuda_forward::plan_memory(c, {0, 20000}, 80 * gib).chunk_tokens == 20000);
  CHECK(cuda_forward::plan_memory(c, {0, 30, 40}, 80 * gib).chunk_tokens == 40);
  CHECK_THROWS_WITH(
      cuda_forward::plan_memory(c, starts, 2 * gib),
      Contains("2.0 GiB") && Contains("131072 tokens in sequences of up to 512") && Contains("--backend cpu"));
}

#if defined(NIBBLE_SIMT)
TEST_CASE("no GPU, one that is too old, one that is not there and one that is full are told in one sentence") {
  opened model(embedded("model"));
  const auto told = [&](int device) {
    try {
      cuda_forward::forward_pass pass(model.c, {0, 10}, device);
    } catch (const error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  {
    const pretended_device none(-1);
    CHECK_THAT(told(0), Contains("no GPU was found") && Contains("--backend cpu"));
  }
  {
    const pretended_device old(75);
    CHECK_THAT(told(0), Contains("compute capability 7.5") && Contains("8.0"));
  }
  CHECK_THAT(told(1), Contains("there is no GPU 1"));
  CHECK_THAT(told(-1), Contains("there is no GPU -1"));
  {
    const simt::pretended_memory little(1 << 20);
    CHECK_THAT(told(0), Contains("of memory left") && Contains("10 tokens in sequences of up to 10"));
  }
  CHECK(told(0).empty());
}
#endif

}  // namespace forward_tests
