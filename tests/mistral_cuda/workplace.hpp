// SPDX-License-Identifier: Apache-2.0
/// @file
/// Passes that tests run on a GPU, or with the SIMT executor for one, and on the CPU beside it.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>

#include "mistral/cuda/forward.cuh"
#include "mistral/resume.hpp"
#include "mistral/safetensors.hpp"
#include "mistral/weights.hpp"
#include "mistral_cuda/support.hpp"
#include "pass/job.hpp"
#include "support/program.hpp"

namespace nibble::test {

using json = nlohmann::ordered_json;

/// The program that has a GPU.
inline std::string on_gpu(const std::string& program) {
#if defined(NIBBLE_SIMT)
  return program + "_simt";
#else
  return program;
#endif
}

/// Kills the program that this process becomes once `file` is there, however long that takes.
inline void killed_once_there(const fs::path& file) {
  const pid_t program = ::getpid();
  if (::fork() != 0) return;
  while (::getppid() == program && !fs::exists(file)) ::usleep(200);
  if (::getppid() == program) ::kill(program, SIGKILL);
  ::_exit(0);
}

struct workplace {
  std::string program = "awq_mistral";
  temporary_directory root;
  fs::path model = root / "model", text = root / "text.txt";

  explicit workplace(const std::string& of = "awq_mistral") : program(of) {
    model_spec spec;
    spec.intermediate = 96;
    write_model(spec, model);
    const std::string all = read_bytes(embedded("text/heldout-persuasion.txt"));
    write_bytes(text, all.substr(all.find("CHAPTER") != all.npos ? all.find("CHAPTER") : 0, 360));
  }

  words options(const std::string& output, const words& more) const {
    const words precision = {"--matmul-precision", "bfloat16"};  // as a GPU multiplies, whatever this CPU does faster
    const bool calibrates = std::find(more.begin(), more.end(), "rtn") == more.end();
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
           (calibrates ? precision : words()) + more;
  }
  outcome run(const std::string& output, const words& more, const std::function<void()>& prepare = nullptr) const {
    return run_program(on_gpu(program), options(output, more), root.path(), prepare);
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
    if (sentence.rfind(program + ": note: there are 3 calibration samples", 0) == 0)
      sentence.erase(0, sentence.find('\n') + 1);
    CHECK(sentence.rfind(program + ": ", 0) == 0);
    CHECK(std::count(sentence.begin(), sentence.end(), '\n') == 1);
    CHECK_FALSE(fs::exists(root / "refused"));
    return sentence;
  }
};

inline double number(const json& of, const char* a, const char* b) {
  return of.at(a).at(b).get<double>();
}

/// The losses of every linear, to a share of `losses`, and the loudness of every input, to one of `magnitudes`, agree, and so do
/// perplexities, if there are any, to a share of `perplexities`.
inline void figures_agree(const json& gpu, const json& cpu, double losses = 0.03, double perplexities = 0.002,
                          double magnitudes = 0.03) {
  REQUIRE(gpu.at("layers").size() == cpu.at("layers").size());
  for (size_t layer = 0; layer < cpu.at("layers").size(); ++layer)
    for (const auto& [name, expected] : cpu["layers"][layer]["linears"].items()) {
      const json& own = gpu["layers"][layer]["linears"].at(name);
      CAPTURE(layer, name);
      for (const char* loss : {"round_to_nearest_loss", "loss"})
        CHECK(own.at(loss).get<double>() == Approx(expected.at(loss).get<double>()).epsilon(losses));
    }
  for (size_t layer = 0; layer < cpu.at("layers").size(); ++layer)
    for (const auto& [name, expected] : cpu["layers"][layer]["activations"].items()) {
      CAPTURE(layer, name);
      CHECK(gpu["layers"][layer]["activations"].at(name).at("median_magnitude").get<double>() ==
            Approx(expected.at("median_magnitude").get<double>()).epsilon(magnitudes));
    }
  REQUIRE(gpu.at("models").size() == cpu.at("models").size());
  if (!cpu["models"][0].contains("perplexity")) return;
  for (size_t model = 0; model < cpu["models"].size(); ++model)
    CHECK(gpu["models"][model].at("perplexity").get<double>() ==
          Approx(cpu["models"][model].at("perplexity").get<double>()).epsilon(perplexities));
}

/// The same tensors of the same shapes and types, whatever their numbers.
inline void same_form(const fs::path& a, const fs::path& b) {
  const mistral::checkpoint one(a), other(b);
  REQUIRE(one.tensors().size() == other.tensors().size());
  for (const auto& [name, t] : one.tensors()) {
    CAPTURE(name);
    CHECK(other.at(name, t.shape).dtype == t.dtype);
  }
}

/// Every layer has scales of keys and values, and they are within what bf16 leaves of a number after some products.
inline void cache_agrees(const fs::path& gpu, const fs::path& cpu) {
  const mistral::checkpoint one(gpu), other(cpu);
  int scales = 0;
  for (const auto& [name, t] : other.tensors()) {
    if (name.find(".k_scale") == name.npos && name.find(".v_scale") == name.npos) continue;
    CAPTURE(name);
    const auto found = mistral::read_vector(one, name, 1), expected = mistral::read_vector(other, name, 1);
    CHECK(found[0] == Approx(expected[0]).epsilon(0.02));
    ++scales;
  }
  CHECK(scales > 0);
}

inline std::string payload(const fs::path& output) {
  return read_bytes(output / "model.safetensors");
}

/// A run that is killed once it kept something, and run again, goes on and writes the bytes of an unbroken one.
inline void same_after_interruption(const workplace& w, const words& how) {
  w.quantize("out", how);
  const std::string whole = payload(w.root / "out");
  fs::remove_all(w.root / "out");
  const outcome killed =
      w.run("out", how, [kept = w.root / "out.partial" / mistral::resume_file] { killed_once_there(kept); });
  CAPTURE(killed.err);
  REQUIRE(killed.status == -SIGKILL);
  const outcome rest = w.run("out", how);
  CAPTURE(rest.err);
  REQUIRE(rest.status == 0);
  CHECK_THAT(rest.err, Catch::Matchers::Contains("going on with what an interrupted run left"));
  CHECK(payload(w.root / "out") == whole);
}

/// What a pass does to the first layer of a small model, on either engine, calibrated on o.samples short samples.
struct first_layer {
  temporary_directory root;
  mistral::pass_options o;
  std::unique_ptr<mistral::job> of;
  mistral::layer_weights w;

