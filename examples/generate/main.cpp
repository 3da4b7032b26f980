// SPDX-License-Identifier: Apache-2.0
/// @file
/// generate: a model's continuation of a prompt, or its answers to dialogues, decoded from the weights as they are
/// stored: dense, or packed by this project's writers.
#include <chrono>
#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "mistral/chat.hpp"
#include "mistral/generation.hpp"
#include "mistral/json.hpp"
#include "mistral/machine.hpp"
#include "mistral/places.hpp"
#include "mistral/program.hpp"
#include "mistral/text_file.hpp"
#include "mistral/text_stream.hpp"
#include "mistral/validators.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/version.hpp"

using namespace nibble::mistral;
using nibble::index_t;

namespace {

struct options {
  std::string model = source_directory + std::string("/examples/awq_mistral/model");
  std::string prompt, chat, json;
  generation_options how;
  int threads = 0;
  bool has_prompt = false, print_json = false, has_top_p = false;
};

void add_options(CLI::App& app, options& o) {
  app.set_help_flag("--help", "Print this and exit");
  app.set_version_flag("--version", "nibble " NIBBLE_VERSION, "Print the version and exit");
  app.add_option(
         "--model", o.model,
         "The model's directory: dense, or packed as compressed-tensors, AutoAWQ or GPTQModel has it; or a GGUF "
         "file; the small model that comes with the program unless given")
      ->type_name("DIR");
  app.add_option("--prompt", o.prompt, "Text to continue")->type_name("TEXT");
  app.add_option("--chat", o.chat,
                 "A .jsonl whose lines have \"messages\": dialogues to answer, through the model's chat template")
      ->type_name("FILE");
  app.add_option("--max-new-tokens", o.how.max_new_tokens,
                 "Tokens an answer has at most; one that ends itself is shorter")
      ->capture_default_str()
      ->check(whole(1, std::uint64_t(1) << 24))
      ->type_name("N");
  app.add_option("--temperature", o.how.temperature,
                 "0: always the most probable token; above: draw, the more freely the higher")
      ->check(between(0, 1e6))
      ->capture_default_str()
      ->type_name("T");
  app.add_option("--top-p", o.how.top_p,
                 "Draw among the most probable tokens that make up this share of the probability")
      ->check(between(0, 1))
      ->capture_default_str()
      ->type_name("P");
  app.add_option("--seed", o.how.seed, "Of the draws; line i of --chat has a stream of its own")
      ->check(whole(0, std::numeric_limits<std::uint64_t>::max()))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--batch", o.how.batch, "Dialogues decoded together; their answers do not depend on it")
      ->capture_default_str()
      ->check(whole(1, 4096))
      ->type_name("N");
  app.add_option("--threads", o.threads, "Threads to use; as many as the machine has unless given")
      ->check(whole(1, 4096))
      ->type_name("N");
  app.add_option("--json", o.json, "Print answers and figures as JSON at the end, or write them to FILE")
      ->expected(0, 1)
      ->type_name("[FILE]");
}

void check(const options& o) {
  if (o.has_prompt == !o.chat.empty())
    throw usage_error(o.has_prompt ? "--prompt and --chat exclude each other" : "give it --prompt TEXT or --chat FILE");
  if (o.how.top_p == 0) throw usage_error("--top-p must be above 0");
  if (o.has_top_p && o.how.temperature == 0)
    throw usage_error("--top-p is for draws: give it with a --temperature above 0");
}

/// What to continue, and how messages call it.
struct prompt {
  std::string where, text;
  std::vector<std::int32_t> ids;
};

std::vector<prompt> read_prompts(const options& o, const tokenizer& tok, const config& settings) {
  std::vector<prompt> prompts;
  if (o.has_prompt) {
    prompts.push_back({"--prompt", o.prompt, tok.encode_framed(o.prompt)});
  } else {
    const auto chat = open_chat_template(o.model);
    if (!chat) throw error(o.model + " has no chat template; use --prompt");
    const std::string text = read_text(o.chat);
    for (const jsonl_line& line : read_lines(text, o.chat)) {
      const auto object = parse_json(line.text, line.where);
      if (!object.is_object() || !object.contains("messages")) throw error(line.where + " has no \"messages\"");
      const auto messages = read_messages(object.at("messages"), line.where);
      try {
        prompts.push_back({line.where, chat->render(messages, true), {}});
      } catch (const error& refused) {
        throw error(line.where + ": " + refused.what());
      }
      prompts.back().ids = tok.encode(prompts.back().text);
    }
    if (prompts.empty()) throw error(o.chat + " holds no dialogue");
  }
  for (const prompt& p : prompts) {
    if (p.ids.empty()) throw error(p.where + " gives no tokens, and the model has none that begins a text");
    if (static_cast<index_t>(p.ids.size()) > settings.context)
      throw error(p.where + " has " + std::to_string(p.ids.size()) + " tokens, but the model's context is " +
                  std::to_string(settings.context) + "; shorten it");
  }
  return prompts;
}

/// Prints answers as they come, one after the other: those decoded beside the first that is not finished wait.
class printer {
 public:
  printer(const tokenizer& tok, const std::vector<prompt>& prompts, bool show) : show_(show), answers_(prompts.size()) {
    for (const prompt& p : prompts) streams_.emplace_back(tok, p.ids);
  }

