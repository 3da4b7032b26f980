// SPDX-License-Identifier: Apache-2.0
/// @file
/// gguf_mistral: a Mistral (or Llama) checkpoint in, dense or packed by this project's programs, one GGUF file out that
/// llama.cpp and Ollama load.
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "gguf/calibrate.hpp"
#include "gguf/carry.hpp"
#include "gguf/convert.hpp"
#include "gguf/measure.hpp"
#include "gguf/modelfile.hpp"
#include "gguf/report.hpp"
#include "gguf/scales.hpp"
#include "gguf/sensitivity.hpp"
#include "mistral/calibration_check.hpp"
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
  std::string output, type = "Q4_K_M", search = "ggml", importance, importance_output, name, json;
  std::string calibration, target_size;
  calibration_options samples;
  size_target target;
  int threads = 0;
  bool awq = false, overwrite = false, dry_run = false, print_json = false;

  bool own_importance() const { return importance == "auto"; }
  bool calibrated() const { return own_importance() || awq; }
  bool targeted() const { return target.bytes > 0 || target.bits_per_weight > 0; }
};

constexpr const char* calibration_text = "/examples/awq_mistral/text/calibration-state-of-the-union-2000-2012.txt";

std::string type_names() {
  std::string names;
  for (const mix& m : mixes()) names += m.name + std::string("|");
  return names + exact_mix().name;
}

void add_calibration(CLI::App& app, options& o) {
  app.add_option("--calibration", o.calibration,
                 "Text to calibrate on: .txt, or .jsonl with text, messages, or instruction/input; a text that comes "
                 "with the program unless given")
      ->type_name("FILE");
  app.add_option("--num-calibration-samples", o.samples.samples, "Sequences of it to use")
      ->check(whole(1, 1000000))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--max-seq-length", o.samples.max_length, "Tokens of a sequence at most")
      ->check(whole(1, 10000000))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--seed", o.samples.seed, "Chooses which lines of a longer .jsonl are drawn, and in what order")
      ->check(whole(0, std::numeric_limits<std::uint64_t>::max()))
      ->capture_default_str()
      ->type_name("N");
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
  app.add_option(
         "--type", o.type,
         "File type of llama.cpp: " + type_names() +
             "; those with S, M or L give some tensors more bits; EXACT rounds nothing: codes of packed linears "
             "stay what they are, floats as they are stored")
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
                 "Columns that activations are large in count more: auto, by a calibration of the model itself; or an "
                 "importance matrix in GGUF, as llama.cpp's llama-imatrix or --imatrix-output wrote it")
      ->type_name("auto|FILE");
  app.add_option("--imatrix-output", o.importance_output,
                 "Write what --imatrix auto found to FILE.gguf too, for later runs with --imatrix FILE.gguf and for "
                 "llama-quantize; it is there as soon as calibration is done. With --dry-run nothing is calibrated")
      ->type_name("FILE");
  app.add_flag("--awq", o.awq,
               "Scale the columns of linears before they are rounded, by what calibration finds to lose least of their "
               "outputs in the types they get, and what comes before by the inverse: the model computes the same, in "
               "as many bits. Of dense models only");
  add_calibration(app, o);
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

