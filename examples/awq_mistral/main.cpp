// SPDX-License-Identifier: Apache-2.0
/// @file
/// awq_mistral: a Mistral (or Llama) checkpoint in, a quantized one out that vLLM, transformers and AutoAWQ load.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>

#include "mistral/backend.hpp"
#include "mistral/error.hpp"
#include "mistral/file.hpp"
#include "mistral/interruption.hpp"
#include "mistral/places.hpp"
#include "mistral/program.hpp"
#include "mistral/report_page.hpp"
#include "mistral/validators.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/version.hpp"
#include "pass/job.hpp"
#include "pass/pass.hpp"

using namespace nibble::mistral;

namespace {

constexpr int regressed = 3;

std::string embedded(const char* name) {
  return std::string(source_directory) + "/examples/awq_mistral/" + name;
}

template <class T>
CLI::Option* add_choice(CLI::App& app, const std::string& name, T& value, std::map<std::string, T> choices,
                        const std::string& shown, const std::string& help) {
  const auto check = [choices](std::string& text) {
    if (choices.count(text) > 0) return std::string();
    std::string known;
    for (const auto& [word, meaning] : choices) known += (known.empty() ? "" : ", ") + word;
    return text + " is not one of " + known;
  };
  return app
      .add_option_function<std::string>(
          name, [&value, choices](const std::string& text) { value = choices.at(text); }, help)
      ->type_name(shown)
      ->check(CLI::Validator(check, ""));
}

struct words {
  std::string shard = "5GB";
};

void add_model_options(CLI::App& app, pass_options& o, words& w) {
  const std::string group = "Model and output";
  app.add_option("--model", o.model,
                 "Directory of the model: config.json, safetensors, tokenizer; the small model that "
                 "comes with the program unless given")
      ->type_name("DIR")
      ->group(group);
  app.add_option("--output", o.output, "Directory to write; it appears only when whole; required")
      ->type_name("DIR")
      ->group(group);
  app.add_flag("--overwrite", o.overwrite, "Replace an output that exists")->group(group);
  app.add_flag("--restart", o.restart,
               "Begin anew where an interrupted run left layers in OUTPUT.partial; the same command goes on with them "
               "otherwise")
      ->group(group);
  app.add_flag("--dry-run", o.dry_run,
               "Check everything, tell what would be done to each linear, and about what it takes: time, memory, disk")
      ->group(group);
  add_choice<packed_format>(app, "--format", o.format,
                            {{"compressed-tensors", packed_format::compressed_tensors},
                             {"awq-gemm", packed_format::awq_gemm},
                             {"awq-gemv", packed_format::awq_gemv}},
                            "compressed-tensors|awq-gemm|awq-gemv",
                            "Layout of the packed weights; the first is vLLM's own [compressed-tensors]")
      ->group(group);
  app.add_option("--max-shard-size", w.shard, "Size of a safetensors file at most, such as 5GB or 500MB")
      ->capture_default_str()
      ->type_name("SIZE")
      ->group(group);
}

void add_quantization_options(CLI::App& app, pass_options& o) {
  const std::string group = "Quantization";
  app.add_option("--recipe", o.recipe,
                 "llm-compressor's recipe.yaml: which linears to quantize and how, each group its own way, instead of "
                 "--scheme, --group-size, --ignore, --method, --duo-scaling and --n-grid; "
                 "examples/awq_mistral/recipes holds two")
      ->type_name("FILE")
      ->group(group);
  app.add_option("--scheme", o.scheme, "W4A16_ASYM, W4A16, W8A16, W8A16_ASYM, W3A16_ASYM, W3A16 or W2A16_ASYM")
      ->capture_default_str()
      ->type_name("SCHEME")
      ->group(group);
  app.add_option("--group-size", o.group_size, "Inputs that share a scale: 128, 64, 32, or -1 for all of them")
      ->check(whole(-1, std::numeric_limits<std::int32_t>::max()))
      ->capture_default_str()
      ->type_name("N")
      ->group(group);
  app.add_option("--ignore", o.ignore, "Linears to leave as they are: names, or re:PATTERN; comma-separated")
      ->delimiter(',')
      ->type_name("NAME,…")
      ->capture_default_str()
      ->group(group);
  add_choice<method>(app, "--method", o.how_found, {{"awq", method::awq}, {"rtn", method::rtn}}, "awq|rtn",
                     "AWQ, or round to nearest with min-max ranges, which needs no calibration [awq]")
      ->group(group);
  add_choice<search_loss>(app, "--loss", o.loss, {{"block", search_loss::block}, {"gram", search_loss::gram}},
                          "block|gram",
                          "What scales are judged by: the output of the attention or MLP block on 4096 tokens, or each "
                          "linear's own output on all of them, through the Gram matrix [gram]")
      ->group(group);
  add_choice<nibble::duo_scaling>(
      app, "--duo-scaling", o.duo,
      {{"true", nibble::duo_scaling::on}, {"false", nibble::duo_scaling::off}, {"both", nibble::duo_scaling::both}},
      "true|false|both", "Scales from activations and weights, from activations alone, or half of either [both]")
      ->group(group);
  app.add_option("--n-grid", o.grid,
                 "Scales tried for each group of linears that share an input, at least 4; 1: none but the identity")
      ->check(whole(1, 1000))
      ->capture_default_str()
      ->type_name("N")
      ->group(group);
  add_choice<clip_search>(
      app, "--clip", o.clip, {{"mse", clip_search::mse}, {"gram", clip_search::gram}, {"none", clip_search::none}},
      "mse|gram|none",
      "Ranges: each end searched for the least error of the group's output, through its part of the Gram matrix; "
      "for the least squared error of the weights, weighted by the activations; or min-max [gram]")
      ->group(group);
  app.add_option("--sweeps", o.sweeps, "Rounds in which each code is moved to where the linear's output error is least")
      ->check(whole(0, 1000))
      ->capture_default_str()
      ->type_name("N")
      ->group(group);
  app.add_option("--shrinkage", o.shrinkage,
                 "How far correlations between inputs are distrusted: 0 not at all, 1 ignores them")
      ->check(between(0.0, 1.0))
      ->capture_default_str()
      ->type_name("X")
      ->group(group);
  add_choice<propagation>(app, "--propagate", o.propagate,
                          {{"original", propagation::original}, {"quantized", propagation::quantized}},
                          "original|quantized",
                          "What later layers are calibrated on: activations of the original layers or of the quantized "
                          "ones [original]")
      ->group(group);
}

void add_data_options(CLI::App& app, pass_options& o) {
  const std::string group = "Calibration and evaluation";
  app.add_option(
         "--calibration", o.calibration,
         "Text to calibrate on: .txt, or .jsonl with text, messages, or instruction/input; a text that comes with "
         "the program unless given")
      ->type_name("FILE")
      ->group(group);
  app.add_option("--num-calibration-samples", o.samples, "Sequences of it to use")
      ->check(whole(1, 1000000))
      ->capture_default_str()
      ->type_name("N")
      ->group(group);
  app.add_option("--max-seq-length", o.max_length, "Tokens of a sequence at most")
      ->check(whole(1, 10000000))
      ->capture_default_str()
      ->type_name("N")
      ->group(group);
  app.add_option("--seed", o.seed, "Chooses which lines of a longer .jsonl are drawn, and in what order")
      ->check(whole(0, std::numeric_limits<std::uint64_t>::max()))
      ->capture_default_str()
      ->type_name("N")
      ->group(group);
  app.add_option(
         "--evaluate", o.evaluate,
         "What to measure before and after: a text, whose perplexity is taken, or a .jsonl with an object a line, "
         "each a text by itself: text, or prompt and answer (or a list of answers), which are also asked: up to 50 "
         "tokens, the most probable each time, compared with the answers")
      ->type_name("FILE")
      ->group(group);
  app.add_option("--baseline-results", o.baseline,
                 "What --json wrote of an earlier run on the same --evaluate text: shows its figures beside this run's")
      ->type_name("FILE.json")
      ->group(group);
  app.add_flag("--allow-overlap", o.allow_overlap,
               "Only warn when the text to evaluate stands in the calibration samples, which is refused unless given: "
               "over 1 % of its words in runs of 13 words or more, or a whole document of several")
      ->group(group);
  app.add_option(
         "--max-regression", o.max_regression,
         "Exit with 3 when, of what was written, perplexity is higher than the original's by more than this share "
         "of the original's, such as 0.02, or accuracy (the share of prompts whose answer contains an accepted one) "
         "lower by more than this share of the original's; or either is, likewise, against what "
         "--baseline-results has. The output stays")
      ->check(between(0.0, 1e9))
      ->type_name("X")
      ->group(group);
  app.add_option("--json", o.json, "Write every figure to FILE")->type_name("FILE")->group(group);
  app.add_option("--report", o.report,
                 "Write every figure and its plots to FILE, one page of HTML that needs no network")
      ->type_name("FILE")
      ->group(group);
}

void add_machine_options(CLI::App& app, pass_options& o) {
  const std::string group = "Machine";
  add_backend_options(app, o.backend, group);
  app.add_option("--threads", o.threads,
                 "Threads to use; as many as the machine has unless given. The bytes written do "
                 "not depend on it")
      ->check(whole(1, 4096))
      ->type_name("N")
      ->group(group);
}

/// @throws usage_error for an option that the recipe contradicts.
void check_recipe_alone(const CLI::App& app, const pass_options& o) {
  for (const char* option : decided_by_recipe)
    if (!o.recipe.empty() && app.get_option(option)->count() > 0)
      throw usage_error(std::string(option) + " contradicts --recipe " + o.recipe + ", which decides it; leave it out");
}

/// @throws usage_error for a file that would lie in the run's output, which gives way to a new one at the end.
void check_outside(const std::string& file, const std::string& output) {
  namespace fs = std::filesystem;
  if (file.empty()) return;
  const auto place = fs::weakly_canonical(fs::absolute(file)), whole = fs::weakly_canonical(fs::absolute(output));
  if (std::mismatch(whole.begin(), whole.end(), place.begin(), place.end()).first == whole.end())
    throw usage_error(file + " lies in " + output + ", which is replaced as a whole; write it elsewhere");
}

int run(const CLI::App& app, pass_options& o, const words& w) {
  if (o.output.empty()) throw usage_error("--output is required: the directory to write");
  o.max_shard_bytes = parse_size(w.shard);
  check_recipe_alone(app, o);
  for (const std::string& note : check(o)) tell(note);
  if (o.model.empty()) o.model = embedded("model");
  if (o.calibration.empty()) o.calibration = embedded("text/calibration-state-of-the-union-2000-2012.txt");
  if (o.threads > 0) nibble::host::set_threads(o.threads);
  if (o.dry_run) {
    std::fputs(plan_of(o).c_str(), stdout);
    return 0;
  }
  for (const std::string& file : {o.json, o.report}) check_outside(file, o.output);
  const pending_file json(o.json), report(o.report);
  const pass_result r = run_pass(o);
  std::printf("%s\nwritten to %s\n", table(o, r).c_str(), o.output.c_str());
  const auto figures = to_json(o, r);
  if (!o.json.empty()) json.finish(readable(figures) + "\n");
  if (!o.report.empty()) report.finish(report_html(figures));
  const std::vector<std::string> worse = regressions(o, r);
  for (const std::string& each : worse) std::fprintf(stderr, "awq_mistral: %s\n", each.c_str());
  return worse.empty() ? 0 : regressed;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Quantizes the linear layers of a Mistral or Llama checkpoint with AWQ.", "awq_mistral");
  pass_options o;
  words w;
  app.set_help_flag("--help", "Print this and exit");
  app.set_version_flag("--version", "nibble " NIBBLE_VERSION, "Print the version and exit");
  add_model_options(app, o, w);
  add_quantization_options(app, o);
  add_data_options(app, o);
  add_machine_options(app, o);
  app.footer("Exit status: 0 done, 1 bad input, 2 wrong option, 3 more got worse than --max-regression allows.");
  watch_interruptions("awq_mistral");
  return run_program(app, argc, argv, [&] { return run(app, o, w); });
}