  void hear(index_t prompt, std::int32_t id) {
    const auto at = static_cast<size_t>(prompt);
    entry& a = answers_[at];
    a.text += id >= 0 ? streams_[at].add(id) : streams_[at].finish();
    a.finished = id < 0;
    while (show_ && front_ < answers_.size()) {
      entry& shown = answers_[front_];
      if (shown.printed == 0 && !shown.begun && answers_.size() > 1)
        std::printf("%s[%zu] ", front_ > 0 ? "\n" : "", front_ + 1);
      shown.begun = true;
      std::fwrite(shown.text.data() + shown.printed, 1, shown.text.size() - shown.printed, stdout);
      shown.printed = shown.text.size();
      if (shown.finished) std::fputs("\n", stdout);
      std::fflush(stdout);
      if (!shown.finished) break;
      ++front_;
    }
  }
  const std::string& text(size_t prompt) const { return answers_[prompt].text; }

 private:
  struct entry {
    std::string text;
    size_t printed = 0;
    bool finished = false, begun = false;
  };
  bool show_;
  size_t front_ = 0;
  std::vector<text_stream> streams_;
  std::vector<entry> answers_;
};

nlohmann::ordered_json as_json(const options& o, const std::vector<prompt>& prompts, const std::vector<answer>& answers,
                               const printer& texts, const nlohmann::ordered_json& figures) {
  nlohmann::ordered_json out = {{"model", o.model},
                                {"max_new_tokens", o.how.max_new_tokens},
                                {"temperature", o.how.temperature},
                                {"top_p", o.how.top_p},
                                {"seed", o.how.seed},
                                {"batch", o.how.batch}};
  for (size_t i = 0; i < prompts.size(); ++i)
    out["answers"].push_back({{"prompt", prompts[i].text},
                              {"prompt_tokens", prompts[i].ids.size()},
                              {"text", texts.text(i)},
                              {"ids", answers[i].ids},
                              {"ended_by", to_string(answers[i].why)}});
  out.update(figures);
  return out;
}

nlohmann::ordered_json figures_of(const generation_times& t, double load_seconds, index_t weight_bytes) {
  const auto rate = [](index_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
  return {{"load_seconds", load_seconds},
          {"first_token_seconds", t.first_token_seconds},
          {"prompt_tokens_per_second", rate(t.prompt_tokens, t.prompt_seconds)},
          {"tokens_per_second", rate(t.stepped_tokens, t.step_seconds)},
          {"weight_bytes", weight_bytes},
          {"peak_memory_bytes", peak_resident_bytes()}};
}

void print_figures(const nlohmann::ordered_json& f, const generation_times& t) {
  std::fprintf(stderr, "loaded in %.2f s, first token after %.3f s (%lld tokens of prompt at %.1f/s)",
               f["load_seconds"].get<double>(), t.first_token_seconds, static_cast<long long>(t.prompt_tokens),
               f["prompt_tokens_per_second"].get<double>());
  if (t.stepped_tokens > 0) std::fprintf(stderr, ", then %.1f tokens/s", f["tokens_per_second"].get<double>());
  std::fprintf(stderr, ", peak memory %.1f MB\n", f["peak_memory_bytes"].get<double>() / 1e6);
}

int run(const options& o) {
  check(o);
  if (o.threads > 0) nibble::host::set_threads(o.threads);
  check_not_read("--json", o.json, {o.chat, o.model});
  const pending_file file(o.json);
  const auto start = std::chrono::steady_clock::now();
  const config settings = read_config(o.model);
  const auto tok = open_tokenizer(o.model);
  const std::vector<prompt> prompts = read_prompts(o, *tok, settings);
  const checkpoint files(o.model);
  generation_options how = o.how;
  how.stop = stop_ids(o.model, settings);
  decoder model(files, settings);
  const std::chrono::duration<double> loaded = std::chrono::steady_clock::now() - start;

  const bool show = !o.print_json || !o.json.empty();
  printer text(*tok, prompts, show);
  std::vector<std::vector<std::int32_t>> ids;
  for (const prompt& p : prompts) ids.push_back(p.ids);
  generation_times times;
  const auto answers = generate(
      model, ids, how, [&](index_t prompt, std::int32_t id) { text.hear(prompt, id); }, &times);
  const auto figures = figures_of(times, loaded.count(), model.weight_bytes());
  if (show) print_figures(figures, times);
  if (!o.print_json) return 0;
  const std::string json = json_text(as_json(o, prompts, answers, text, figures));
  if (o.json.empty())
    std::fputs(json.c_str(), stdout);
  else
    file.finish(json);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Text from a Mistral or Llama model, decoded from its weights as they are stored.", "generate");
  options o;
  add_options(app, o);
  return run_program(app, argc, argv, [&] {
    o.has_prompt = app.count("--prompt") > 0;
    o.has_top_p = app.count("--top-p") > 0;
    o.print_json = app.count("--json") > 0;
    return run(o);
  });
}
