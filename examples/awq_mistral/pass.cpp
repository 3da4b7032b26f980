// SPDX-License-Identifier: Apache-2.0
#include "pass.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>

#include "mistral/calibration.hpp"
#include "mistral/error.hpp"
#include "mistral/file.hpp"
#include "mistral/finite.hpp"
#include "mistral/output.hpp"
#include "mistral/progress.hpp"
#include "mistral/recipe.hpp"

namespace nibble::mistral {

namespace {

/// Tokens of the first sequences that a block's loss is measured on.
constexpr index_t block_loss_tokens = 4096;

class stopwatch {
 public:
  explicit stopwatch(double& sum) : sum_(sum) {}
  ~stopwatch() { sum_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  double& sum_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

std::uint64_t peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmHWM:", 0) == 0) return std::stoull(line.substr(6)) * 1024;
  return 0;
}

std::string safetensors_dtype(dtype type) {
  return type == dtype::f32 ? "F32" : type == dtype::f16 ? "F16" : "BF16";
}

std::string config_dtype(dtype type) {
  return type == dtype::f32 ? "float32" : type == dtype::f16 ? "float16" : "bfloat16";
}

/// A run's inputs, opened and checked before the first hour is spent.
struct job {
  const awq_options& o;
  config model;
  checkpoint files;
  dtype stored;  ///< dtype of what is not packed, and of scales
  std::unique_ptr<tokenizer> tok;
  evaluation_text text;  ///< to evaluate on
  std::vector<window> windows;

