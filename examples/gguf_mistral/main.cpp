// SPDX-License-Identifier: Apache-2.0
/// @file
/// gguf_mistral: a Mistral (or Llama) checkpoint in, dense or packed by this project's programs, one GGUF file out that
/// llama.cpp and Ollama load.
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "gguf/convert.hpp"
#include "gguf/measure.hpp"
#include "gguf/modelfile.hpp"
#include "gguf/report.hpp"
#include "gguf/sensitivity.hpp"
#include "mistral/calibration.hpp"
#include "mistral/chat.hpp"
#include "mistral/gguf_model.hpp"
#include "mistral/places.hpp"
#include "mistral/program.hpp"
#include "mistral/progress.hpp"
#include "mistral/sizes.hpp"
#include "mistral/tokenizer_files.hpp"
#include "mistral/validators.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/version.hpp"

using namespace nibble::mistral;
namespace fs = std::filesystem;

namespace {

struct options {
  std::string model = source_directory + std::string("/examples/awq_mistral/model");
  std::string output, type = "Q4_K_M", search = "ggml", importance, name, json;
  std::string target_size;
  size_target target;
  int threads = 0;
  bool overwrite = false, dry_run = false, print_json = false;

  bool targeted() const { return target.bytes > 0 || target.bits_per_weight > 0; }
};

std::string type_names() {
  std::string names;
  for (const mix& m : mixes()) names += (names.empty() ? "" : "|") + std::string(m.name);
  return names;
}

void add_options(CLI::App& app, options& o) {
  app.set_help_flag("--help", "Print this and exit");
  app.set_version_flag("--version", "nibble " NIBBLE_VERSION, "Print the version and exit");
  app.add_option("--model", o.model,
                 "Directory of the model: config.json, safetensors, tokenizer; dense, or packed by this project's "
                 "programs; the small model that comes with the program unless given")
      ->type_name("DIR");
  app.add_option("--output", o.output, "The file to write, NAME.gguf; it appears only when whole; required")
      ->type_name("FILE");
  app.add_option("--type", o.type,
                 "File type of llama.cpp: " + type_names() + "; those with S, M or L give some tensors more bits")
      ->capture_default_str()
      ->type_name("TYPE");
  app.add_option("--target-bpw", o.target.bits_per_weight,
                 "In the place of --type: a type for each tensor, such that the model is as good as it can be with at "
                 "most so many bits per weight of all tensors together, by errors measured on this model")
      ->check(between(1, 32).description(""))
      ->type_name("BITS");
  app.add_option("--target-size", o.target_size, "The same by the size of the file at most, such as 4GB or 3800MiB")
      ->type_name("SIZE");
  app.add_option("--search", o.search,
                 "How blocks are found: ggml, in the bytes of llama.cpp's own encoders; or exhaustive, with less error "
                 "in as many bits, which takes 6 to 50 times as long")
      ->check(CLI::IsMember({"ggml", "exhaustive"}).description(""))
      ->capture_default_str()
      ->type_name("ggml|exhaustive");
  app.add_option("--imatrix", o.importance,
                 "An importance matrix in GGUF, as llama.cpp's llama-imatrix writes it: columns that activations are "
                 "large in count more")
      ->type_name("FILE");
  app.add_option("--name", o.name, "What the file calls the model; the directory's name unless given")
      ->type_name("TEXT");
  app.add_flag("--overwrite", o.overwrite, "Replace an output that exists");
  app.add_flag("--dry-run", o.dry_run, "Check everything and tell what each tensor would become; write nothing");
  app.add_option("--threads", o.threads, "Threads to use; as many as the machine has unless given")
      ->check(whole(1, 4096))
      ->type_name("N");
  app.add_option("--json", o.json, "Print tensors and figures as JSON, or write them to FILE")
      ->expected(0, 1)
      ->type_name("[FILE]");
}

/// What chat template a Modelfile is for; empty where there is none that is known, which `tell` is told.
std::string dialect_of(const fs::path& model, std::vector<std::string>& notes) {
  try {
    const auto chat = open_chat_template(model);
    return chat ? chat->name() : "";
  } catch (const error& unknown) {
    notes.push_back(std::string("the Modelfile takes prompts as they are: ") + unknown.what());
    return "";
  }
}

fs::path modelfile_of(const fs::path& output) {
  return fs::path(output).replace_extension(".Modelfile");
}

/// @throws error when the output cannot be made, or is there and not to be replaced.
void check_output_file(const options& o) {
  std::error_code failed;
  const fs::path output = o.output, parent = fs::absolute(output).parent_path();
  if (output.extension() != ".gguf") throw usage_error("--output must end in .gguf, by which loaders know the format");
  if (!fs::is_directory(o.model, failed)) throw error("there is no model directory " + o.model);
  if (!fs::is_directory(parent, failed))
    throw error("the output " + o.output + " cannot be made: there is no directory " + parent.string());
  for (const fs::path& file : {output, modelfile_of(output)}) {
    if (fs::is_directory(file, failed)) throw error("the output " + file.string() + " is a directory; name a file");
    if (!o.overwrite && fs::exists(fs::symlink_status(file, failed)))
      throw error("the output " + file.string() + " exists already; --overwrite replaces it");
  }
}

/// Tokens of the calibration text that sensitivities are measured on.
constexpr nibble::index_t sample_tokens = 256;

batch sample_of(const options& o, const config& settings) {
  const auto from =
      source_directory + std::string("/examples/awq_mistral/text/calibration-state-of-the-union-2000-2012.txt");
  const auto tokens = open_tokenizer(o.model);
  calibration_options wanted;
  wanted.samples = 1, wanted.max_length = nibble::min(sample_tokens, settings.context);
  batch sample;
  for (const auto& ids : read_calibration(from, *tokens, nullptr, wanted).sequences)
    sample.append(ids.data(), static_cast<nibble::index_t>(ids.size()));
  return sample;
}

/// The best types within --target-bpw or --target-size, put into the plan.
target_choice choose(const options& o, gguf_plan& plan, const checkpoint& files, const config& settings) {
  const auto start = std::chrono::steady_clock::now();
  target_choice out;
  const batch sample = sample_of(o, settings);
  std::map<std::string, double> sensitivity;
  {
    progress bar("measuring sensitivity", settings.layers);
    sensitivity = measure_sensitivity(files, settings, sample, [&](nibble::index_t done) { bar.at(done); });
  }
  {
    progress bar("measuring errors", settings.layers);
    out.table = measure_types(plan, files, settings, sensitivity, [&](nibble::index_t done) { bar.at(done); });
  }
  out.chosen = apply_target(plan, out.table, o.target);
  out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return out;
}

int run(const options& o) {
  const auto start = std::chrono::steady_clock::now();
  if (o.output.empty()) throw usage_error("--output is required");
  // Blocks of 32 fit wherever any fit, so that nothing is said of tensors whose types are yet to be chosen.
  const mix* type = find_mix(o.targeted() ? "Q8_0" : o.type);
  if (!type) throw usage_error("--type: " + o.type + " is not one of " + type_names());
  check_output_file(o);
  if (o.threads > 0) nibble::host::set_threads(o.threads);
  const config settings = read_config(o.model);
  const checkpoint files(o.model);
  std::optional<importance_matrix> importance;
  if (!o.importance.empty()) importance = read_importance(o.importance);
  const std::string name = o.name.empty() ? fs::canonical(o.model).filename().string() : o.name;
  gguf_plan plan = plan_gguf(files, settings, *type, importance ? &*importance : nullptr, name);
  if (o.search == "exhaustive") plan.search = block_search_kind::exhaustive;
  const std::string dialect = dialect_of(o.model, plan.notes);
  for (const std::string& note : plan.notes) std::fprintf(stderr, "gguf_mistral: note: %s\n", printable(note).c_str());
  const pending_file json(o.json);
  std::optional<target_choice> chosen;
  mix mixed = *type;
  if (o.targeted()) {
    chosen = choose(o, plan, files, settings);
    mixed = nearest_mix(plan);
    mixed.name = "mixed";
  }
  std::uint64_t bytes = 0;
  if (!o.dry_run) {
    check_room(o.output, plan);
    progress bar("writing", settings.layers);
    bytes = write_gguf(o.output, plan, files, settings, [&](nibble::index_t done) { bar.at(done); });
    write_file(modelfile_of(o.output),
               modelfile_text(o.output, dialect, read_tokenizer_settings(o.model).eos.value_or("")));
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (!o.print_json || !o.json.empty()) {
    if (chosen && o.dry_run) std::fputs(choice_table(*chosen).c_str(), stdout);
    std::fputs(plan_table(plan, mixed, o.dry_run && !chosen).c_str(), stdout);
    if (chosen) std::fputs(choice_line(*chosen).c_str(), stdout);
  }
  if (!o.print_json) return 0;
  nlohmann::ordered_json out = {{"model", o.model}, {"output", o.output}};
  add_plan(out, plan, mixed);
  if (chosen) add_choice(out, *chosen, o.target);
  out["bytes"] = bytes;
  out["seconds"] = seconds.count();
  const std::string text = out.dump(2) + "\n";
  if (o.json.empty())
    std::fputs(text.c_str(), stdout);
  else
    json.finish(text);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Writes a Mistral or Llama checkpoint as one GGUF file for llama.cpp and Ollama.", "gguf_mistral");
  app.footer("Exit status: 0 done, 1 bad input, 2 wrong option.");
  options o;
  add_options(app, o);
  return run_program(app, argc, argv, [&] {
    o.print_json = app.count("--json") > 0;
    const size_t targets = app.count("--target-bpw") + app.count("--target-size");
    if (targets + app.count("--type") > 1)
      throw usage_error("--type, --target-bpw and --target-size exclude each other; give one");
    if (app.count("--target-size") > 0) o.target.bytes = parse_size(o.target_size, "--target-size");
    return run(o);
  });
}
