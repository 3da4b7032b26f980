// SPDX-License-Identifier: Apache-2.0
/// @file
/// awq_mistral and perplexity with --backend: a GPU gives what the CPU gives, and one that cannot be used is told in a sentence.
#include <cstdlib>

#include "mistral/cuda/forward.cuh"
#include "mistral_cuda/workplace.hpp"

namespace programs_tests {

using namespace nibble;
using namespace nibble::test;
using namespace nibble::mistral;
using Catch::Matchers::Contains;

namespace {

#if defined(NIBBLE_SIMT)
/// What the executor pretends in the programs that a test starts.
std::function<void()> pretending(const char* variable, const char* value) {
  return [=] { ::setenv(variable, value, 1); };
}
#endif

}  // namespace

TEST_CASE(
    "awq_mistral on a GPU writes what it writes on the CPU: same tensors, losses within 3 %, perplexities within 0.2 "
    "%") {
  const workplace w;
  const words evaluate = {"--evaluate", w.text.string(), "--allow-overlap", "--n-grid", "4"};
  const json gpu = w.quantize("gpu", evaluate + words{"--backend", "cuda"});
  const json cpu = w.quantize("cpu", evaluate + words{"--backend", "cpu"});
  const std::string machine = gpu.at("machine").at("name");
  CHECK_THAT(cpu.at("machine").at("name").get<std::string>(), Contains("thread"));
  CHECK_THAT(machine, !Contains("thread"));
  double phases = 0;
  for (const auto& [phase, seconds] : gpu.at("machine").at("seconds").items()) {
    CAPTURE(phase);
    CHECK((seconds.get<double>() > 0 || phase == "copy"));  // the executor's copies may take less than its clock tells
    phases += seconds.get<double>();
  }
  CHECK(phases < number(gpu, "seconds", "quantization"));
  figures_agree(gpu, cpu);
  same_form(w.root / "gpu", w.root / "cpu");
  const outcome plan = run_program(on_gpu("awq_mistral"), w.options("plan", {"--backend", "cuda", "--dry-run"}));
#if defined(NIBBLE_SIMT)  // where nothing but the program takes memory
  memory_as_planned(gpu, plan.out);
#endif
  CHECK_THAT(plan.out, Contains("GPU memory") && Contains("not known for " + machine));
}

TEST_CASE(
    "awq_mistral on a GPU finds the CPU's scales of keys and values, goes on through layers that round them, and "
    "evaluates them rounded") {
  const workplace w;
  const words how = {"--kv-cache", "fp8", "--propagate", "quantized",     "--n-grid",       "1", "--clip", "none",
                     "--sweeps",   "0",   "--evaluate",  w.text.string(), "--allow-overlap"};
  const outcome made = w.run("gpu", how + words{"--backend", "cuda"});
  CAPTURE(made.err);
  REQUIRE(made.status == 0);
  CHECK_THAT(made.err, !Contains("CPU"));
  const json gpu = json::parse(read_bytes(w.root / "gpu.json")),
             cpu = w.quantize("cpu", how + words{"--backend", "cpu"});
  CHECK_THAT(gpu.at("machine").at("name").get<std::string>(), !Contains("thread"));
  // e4m3 takes what bf16 moves over a tie a step further, and random weights forgive nothing. Measured: 0.3 %.
  figures_agree(gpu, cpu, 0.03, 0.01);
  same_form(w.root / "gpu", w.root / "cpu");
  cache_agrees(w.root / "gpu", w.root / "cpu");
}

TEST_CASE("a GPU judges each layer under its own statistics, also where a single linear of a layer is packed") {
  const workplace w;
  const words down = {"--ignore", "lm_head,re:.*self_attn.*,re:.*gate_proj,re:.*up_proj", "--clip", "none", "--n-grid",
                      "1"};
  figures_agree(w.quantize("gpu", down + words{"--backend", "cuda"}),
                w.quantize("cpu", down + words{"--backend", "cpu"}));
}

TEST_CASE(
    "a GPU goes on where an interrupted run stopped, on activations of quantized layers, and writes the same bytes") {
  const workplace w;
  const words how = {"--backend", "cuda",   "--propagate", "quantized", "--n-grid",
                     "1",         "--clip", "none",        "--sweeps",  "0"};
  same_after_interruption(w, how);
}

TEST_CASE("perplexity on a GPU is the CPU's to 0.2 %, alone and against another model") {
  const workplace w;
  w.quantize("out", {"--method", "rtn"});
  const auto measured = [&](const std::string& backend) {
    const outcome result = run_program(
        on_gpu("perplexity"), {"--model", (w.root / "out").string(), "--against", w.model.string(), "--text",
                               w.text.string(), "--window", "64", "--stride", "32", "--json", "--backend", backend});
    CAPTURE(result.err);
    REQUIRE(result.status == 0);
    return json::parse(result.out);
  };
  const json gpu = measured("cuda"), cpu = measured("cpu");
  CHECK(gpu.at("perplexity").get<double>() == Approx(cpu.at("perplexity").get<double>()).epsilon(0.002));
  CHECK(number(gpu, "against", "perplexity") == Approx(number(cpu, "against", "perplexity")).epsilon(0.002));
  CHECK(gpu.at("kl_divergence").get<double>() == Approx(cpu.at("kl_divergence").get<double>()).epsilon(0.1));
}

TEST_CASE("perplexity on a GPU is the CPU's to 1 % of a few windows where inputs are rounded") {
  const temporary_directory root;
  // What bf16 takes to the other side of a step is averaged over tokens: of 60 windows these are 0.003 and 0.04 % apart, of 6 up to 0.4 %.
  for (const char* scheme : {"W8A8", "FP8_DYNAMIC"}) {
    CAPTURE(scheme);
    const fs::path out = root / scheme;
    REQUIRE(
        run_program(on_gpu("awq_mistral"), {"--output", out.string(), "--scheme", scheme, "--method", "rtn"}).status ==
        0);
    const auto measured = [&](const std::string& backend) {
      const outcome result =
          run_program(on_gpu("perplexity"),
                      {"--model", out.string(), "--text", embedded("text/heldout-persuasion.txt").string(), "--window",
                       "64", "--stride", "64", "--max-windows", "6", "--json", "--backend", backend});
      CAPTURE(result.err);
      REQUIRE(result.status == 0);
      CHECK_THAT(result.err, !Contains("CPU"));
      return json::parse(result.out).at("perplexity").get<double>();
    };
    CHECK(measured("cuda") == Approx(measured("cpu")).epsilon(0.01));
  }
}

TEST_CASE("a device that is not there, or not asked for, is refused before anything is read or written") {
  const workplace w;
  CHECK_THAT(w.refused({"--backend", "cpu", "--device", "0"}, 2), Contains("leave it out with --backend cpu"));
  CHECK_THAT(w.refused({"--device", "77"}, 1), Contains("there is no GPU 77"));
}

#if defined(NIBBLE_SIMT)
TEST_CASE("a machine whose GPU is missing, too old or too small says so in a sentence, and with auto takes the CPU") {
  const workplace w;
  const auto none = pretending("NIBBLE_SIMT_ARCHITECTURE", "-1"), old = pretending("NIBBLE_SIMT_ARCHITECTURE", "75"),
             small = pretending("NIBBLE_SIMT_MEMORY", "100000000");
  CHECK_THAT(w.refused({"--backend", "cuda"}, 1, none), Contains("no GPU was found") && Contains("--backend cpu"));
  CHECK_THAT(w.refused({"--backend", "cuda"}, 1, old), Contains("compute capability 7.5, but 8.0 is needed"));
  CHECK_THAT(w.refused({"--backend", "cuda"}, 1, small), Contains("of memory left") && Contains("--backend cpu"));
  w.quantize("cpu", {"--backend", "cpu"});
  const std::string cpu = payload(w.root / "cpu");
  const auto by_itself = [&](const std::string& output, const std::function<void()>& prepare) {
    const outcome result = w.run(output, {"--evaluate", w.text.string(), "--allow-overlap"}, prepare);
    CAPTURE(result.err);
    REQUIRE(result.status == 0);
    CHECK(payload(w.root / output) == cpu);
    return result.err;
  };
  CHECK_THAT(by_itself("a", none), !Contains("GPU"));
  CHECK_THAT(by_itself("b", old), Contains("note: the GPU 0 has compute capability 7.5"));
  CHECK_THAT(by_itself("c", small), Contains("of memory left") && Contains("the CPU takes its place"));
  const auto perplexity = [&](const std::string& backend, const std::function<void()>& prepare) {
    return run_program(on_gpu("perplexity"),
                       {"--model", w.model.string(), "--text", w.text.string(), "--backend", backend}, w.root.path(),
                       prepare);
  };
  const outcome alone = perplexity("cpu", nullptr), instead = perplexity("auto", small),
                insisted = perplexity("cuda", small);
  CHECK(instead.out == alone.out);
  CHECK_THAT(instead.err, Contains("perplexity: note: the GPU has") && Contains("the CPU takes its place"));
  CHECK(insisted.status == 1);
  CHECK(insisted.out.empty());
}
#endif

}  // namespace programs_tests