  explicit job(const awq_options& options);
  layer_packing packings(index_t layer) const;
  std::vector<std::string> linears() const;
  void check_packings() const;
  void warn_of_split_sets() const;
  void check_tensors() const;
  void check_finite(index_t layer, const layer_weights& w) const;
};

config read_dense_config(const std::filesystem::path& model) {
  config c = read_config(model);
  if (c.json.contains("quantization_config"))
    throw error((model / "config.json").string() +
                " has a quantization_config: the model is quantized already; give the original");
  return c;
}

const tensor& floating(const tensor& t) {
  if (t.dtype == "F32" || t.dtype == "F16" || t.dtype == "BF16") return t;
  throw error(t.file.string() + ": the tensor \"" + t.name + "\" has dtype " + t.dtype +
              ", but only weights of F32, F16 or BF16 can be quantized");
}

dtype stored_dtype(const awq_options& o, const checkpoint& files) {
  const dtype own = parse_dtype(floating(files.at(projection_name(0, projection::q) + ".weight")).dtype);
  return o.format == packed_format::compressed_tensors ? own : dtype::f16;
}

job::job(const awq_options& options)
    : o(options), model(read_dense_config(o.model)), files(o.model), stored(stored_dtype(o, files)) {
  check_tensors();
  check_packings();
  tok = open_tokenizer(o.model);
  if (o.evaluate.empty()) return;
  text = read_evaluation_text(o.evaluate, *tok);
  windows = plan_windows(text, model.context, window_options{});
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

/// vLLM runs q, k and v as one linear, gate and up as another, and takes the first one's packing for all of them.
void job::warn_of_split_sets() const {
  const std::vector<projection> sets[] = {{projection::q, projection::k, projection::v},
                                          {projection::gate, projection::up}};
  for (index_t layer = 0; layer < model.layers; ++layer)
    for (const auto& set : sets)
      for (const projection p : set) {
        const std::string first = projection_name(layer, set.front()), other = projection_name(layer, p);
        if (o.how.of(first) == o.how.of(other)) continue;
        std::fprintf(
            stderr,
            "awq_mistral: note: vLLM will not load this model: it fuses %s and %s, which are not packed alike\n",
            first.c_str(), other.c_str());
        return;
      }
}

void job::check_finite(index_t layer, const layer_weights& w) const {
  for (const projection p : projections) {
    const auto& values = w.w[static_cast<size_t>(p)];
    if (std::all_of(values.begin(), values.end(), [](float x) { return is_finite(x); })) continue;
    const tensor& t = files.at(projection_name(layer, p) + ".weight");
    throw error(t.file.string() + ": the tensor " + projection_name(layer, p) +
                ".weight holds NaN or infinity, and cannot be quantized; check the checkpoint");
  }
}

/// The calibration tokens on their way through the layers.
struct stream {
  batch tokens;
  std::vector<float> data;
  matrix<float> x;

  stream(const job& j, const calibration_set& set) {
    for (const auto& sequence : set.sequences) tokens.append(sequence.data(), static_cast<index_t>(sequence.size()));
    data.resize(static_cast<size_t>(tokens.tokens() * j.model.hidden));
    x = {data.data(), tokens.tokens(), j.model.hidden};
    embed(j.files, j.model, tokens, x);
  }
};

/// Runs the original layer over the stream and gathers its statistics. x becomes the layer's output, unless `keep`.
layer_statistics gather(const job& j, const layer_weights& w, stream& s, bool keep) {
  const auto& c = j.model;
  layer_statistics out;
  for (const layer_input input : layer_inputs) {
    const index_t k = input == layer_input::down ? c.intermediate : input == layer_input::o ? c.q_width() : c.hidden;
    out.inputs[static_cast<size_t>(input)] = host::second_moment(k, s.tokens.tokens(), j.o.shrinkage);
  }
  if (j.o.loss == search_loss::block)
    for (size_t i = 1; i < s.tokens.starts.size(); ++i)
      if (i == 1 || s.tokens.starts[i] <= block_loss_tokens) out.sample_starts.push_back(s.tokens.starts[i]);
  const index_t sampled = j.o.loss == search_loss::block ? out.sample_starts.back() : 0;
  std::vector<float> copy;
  if (keep) copy = s.data;
  const matrix<float> x(keep ? copy.data() : s.data.data(), s.x.rows, s.x.cols);
  forward_layer(c, w, x, s.tokens.starts, [&](layer_input input, matrix<const float> activations) {
    out.inputs[static_cast<size_t>(input)].add(activations);
    auto& sample = input == layer_input::attention ? out.attention_sample : out.mlp_sample;
    if (input != layer_input::attention && input != layer_input::mlp) return;
    const auto missing = static_cast<index_t>(static_cast<size_t>(sampled * c.hidden) - sample.size());
    for (index_t row = 0; row < min(activations.rows, missing / c.hidden); ++row)
      sample.insert(sample.end(), activations.row(row), activations.row(row) + c.hidden);
  });
  for (auto& moment : out.inputs) moment.finish();
  return out;
}

void write_layer_rest(const job& j, index_t layer, const layer_weights& w, safetensors_writer& out) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".", type = safetensors_dtype(j.stored);
  write_floats(out, prefix + "input_layernorm.weight", w.input_norm, type);
  write_floats(out, prefix + "post_attention_layernorm.weight", w.post_norm, type);
  for (const projection p : projections) {
    if (j.o.how.of(projection_name(layer, p))) continue;
    const std::string name = projection_name(layer, p) + ".weight";
    write_tensor(out, name, j.files.at(name), type);
    j.files.release(j.files.at(name));
  }
}

/// Everything that belongs to no layer: embedding, last norm, head.
void write_rest(const job& j, safetensors_writer& out) {
  for (const auto& [name, t] : j.files.tensors()) {
    if (name.rfind("model.layers.", 0) == 0) continue;
    write_tensor(out, name, t, safetensors_dtype(j.stored));
    j.files.release(t);
  }
}

/// Bits a weight of the quantized linears takes, scales and zero points included.
double bits_per_weight(const job& j) {
  double bits = 0, weights = 0;
  for (index_t layer = 0; layer < j.model.layers; ++layer) {
    const layer_packing packings = j.packings(layer);
    for (const projection p : projections) {
      const auto& how = packings[static_cast<size_t>(p)];
      if (!how) continue;
      const index_t n = outputs(j.model, p), k = inputs(j.model, p), groups = per_group(how->group).across(k);
      const double scale =
          how->format == packed_format::compressed_tensors ? 8.0 * static_cast<double>(size_of(j.stored)) : 16.0;
      bits += static_cast<double>(n) * (static_cast<double>(k) * how->bits +
                                        static_cast<double>(groups) * (scale + (how->symmetric ? 0 : how->bits)));
      weights += static_cast<double>(n * k);
    }
  }
  return weights > 0 ? bits / weights : 0;
}

std::string loss_note(const layer_report& report) {
  double rtn = 0, own = 0;
  for (const auto& linear : report.linears) {
    rtn += linear.rtn_loss;
    own += linear.loss;
  }
  char text[64];
  std::snprintf(text, sizeof(text), "loss %.3g (round to nearest %.3g)", own, rtn);
  return text;
}

void quantize_layers(const job& j, safetensors_writer& writer, pass_result& r) {
  std::optional<stream> s;
  if (j.o.how_found == method::awq) {
    stopwatch watch(r.seconds.read);
    const auto chat = j.o.calibration.size() > 6 && j.o.calibration.substr(j.o.calibration.size() - 6) == ".jsonl"
                          ? open_chat_template(j.o.model)
                          : nullptr;
    const auto set = read_calibration(j.o.calibration, *j.tok, chat.get(), {j.o.samples, j.o.max_length, j.o.seed});
    r.calibration_sequences = static_cast<index_t>(set.sequences.size());
    r.calibration_tokens = set.tokens();
    s.emplace(j, set);
  }
  progress bar("quantizing", j.model.layers);
  for (index_t layer = 0; layer < j.model.layers; ++layer) {
    layer_weights w;
    {
      stopwatch watch(r.seconds.read);
      w = load_layer(j.files, j.model, layer);
      j.check_finite(layer, w);
    }
    const layer_packing how = j.packings(layer);
    const linear_sink sink = [&](projection p, const quantized_linear& q) {
      stopwatch watch(r.seconds.write);
      write_packed(writer, projection_name(layer, p), q, *how[static_cast<size_t>(p)], j.stored);
    };
    const double written = r.seconds.write;
    std::string note;
    if (!s) {
      stopwatch watch(r.seconds.search);
      r.layers.push_back(to_json(round_reported(j.model, how, j.stored, w, sink), false));
    } else {
      layer_statistics statistics;
      const bool again = j.o.propagate == propagation::quantized;
      {
        stopwatch watch(r.seconds.forward);
        statistics = gather(j, w, *s, again);
      }
      for (const auto& moment : statistics.inputs)
        if (moment.non_finite() > 0)
          throw error(j.o.model + ": layer " + std::to_string(layer) +
                      " turns the calibration text into NaN or infinity: " + cause_of_nan(j.files) +
                      "; check the checkpoint");
      {
        stopwatch watch(r.seconds.search);
        const auto report = quantize_layer(j.model, j.o, how, j.stored, statistics, w, sink);
        note = loss_note(report);
        r.layers.push_back(to_json(report, true));
      }
      statistics = {};
      if (again) {
        stopwatch watch(r.seconds.forward);
        forward_layer(j.model, w, s->x, s->tokens.starts);
      }
    }
    r.seconds.search -= r.seconds.write - written;
    stopwatch watch(r.seconds.write);
    write_layer_rest(j, layer, w, writer);
    bar.at(layer + 1, note);
  }
}

void evaluate_all(const job& j, const std::filesystem::path& output, pass_result& r) {
  stopwatch watch(r.seconds.evaluate);
  const config quantized_config = read_config(output);
  const checkpoint quantized(output);
  const auto rounded = [&](index_t layer) {
    layer_weights w = load_layer(j.files, j.model, layer);
    stopwatch rtn(r.rtn_seconds);
    round_layer(j.model, j.packings(layer), j.stored, w, nullptr);
    return w;
  };
  std::vector<evaluated_model> models = {{j.files, j.model, nullptr}};
  if (j.o.how_found == method::awq) models.push_back({j.files, j.model, rounded});
  models.push_back({quantized, quantized_config, nullptr});
  std::optional<progress> bar;
  const auto report = [&](index_t done, index_t all) {
    if (!bar) bar.emplace("evaluating", all);
    bar->at(done);
  };
  r.evaluations = evaluate(models, j.text.ids, j.windows, report,
                           std::max<index_t>(index_t(64) << 20, r.calibration_tokens * j.model.hidden * 4));
  for (const window& w : j.windows) r.window = std::max(r.window, w.length);
  r.stride = std::min(window_options{}.stride, r.window);
}

}  // namespace

pass_result run_pass(const awq_options& o) {
  const job j(o);
  j.warn_of_split_sets();
  output_directory out(o.output, o.model, o.overwrite);
  pass_result r;
  safetensors_writer writer(out.path(), o.max_shard_bytes);
  quantize_layers(j, writer, r);
  {
    stopwatch watch(r.seconds.write);
    write_rest(j, writer);
    r.output_bytes = writer.finish();
    write_config(out.path(), j.model, config_dtype(j.stored), quantization_json(o.how, j.linears()));
    write_recipe(out.path(), {o.how_found == method::awq,
                              o.duo == duo_scaling::both ? "both"
                              : o.duo == duo_scaling::on ? "true"
                                                         : "false",
                              o.grid,
                              o.how.groups(),
                              o.ignore,
                              {}});
    copy_sidecars(o.model, out.path());
  }
  for (const auto& [name, t] : j.files.tensors()) r.original_bytes += static_cast<std::uint64_t>(t.bytes);
  r.bits_per_weight = bits_per_weight(j);
  r.peak_bytes = peak_resident_bytes();
  if (!o.evaluate.empty()) evaluate_all(j, out.path(), r);
  write_file(out.path() / "README.md", model_card(o, r));
  out.commit();
  return r;
}

}  // namespace nibble::mistral