  explicit first_layer(mistral::pass_options how) : o(std::move(how)) {
    model_spec spec;
    spec.hidden = 32, spec.intermediate = 48, spec.layers = 1, spec.heads = 2, spec.kv_heads = 1;
    write_model(spec, root / "model");
    write_bytes(root / "text.txt", read_bytes(embedded("text/heldout-persuasion.txt")).substr(2000, 24000));
    o.model = (root / "model").string(), o.calibration = (root / "text.txt").string();
    o.output = (root / "out").string(), o.max_length = 23, o.backend = {"cuda", -1};
    check(o);
    of = std::make_unique<mistral::job>(o);
    w = load_layer(of->files, of->model, 0);
  }
  /// One that has seen the layer, whose weights w are.
  std::unique_ptr<mistral::engine> seen(bool on_gpu) {
#if defined(NIBBLE_SIMT)  // room for a few hundred tokens at a time, so that a sample goes on in the next of them
    const simt::pretended_memory little(static_cast<std::size_t>(gpu_memory(*of, *of->on)) - 1500000);
#endif
    auto on = on_gpu ? gpu_engine(*of, *of->on) : host_engine(*of);
    on->embed();
    on->gather(0, w, true);
    return on;
  }
};

/// What a run took of a GPU, by its figures, is what `plan`, that --dry-run printed, said, and not much less. @pre nothing but the program
/// takes memory, as on the executor.
inline void memory_as_planned(const json& figures, const std::string& plan) {
  const double megabytes = std::stod(plan.substr(plan.find("GPU memory") + 10));
  const double planned = 1e6 * (megabytes + 0.05) - static_cast<double>(mistral::cuda::runtime_bytes);
  const double taken = figures.at("machine").at("gpu_bytes").get<double>();
  CAPTURE(taken, planned);
  CHECK(taken <= planned);
  CHECK(taken > 0.8 * planned);
}

}  // namespace nibble::test
