// SPDX-License-Identifier: Apache-2.0
/// @file
/// gptq_mistral with --backend: a GPU gives what the CPU gives.
#include <sstream>

#include "mistral/cuda/forward.cuh"
#include "mistral_cuda/workplace.hpp"

namespace gptq_programs_tests {

using namespace nibble;
using namespace nibble::test;
using Catch::Matchers::Contains;

namespace {

/// A GPU's layers multiply in bf16, so that targets near a tie go to its other side, and later ones after them. Measured: 2.1 %.
constexpr double loss_bound = 0.05;

/// On both machines; the losses of linears may be apart by `losses` of themselves.
void agrees(const workplace& w, const words& how, double losses) {
  CAPTURE(how);
  const words overwrite = {"--overwrite"};
  const json gpu = w.quantize("gpu", how + overwrite + words{"--backend", "cuda"});
  const json cpu = w.quantize("cpu", how + overwrite + words{"--backend", "cpu"});
  CHECK_THAT(gpu.at("machine").at("name").get<std::string>(), !Contains("thread"));
  CHECK_THAT(cpu.at("machine").at("name").get<std::string>(), Contains("thread"));
  figures_agree(gpu, cpu, losses);
  same_form(w.root / "gpu", w.root / "cpu");
}

}  // namespace

TEST_CASE("gptq_mistral on a GPU writes what it writes on the CPU at 4 bits, and takes the memory it said it would") {
  const workplace w("gptq_mistral");
  agrees(w, {}, loss_bound);
  const auto perplexity = [&](const char* of) {
    const outcome result =
        run_program(on_gpu("perplexity"), {"--model", (w.root / of).string(), "--text", w.text.string(), "--window",
                                           "64", "--stride", "32", "--json", "--backend", "cpu"});
    CAPTURE(result.err);
    REQUIRE(result.status == 0);
    return json::parse(result.out).at("perplexity").get<double>();
  };
  CHECK(perplexity("gpu") ==
        Approx(perplexity("cpu")).epsilon(0.02));  // codes differ, and random weights forgive nothing
#if defined(NIBBLE_SIMT)                           // where nothing but the program takes memory
  const json gpu = json::parse(read_bytes(w.root / "gpu.json"));
  const outcome plan = run_program(on_gpu(w.program), w.options("plan", {"--backend", "cuda", "--dry-run"}));
  memory_as_planned(gpu, plan.out);
#endif
}

TEST_CASE("gptq_mistral on a GPU loses what it loses on the CPU at 3 bits, in groups of their own order or in none") {
  const workplace w("gptq_mistral");  // without searched ranges, over which the executor takes long
  agrees(
      w,
      {"--scheme", "W3A16_ASYM", "--actorder", "descending", "--format", "gptq-v2", "--clip", "none", "--sweeps", "1"},
      loss_bound);
  agrees(w, {"--actorder", "none", "--clip", "none", "--sweeps", "0"}, loss_bound);
}

TEST_CASE("gptq_mistral on a GPU finds the CPU's scales of AWQ, and loses what it loses with them") {
  const workplace w("gptq_mistral");
  agrees(w, {"--method", "awq+gptq", "--n-grid", "4", "--actorder", "group-aware", "--clip", "none", "--sweeps", "0"},
         loss_bound);
}

TEST_CASE("where a Hessian has no factor a GPU does with it what the CPU does, and names the same linears") {
  const workplace w("gptq_mistral");
  const words how = {"--shrinkage", "0",    "--dampening-frac", "0", "--propagate", "original",
                     "--clip",      "none", "--sweeps",         "0"};
  const outcome gpu = w.run("gpu", how + words{"--backend", "cuda"}),
                cpu = w.run("cpu", how + words{"--backend", "cpu"});
  CAPTURE(gpu.err, cpu.err);
  REQUIRE((gpu.status == 0 && cpu.status == 0));
  CHECK_THAT(gpu.err,
             Contains("note: model.layers.0.self_attn.q_proj, model.layers.0.self_attn.k_proj, "
                      "model.layers.0.self_attn.v_proj: the inputs' Hessian has a factor only when dampened by"));
  const auto notes = [](const std::string& said) {
    std::istringstream lines(said);
    std::string all;
    for (std::string line; std::getline(lines, line);)
      if (line.find(": note: ") != line.npos) all += line + "\n";
    return all;
  };
  CHECK(notes(gpu.err) == notes(cpu.err));
}

TEST_CASE("a GPU follows the original's activations across an interruption: it goes on to the same bytes") {
  const workplace w("gptq_mistral");
  const words how = {"--backend", "cuda", "--clip", "none", "--sweeps", "0"};
  same_after_interruption(w, how);
}

TEST_CASE("gptq_mistral on a GPU finds the CPU's scales of keys and values, also where drift is followed") {
  const workplace w("gptq_mistral");
  const words how = {"--kv-cache", "fp8", "--clip", "none", "--sweeps", "0", "--actorder", "none"};
  agrees(w, how, loss_bound);
  cache_agrees(w.root / "gpu", w.root / "cpu");
}

}  // namespace gptq_programs_tests
