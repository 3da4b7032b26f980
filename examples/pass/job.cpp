// SPDX-License-Identifier: Apache-2.0
#include "pass/job.hpp"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <vector>

#include "mistral/error.hpp"
#include "mistral/gguf_model.hpp"
#include "mistral/precision.hpp"
#include "pass/engine.hpp"

namespace nibble::mistral {
namespace {

config read_dense_config(const std::filesystem::path& model) {
  if (is_gguf(model))
    throw error(model.string() + " is a GGUF file; give the directory of the checkpoint it was made of");
  config c = read_config(model);
  if (c.json.contains("quantization_config"))
    throw error((model / "config.json").string() +
                " has a quantization_config: the model is quantized already; give the original");
  return c;
}

const tensor& floating(const tensor& t) {
  if (is_floating(t)) return t;
  throw error(t.file.string() + ": the tensor \"" + t.name + "\" has dtype " + t.dtype +
              ", but only weights of F32, F16 or BF16 can be quantized");
}

dtype stored_dtype(const pass_options& o, const checkpoint& files) {
  const dtype own = parse_dtype(floating(files.at(projection_name(0, projection::q) + ".weight")).dtype);
  return o.format == packed_format::compressed_tensors ? own : dtype::f16;
}

}  // namespace

job::job(const pass_options& options)
    : o(options),
      model(read_dense_config(o.model)),
      files(o.model),
      stored(stored_dtype(o, files)),
      precision(calibration_precision(o.precision, files)) {
  check_tensors();
  check_packings();
  tok = open_tokenizer(o.model);
  on = choose_gpu(o.backend, [&](const std::string& note) { tell(o, note); });
  if (!o.evaluate.empty()) read_evaluated();
  if (o.calibrated()) read_samples();
}

void job::read_evaluated() {
  text = read_evaluation_text(o.evaluate, *tok);
  check_ids(files, model, text.ids);
  for (const question& q : text.questions) check_ids(files, model, q.ids);
  check_room(text, model.context);
  windows = plan_windows(text, model.context, window_options{});
  measured = {text, windows, window_options{}};
  measured.model = fingerprint(files);
  if (!o.baseline.empty()) baseline = read_earlier_run(o.baseline, measured);
}

layer_weights job::load_layer(index_t layer) const {
  layer_weights w = mistral::load_layer(files, model, layer);
  w.precision = precision;
  return w;
}

/// The calibration samples, and whether they suit what is evaluated.
void job::read_samples() {
  const auto start = std::chrono::steady_clock::now();
  const auto chat =
      std::filesystem::path(o.calibration).extension() == ".jsonl" ? open_chat_template(o.model) : nullptr;
  samples = read_calibration(o.calibration, *tok, chat.get(), {o.samples, o.max_length, o.seed});
  choose_followed();
  read_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const planned_evaluation planned = {o.evaluate, text, windows};
  findings = check_calibration(samples, *tok, model.context, o.evaluate.empty() ? nullptr : &planned, o.allow_overlap);
}

/// Samples on which the original model is followed, spread over all, come first: a text's may lie in the text's order.
void job::choose_followed() {
  if (!o.drift_followed()) return;
  auto& all = samples.sequences;
  const auto count = static_cast<index_t>(all.size());
  index_t widest = 0;
  for (const layer_input input : layer_inputs) widest = max(widest, width(model, input));
  const index_t suffice = ceil_div(drift_tokens_per_channel * widest * count, max(samples.tokens(), index_t(1)));
  followed = min(count, o.drift_samples > 0 ? o.drift_samples : suffice);
  std::vector<std::vector<int32_t>> first, rest;
  for (index_t i = 0; i < count; ++i) {
    const bool taken = (i + 1) * followed / count > i * followed / count;
    (taken ? first : rest).push_back(std::move(all[static_cast<size_t>(i)]));
  }
  std::move(rest.begin(), rest.end(), std::back_inserter(first));
  all = std::move(first);
}

/// Every tensor the model needs is there, of the shape that config.json asks for and a dtype that can be read.
void job::check_tensors() const {
  const auto check = [&](const std::string& name, const std::vector<index_t>& shape) {
    floating(files.at(name, shape));
  };
  check("model.embed_tokens.weight", {model.vocabulary, model.hidden});
  check("model.norm.weight", {model.hidden});
  if (!model.tied_embeddings) check("lm_head.weight", {model.vocabulary, model.hidden});
  for (index_t layer = 0; layer < model.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    check(prefix + "input_layernorm.weight", {model.hidden});
    check(prefix + "post_attention_layernorm.weight", {model.hidden});
    for (const projection p : projections)
      check(projection_name(layer, p) + ".weight", {outputs(model, p), inputs(model, p)});
  }
}

size_t job::activations() const {
  return static_cast<size_t>((samples.tokens() + followed_tokens()) * model.hidden);
}

index_t job::followed_tokens() const {
  index_t sum = 0;
  for (index_t i = 0; i < followed; ++i) sum += static_cast<index_t>(samples.sequences[static_cast<size_t>(i)].size());
  return sum;
}

index_t job::judged_tokens() const {
  if (!o.blocks_judged()) return 0;
  const std::vector<index_t> starts = tokens().starts;
  return starts[static_cast<size_t>(block_loss_sequences(starts))];
}

batch job::tokens() const {
  batch all;
  for (const auto& sequence : samples.sequences) all.append(sequence.data(), static_cast<index_t>(sequence.size()));
  return all;
}

layer_packing job::packings(index_t layer) const {
  layer_packing how;
  for (const projection p : projections) how[static_cast<size_t>(p)] = o.how.of(projection_name(layer, p));
  return how;
}

std::vector<std::string> job::linears() const {
  std::vector<std::string> names;
  for (index_t layer = 0; layer < model.layers; ++layer)
    for (const projection p : projections) names.push_back(projection_name(layer, p));
  names.emplace_back("lm_head");
  return names;
}

/// The format can hold every linear as it is to be packed, and some linear is.
void job::check_packings() const {
  bool any = false;
  for (index_t layer = 0; layer < model.layers; ++layer) {
    const layer_packing how = packings(layer);
    for (const projection p : projections) {
      const auto& packed = how[static_cast<size_t>(p)];
      if (!packed) continue;
      any = true;
      check_packable(projection_name(layer, p), outputs(model, p), inputs(model, p), *packed);
    }
  }
  if (!any)
    throw usage_error((o.recipe.empty() ? "--ignore" : o.recipe) + " leaves no linear of the model to quantize");
  quantization_json(o.how, linears());
}

void job::warn() const {
  warn_of_unmatched();
  warn_of_split_sets();
  for (const std::string& warning : findings.warnings) tell(o, warning);
}

/// A misspelt pattern in what is to be left as it was would go unseen until the model answers badly.
void job::warn_of_unmatched() const {
  for (const std::string& text : o.how.unmatched(linears()))
    tell(o, (o.recipe.empty() ? "--ignore" : o.recipe) + ": \"" + text.substr(0, 200) +
                "\" matches no linear of the model" +
                (text.rfind("re:", 0) == 0 ? " (patterns match from the start of a name)" : ""));
}

/// vLLM runs q, k and v as one linear, gate and up as another, and takes the first one's packing for all of them.
void job::warn_of_split_sets() const {
  const std::vector<projection> sets[] = {{projection::q, projection::k, projection::v},
                                          {projection::gate, projection::up}};
  for (index_t layer = 0; layer < model.layers; ++layer)
    for (const auto& set : sets)
      for (const projection p : set) {
        const std::string first = projection_name(layer, set.front()), other = projection_name(layer, p);
        if (o.how.of(first) == o.how.of(other)) continue;
        tell(o, "vLLM will not load this model: it fuses " + first + " and " + other + ", which are not packed alike");
        return;
      }
}

void job::check_finite(index_t layer, const layer_weights& w) const {
  for (const projection p : projections) {
    const auto& values = w.w[static_cast<size_t>(p)];
    if (std::all_of(values.begin(), values.end(), [](float x) { return is_finite(x); })) continue;
    const tensor& t = files.at(projection_name(layer, p) + ".weight");
    throw unusable_model(t.file.string() + ": the tensor " + projection_name(layer, p) +
                         ".weight holds NaN or infinity, and cannot be quantized; check the checkpoint");
  }
}

}  // namespace nibble::mistral
