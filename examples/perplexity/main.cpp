// SPDX-License-Identifier: Apache-2.0
/// @file
/// perplexity: how well a model predicts a text, from the model's files alone; with another model to compare with, how
/// far the two are apart on the same windows.
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "mistral/backend.hpp"
#include "mistral/generation.hpp"
#include "mistral/json.hpp"
#include "mistral/program.hpp"
#include "mistral/questions.hpp"
#include "mistral/results.hpp"
#include "mistral/validators.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/version.hpp"

using namespace nibble::mistral;

namespace {

struct options {
  std::string model, text, against, json;
  window_options windows;
  backend_options backend;
  int threads = 0;
  bool print_json = false;
};

/// A model that stays open.
struct opened_model {
  explicit opened_model(const std::string& directory) : settings(read_config(directory)), files(directory) {}
  config settings;
  checkpoint files;
};

void add_options(CLI::App& app, options& o) {
  constexpr std::uint64_t longest = 1'000'000'000;
  app.set_help_flag("--help", "Print this and exit");
  app.set_version_flag("--version", "nibble " NIBBLE_VERSION, "Print the version and exit");
  app.add_option("--model", o.model,
                 "The model's directory: dense, or packed as compressed-tensors, AutoAWQ or GPTQModel has it; or a "
                 "GGUF file; required")
      ->type_name("DIR");
  app.add_option("--text", o.text,
                 "The text to score, UTF-8; required. A .jsonl has an object a line, each a text by itself: text, or "
                 "prompt and answer (or a list of answers), which are also asked: up to 50 tokens, the most probable "
                 "each time, compared with the answers; any other file is one text")
      ->type_name("FILE");
  app.add_option("--window", o.windows.window, "Ids read at once; never more than the model's context")
      ->check(whole(1, longest))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--stride", o.windows.stride, "Ids from one window's start to the next; each id is scored once")
      ->check(whole(1, longest))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--max-windows", o.windows.max_windows, "Score the first N windows only; 0: all")
      ->check(whole(0, longest))
      ->type_name("N");
  app.add_option("--against", o.against, "A model to compare with, such as the one --model was quantized from")
      ->type_name("DIR");
  add_backend_options(app, o.backend);
  app.add_option("--threads", o.threads, "Threads to use; as many as the machine has unless given")
      ->check(whole(1, 4096))
      ->type_name("N");
  app.add_option("--json", o.json, "Print the figures as JSON, or write them to FILE")
      ->expected(0, 1)
      ->type_name("[FILE]");
}

/// What a model answers to the questions of the text.
answered_questions ask(const opened_model& m, const tokenizer& tok, const std::vector<question>& questions) {
  decoder model(m.files, m.settings);
  const auto all = static_cast<long long>(questions.size());
  const bool terminal = ::isatty(STDERR_FILENO) != 0;
  return answer_questions(model, tok, questions, stop_ids(m.files.directory(), m.settings), [=](nibble::index_t done) {
    if (terminal)
      std::fprintf(stderr, done < all ? "\ranswer %lld of %lld" : "\r\033[K", static_cast<long long>(done), all);
  });
}

/// A line that counts the layers done, on a terminal only.
evaluation_progress progress_line() {
  if (!::isatty(STDERR_FILENO)) return nullptr;
  return [](nibble::index_t done, nibble::index_t all) {
    std::fprintf(stderr, done < all ? "\rlayer %lld of %lld" : "\r\033[K", static_cast<long long>(done),
                 static_cast<long long>(all));
  };
}

/// What was measured of the model --against, if there is one, and of the model.
struct figures {
  measured_on text;
  std::vector<evaluation> models;
  std::vector<question> questions;
  std::vector<answered_questions> answered;  ///< by `models`; empty without questions