std::string modelfile_for(const options& o, std::vector<std::string>& notes) {
  std::unique_ptr<chat_template> chat;
  try {
    chat = open_chat_template(o.model);
  } catch (const error& unknown) {
    notes.push_back(std::string("the Modelfile takes prompts as they are: ") + unknown.what());
  }
  return modelfile_text(o.output, chat.get(), read_tokenizer_settings(o.model).bos.value_or(""), notes);
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

/// @throws error when the matrix cannot be written, or would lie on something; usage_error when there will be none.
void check_importance_output(const options& o) {
  if (o.importance_output.empty()) return;
  if (!o.own_importance())
    throw usage_error("--imatrix-output is for what --imatrix auto finds; give that too, or leave it out");
  std::error_code failed;
  const fs::path file = o.importance_output, parent = fs::absolute(file).parent_path();
  if (file.extension() != ".gguf")
    throw usage_error("--imatrix-output must end in .gguf, by which llama.cpp knows the form");
  if (fs::weakly_canonical(fs::absolute(file)) == fs::weakly_canonical(fs::absolute(o.output)))
    throw usage_error("--imatrix-output and --output name the same file; the matrix needs another");
  if (!fs::is_directory(parent, failed))
    throw error("the matrix " + file.string() + " cannot be made: there is no directory " + parent.string());
  if (fs::is_directory(file, failed)) throw error("the matrix " + file.string() + " is a directory; name a file");
  if (!o.overwrite && fs::exists(fs::symlink_status(file, failed)))
    throw error("the matrix " + file.string() + " exists already; --overwrite replaces it");
}

/// The samples to calibrate on, and what is odd about them; nothing where nothing is calibrated.
std::optional<calibration_set> open_samples(const options& o, std::vector<std::string>& notes) {
  if (!o.calibrated()) return std::nullopt;
  calibration_set samples = open_calibration(o.calibration, o.model, o.samples);
  const auto found = check_calibration(samples, *open_tokenizer(o.model), nullptr, false);
  notes.insert(notes.end(), found.warnings.begin(), found.warnings.end());
  return samples;
}

/// What --imatrix asks for: an empty one, a file's, or one that calibration will fill.
std::optional<importance_matrix> open_importance(const options& o, const checkpoint& files, const config& settings,
                                                 const std::optional<calibration_set>& samples) {
  if (o.importance.empty()) return std::nullopt;
  return o.own_importance() ? blank_importance(files, settings, o.calibration, *samples)
                            : read_importance(o.importance);
}

/// Runs the text through the model: fills the importance that the plan's tensors refer to where `own` is it, and where
/// scales are given finds AWQ's, which the plan's tensors refer to from then on.
void calibrate_plan(const options& o, const checkpoint& files, const config& settings, const calibration_set& samples,
                    importance_matrix* own, folded_gguf_scales* scales, gguf_plan& plan) {
  importance_sums sums = {fs::path(o.calibration).filename().string(),
                          static_cast<nibble::index_t>(samples.sequences.size()),
                          samples.longest(),
                          samples.tokens(),
                          {}};
  const auto fill = [&](importance_sums part) {
    if (!own) return;
    for (auto& [name, weights] : importance_of(part).weights) own->weights.at(name) = std::move(weights);
    sums.of.merge(part.of);
  };
  progress bar("calibrating", settings.layers);
  calibration_listener told;
  told.correlations = scales != nullptr;
  told.layer = [&](nibble::index_t layer, const layer_weights& w, const layer_statistics& seen) {
    importance_sums part = {"", 0, 0, sums.tokens, {}};
    add_layer(part, layer, seen);
    fill(std::move(part));
    if (scales) scales->search(layer, settings, plan, w, seen);
    bar.at(layer + 1);
  };
  told.head = [&](const std::vector<double>& squares) {
    fill({"", 0, 0, sums.tokens, {{head_name(settings), squares}}});
  };
  calibrate(files, settings, samples, told);
  if (own && !o.importance_output.empty() && !o.dry_run) write_importance(o.importance_output, sums);
  if (scales) scales->apply(plan);
}

/// @throws error for a model that --awq cannot scale.
void check_scalable(const options& o, const config& settings, const gguf_plan& plan) {
  if (!o.awq) return;
  if (settings.json.contains("quantization_config"))
    throw error((fs::path(o.model) / "config.json").string() +
                " has a quantization_config: --awq scales weights before they are rounded, and these are already; give "
                "the original, or leave --awq out");
  if (!any_blocks(plan))
    throw usage_error("--awq lessens what rounding to blocks loses, and as " + o.type +
                      " no linear of this model gets blocks; leave it out");
}

/// Tokens of the calibration text that sensitivities are measured on.
constexpr nibble::index_t sample_tokens = 256;

batch sample_of(const options& o, const config& settings) {
  calibration_options wanted = o.samples;
  wanted.samples = 1, wanted.max_length = nibble::min(sample_tokens, settings.context);
  batch sample;
  for (const auto& ids : open_calibration(o.calibration, o.model, wanted).sequences)
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
  const std::string word = o.targeted() ? "Q8_0" : o.type;
  const mix* type = word == exact_mix().name ? &exact_mix() : find_mix(word);
  if (!type) throw usage_error("--type: " + o.type + " is not one of " + type_names());
  check_output_file(o);
  check_importance_output(o);
  if (o.threads > 0) nibble::host::set_threads(o.threads);
  const config settings = read_config(o.model);
  const checkpoint files(o.model);
  std::vector<std::string> notes;
  const std::optional<calibration_set> samples = open_samples(o, notes);
  std::optional<importance_matrix> importance = open_importance(o, files, settings, samples);
  const std::string name = o.name.empty() ? fs::canonical(o.model).filename().string() : o.name;
  gguf_plan plan = plan_gguf(files, settings, *type, importance ? &*importance : nullptr, name);
  plan.notes.insert(plan.notes.begin(), notes.begin(), notes.end());
  if (o.search == "exhaustive") plan.search = block_search_kind::exhaustive;
  check_scalable(o, settings, plan);
  folded_gguf_scales scales;
  const std::string modelfile = modelfile_for(o, plan.notes);
  for (const std::string& note : plan.notes) std::fprintf(stderr, "gguf_mistral: note: %s\n", printable(note).c_str());
  const pending_file json(o.json);
  std::optional<target_choice> chosen;
  mix mixed = *type;
  importance_matrix* own = o.own_importance() ? &*importance : nullptr;
  if (o.targeted()) {
    if (own) calibrate_plan(o, files, settings, *samples, own, nullptr, plan);
    own = nullptr;
    chosen = choose(o, plan, files, settings);
    mixed = nearest_mix(plan);
    mixed.name = "mixed";
  }
  std::uint64_t bytes = 0;
  if (!o.dry_run) {
    check_room(o.output, plan);
    if (own || o.awq) calibrate_plan(o, files, settings, *samples, own, o.awq ? &scales : nullptr, plan);
    progress bar("writing", settings.layers);
    bytes = write_gguf(o.output, plan, files, settings, [&](nibble::index_t done) { bar.at(done); });
    write_file(modelfile_of(o.output), modelfile);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (!o.print_json || !o.json.empty()) {
    if (chosen && o.dry_run) std::fputs(choice_table(*chosen).c_str(), stdout);
    std::fputs(plan_table(plan, mixed, o.dry_run && !chosen).c_str(), stdout);
    if (chosen) std::fputs(choice_line(*chosen).c_str(), stdout);
    if (!scales.found().empty()) std::fputs(scales_line(scales.found()).c_str(), stdout);
  }
  if (!o.print_json) return 0;
  nlohmann::ordered_json out = {{"model", o.model}, {"output", o.output}};
  add_plan(out, plan, mixed);
  if (chosen) add_choice(out, *chosen, o.target);
  if (o.awq) out["awq"] = to_json(scales.found());
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
    if (app.count("--calibration") > 0 && !o.calibrated() && !o.targeted())
      throw usage_error(
          "--calibration is for --imatrix auto, --awq and targets; give one of them too, or leave it out");
    for (const char* option : {"--num-calibration-samples", "--max-seq-length", "--seed"})
      if (app.count(option) > 0 && !o.calibrated())
        throw usage_error(std::string(option) +
                          " is for --imatrix auto and --awq; give one of them too, or leave it out");
    if (o.calibration.empty()) o.calibration = source_directory + std::string(calibration_text);
    return run(o);
  });
}
