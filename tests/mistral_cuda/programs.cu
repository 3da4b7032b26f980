// SPDX-License-Identifier: Apache-2.0
/// @file
/// awq_mistral and perplexity with --backend: a GPU gives what the CPU gives, and one that cannot be used is told in a sentence.
#include <unistd.h>

#include <csignal>
#include <cstdlib>

#include "mistral/cuda/forward.cuh"
#include "mistral/resume.hpp"
#include "mistral/safetensors.hpp"
#include "mistral_cuda/support.hpp"
#include "support/program.hpp"

using namespace nibble;
using namespace nibble::test;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using json = nlohmann::ordered_json;
using words = std::vector<std::string>;

namespace {

#if defined(NIBBLE_SIMT)
const std::string awq_program = "awq_mistral_simt", perplexity_program = "perplexity_simt";

/// What the executor pretends in the programs that a test starts.
std::function<void()> pretending(const char* variable, const char* value) {
  return [=] { ::setenv(variable, value, 1); };
}
#else
const std::string awq_program = "awq_mistral", perplexity_program = "perplexity";
#endif

/// Kills the program that this process becomes once `file` is there, however long that takes.
void killed_once_there(const fs::path& file) {
  const pid_t program = ::getpid();
  if (::fork() != 0) return;
  while (::getppid() == program && !fs::exists(file)) ::usleep(200);
  if (::getppid() == program) ::kill(program, SIGKILL);
  ::_exit(0);
}

words operator+(words a, const words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

struct workplace {
  temporary_directory root;
  fs::path model = root / "model", text = root / "text.txt";

  workplace() {
    model_spec spec;
    spec.intermediate = 96;
    write_model(spec, model);
    const std::string all = read_bytes(embedded("text/heldout-persuasion.txt"));
    write_bytes(text, all.substr(all.find("CHAPTER") != all.npos ? all.find("CHAPTER") : 0, 360));
  }

  words awq(const std::string& output, const words& more) const {
    return words{"--model",
                 model.string(),
                 "--output",
                 (root / output).string(),
                 "--json",
                 (root / (output + ".json")).string(),
                 "--calibration",
                 text.string(),
                 "--num-calibration-samples",
                 "3",
                 "--max-seq-length",
                 "24",
                 "--group-size",
                 "32"} +
           more;
  }
  outcome run(const std::string& output, const words& more, const std::function<void()>& prepare = nullptr) const {
    return run_program(awq_program, awq(output, more), root.path(), prepare);
  }
  json quantize(const std::string& output, const words& more, const std::function<void()>& prepare = nullptr) const {
    const outcome result = run(output, more, prepare);
    CAPTURE(output, more, result.err);
    REQUIRE(result.status == 0);
    return json::parse(read_bytes(root / (output + ".json")));
  }
  /// What the program says when it refuses; nothing but a note may come before.
  std::string refused(const words& more, int status, const std::function<void()>& prepare = nullptr) const {
    const outcome result = run("refused", more, prepare);
    CAPTURE(more, result.err);
    CHECK(result.status == status);
    CHECK(result.out.empty());
    std::string sentence = result.err;
    if (sentence.rfind("awq_mistral: note: there are 3 calibration samples", 0) == 0)
      sentence.erase(0, sentence.find('\n') + 1);
    CHECK(sentence.rfind("awq_mistral: ", 0) == 0);
    CHECK(std::count(sentence.begin(), sentence.end(), '\n') == 1);
    CHECK_FALSE(fs::exists(root / "refused"));
    return sentence;
  }
};

double number(const json& of, const char* a, const char* b) {
  return of.at(a).at(b).get<double>();
}

/// The losses of every linear and the loudness of every input agree, and so do perplexities, if there are any.
void figures_agree(const json& gpu, const json& cpu) {
  REQUIRE(gpu.at("layers").size() == cpu.at("layers").size());
  for (size_t layer = 0; layer < cpu.at("layers").size(); ++layer)
    for (const auto& [name, expected] : cpu["layers"][layer]["linears"].items()) {
      const json& own = gpu["layers"][layer]["linears"].at(name);
      CAPTURE(layer, name);
      for (const char* loss : {"round_to_nearest_loss", "loss"})
        CHECK(own.at(loss).get<double>() == Approx(expected.at(loss).get<double>()).epsilon(0.03));
    }
  for (size_t layer = 0; layer < cpu.at("layers").size(); ++layer)
    for (const auto& [name, expected] : cpu["layers"][layer]["activations"].items()) {
      CAPTURE(layer, name);
      CHECK(gpu["layers"][layer]["activations"].at(name).at("median_magnitude").get<double>() ==
            Approx(expected.at("median_magnitude").get<double>()).epsilon(0.03));
    }
  REQUIRE(gpu.at("models").size() == cpu.at("models").size());
  if (!cpu["models"][0].contains("perplexity")) return;
  for (size_t model = 0; model < cpu["models"].size(); ++model)
    CHECK(gpu["models"][model].at("perplexity").get<double>() ==
          Approx(cpu["models"][model].at("perplexity").get<double>()).epsilon(0.002));
}

/// The same tensors of the same shapes and types, whatever their numbers.
void same_form(const fs::path& a, const fs::path& b) {
  const checkpoint one(a), other(b);
  REQUIRE(one.tensors().size() == other.tensors().size());
  for (const auto& [name, t] : one.tensors()) {
    CAPTURE(name);
    CHECK(other.at(name, t.shape).dtype == t.dtype);
  }
}

std::string payload(const fs::path& output) {
  return read_bytes(output / "model.safetensors");
}

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
  const outcome plan = run_program(awq_program, w.awq("plan", {"--backend", "cuda", "--dry-run"}));
#if defined(NIBBLE_SIMT)  // where nothing but the program takes memory
  const double megabytes = std::stod(plan.out.substr(plan.out.find("GPU memory") + 10));
  const double planned = 1e6 * (megabytes + 0.05) - static_cast<double>(cuda::runtime_bytes);
  const double taken = gpu.at("machine").at("gpu_bytes").get<double>();
  CHECK(taken <= planned);
  CHECK(taken > 0.8 * planned);
#endif
  CHECK_THAT(plan.out, Contains("GPU memory") && Contains("not known for " + machine));
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
  w.quantize("out", how);
  const std::string whole = payload(w.root / "out");
  fs::remove_all(w.root / "out");
  const fs::path kept = w.root / "out.partial" / resume_file;
  const outcome killed = w.run("out", how, [kept] { killed_once_there(kept); });
  CAPTURE(killed.err);
  REQUIRE(killed.status == -SIGKILL);
  const outcome rest = w.run("out", how);
  CAPTURE(rest.err);
  REQUIRE(rest.status == 0);
  CHECK_THAT(rest.err, Contains("going on with what an interrupted run left"));
  CHECK(payload(w.root / "out") == whole);
}

TEST_CASE("perplexity on a GPU is the CPU's to 0.2 %, alone and against another model") {
  const workplace w;
  w.quantize("out", {"--method", "rtn"});
  const auto measured = [&](const std::string& backend) {
    const outcome result = run_program(
        perplexity_program, {"--model", (w.root / "out").string(), "--against", w.model.string(), "--text",
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

TEST_CASE("what a GPU cannot do is refused before anything is read or written, or left to the CPU") {
  const workplace w;
  CHECK_THAT(w.refused({"--backend", "cuda", "--loss", "block"}, 2), Contains("--loss gram, or --backend cpu"));
  CHECK_THAT(w.refused({"--backend", "cpu", "--device", "0"}, 2), Contains("leave it out with --backend cpu"));
  CHECK_THAT(w.refused({"--device", "77"}, 1), Contains("there is no GPU 77"));
  const outcome block = w.run("block", {"--loss", "block", "--n-grid", "1"});
  CHECK(block.status == 0);
  CHECK_THAT(block.err, Contains("note: --loss block is judged on the CPU only"));
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
    return run_program(perplexity_program,
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
