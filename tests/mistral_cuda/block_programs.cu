// SPDX-License-Identifier: Apache-2.0
/// @file
/// --loss block with --backend: a GPU judges scales by outputs of blocks as the CPU does.
#include <algorithm>

#include "mistral_cuda/workplace.hpp"

namespace block_programs_tests {

using namespace nibble;
using namespace nibble::test;
using namespace nibble::mistral;
using Catch::Matchers::Contains;

namespace {

pass_options judging(const char* scheme, clip_search clip) {
  pass_options o;
  o.program = "awq_mistral", o.offered = {methods::awq}, o.how_found = methods::awq;
  o.loss = search_loss::block, o.scheme = scheme, o.group_size = -1, o.clip = clip;
  o.samples = 200;
  return o;
}

const std::pair<layer_input, std::vector<projection>> blocks[] = {
    {layer_input::attention, {projection::q, projection::k, projection::v}},
    {layer_input::mlp, {projection::gate, projection::up}}};

/// Nibbles of packed weights that differ, and all of them.
std::pair<index_t, index_t> other_codes(const fs::path& a, const fs::path& b) {
  const checkpoint one(a), another(b);
  index_t other = 0, all = 0;
  for (const auto& [name, t] : one.tensors()) {
    if (name.find(".weight_packed") == name.npos) continue;
    const auto* const x = reinterpret_cast<const unsigned char*>(t.data);
    const auto* const y = reinterpret_cast<const unsigned char*>(another.at(name, t.shape).data);
    for (index_t i = 0; i < t.bytes; ++i) other += (x[i] % 16 != y[i] % 16) + (x[i] / 16 != y[i] / 16);
    all += 2 * t.bytes;
  }
  return {other, all};
}

/// A model whose norms make a few channels loud, and whose linears make up for it, so that scales matter.
void write_salient_model(const fs::path& to) {
  model_spec spec;
  spec.intermediate = 96;
  const auto loud = [](size_t channel) { return channel % 16 == 3 ? 32.0f : channel % 16 == 9 ? 8.0f : 1.0f; };
  write_model(spec, to, [&](made_tensor& t) {
    const bool norm = t.name.find("layernorm") != t.name.npos;
    const auto reads = [&](const char* linear) { return t.name.find(linear) != t.name.npos; };
    if (!norm && !reads("q_proj") && !reads("k_proj") && !reads("v_proj") && !reads("gate") && !reads("up")) return;
    for (size_t i = 0; i < t.values.size(); ++i) {
      const float factor = loud(i % static_cast<size_t>(spec.hidden));
      t.values[i] = norm ? t.values[i] * factor : t.values[i] / factor;
    }
  });
}

/// Both machines choose the same of AWQ's scales for every block and lose as much with it, to a share of `chosen`: each computes it from
/// its own statistics, which bf16 tells apart, and other codes of few weights follow. Of a hundred codes `percent` may differ.
void chooses_alike(const workplace& w, const words& more, double chosen, double percent) {
  fs::remove_all(w.model);
  write_salient_model(w.model);
  const words how =
      words{"--loss", "block", "--n-grid", "4", "--duo-scaling", "false", "--clip", "none", "--sweeps", "0"} + more;
  const json gpu = w.quantize("gpu", how + words{"--backend", "cuda"}),
             cpu = w.quantize("cpu", how + words{"--backend", "cpu"});
  CHECK_THAT(gpu.at("machine").at("name").get<std::string>(), !Contains("thread"));
  CHECK_THAT(cpu.at("machine").at("name").get<std::string>(), Contains("thread"));
  figures_agree(gpu, cpu, 0.05);
  same_form(w.root / "gpu", w.root / "cpu");
  for (size_t layer = 0; layer < cpu.at("layers").size(); ++layer)
    for (const char* input : {"attention", "mlp"}) {
      const json &own = gpu["layers"][layer]["scales"].at(input), &expected = cpu["layers"][layer]["scales"].at(input);
      CAPTURE(layer, input, own.dump(), expected.dump());
      CHECK(own.at("ratio") == expected.at("ratio"));
      CHECK(own.at("duo") == expected.at("duo"));
      CHECK(own.at("unscaled_loss").get<double>() == Approx(expected.at("unscaled_loss").get<double>()).epsilon(0.02));
      CHECK(own.at("loss").get<double>() == Approx(expected.at("loss").get<double>()).epsilon(chosen));
    }
  const auto [other, all] = other_codes(w.root / "gpu", w.root / "cpu");
  CAPTURE(other, all);
  REQUIRE(all > 0);
  CHECK(static_cast<double>(other) <= percent / 100 * static_cast<double>(all));
}

}  // namespace

TEST_CASE("a GPU judges a block's output on the tokens that the CPU judges it on, and gives what that gives") {
  first_layer at(judging("W4A16_ASYM", clip_search::mse));
  const std::vector<index_t> starts = at.of->tokens().starts;
  REQUIRE(starts.back() > block_loss_tokens);
  REQUIRE(starts[static_cast<size_t>(block_loss_sequences(starts))] < block_loss_tokens);
  const auto gpu = at.seen(true), cpu = at.seen(false);
  for (const auto& [input, linears] : blocks) {
    std::vector<float> s;
    for (index_t j = 0; j < width(at.of->model, input); ++j) s.push_back(0.5f + 0.25f * static_cast<float>(j % 5));
    for (engine* const on : {gpu.get(), cpu.get()}) on->hold(at.w, linears);
    const double own = gpu->block_loss(input, at.of->packings(0), s.data()),
                 expected = cpu->block_loss(input, at.of->packings(0), s.data());
    CAPTURE(static_cast<int>(input));
    CHECK(own == Approx(expected).epsilon(0.005));  // measured: 0.14 %
  }
}

#if defined(NIBBLE_SIMT)
TEST_CASE("judging blocks takes the GPU memory that the plan says, and too little of it is told in one sentence") {
  pass_options o = judging("W4A16_ASYM", clip_search::none);
  o.samples = 20;
  first_layer at(o);
  gpu device = *at.of->on;
  // The least free memory that a plan is made for.
  std::uint64_t least = 0, enough = gpu_memory(*at.of, device);
  while (least + 1 < enough) {
    device.free_bytes = (least + enough) / 2;
    try {
      gpu_memory(*at.of, device);
      enough = device.free_bytes;
    } catch (const gpu_unusable&) {
      least = device.free_bytes;
    }
  }
  device.free_bytes = enough;
  const auto planned = gpu_memory(*at.of, device);
  CHECK(planned == enough);
  const auto judge = [&] {
    const auto on = gpu_engine(*at.of, device);
    on->embed();
    on->gather(0, at.w, false);
    for (const auto& [input, linears] : blocks) {
      const std::vector<float> s(static_cast<size_t>(width(at.of->model, input)), 1.0f);
      on->hold(at.w, linears);
      CHECK(on->block_loss(input, at.of->packings(0), s.data()) > 0);
    }
    on->hold(at.w, {projection::down});
    CHECK(on->unscaled_loss(projection::down, {at.of->packings(0), projection::down, at.of->stored}) > 0);
  };
  {
    const simt::pretended_memory exact(static_cast<std::size_t>(planned));
    simt::device_heap.most = simt::device_heap.bytes;
    const std::size_t before = simt::device_heap.bytes;
    judge();
    const auto taken = static_cast<double>(simt::device_heap.most - before);
    const auto own = static_cast<double>(planned) - static_cast<double>(cuda::runtime_bytes);
    CAPTURE(taken, own);
    CHECK(taken <= own);
    CHECK(taken > 0.9 * own);
  }
  // What the samples and their sums take is in the plan to the byte.
  const config& c = at.of->model;
  const auto tokens = static_cast<std::uint64_t>(at.of->samples.tokens());
  const auto channels = static_cast<std::uint64_t>(2 * c.hidden + c.q_width() + c.intermediate);
  o.loss = search_loss::gram;
  const first_layer by_linears(o);
  CHECK(gpu_memory(*at.of, *at.of->on) - gpu_memory(*by_linears.of, *at.of->on) ==
        2 * tokens * channels + 4 * channels + 8 * tokens);
  const simt::pretended_memory little(static_cast<std::size_t>(planned) - 1);
  CHECK_THROWS_WITH(judge(), Contains("of memory left") && Contains("--backend cpu") && !Contains("\n"));
}
#endif

TEST_CASE("awq_mistral --loss block on a GPU chooses the CPU's scales for every input, and loses as much") {
  const workplace w;
  chooses_alike(w, {}, 0.05, 2);  // measured: 2.5 %, and 0.8 of a hundred codes
}

TEST_CASE("gptq_mistral --loss block on a GPU chooses the CPU's scales, also on activations of quantized layers") {
  const workplace w("gptq_mistral");
  chooses_alike(w, {"--method", "awq+gptq", "--propagate", "quantized"}, 0.2, 20);  // measured: 11 %, and 17
}

TEST_CASE("a GPU that judges blocks goes on where an interrupted run stopped, and writes the same bytes") {
  const workplace w;
  same_after_interruption(w, {"--backend", "cuda", "--loss", "block", "--n-grid", "4", "--propagate", "quantized",
                              "--clip", "none", "--sweeps", "0"});
}

}  // namespace block_programs_tests
