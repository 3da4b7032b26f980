// SPDX-License-Identifier: Apache-2.0
/// @file
/// A model to damage, and the programs that are to refuse it: each ends within seconds with one sentence and leaves nothing
/// behind.
#pragma once

#include <catch2/catch.hpp>
#include <chrono>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "support/model.hpp"
#include "support/program.hpp"

namespace nibble::test {

/// What `err` holds besides notes and progress.
inline std::string sentence_of(const std::string& program, const std::string& err) {
  std::istringstream lines(err);
  std::string sentence;
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(program + ": note: ", 0) == 0) continue;
    if (line.rfind("quantizing: layer ", 0) == 0 || line.rfind("evaluating: layer ", 0) == 0 ||
        line.rfind("writing: layer ", 0) == 0 || line.rfind("calibrating: layer ", 0) == 0)
      continue;
    if (line.rfind("measuring sensitivity: layer ", 0) == 0 || line.rfind("measuring errors: layer ", 0) == 0) continue;
    CHECK(sentence.empty());
    sentence = line;
  }
  CHECK(sentence.rfind(program + ": ", 0) == 0);
  return sentence;
}

/// A whole small model, and every program run on it.
struct victim {
  temporary_directory root;
  fs::path model = root / "model", text = root / "text.txt";
  std::vector<std::pair<std::string, words>> programs = {
      {"awq_mistral",
       {"--model", model.string(), "--output", (root / "out").string(), "--method", "rtn", "--group-size", "32",
        "--evaluate", text.string(), "--json", (root / "figures.json").string()}},
      {"awq_mistral",
       {"--model", model.string(), "--output", (root / "out").string(), "--group-size", "32", "--calibration",
        text.string(), "--num-calibration-samples", "2", "--max-seq-length", "64", "--n-grid", "4"}},
      {"gptq_mistral",
       {"--model", model.string(), "--output", (root / "out").string(), "--group-size", "32", "--calibration",
        text.string(), "--num-calibration-samples", "2", "--max-seq-length", "64"}},
      {"smoothquant_mistral",
       {"--model", model.string(), "--output", (root / "out").string(), "--scheme", "W8A8_STATIC", "--calibration",
        text.string(), "--num-calibration-samples", "2", "--max-seq-length", "64"}},
      {"gguf_mistral",
       {"--model", model.string(), "--output", (root / "out.gguf").string(), "--json",
        (root / "figures.json").string()}},
      {"gguf_mistral",
       {"--model", model.string(), "--output", (root / "out.gguf").string(), "--imatrix", "auto", "--calibration",
        text.string(), "--num-calibration-samples", "2", "--max-seq-length", "64"}},
      {"generate",
       {"--model", model.string(), "--prompt", "The state of", "--max-new-tokens", "2", "--json",
        (root / "figures.json").string()}},
      {"perplexity", {"--model", model.string(), "--text", text.string(), "--json", (root / "figures.json").string()}},
      {"gguf_mistral", {"--model", model.string(), "--output", (root / "out.gguf").string(), "--target-bpw", "9"}}};

  explicit victim(const tensor_change& change = nullptr, const model_spec& spec = {}) {
    write_model(spec, model, change);
    write_bytes(text, "The state of the Union is strong, and it will be stronger.");
  }

  /// The program ends with 1 in seconds, having said one sentence that holds every one of `named`, and left nothing.
  void refused_by(const std::string& program, const words& arguments, const words& named) const {
    CAPTURE(program, arguments);
    const std::string before = listing(root.path());
    const auto start = std::chrono::steady_clock::now();
    const auto result = run_program(program, arguments, root.path());
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(30));  // sanitizers, and a busy machine
    CHECK(result.status == 1);
    CHECK(result.out.empty());
    CHECK(listing(root.path()) == before);
    const std::string sentence = sentence_of(program, result.err);
    for (const std::string& part : named) CHECK_THAT(sentence, Catch::Matchers::Contains(part));
  }

  /// Each program refuses the model as it is now.
  void refused(const words& named) const {
    for (const auto& [program, arguments] : programs) refused_by(program, arguments, named);
  }

  /// As refused, with one of the model's files changed for as long as it takes.
  void refused_with(const std::string& file, const std::string& bytes, words named) const {
    const fs::path path = model / file;
    const bool there = fs::exists(path);
    const std::string before = there ? read_bytes(path) : "";
    write_bytes(path, bytes);
    named.push_back(file);
    refused(named);
    if (there)
      write_bytes(path, before);
    else
      fs::remove(path);
  }

  /// config.json asks for a tensor that the weights do not have, or have otherwise.
  void refused_with_tensor_missing(const std::string& key, index_t value, const std::string& tensor) const {
    CAPTURE(key, value);
    const std::string before = changed_config(key, value);
    refused({tensor});
    write_bytes(model / "config.json", before);
  }

  void accepted_with_config(const std::string& key, const nlohmann::ordered_json& value) const {
    CAPTURE(key, value.dump());
    const std::string before = changed_config(key, value);
    for (const auto& [program, arguments] : programs) {
      CHECK(run_program(program, arguments, root.path()).status == 0);
      fs::remove_all(root / "out");
      for (const char* file : {"figures.json", "out.gguf", "out.Modelfile"}) fs::remove(root / file);
    }
    write_bytes(model / "config.json", before);
  }

  void refused_with_config(const std::string& key, const nlohmann::ordered_json& value, words named) const {
    CAPTURE(key, value.dump());
    const std::string before = changed_config(key, value);
    named.emplace_back("config.json");
    refused(named);
    write_bytes(model / "config.json", before);
  }

 private:
  /// Sets a key of config.json. @returns its bytes before.
  std::string changed_config(const std::string& key, const nlohmann::ordered_json& value) const {
    const std::string before = read_bytes(model / "config.json");
    nlohmann::ordered_json file = nlohmann::ordered_json::parse(before);
    file[key] = value;
    write_bytes(model / "config.json", file.dump());
    return before;
  }
};

}  // namespace nibble::test
