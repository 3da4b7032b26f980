// SPDX-License-Identifier: Apache-2.0
#include "pass/program.hpp"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <map>

#include "mistral/backend.hpp"
#include "mistral/error.hpp"
#include "mistral/file.hpp"
#include "mistral/interruption.hpp"
#include "mistral/places.hpp"
#include "mistral/program.hpp"
#include "mistral/report_page.hpp"
#include "mistral/sizes.hpp"
#include "mistral/validators.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/version.hpp"
#include "pass/pass.hpp"

namespace nibble::mistral {
namespace {

constexpr int regressed = 3;
constexpr const char* of_quantization = "Quantization";  // a group of options

std::string embedded(const char* name) {
  return std::string(source_directory) + "/examples/awq_mistral/" + name;
}

/// "a", "a and b", "a, b and c"
std::string enumerated(const std::vector<std::string>& names) {
  std::string out;
  for (size_t i = 0; i < names.size(); ++i) out += (i == 0 ? "" : i + 1 < names.size() ? ", " : " and ") + names[i];
  return out;
}

/// @throws usage_error for a file that would lie in the run's output, which gives way to a new one at the end.
void check_outside(const std::string& file, const std::string& output) {
  namespace fs = std::filesystem;
  if (file.empty()) return;
  const auto place = fs::weakly_canonical(fs::absolute(file)), whole = fs::weakly_canonical(fs::absolute(output));
  if (std::mismatch(whole.begin(), whole.end(), place.begin(), place.end()).first == whole.end())
    throw usage_error(file + " lies in " + output + ", which is replaced as a whole; write it elsewhere");
}

}  // namespace

pass_program::pass_program(const char* name, const std::string& does, const pass_options& o) : app_(does, name), o_(o) {
  o_.program = name;
  app_.set_help_flag("--help", "Print this and exit");
  app_.set_version_flag("--version", "nibble " NIBBLE_VERSION, "Print the version and exit");
  add_model();
  add_packing();
  add_data();
  add_machine();
  app_.footer("Exit status: 0 done, 1 bad input, 2 wrong option, 3 more got worse than --max-regression allows.");
}

template <class T>
CLI::Option* pass_program::add_choice(const std::string& name, T& value, const std::vector<choice<T>>& choices,
                                      const std::string& help, const std::string& given) {
  std::map<std::string, T> known;
  std::string shown;
  for (const auto& [word, meaning] : choices) {
    known.emplace(word, meaning);
    shown += (shown.empty() ? "" : "|") + std::string(word);
  }
  const auto check = [known](std::string& text) {
    if (known.count(text) > 0) return std::string();
    std::string words;
    for (const auto& [word, meaning] : known) words += (words.empty() ? "" : ", ") + word;
    return text + " is not one of " + words;
  };
  return app_
      .add_option_function<std::string>(
          name, [&value, known](const std::string& text) { value = known.at(text); }, help)
      ->type_name(shown)
      ->default_str(given)
      ->check(CLI::Validator(check, ""));
}

template <class T, size_t N>
CLI::Option* pass_program::add_choice(const std::string& name, T& value, const choice<T> (&choices)[N],
                                      const std::string& help) {
  return add_choice(name, value, std::vector<choice<T>>(std::begin(choices), std::end(choices)), help,
                    word_of(choices, value));
}

void pass_program::decided_by_recipe(CLI::Option* option) {
  decided_by_recipe_.push_back(option);
}

void pass_program::add_model() {
  const std::string group = "Model and output";
  app_.add_option("--model", o_.model,
                  "Directory of the model: config.json, safetensors, tokenizer; the small model that "
                  "comes with the program unless given")
      ->type_name("DIR")
      ->group(group);
  app_.add_option("--output", o_.output, "Directory to write; it appears only when whole; required")
      ->type_name("DIR")
      ->group(group);
  app_.add_flag("--overwrite", o_.overwrite, "Replace an output that exists")->group(group);
  app_.add_flag("--restart", o_.restart,
                "Begin anew where an interrupted run left layers in OUTPUT.partial; the same command goes on with them "
                "otherwise")
      ->group(group);
  app_.add_flag("--dry-run", o_.dry_run,
                "Check everything, tell what would be done to each linear, and about what it takes: time, memory, disk")
      ->group(group);
  add_choice("--format", o_.format, format_choices,
             "Layout of the packed weights: vLLM's own, AutoAWQ's four, or GPTQModel's two")
      ->group(group);
  app_.add_option("--max-shard-size", shard_, "Size of a safetensors file at most, such as 5GB or 500MB")
      ->capture_default_str()
      ->type_name("SIZE")
      ->group(group);
}

void pass_program::add_packing() {
  recipe_ = app_.add_option("--recipe", o_.recipe)->type_name("FILE")->group(of_quantization);
  decided_by_recipe(
      app_.add_option(
              "--scheme", o_.scheme,
              "Bits of weights (and of what they multiply), zero points or none: W4A16_ASYM, W4A16, W8A16, W8A16_ASYM, "
              "W3A16_ASYM, W3A16 or W2A16_ASYM; W8A8 or FP8_DYNAMIC, a scale an output and a token; FP8_BLOCK, "
              "one for 128 x 128 weights and a token's 128 inputs; W8A8_STATIC or FP8, one for all inputs")
          ->capture_default_str()
          ->type_name("SCHEME")
          ->group(of_quantization));
  add_choice(
      "--kv-cache", o_.cache_rounded, cache_choices,
      "How engines are to keep keys and values: as they are, or in fp8 under a scale of each layer's keys and one "
      "of its values, the largest that calibration saw")
      ->group(of_quantization);
  decided_by_recipe(app_.add_option("--group-size", o_.group_size,
                                    "Inputs that share a scale: 128, 64, 32, or -1 for all of them; schemes in 8 bits "
                                    "whose inputs are rounded too have their own")
                        ->check(whole(-1, std::numeric_limits<std::int32_t>::max()))
                        ->capture_default_str()
                        ->type_name("N")
                        ->group(of_quantization));
  decided_by_recipe(
      app_.add_option("--ignore", o_.ignore, "Linears to leave as they are: names, or re:PATTERN; comma-separated")
          ->delimiter(',')
          ->type_name("NAME,…")
          ->capture_default_str()
          ->group(of_quantization));
}

void pass_program::add_data() {
  const std::string group = "Calibration and evaluation";
  app_.add_option(
          "--calibration", o_.calibration,
          "Text to calibrate on: .txt, or .jsonl with text, messages, or instruction/input; a text that comes with "
          "the program unless given")
      ->type_name("FILE")
      ->group(group);
  app_.add_option("--num-calibration-samples", o_.samples, "Sequences of it to use")
      ->check(whole(1, 1000000))
      ->capture_default_str()
      ->type_name("N")
      ->group(group);
  app_.add_option("--max-seq-length", o_.max_length, "Tokens of a sequence at most")
      ->check(whole(1, 10000000))
      ->capture_default_str()
      ->type_name("N")
      ->group(group);
  app_.add_option("--seed", o_.seed, "Chooses which lines of a longer .jsonl are drawn, and in what order")
      ->check(whole(0, std::numeric_limits<std::uint64_t>::max()))
      ->capture_default_str()
      ->type_name("N")
      ->group(group);
  app_.add_option(
          "--evaluate", o_.evaluate,
          "What to measure before and after: a text, whose perplexity is taken, or a .jsonl with an object a line, "
          "each a text by itself: text, or prompt and answer (or a list of answers), which are also asked: up to 50 "
          "tokens, the most probable each time, compared with the answers")
      ->type_name("FILE")
      ->group(group);
  app_.add_option(
          "--baseline-results", o_.baseline,
          "What --json wrote of an earlier run on the same --evaluate text: shows its figures beside this run's")
      ->type_name("FILE.json")
      ->group(group);
  app_.add_flag("--allow-overlap", o_.allow_overlap,
                "Only warn when the text to evaluate stands in the calibration samples, which is refused unless given: "
                "over 1 % of its words in runs of 13 words or more, or a whole document of several")
      ->group(group);
  app_.add_option(
          "--max-regression", o_.max_regression,
          "Exit with 3 when, of what was written, perplexity is higher than the original's by more than this share "
          "of the original's, such as 0.02, or accuracy (the share of prompts whose answer contains an accepted one) "
          "lower by more than this share of the original's; or either is, likewise, against what "
          "--baseline-results has. The output stays")
      ->check(between(0.0, 1e9))
      ->type_name("X")
      ->group(group);
  app_.add_option("--json", o_.json, "Write every figure to FILE")->type_name("FILE")->group(group);
  app_.add_option("--report", o_.report,
                  "Write every figure and its plots to FILE, one page of HTML that needs no network")
      ->type_name("FILE")
      ->group(group);
}

void pass_program::add_machine() {
  const std::string group = "Machine";
  add_backend_options(app_, o_.backend, group);
  app_.add_option("--threads", o_.threads,
                  "Threads to use; as many as the machine has unless given. The bytes written do "
                  "not depend on it")
      ->check(whole(1, 4096))
      ->type_name("N")
      ->group(group);
  add_choice(
      "--matmul-precision", o_.precision, precision_choices,
      "What a CPU multiplies in calibration's forward passes and statistics; sums are float32. auto: bfloat16 where "
      "that is faster and the checkpoint's own type. A GPU multiplies bfloat16; float32 keeps a run on the CPU")
      ->group(group);
}

void pass_program::offer_methods(const std::vector<method>& offered, const std::string& help) {
  std::vector<choice<method>> choices;
  for (const method& each : offered) choices.push_back({each.word, each});
  o_.offered = offered;
  o_.how_found = offered.front();
  decided_by_recipe(add_choice("--method", o_.how_found, choices, help, offered.front().word)->group(of_quantization));
}

void pass_program::add_scale_search() {
  add_choice("--loss", o_.loss, loss_choices,
             "What scales are judged by: the output of the attention or MLP block on 4096 tokens, or each "
             "linear's own output on all of them, through the Gram matrix")
      ->group(of_quantization);
  decided_by_recipe(add_choice("--duo-scaling", o_.duo, duo_choices,
                               "Scales from activations and weights, from activations alone, or half of either")
                        ->group(of_quantization));
  decided_by_recipe(
      app_.add_option(
              "--n-grid", o_.grid,
              "Scales tried for each group of linears that share an input, at least 4; 1: none but the identity")
          ->check(whole(1, 1000))
          ->capture_default_str()
          ->type_name("N")
          ->group(of_quantization));
}

void pass_program::add_clip() {
  add_choice(
      "--clip", o_.clip, clip_choices,
      "Ranges: each end searched for the least error of the group's output, through its part of the Gram matrix; "
      "for the least squared error of the weights, weighted by the activations; or min-max")
      ->group(of_quantization);
}

void pass_program::add_sweeps() {
  app_.add_option("--sweeps", o_.sweeps,
                  "Rounds in which each code is moved to where the linear's output error is least")
      ->check(whole(0, 1000))
      ->capture_default_str()
      ->type_name("N")
      ->group(of_quantization);
}

void pass_program::add_shrinkage() {
  app_.add_option("--shrinkage", o_.shrinkage,
                  "How far correlations between inputs are distrusted: 0 not at all, 1 ignores them")
      ->check(between(0.0, 1.0))
      ->capture_default_str()
      ->type_name("X")
      ->group(of_quantization);
}

void pass_program::add_propagation() {
  add_choice("--propagate", o_.propagate, propagation_choices,
             "What later layers are calibrated on: activations of the original layers or of the quantized ones")
      ->group(of_quantization);
}

void pass_program::add_solver() {
  decided_by_recipe(
      app_.add_option("--dampening-frac", o_.damping,
                      "What is added to the Hessian's diagonal, a share of its mean; more where that does not suffice")
          ->check(between(0.0, 1.0))
          ->capture_default_str()
          ->type_name("X")
          ->group(of_quantization));
  decided_by_recipe(
      add_choice("--actorder", o_.order, order_choices,
                 "Which inputs are solved first: as they lie; those with the largest activations; these within "
                 "their group, and groups by their largest; or those with the largest, which then make up groups, for "
                 "--format gptq and gptq-v2. Of the others nothing is seen in the files")
          ->group(of_quantization));
  const auto add_share = [&](const char* name, float& share, const char* help) {
    return app_.add_option(name, share, help)
        ->check(between(0.0, 1.0))
        ->capture_default_str()
        ->type_name("X")
        ->group(of_quantization);
  };
  drift_ = add_share("--drift", o_.drift,
                     "How much of the drift of a linear's inputs, which the quantized linears before it cause, its "
                     "weights make up for: 0 nothing, 1 all that they can; nothing with --propagate original");
  residual_drift_ = add_share(
      "--residual-drift", o_.residual_drift,
      "The same of the residual stream, which down makes up for, whose output is the last that a layer adds to it");
  app_.add_option("--drift-samples", o_.drift_samples,
                  "Calibration samples on which drift is seen; the original model is followed on them beside the "
                  "quantized one, which takes time. 0: as many as have 40 tokens for each channel of the widest input, "
                  "or all there are")
      ->check(whole(0, 1000000))
      ->capture_default_str()
      ->type_name("N")
      ->group(of_quantization);
}

void pass_program::add_smoothing() {
  app_.add_option(
          "--smoothing-strength", strength_,
          "How far the scale of a channel follows its activations, from 0 to 1; auto: for every input that which "
          "loses least; none: nothing is scaled. A recipe that says its own decides")
      ->capture_default_str()
      ->type_name("X")
      ->group(of_quantization);
  decided_by_recipe(add_choice("--smoothed-inputs", o_.smoothed_inputs, smoothing_choices,
                               "Inputs that are scaled: those that a norm makes, of q, k, v and of gate, up; down's "
                               "as well, through up; or also o's, through v, where v has as many heads")
                        ->group(of_quantization));
}

/// @throws usage_error for an option that the recipe contradicts.
void pass_program::check_recipe_alone() const {
  for (const CLI::Option* option : decided_by_recipe_)
    if (!o_.recipe.empty() && option->count() > 0)
      throw usage_error(option->get_name() + " contradicts --recipe " + o_.recipe + ", which decides it; leave it out");
}

int pass_program::run(int argc, char** argv) {
  std::vector<std::string> decided;
  for (const CLI::Option* option : decided_by_recipe_) decided.push_back(option->get_name());
  recipe_->description(
      "llm-compressor's recipe.yaml: which linears to quantize and how, each group its own way, instead of " +
      enumerated(decided) + "; examples/awq_mistral/recipes holds two");
  watch_interruptions(o_.program.c_str());
  return run_program(app_, argc, argv, [&] { return run(); });
}

int pass_program::run() {
  if (o_.output.empty()) throw usage_error("--output is required: the directory to write");
  o_.max_shard_bytes = parse_size(shard_, "--max-shard-size");
  const auto given = [](const CLI::Option* option, float share) {
    return option != nullptr && option->count() > 0 && share > 0;
  };
  o_.drift_given = given(drift_, o_.drift) || given(residual_drift_, o_.residual_drift);
  o_.strength = parse_strength(strength_);
  check_recipe_alone();
  for (const std::string& note : check(o_)) tell(o_, note);
  if (o_.model.empty()) o_.model = embedded("model");
  if (o_.calibration.empty()) o_.calibration = embedded("text/calibration-state-of-the-union-2000-2012.txt");
  if (o_.threads > 0) host::set_threads(o_.threads);
  if (o_.dry_run) {
    std::fputs(plan_of(o_).c_str(), stdout);
    return 0;
  }
  for (const std::string& file : {o_.json, o_.report}) check_outside(file, o_.output);
  check_not_read("--json", o_.json, {o_.calibration, o_.evaluate, o_.recipe});
  check_not_read("--report", o_.report, {o_.calibration, o_.evaluate, o_.recipe, o_.baseline});
  const pending_file json(o_.json), report(o_.report);
  const pass_result r = run_pass(o_);
  std::printf("%s\nwritten to %s\n", table(o_, r).c_str(), o_.output.c_str());
  const auto figures = to_json(o_, r);
  if (!o_.json.empty()) json.finish(readable(figures) + "\n");
  if (!o_.report.empty()) report.finish(report_html(figures));
  const std::vector<std::string> worse = regressions(o_, r);
  for (const std::string& each : worse) std::fprintf(stderr, "%s: %s\n", o_.program.c_str(), each.c_str());
  return worse.empty() ? 0 : regressed;
}

}  // namespace nibble::mistral
