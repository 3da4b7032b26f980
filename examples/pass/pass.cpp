// SPDX-License-Identifier: Apache-2.0
#include "pass/pass.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "mistral/coded_linear.hpp"
#include "mistral/error.hpp"
#include "mistral/file.hpp"
#include "mistral/finite.hpp"
#include "mistral/generation.hpp"
#include "mistral/machine.hpp"
#include "mistral/model_card.hpp"
#include "mistral/output.hpp"
#include "mistral/precision.hpp"
#include "mistral/progress.hpp"
#include "mistral/recipe.hpp"
#include "mistral/resume.hpp"
#include "mistral/rounding.hpp"
#include "mistral/serving.hpp"
#include "mistral/sha256.hpp"
#include "mistral/source_card.hpp"
#include "nibble/host/parallel.hpp"
#include "nibble/version.hpp"
#include "pass/activations.hpp"
#include "pass/job.hpp"
#include "pass/phases.hpp"
#include "pass/plan.hpp"

namespace nibble::mistral {
namespace {

/// Seconds from which on a user should know before.
constexpr double worth_a_note = 300;

std::string safetensors_dtype(dtype type) {
  return type == dtype::f32 ? "F32" : type == dtype::f16 ? "F16" : "BF16";
}

std::string config_dtype(dtype type) {
  return type == dtype::f32 ? "float32" : type == dtype::f16 ? "float16" : "bfloat16";
}

void write_layer_rest(const job& j, index_t layer, const layer_weights& w, safetensors_writer& out) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".", type = safetensors_dtype(j.stored);
  write_floats(out, prefix + "input_layernorm.weight", w.input_norm, type);
  write_floats(out, prefix + "post_attention_layernorm.weight", w.post_norm, type);
  if (w.cache.k > 0) write_floats(out, prefix + "self_attn.k_scale", {w.cache.k}, type);
  if (w.cache.v > 0) write_floats(out, prefix + "self_attn.v_scale", {w.cache.v}, type);
  for (const projection p : projections) {
    if (j.o.how.of(projection_name(layer, p))) continue;
    const std::string name = projection_name(layer, p) + ".weight";
    write_tensor(out, name, j.files.at(name), type);
    j.files.release(j.files.at(name));
  }
}

/// f(name, tensor) of everything that belongs to no layer: embedding, last norm, head, and what the model has no use for.
template <class F>
void for_rest(const job& j, F&& f) {
  for (const auto& [name, t] : j.files.tensors()) {
    if (name.rfind("model.layers.", 0) == 0) continue;
    f(name, t);
    j.files.release(t);
  }
}

/// What write_rest would refuse, before hours are spent on layers.
void check_rest(const job& j) {
  for_rest(j, [&](const std::string& name, const tensor& t) {
    if (is_floating(t)) check_storable(name, t, safetensors_dtype(j.stored));
  });
}

/// What is no weight stays as it is.
void write_rest(const job& j, safetensors_writer& out) {
  for_rest(j, [&](const std::string& name, const tensor& t) {
    if (is_floating(t)) return write_tensor(out, name, t, safetensors_dtype(j.stored));
    out.add(name, t.dtype, t.shape, t.data, static_cast<std::uint64_t>(t.bytes));
  });
}

/// Bits a weight of the quantized linears takes, scales and zero points included.
double bits_per_weight(const job& j) {
  double bits = 0, weights = 0;
  for (index_t layer = 0; layer < j.model.layers; ++layer) {
    const layer_packing packings = j.packings(layer);
    for (const projection p : projections) {
      const auto& how = packings[static_cast<size_t>(p)];
      if (!how) continue;
      const index_t n = outputs(j.model, p), k = inputs(j.model, p);
      const group_shape g = {how->rows, how->group};
      const double scale =
          how->format == packed_format::compressed_tensors ? 8.0 * static_cast<double>(size_of(j.stored)) : 16.0;
      const double zero = how->format == packed_format::awq_gemv_fast ? 16
                          : how->symmetric && !is_gptq(how->format)   ? 0
                                                                      : how->bits;
      bits += static_cast<double>(n * k) * how->bits + static_cast<double>(g.down(n) * g.across(k)) * (scale + zero);
      if (is_gptq(how->format)) bits += 32.0 * static_cast<double>(k);
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

/// How far a run came: what run.cbor holds of it.
struct run_progress {
  resumable_run& run;
  nlohmann::json activations;  ///< of the last save_activations
  std::chrono::steady_clock::time_point saved = std::chrono::steady_clock::now();

  void save(const char* phase, const pass_result& r, safetensors_writer& writer, index_t layers) {
    nlohmann::json state = {{"phase", phase},
                            {"layers", nlohmann::ordered_json(r.layers).dump()},  // text keeps the order of members
                            {"seconds", {r.seconds.read, r.seconds.forward, r.seconds.search, r.seconds.write}},
                            {"output_bytes", r.output_bytes},
                            {"precisions", r.precisions},
                            {"activations", activations},
                            {"writer", writer.state()}};
    const auto done = static_cast<index_t>(r.layers.size());
    run.save(std::move(state), std::to_string(done) + " of " + std::to_string(layers) + " layers are");
  }
};

void restore(const nlohmann::json& state, pass_result& r) {
  for (auto& layer : nlohmann::ordered_json::parse(state.at("layers").get<std::string>()))
    r.layers.push_back(std::move(layer));
  const auto& seconds = state.at("seconds");
  r.seconds.read += seconds.at(0).get<double>(), r.seconds.forward = seconds.at(1);
  r.seconds.search = seconds.at(2), r.seconds.write = seconds.at(3);
  r.output_bytes = state.at("output_bytes");
  for (const auto& word : state.at("precisions")) r.precisions.insert(word.get<std::string>());
}

/// The GPU's, or the host's where there is none, or where one that nobody insisted on has too little memory.
std::unique_ptr<engine> make_engine(const job& j, pass_result& r) {
  std::unique_ptr<engine> on;
  try {
    if (j.on) on = gpu_engine(j, *j.on);
  } catch (const gpu_unusable& unusable) {
    if (j.o.backend.insists()) throw;
    tell(j.o, std::string(unusable.what()) + "; the CPU takes its place");
  }
  if (!on) on = host_engine(j);
  r.machine = on->name();
  if (const std::string note = precision_note(j.precision); !on->on_gpu() && !note.empty()) tell(j.o, note);
  r.precisions.insert(word_of(precision_choices, {on->on_gpu() ? host::matmul_precision::bfloat16 : j.precision}));
  return on;
}

/// An engine with the activations before layer `done`: those of an interrupted run where it saved them, and the original
/// layers' output from there on.
std::unique_ptr<engine> engine_at(const job& j, const std::filesystem::path& directory, index_t done,
                                  const nlohmann::json& saved, pass_result& r) {
  std::unique_ptr<engine> on;
  index_t layer = 0;
  {
    stopwatch watch(r.seconds.read);
    on = make_engine(j, r);
    std::vector<float> x(saved.is_null() ? 0 : j.activations());
    if (!saved.is_null() && load_activations(x, directory, saved)) {
      on->set(std::move(x));
      layer = saved.at("layer");
    } else if (!saved.is_null() && j.o.propagate == propagation::quantized) {
      throw damaged_run((directory / saved.at("file")).string() + " is damaged, and the run cannot go on without it");
    } else {
      on->embed();
    }
  }
  if (layer == done) return on;
  stopwatch watch(r.seconds.forward);
  progress bar("catching up", done);
  for (; layer < done; ++layer) {
    on->forward(layer);
    bar.at(layer + 1);
  }
  return on;
}

/// fp8 scales of the keys and values that a layer makes of the calibration tokens, as they are stored.
/// @param of_v  what v's rows were divided by since these were seen; null for 1
cache_scales scales_of_cache(const job& j, const cache_maxima& largest, const float* of_v) {
  float k = 0, v = 0;
  for (size_t i = 0; i < largest.k.size(); ++i) {
    k = std::max(k, largest.k[i]);
    v = std::max(v, of_v ? largest.v[i] / of_v[i] : largest.v[i]);
  }
  return {input_scale(k, code_type::e4m3, j.stored), input_scale(v, code_type::e4m3, j.stored)};
}

void check_gathered(const job& j, index_t layer, const engine& on) {
  if (on.non_finite() > 0)
    throw unusable_model(j.o.model + ": layer " + std::to_string(layer) +
                         " turns the calibration text into NaN or infinity: " + cause_of_nan(j.files) +
                         "; check the checkpoint");
}

void note_memory(const job& j, const engine& on, pass_result& r) {
  if (on.on_gpu()) r.gpu_bytes = std::max(r.gpu_bytes, j.on->free_bytes - std::min(j.on->free_bytes, gpu_free_bytes()));
}

/// Statistics, search and codes of a layer; w becomes what the checkpoint will hold.
void search_whole(const layer_task& task, const job& j, index_t layer, layer_weights& w, const linear_sink& sink,
                  layer_report& report, pass_result& r) {
  engine& on = task.on;
  const bool again = j.o.propagate == propagation::quantized;
  {
    stopwatch watch(r.seconds.forward);
    on.gather(layer, w, again);
  }
  check_gathered(j, layer, on);
  const auto quantizer = quantizer_of(task, w, sink, report);
  {
    stopwatch watch(r.seconds.search);
    quantizer->search({layer_inputs.begin(), layer_inputs.end()});
    quantizer->round({layer_inputs.begin(), layer_inputs.end()});
  }
  note_memory(j, on, r);
  if (j.o.cache_rounded) w.cache = scales_of_cache(j, on.largest_cached(), quantizer->divided(projection::v));
  on.forget();
  if (again) {
    stopwatch watch(r.seconds.forward);
    on.forward(w, layer_part::whole);
  }
}

/// The same of a half of it, in two steps: the linears that read the residual stream, then the one that reads what these, quantized, give it.
void search_half(const layer_task& task, const job& j, index_t layer, layer_part half, layer_weights& w,
                 const linear_sink& sink, layer_report& report, pass_result& r) {
  engine& on = task.on;
  const layer_input first = first_input(half), last = last_input(half);
  const bool scaled = j.o.scaled();
  const auto quantizer = quantizer_of(task, w, sink, report);
  const auto gather = [&](half_inputs seen, index_t room) {
    {
      stopwatch watch(r.seconds.forward);
      on.gather_half(layer, w, half, seen, room);
    }
    check_gathered(j, layer, on);
  };
  gather(scaled ? half_inputs::both : half_inputs::first, 0);
  {
    stopwatch watch(r.seconds.search);
    quantizer->search(scaled ? std::vector{first, last} : std::vector{first});
    quantizer->round({first});
  }
  note_memory(j, on, r);
  on.forget();
  const bool caches = j.o.cache_rounded && half == layer_part::attention;
  quantizer->with_rows_undivided(
      half, [&] { gather(half_inputs::last, caches || quantizer->divides_rows(half) ? 0 : kept_bytes); });
  {
    stopwatch watch(r.seconds.search);
    if (!scaled) quantizer->search({last});
    quantizer->round({last});
  }
  note_memory(j, on, r);
  if (caches) w.cache = scales_of_cache(j, on.largest_cached(), quantizer->divided(projection::v));
  on.forget();
  stopwatch watch(r.seconds.forward);
  on.forward(w, half);
}

/// Statistics, search and codes of one layer; w becomes what the checkpoint will hold. @returns what the bar shows.
std::string search_layer(const job& j, index_t layer, layer_weights& w, engine& on, const linear_sink& sink,
                         pass_result& r) {
  layer_report report;
  const layer_task task{j.model, j.o, j.packings(layer), j.stored, on};
  if (j.o.by_halves()) {
    search_half(task, j, layer, layer_part::attention, w, sink, report, r);
    search_half(task, j, layer, layer_part::mlp, w, sink, report, r);
  } else {
    search_whole(task, j, layer, w, sink, report, r);
  }
  r.phases = on.times();
  r.layers.push_back(to_json(report, true));
  return loss_note(report);
}

void quantize_layers(const job& j, const std::filesystem::path& directory, safetensors_writer& writer,
                     run_progress& saved, pass_result& r) {
  const bool needed = j.o.propagate == propagation::quantized;
  /// The original model's activations can be computed again, which takes about as long as reading a layer.
  const std::chrono::duration<double> worth_saving =
      needed ? worth_saving_after(sizeof(float) * static_cast<double>(j.activations())) : std::chrono::seconds(30);
  const auto done = static_cast<index_t>(r.layers.size());
  if (done == j.model.layers) return;
  std::unique_ptr<engine> on;
  if (j.o.calibrated()) on = engine_at(j, directory, done, saved.activations, r);
  progress bar("quantizing", j.model.layers);
  for (index_t layer = done; layer < j.model.layers; ++layer) {
    layer_weights w;
    {
      stopwatch watch(r.seconds.read);
      w = j.load_layer(layer);
      j.check_finite(layer, w);
    }
    const layer_packing how = j.packings(layer);
    const double written = r.seconds.write;
    const linear_sink sink = [&](projection p, const quantized_linear& q) {
      stopwatch watch(r.seconds.write);
      write_packed(writer, projection_name(layer, p), q, *how[static_cast<size_t>(p)], j.stored);
    };
    std::string note;
    if (on) {
      note = search_layer(j, layer, w, *on, sink, r);
    } else {
      stopwatch watch(r.seconds.search);
      r.layers.push_back(to_json(round_reported(j.model, how, j.stored, w, sink), false));
    }
    r.seconds.search -= r.seconds.write - written;
    stopwatch watch(r.seconds.write);
    write_layer_rest(j, layer, w, writer);
    const auto now = std::chrono::steady_clock::now();
    const bool worth = on && now - saved.saved > worth_saving;
    if (worth) {
      saved.activations = save_activations(on->get(), directory, layer + 1);
      saved.saved = now;
    }
    // Without the activations that quantized layers give, a run goes on from where they were saved last.
    if (!on || worth || !needed) saved.save("layers", r, writer, j.model.layers);
    if (worth) forget_activations(directory, saved.activations);
    bar.at(layer + 1, note);
  }
}

/// Largest |x| of a layer's inputs that calibration saw, of to_json(layer_report); 0 where nobody looked.
std::array<float, 4> largest_inputs(const nlohmann::ordered_json& layer) {
  std::array<float, 4> largest{};
  for (const layer_input input : layer_inputs)
    if (layer.contains("activations"))
      largest[static_cast<size_t>(input)] = layer["activations"].at(name_of(input)).value("largest", 0.0f);
  return largest;
}

/// The linears of an original layer, rounded to nearest.
layer_linears round_resident(const job& j, index_t layer, const pass_result& r) {
  layer_weights w = load_layer(j.files, j.model, layer);
  const layer_packing how = j.packings(layer);
  layer_linears out;
  round_layer(
      j.model, how, j.stored, w,
      [&](projection p, const quantized_linear& q) {
        const packing& packed = *how[static_cast<size_t>(p)];
        out[static_cast<size_t>(p)] = is_coded(packed) ? resident_of(q, packed, j.stored)
                                                       : pack_resident(q.code_matrix(), q.param_matrix(), packed.bits,
                                                                       packed.group, packed.symmetric, j.stored);
      },
      largest_inputs(r.layers[static_cast<size_t>(layer)]));
  return out;
}

/// Every model answers the questions; progress is told twenty times at most.
void answer_all(const job& j, const checkpoint& quantized, const config& quantized_config, pass_result& r) {
  r.questions = j.text.questions;
  const auto each = static_cast<index_t>(r.questions.size()), all = each * static_cast<index_t>(r.evaluations.size());
  progress bar("answering", all, "prompt");
  const auto stop = stop_ids(j.o.model, j.model);
  const auto ask = [&](decoder model) {
    const index_t before = each * static_cast<index_t>(r.answered.size());
    r.answered.push_back(answer_questions(model, *j.tok, r.questions, stop, [&](index_t done) {
      if ((before + done) * 20 / all != (before + done - 1) * 20 / all) bar.at(before + done);
    }));
  };
  ask({j.files, j.model});
  if (j.o.calibrated()) ask({j.files, j.model, [&](index_t layer) { return round_resident(j, layer, r); }});
  ask({quantized, quantized_config});
}

void evaluate_all(const job& j, const std::filesystem::path& output, pass_result& r) {
  stopwatch watch(r.seconds.evaluate);
  const config quantized_config = read_config(output);
  const checkpoint quantized(output);
  const auto rounded = [&](index_t layer) {
    layer_weights w = load_layer(j.files, j.model, layer);
    stopwatch rtn(r.rtn_seconds);
    round_layer(j.model, j.packings(layer), j.stored, w, nullptr, largest_inputs(r.layers[static_cast<size_t>(layer)]));
    return w;
  };
  std::vector<evaluated_model> models = {{j.files, j.model, nullptr}};
  if (j.o.calibrated()) models.push_back({j.files, j.model, rounded});
  models.push_back({quantized, quantized_config, nullptr});
  std::optional<progress> bar;
  const auto report = [&](index_t done, index_t all) {
    if (!bar) bar.emplace("evaluating", all);
    bar->at(done);
  };
  r.evaluations = evaluate_on(j.on, j.o.backend, models, j.text.ids, j.windows, report,
                              std::max<index_t>(index_t(64) << 20, r.calibration_tokens * j.model.hidden * 4),
                              [&](const std::string& note) { tell(j.o, note); });
  if (!j.text.questions.empty()) answer_all(j, quantized, quantized_config, r);
}

/// Everything the weights depend on but the machine, whose BLAS rounds as its instructions do.
nlohmann::ordered_json key_of(const job& j) {
  nlohmann::ordered_json key = {{"nibble", NIBBLE_VERSION}, {"options", options_json(j.o)}};
  for (const char* place : {"model", "output", "calibration", "recipe"}) key["options"].erase(place);
  key["options"]["max_shard_bytes"] = j.o.max_shard_bytes;
  if (j.o.calibrated()) key["solver_revision"] = 3;  // raised when the same options begin to give other codes
  key["model"] = identity_of(j.o.model, j.files);
  if (j.o.calibrated()) key["calibration"] = sha256_of_file(j.o.calibration);
  return key;
}

safetensors_writer open_writer(const job& j, const std::filesystem::path& directory, const nlohmann::json& state) {
  if (state.is_null()) return {directory, j.o.max_shard_bytes};
  try {
    return {directory, j.o.max_shard_bytes, state.at("writer")};
  } catch (const error& failed) {
    throw damaged_run(failed.what());
  }
}

/// A run that goes on from here would write the same again.
void check_written(const safetensors_writer& writer) {
  try {
    writer.check();
  } catch (const error& failed) {
    throw damaged_run(failed.what());
  }
}

/// What would have llm-compressor do the like. It has no group-aware order: the nearest to it is its own.
recipe recipe_of(const job& j) {
  const pass_options& o = j.o;
  recipe r;
  r.awq = o.scales_searched(), r.gptq = o.solved();
  r.duo_scaling = word_of(duo_choices, o.duo), r.grid = o.grid;
  r.dampening = std::stod(std::to_string(o.damping));  // 0.01, not the float next to it
  r.actorder = o.order == activation_order::none         ? "none"
               : o.order == activation_order::descending ? "group"
                                                         : "static";
  r.rounds_cache = o.cache_rounded;
  r.groups = o.how.groups(), r.ignore = o.ignore;
  r.smooth = o.smoothed() && o.strength.any();
  if (o.strength.fixed) r.strength = std::stod(to_string(o.strength));
  r.smooth_up = r.smooth && o.smoothed_inputs != smoothing::norms;
  r.smooth_v = r.smooth && o.smoothed_inputs == smoothing::all && j.model.kv_heads == j.model.heads;
  return r;
}

/// All files of the checkpoint but its model card, checked.
void write_checkpoint(const job& j, const std::filesystem::path& directory, resumable_run& run, pass_result& r) {
  safetensors_writer writer = open_writer(j, directory, run.state());
  run_progress saved{run, run.state().is_null() ? nlohmann::json() : run.state().at("activations")};
  quantize_layers(j, directory, writer, saved, r);
  stopwatch watch(r.seconds.write);
  write_rest(j, writer);
  r.output_bytes = writer.finish();
  write_config(directory, j.model, config_dtype(j.stored), quantization_json(j.o.how, j.linears()));
  write_recipe(directory, recipe_of(j));
  copy_sidecars(j.o.model, directory);
  check_written(writer);
  saved.save("written", r, writer, j.model.layers);
}

pass_result run_pass(const job& j, output_directory& out, resumable_run& run) {
  pass_result r;
  r.seconds.read = j.read_seconds;
  r.calibration_sequences = static_cast<index_t>(j.samples.sequences.size());
  r.followed_sequences = j.followed;
  r.calibration_tokens = j.samples.tokens();
  r.shared_with_calibration = j.findings.shared;
  r.measured = j.measured;
  r.baseline = j.baseline;
  if (!run.state().is_null()) {
    restore(run.state(), r);
    std::fprintf(stderr, "going on with what an interrupted run left in %s: %zu of %lld layers\n", out.path().c_str(),
                 r.layers.size(), static_cast<long long>(j.model.layers));
  }
  if (run.state().is_null() || run.state().at("phase") != "written") write_checkpoint(j, out.path(), run, r);
  discard_unfinished(out.path());
  forget_activations(out.path());
  for (const auto& [name, t] : j.files.tensors()) r.original_bytes += static_cast<std::uint64_t>(t.bytes);
  r.bits_per_weight = bits_per_weight(j);
  r.peak_bytes = peak_resident_bytes();
  if (!j.o.evaluate.empty()) evaluate_all(j, out.path(), r);
  if (j.o.calibrated()) r.calibration_sha256 = sha256_of_file(j.o.calibration);
  r.source = describe_source(j.o.model, j.model);
  r.serving = serving_json(j.model, [&](const std::string& name) { return j.o.how.of(name); });
  write_file(out.path() / "README.md", model_card(to_json(j.o, r)));
  out.commit();
  run.end();
  return r;
}

}  // namespace

std::string plan_of(const pass_options& o) {
  check_output(o.output, o.model, o.overwrite);  // before anything long is read
  const job j(o);
  j.warn();
  const plan p = plan_run(j);
  check_room(p, j);
  check_rest(j);  // last, as it reads
  return to_text(p, j);
}

pass_result run_pass(const pass_options& o) {
  check_output(o.output, o.model, o.overwrite);  // before anything long is read
  const job j(o);
  j.warn();
  const plan p = plan_run(j);
  check_room(p, j);
  if (p.gpu_bytes == 0 && p.quantization_seconds > worth_a_note)
    tell(o, "this takes about " + duration_text(p.quantization_seconds) + " on " + std::to_string(host::pool().size()) +
                " threads; --dry-run tells more");
  output_directory out(o.output, o.model, o.overwrite);
  resumable_run run(out, key_of(j), o.restart);
  const bool going_on = !run.state().is_null();
  try {
    if (!going_on) check_rest(j);
    return run_pass(j, out, run);
  } catch (const unusable_model&) {
    run.forget();
    throw;
  } catch (const damaged_run&) {
    throw;
  } catch (const nlohmann::json::exception&) {
    if (!going_on) throw;
    throw damaged_run((out.path() / resume_file).string() + " does not tell what an interrupted run left");
  } catch (const error& failed) {
    throw error(failed.what() + run.advice());
  } catch (const std::bad_alloc&) {
    throw error("there is not enough memory" + run.advice());
  }
}

}  // namespace nibble::mistral