  const evaluation& own() const { return models.back(); }
  const evaluation* first() const { return models.size() > 1 ? &models.front() : nullptr; }
};

nlohmann::ordered_json as_json(const options& o, const figures& f, double seconds) {
  const evaluation& own = f.own();
  nlohmann::ordered_json out = {{"model", o.model}, {"text", o.text}};
  f.text.add_to(out);
  out["perplexity"] = own.perplexity;
  out["standard_error"] = own.standard_error;
  if (!f.answered.empty()) add_answers(out, f.answered.back().figures);
  if (const evaluation* first = f.first()) {
    out["against"] = {
        {"model", o.against}, {"perplexity", first->perplexity}, {"standard_error", first->standard_error}};
    if (!f.answered.empty()) add_answers(out["against"], f.answered.front().figures);
    out["increase"] = own.increase;
    out["increase_standard_error"] = own.increase_standard_error;
    add_shift(out, own);
  }
  if (!f.answered.empty()) out["answers"] = answers_json(f.questions, f.answered);
  out["seconds"] = seconds;
  return out;
}

void print_shift(const evaluation& own) {
  std::printf("KL divergence  %8.5f nats, 99 %% of positions at most %.5f\n", own.shift.divergence,
              own.shift.divergence_99);
  std::printf("same top token %8.2f %%\n", 100.0 * own.shift.agreement);
  std::printf("\nids read             KL      99 %%   same top\n");
  for (const position_shift& part : own.by_position)
    std::printf("%5lld … %-5lld %10.5f %9.5f %8.2f %%\n", static_cast<long long>(part.first + 1),
                static_cast<long long>(part.last), part.divergence, part.divergence_99, 100.0 * part.agreement);
}

void print(const options& o, const figures& f) {
  const measured_on& text = f.text;
  const evaluation& own = f.own();
  const evaluation* first = f.first();
  const auto error_of = [](double value) {
    char text[32] = "";
    if (!std::isnan(value)) std::snprintf(text, sizeof(text), " ± %.3f", value);
    return std::string(text);
  };
  const std::string documents = text.documents == 1 ? "" : " of " + std::to_string(text.documents) + " documents";
  std::printf("%s\n%lld ids%s scored in %lld windows of %lld, stride %lld\n\n", o.text.c_str(),
              static_cast<long long>(own.tokens), documents.c_str(), static_cast<long long>(own.windows),
              static_cast<long long>(text.window), static_cast<long long>(text.stride));
  if (first)
    std::printf("perplexity     %8.3f%s  %s\n", first->perplexity, error_of(first->standard_error).c_str(),
                o.against.c_str());
  std::printf("perplexity     %8.3f%s  %s\n", own.perplexity, error_of(own.standard_error).c_str(), o.model.c_str());
  if (first)
    std::printf("increase       %+8.3f%s  (%+.2f %%)\n", own.increase, error_of(own.increase_standard_error).c_str(),
                100.0 * own.increase / first->perplexity);
  if (first) print_shift(own);
  if (f.answered.empty()) return;
  std::vector<std::pair<std::string, const answer_figures*>> rows;
  if (first) rows.emplace_back(o.against, &f.answered.front().figures);
  rows.emplace_back(o.model, &f.answered.back().figures);
  std::printf("\n%s", answers_table(rows).c_str());
}

figures measure(const options& o) {
  const opened_model own(o.model);
  const auto tok = open_tokenizer(o.model);
  const evaluation_text text = read_evaluation_text(o.text, *tok);
  check_room(text, own.settings.context);
  const std::vector<window> windows = plan_windows(text, own.settings.context, o.windows);
  std::optional<opened_model> first;
  std::vector<evaluated_model> models;
  if (!o.against.empty()) {
    first.emplace(o.against);
    if (read_evaluation_text(o.text, *open_tokenizer(o.against)).ids != text.ids)
      throw error("the tokenizers of " + o.model + " and " + o.against + " give " + o.text +
                  " different ids, so the models cannot be compared on it");
    models.push_back({first->files, first->settings, nullptr});
  }
  models.push_back({own.files, own.settings, nullptr});
  figures f;
  f.text = {text, windows, o.windows};
  const auto tell = [](const std::string& note) { std::fprintf(stderr, "perplexity: note: %s\n", note.c_str()); };
  f.models = evaluate_on(choose_gpu(o.backend, tell), o.backend, models, text.ids, windows, progress_line(),
                         nibble::index_t(1) << 30, tell);
  f.questions = text.questions;
  if (f.questions.empty()) return f;
  if (first) f.answered.push_back(ask(*first, *tok, f.questions));
  f.answered.push_back(ask(own, *tok, f.questions));
  return f;
}

int run(const options& o) {
  const auto start = std::chrono::steady_clock::now();
  if (o.model.empty() || o.text.empty()) throw usage_error("--model and --text are required");
  if (o.threads > 0) nibble::host::set_threads(o.threads);
  check_not_read("--json", o.json, {o.text, o.model, o.against});
  const pending_file file(o.json);
  const figures f = measure(o);
  if (!o.print_json || !o.json.empty()) print(o, f);
  if (!o.print_json) return 0;
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  const std::string json = json_text(as_json(o, f, seconds.count()));
  if (o.json.empty())
    std::fputs(json.c_str(), stdout);
  else
    file.finish(json);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Perplexity of a text under a Mistral or Llama model.", "perplexity");
  options o;
  add_options(app, o);
  return run_program(app, argc, argv, [&] {
    o.print_json = app.count("--json") > 0;
    return run(o);
  });
}
