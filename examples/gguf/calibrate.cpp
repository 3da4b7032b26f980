// SPDX-License-Identifier: Apache-2.0
#include "gguf/calibrate.hpp"

#include "mistral/chat.hpp"
#include "mistral/error.hpp"
#include "mistral/finite.hpp"
#include "mistral/gguf_model.hpp"
#include "pass/engine.hpp"

namespace nibble::mistral {
namespace {

/// sums (k) += x² down every column of x (m, k). NaN and ±inf count as 0.
void add_squares(matrix<const float> x, std::vector<double>& sums) {
  host::detail::fold_columns(x, sums.data(), [](double total, float value) {
    return total + static_cast<double>(value) * static_cast<double>(value);
  });
}

void check_finite(const checkpoint& files, const std::string& where, index_t non_finite) {
  if (non_finite > 0)
    throw unusable_model(files.directory().string() + ": " + where +
                         " turns the calibration text into NaN or infinity: " + cause_of_nan(files) +
                         "; check the checkpoint");
}

layer_statistics statistics_of(const config& c, const layer_weights& w, matrix<float> x,
                               const std::vector<index_t>& starts, bool correlations, index_t& non_finite) {
  layer_statistics seen;
  for (const layer_input input : layer_inputs) {
    const auto at = static_cast<size_t>(input);
    seen.squares[at].assign(static_cast<size_t>(width(c, input)), 0.0);
    if (correlations)
      seen.correlations[at] = host::second_moment(width(c, input), x.rows, calibration_shrinkage, w.precision);
  }
  forward_layer(c, w, x, starts, [&](layer_input input, matrix<const float> activations) {
    const auto at = static_cast<size_t>(input);
    non_finite += host::count_non_finite(activations);
    add_squares(activations, seen.squares[at]);
    if (correlations) seen.correlations[at].add(activations);
  });
  if (correlations)
    for (host::second_moment& each : seen.correlations) each.finish();
  return seen;
}

}  // namespace

calibration_set open_calibration(const std::filesystem::path& file, const std::filesystem::path& model,
                                 const calibration_options& options) {
  const auto chat = file.extension() == ".jsonl" ? open_chat_template(model) : nullptr;
  return read_calibration(file, *open_tokenizer(model), chat.get(), options);
}

void calibrate(const checkpoint& files, const config& c, const calibration_set& samples,
               host::matmul_precision precision, const calibration_listener& told) {
  batch all;
  for (const auto& sequence : samples.sequences) all.append(sequence.data(), static_cast<index_t>(sequence.size()));
  std::vector<float> data(static_cast<size_t>(all.tokens() * c.hidden));
  const matrix<float> x(data.data(), all.tokens(), c.hidden);
  embed(files, c, all, x);
  for (index_t layer = 0; layer < c.layers; ++layer) {
    layer_weights w = load_layer(files, c, layer);
    w.precision = precision;
    index_t non_finite = 0;
    const layer_statistics seen = statistics_of(c, w, x, all.starts, told.correlations, non_finite);
    check_finite(files, "layer " + std::to_string(layer), non_finite);
    told.layer(layer, w, seen);
  }
  rms_norm(x, read_vector(files, "model.norm.weight", c.hidden), c.rms_norm_eps, x);
  check_finite(files, "the last norm", host::count_non_finite(x));
  std::vector<double> squares(static_cast<size_t>(c.hidden), 0.0);
  add_squares(x, squares);
  told.head(squares);
}

std::vector<std::string> readers_of(index_t layer, layer_input input) {
  std::vector<std::string> names;
  for (const projection p : projections)
    if (input_of(p) == input) names.push_back(gguf_name(projection_name(layer, p) + ".weight"));
  return names;
}

void add_layer(importance_sums& sums, index_t layer, const layer_statistics& seen) {
  for (const layer_input input : layer_inputs)
    for (const std::string& name : readers_of(layer, input)) sums.of[name] = seen.squares[static_cast<size_t>(input)];
}

std::string head_name(const config& c) {
  return gguf_name(c.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
}

importance_matrix blank_importance(const checkpoint& files, const config& c, const std::filesystem::path& text,
                                   const calibration_set& samples) {
  importance_matrix out;
  out.dataset = text.filename().string();
  out.chunks = static_cast<index_t>(samples.sequences.size());
  files.at("model.embed_tokens.weight", {c.vocabulary, c.hidden});
  for (index_t layer = 0; layer < c.layers; ++layer)
    for (const projection p : projections) {
      const std::string name = projection_name(layer, p);
      open_linear(files, c, name, outputs(c, p), inputs(c, p));  // throws before anything as large is asked for
      out.weights[gguf_name(name + ".weight")].assign(static_cast<size_t>(inputs(c, p)), 1.0f);
    }
  out.weights[head_name(c)].assign(static_cast<size_t>(c.hidden), 1.0f);
  return out;
}

}  // namespace nibble::mistral
