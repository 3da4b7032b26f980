// SPDX-License-Identifier: Apache-2.0
#include "model_card.hpp"

#include <algorithm>
#include <cstdio>
#include <sstream>

#include "formatted.hpp"
#include "progress.hpp"
#include "report_parts.hpp"

namespace nibble::mistral {

namespace {

using json = nlohmann::ordered_json;
using page::at;
using page::file_name;
using page::own_name;
using page::text;
using page::value;

/// JSON's strings are YAML's as well.
std::string quoted(const std::string& words) {
  return json(words).dump(-1, ' ', false, json::error_handler_t::replace);
}

/// Text that Markdown shows as it is, on one line.
std::string plain(const std::string& words) {
  std::string out;
  for (const char letter : words) {
    if (std::string_view("\\`*<>[]|#&").find(letter) != std::string_view::npos) out += '\\';
    out += static_cast<unsigned char>(letter) < 0x20 ? ' ' : letter;
  }
  return out;
}

/// A word for a shell, or for Python between quotes; what would need more than that is replaced.
std::string word(const std::string& name) {
  std::string out;
  for (const char letter : name) {
    const auto code = static_cast<unsigned char>(letter);
    const bool fine = std::isalnum(code) != 0 || code >= 0x80 ||
                      std::string_view("-_./ +@=,:").find(letter) != std::string_view::npos;
    out += fine ? letter : '_';
  }
  return out;
}

std::string shell_word(const std::string& name) {
  const std::string fine = word(name);
  return fine.find(' ') == std::string::npos ? fine : "'" + fine + "'";
}

bool calibrated(const json& run) {
  return at(at(run, "options"), "method") != "rtn";
}

/// "awq" of "awq", and of "awq+gptq" each.
std::vector<std::string> method_tags(const json& run) {
  std::vector<std::string> tags;
  std::istringstream words(text(at(at(run, "options"), "method")));
  for (std::string word; std::getline(words, word, '+');)
    if (word != "rtn") tags.push_back(word);
  return tags;
}

bool compressed_tensors(const json& run) {
  return at(at(run, "options"), "format") == "compressed-tensors";
}

bool gptq_format(const json& run) {
  return text(at(at(run, "options"), "format")).rfind("gptq", 0) == 0;
}

std::string name_of(const json& run) {
  return file_name(at(at(run, "options"), "output"));
}

std::string program(const json& run) {
  const json &made = at(run, "made"), &commit = at(made, "commit");
  std::string out = text(at(made, "program")) + " of nibble " + text(at(run, "nibble"));
  if (commit.is_string())
    out += ", commit " + text(commit) + (at(made, "commit_changed") == true ? " with local changes" : "");
  return out;
}

std::string metadata(const json& run) {
  const json& source = at(run, "source");
  std::string out = "---\n";
  for (const char* key : {"license", "license_name", "license_link", "base_model"})
    if (at(source, key).is_string()) out += std::string(key) + ": " + quoted(text(at(source, key))) + "\n";
  if (at(source, "base_model").is_string()) out += "base_model_relation: quantized\n";
  if (at(source, "language").is_array()) {
    out += "language:\n";
    for (const json& each : at(source, "language")) out += "- " + quoted(text(each)) + "\n";
  }
  out += "library_name: transformers\npipeline_tag: text-generation\nquantized_by: " +
         quoted(text(at(at(run, "made"), "program")) + ", nibble " + text(at(run, "nibble"))) + "\ntags:\n";
  std::vector<std::string> tags = method_tags(run);
  const std::string layout = compressed_tensors(run) ? "compressed-tensors" : gptq_format(run) ? "gptq" : "awq";
  for (const std::string& tag : {layout, std::string("quantized"), std::string("nibble")})
    if (std::find(tags.begin(), tags.end(), tag) == tags.end()) tags.push_back(tag);
  for (const std::string& tag : tags) out += "- " + tag + "\n";
  return out + "---\n";
}

std::string summary(const json& run) {
  const json &options = at(run, "options"), &source = at(run, "source"), &base = at(source, "base_model");
  const std::string name = plain(text(at(source, "name")));
  const std::string original = base.is_string() ? "[" + name + "](https://huggingface.co/" + text(base) + ")" : name;
  return "# " + plain(name_of(run)) + "\n\n" + original + " with its linear layers quantized to " +
         plain(text(at(run, "packing"))) + ", by " + (calibrated(run) ? plain(own_name(run)) : "rounding to nearest") +
         ", in the " + text(at(options, "format")) +
         " format: " + size_text(value(at(at(run, "models").front(), "bytes"))) + " of weights became " +
         size_text(value(at(at(run, "models").back(), "bytes"))) + ".\n\n";
}

/// A cell of a model: nothing where it has no such figure.
template <class F>
std::string cell(const json& model, const char* key, F&& shown) {
  return " " + (at(model, key).is_number() ? shown(value(at(model, key))) : std::string()) + " |";
}

std::string figures(const json& run) {
  const json &models = at(run, "models"), &evaluation = at(run, "evaluation");
  if (!evaluation.is_object()) return "Nothing was measured when it was made: evaluate it before you rely on it.\n\n";
  const bool asked = at(models.back(), "accuracy").is_number();
  std::string out =
      "| | size | bits per weight | perplexity | increase | KL divergence, nats | its 99 % quantile | same top token "
      "|" +
      std::string(asked ? " answers right | exact | abstained |" : "") + "\n|---|---:|---:|---:|---:|---:|---:|---:|" +
      (asked ? "---:|---:|---:|" : "") + "\n";
  const auto percent = [](double x) { return formatted("%.1f %%", 100 * x); };
  for (const json& model : models) {
    out += "| " + plain(text(at(model, "name"))) + " |";
    out += cell(model, "bytes", [](double x) { return size_text(x); });
    out += cell(model, "bits_per_weight", [](double x) { return formatted("%.2f", x); });
    out += cell(model, "perplexity", [](double x) { return formatted("%.3f", x); });
    out += cell(model, "increase",
                [&](double x) { return formatted("%+.3f ± %.3f", x, value(at(model, "increase_standard_error"))); });
    out += cell(model, "kl_divergence", [](double x) { return formatted("%.4f", x); });
    out += cell(model, "kl_divergence_99", [](double x) { return formatted("%.4f", x); });
    out += cell(model, "top_token_agreement", percent);
    for (const char* key : {"accuracy", "exact_match", "abstained"})
      if (asked) out += cell(model, key, percent);
    out += "\n";
  }
  return out + "\nPerplexity of " + plain(file_name(at(evaluation, "text"))) + ", " + at(evaluation, "tokens").dump() +
         " tokens in " + at(evaluation, "windows").dump() + " windows of " + at(evaluation, "window").dump() +
         ", stride " + at(evaluation, "stride").dump() +
         "; ± is one standard error, paired by window. KL divergence is that of the next token's distribution from the "
         "original's." +
         (asked ? " " + at(evaluation, "questions").dump() +
                      " prompts were asked: an answer is right when it contains an accepted one, exact when it is one."
                : "") +
         "\n\n";
}

std::string transformers_snippet(const std::string& name) {
  return "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\ntokenizer = "
         "AutoTokenizer.from_pretrained(\"" +
         name + "\")\nmodel = AutoModelForCausalLM.from_pretrained(\"" + name +
         "\")\ninputs = tokenizer(\"The\", return_tensors=\"pt\")\nprint(tokenizer.decode(model.generate(**inputs, "
         "max_new_tokens=50)[0]))\n```\n";
}

std::string autoawq_snippet(const std::string& name) {
  return "```python\nfrom awq import AutoAWQForCausalLM\nfrom transformers import AutoTokenizer\n\ntokenizer = "
         "AutoTokenizer.from_pretrained(\"" +
         name + "\")\nmodel = AutoAWQForCausalLM.from_quantized(\"" + name + "\", fuse_layers=False)\n```\n";
}

std::string gptqmodel_snippet(const std::string& name) {
  return "```python\nfrom gptqmodel import GPTQModel\n\nmodel = GPTQModel.load(\"" + name +
         "\")\nprint(model.tokenizer.decode(model.generate(\"The\")[0]))\n```\n";
}

std::string parallel(const json& serving) {
  std::string working, out;
  for (const json& each : at(serving, "tensor_parallel"))
    if (at(each, "works") == true) working += (working.empty() ? "" : ", ") + at(each, "ranks").dump();
  if (!working.empty()) out += "It splits over `--tensor-parallel-size` " + working + ".\n";
  for (const json& each : at(serving, "tensor_parallel"))
    if (at(each, "works") == false)
      out += "\n> **Warning:** it does not load with `--tensor-parallel-size " + at(each, "ranks").dump() +
             "`: " + plain(text(at(each, "why"))) + ".\n";
  return out + "\n";
}

std::string use(const json& run) {
  const json &serving = at(run, "serving"), &vllm = at(serving, "vllm");
  const std::string name = name_of(run);
  std::string out = "## Use\n\n";
  if (at(vllm, "loads") == true)
    out += "From the directory that holds this one, or with its name on the hub:\n\n```\nvllm serve " +
           shell_word(name) + "\n```\n\n" +
           (at(vllm, "needs").is_string() ? "> **Note:** " + plain(text(at(vllm, "needs"))) + ".\n\n" : "") +
           parallel(serving);
  else if (at(vllm, "loads") == false)
    out += "vLLM does not load it: " + plain(text(at(vllm, "why"))) + ".\n\n";
  if (gptq_format(run)) return out + "With GPTQModel:\n\n" + gptqmodel_snippet(word(name)) + "\n";
  out += compressed_tensors(run) ? "With transformers (and the package compressed-tensors):\n\n" : "With AutoAWQ:\n\n";
  return out + (compressed_tensors(run) ? transformers_snippet(word(name)) : autoawq_snippet(word(name))) + "\n";
}

/// An option as a person would type it; of paths only the last part.
std::string setting(const std::string& name, const json& option) {
  for (const char* path : {"calibration", "evaluate", "recipe"})
    if (name == path && option.is_string()) return file_name(option);
  if (option.is_string()) return text(option);
  if (option.is_number_float()) return formatted("%g", value(option));
  if (!option.is_array()) return option.dump();
  std::string out;
  for (const json& each : option) out += (out.empty() ? "" : ", ") + (each.is_string() ? text(each) : each.dump());
  return out;
}

/// Not among the options of a card: places of this machine, and what the first sentence says.
bool told_elsewhere(const std::string& name) {
  return name == "model" || name == "output" || name == "groups";
}

std::string making(const json& run) {
  const json& calibration = at(run, "calibration");
  std::string out = "## What made it\n\n" + plain(program(run)) + ".\n\n";
  if (calibration.is_object())
    out += "Calibrated on " + at(calibration, "sequences").dump() + " sequences, " + at(calibration, "tokens").dump() +
           " tokens, of " + plain(file_name(at(calibration, "file"))) + " (SHA-256 `" +
           text(at(calibration, "sha256")) + "`).\n\n";
  out += "| option | |\n|---|---|\n";
  for (const auto& [name, option] : at(run, "options").items())
    if (!told_elsewhere(name)) out += "| " + plain(name) + " | " + plain(setting(name, option)) + " |\n";
  return out + "\n`recipe.yaml` says the same in llm-compressor's words.\n\n";
}

/// Whether some linears round their inputs too.
bool rounds_inputs(const json& run) {
  const json& groups = at(at(run, "options"), "groups");
  return std::any_of(groups.begin(), groups.end(),
                     [](const json& group) { return text(at(group, "how")).find("inputs") != std::string::npos; });
}

std::string limits(const json& run) {
  std::string out = std::string("## Limits\n\n- ") +
                    (rounds_inputs(run) ? "Weights, and what they multiply, are rounded; "
                                        : "Weights alone are quantized; activations, ") +
                    "the KV cache, the embedding, the norms and what is ignored are not. Ignored: ";
  std::string ignored;
  for (const json& each : at(at(run, "options"), "ignore"))
    ignored += (ignored.empty() ? "" : ", ") + plain(each.is_string() ? text(each) : each.dump());
  out += (ignored.empty() ? "nothing" : ignored) + ".\n";
  if (calibrated(run))
    out +=
        "- Scales, ranges and codes were chosen on the calibration text; text of another kind or language may lose "
        "more than the table says.\n";
  return out + "- What the original gets wrong, this gets wrong as well; its licence holds for this, too.\n";
}

}  // namespace

std::string model_card(const nlohmann::ordered_json& run) {
  return metadata(run) + summary(run) + figures(run) + use(run) + making(run) + limits(run);
}

}  // namespace nibble::mistral
