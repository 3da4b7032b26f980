// SPDX-License-Identifier: Apache-2.0
#include "pass/plan.hpp"

#include <sys/statvfs.h>

#include <chrono>
#include <cstdio>
#include <map>

#include "mistral/error.hpp"
#include "mistral/generation.hpp"
#include "mistral/machine.hpp"
#include "mistral/progress.hpp"
#include "nibble/host/matmul.hpp"
#include "nibble/host/output_loss.hpp"
#include "pass/judged_rows.hpp"

namespace nibble::mistral {
namespace {

/// Share of a plain product's rate that the pass's products reach, and seconds that a thread takes for an activation between them, which
/// where products take least are most of the time (docs/awq_mistral.md).
constexpr double efficiency = 0.7, between = 1.6e-9;
/// Seconds that a thread takes to find a weight's range among those of ends_search and to round it.
constexpr double fit_and_round = 12e-9;
/// Rounds of clip_under_gram, in products (n, g) · (g, g) a group.
constexpr double range_candidates = 66;

/// What the changes of a sweep take of a product of all, and rows of a group whose parameters a round changes (docs/gptq.md).
constexpr double few_changes = 0.15, refitted_rows = 0.55;

/// Products of the sample that SmoothQuant's search, and judging what came of it, take for a linear.
constexpr double smoothing_losses = 17;

/// FLOP/s of products on all threads, the best of a few runs.
double product_rate(host::matmul_precision precision) {
  constexpr index_t side = 512;
  const index_t tiles = 2 * host::pool().size();
  std::vector<float> a(static_cast<size_t>(side * side), 1.0f), out(static_cast<size_t>(tiles * side * side));
  const matrix<const float> in(a.data(), side, side);
  host::detail::single_threaded_blas();
  double best = 0;
  for (int run = 0; run < 4; ++run) {
    const auto start = std::chrono::steady_clock::now();
    host::parallel_for(tiles, [&](index_t tile) {
      host::detail::multiply_nt(in, in, matrix<float>(out.data() + tile * side * side, side, side), precision);
    });
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    best = std::max(best, 2.0 * static_cast<double>(tiles * side * side * side) / spent.count());
  }
  return best;
}

/// Operations of the matrix products of one layer.
struct products {
  const job& j;
  double tokens, sequence;

  double of_forward() const {
    double weights = 0;
    for (const projection p : projections) weights += static_cast<double>(outputs(j.model, p) * inputs(j.model, p));
    return tokens * (2 * weights + 2 * sequence * static_cast<double>(j.model.q_width()));
  }
  /// Where a layer is quantized half by half, as often as the quantized model's tokens go through it: up to o and down for what these read,
  /// once more where scales are searched, and through them, again from the half's beginning but for what was kept.
  double of_halves() const {
    const double all = of_forward();
    const auto tail = 2 * tokens * static_cast<double>(j.model.hidden * (j.model.q_width() + j.model.intermediate));
    const double kept =
        std::min(1.0, static_cast<double>(kept_bytes) / (4 * tokens * static_cast<double>(j.model.intermediate)));
    return (all - tail) * (j.o.scaled() ? 3 : 2 - kept) + tail;
  }
  double of_forwards() const {
    const auto followed = static_cast<double>(j.followed_tokens());
    const double own = j.o.by_halves() ? of_halves() : of_forward() * (j.o.propagate == propagation::quantized ? 2 : 1);
    return own + of_forward() * followed / tokens;
  }
  /// Activations and scores that forward passes make of tokens, `operations` in all.
  double made_by(double operations) const {
    const config& c = j.model;
    const auto width = static_cast<double>(4 * c.hidden + 2 * (c.q_width() + 2 * c.kv_width()) + 3 * c.intermediate);
    return operations / of_forward() * tokens * (width + static_cast<double>(c.heads) * sequence / 2);
  }
  /// Forward, and the Gram matrices of the four inputs where there are tokens enough to need them.
  double of_statistics() const {
    double gram = 0;
    for (const projection p : {projection::q, projection::o, projection::gate, projection::down}) {
      const auto k = static_cast<double>(inputs(j.model, p));
      if (j.o.correlations_seen() && (tokens >= k || j.o.solved())) gram += tokens * k * k;
    }
    const auto followed = static_cast<double>(j.followed_tokens());
    const double joined =
        j.o.residual_followed() ? 2 * followed * static_cast<double>(j.model.hidden * j.model.intermediate) : 0;
    return of_forwards() + gram * (1 + 2 * followed / tokens) + joined;
  }
  /// GPTQ's codes of some rows and their loss; and a factor, which linears that read one input share.
  double of_judging(projection p) const {
    const auto n = static_cast<double>(outputs(j.model, p)), k = static_cast<double>(inputs(j.model, p));
    const bool first = p == projection::q || p == projection::o || p == projection::gate || p == projection::down;
    return (first ? k * k * k / 3 : 0) + 3 * n * k * k / static_cast<double>(judged_rows::apart(outputs(j.model, p)));
  }
  /// Of a search: those that only choose, which are taken as statistics are, and those of floats.
  struct searched {
    double choosing = 0, floats = 0;
  };
  /// Candidates, ranges, sweeps and the losses that are reported.
  searched of_search(const layer_packing& how) const {
    const bool block = j.o.blocks_judged();
    searched all;
    for (const projection p : projections) {
      const auto& packed = how[static_cast<size_t>(p)];
      if (!packed) continue;
      const auto n = static_cast<double>(outputs(j.model, p)), k = static_cast<double>(inputs(j.model, p));
      const bool gram = tokens >= k;
      const double product = 2 * n * k * std::min(k, tokens);
      double& judged = gram ? all.choosing : all.floats;
      const double loss = gram ? product / 2 : product;  // a Gram matrix is symmetric
      const bool scaled = j.o.scales_searched() && (p != projection::o || j.model.kv_heads == j.model.heads);
      const bool by_block = block && p != projection::o && p != projection::down;
      if (scaled && !by_block) (j.o.solved() ? all.floats : judged) += j.o.grid * (j.o.solved() ? of_judging(p) : loss);
      if (j.o.clip == clip_search::gram)
        all.choosing +=
            range_candidates * 2 * n * k * std::min(packed->group > 0 ? static_cast<double>(packed->group) : k, tokens);
      if (j.o.smoothed())
        all.floats += smoothing_losses * 2 * n * k * std::min(static_cast<double>(smoothing_tokens), tokens);
      // What rounding to nearest would lose, and what the codes do unless sweeps have kept their products.
      judged += loss * (j.o.sweeps > 0 && j.o.solved() ? 1 : 2);
      const double round = (gram ? few_changes : 2) + (j.o.solved() ? refitted_rows * (gram ? 1 : 2) : 0);
      if (j.o.sweeps > 0) all.floats += product * (1 + j.o.sweeps * round);
      const bool first = p == projection::q || p == projection::gate || is_last(input_of(p));
      if (j.o.solved()) all.floats += (first ? k * k * k / 3 : 0) + n * k * k;
      if (j.o.solved() && j.o.drift_followed())
        all.floats += is_last(input_of(p)) ? 4 * n * k * k : 2 * n * k * k + (first ? 2 * k * k * k : 0);
    }
    return all;
  }
  /// Weights that candidates are fitted and rounded for.
  double fitted(const layer_packing& how) const {
    if (!j.o.scales_searched() || j.o.solved() || j.o.blocks_judged()) return 0;
    double all = 0;
    for (const projection p : projections)
      if (how[static_cast<size_t>(p)] && (p != projection::o || j.model.kv_heads == j.model.heads))
        all += j.o.grid * static_cast<double>(outputs(j.model, p) * inputs(j.model, p));
    return all;
  }
  /// Forward passes of both blocks on a sample, for each candidate.
  double of_blocks() const {
    if (!j.o.blocks_judged()) return 0;
    return 2 * j.o.grid * of_forward() / tokens * std::min(tokens, static_cast<double>(block_loss_tokens));
  }
};

std::string dtype_name(dtype type) {
  return type == dtype::f32 ? "F32" : type == dtype::f16 ? "F16" : "BF16";
}

/// "0-3, 5"
std::string ranges_of(const std::vector<index_t>& sorted) {
  std::string text;
  for (size_t i = 0; i < sorted.size();) {
    size_t last = i;
    while (last + 1 < sorted.size() && sorted[last + 1] == sorted[last] + 1) ++last;
    text += (text.empty() ? "" : ", ") + std::to_string(sorted[i]);
    if (last > i) text += "-" + std::to_string(sorted[last]);
    i = last + 1;
  }
  return text;
}

void add_linears(const job& j, plan& out) {
  struct alike {
    std::vector<index_t> layers;
    std::optional<packing> how;
  };
  for (const projection p : projections) {
    std::vector<alike> kinds;
    for (index_t layer = 0; layer < j.model.layers; ++layer) {
      const auto how = j.packings(layer)[static_cast<size_t>(p)];
      auto at = std::find_if(kinds.begin(), kinds.end(), [&](const alike& each) { return each.how == how; });
      if (at == kinds.end()) at = kinds.insert(at, {{}, how});
      at->layers.push_back(layer);
    }
    const index_t n = outputs(j.model, p), k = inputs(j.model, p);
    const std::string full = projection_name(0, p);
    for (const alike& kind : kinds) {
      const auto count = static_cast<index_t>(kind.layers.size());
      const std::uint64_t each =
          kind.how ? packed_bytes(n, k, *kind.how, j.stored) : static_cast<std::uint64_t>(n * k * size_of(j.stored));
      out.rows.push_back({full.substr(std::string("model.layers.0.").size()), ranges_of(kind.layers), n, k, count,
                          kind.how ? to_string(*kind.how) : "stays " + dtype_name(j.stored),
                          each * static_cast<std::uint64_t>(count)});
    }
  }
}

void add_rest(const job& j, plan& out) {
  std::uint64_t norms = 0;
  index_t count = 0;
  for (const auto& [name, t] : j.files.tensors()) {
    const auto bytes = static_cast<std::uint64_t>(t.size() * size_of(j.stored));
    if (t.shape.size() == 2 && name.rfind("model.layers.", 0) != 0)
      out.rows.push_back({name.substr(0, name.rfind(".weight")), "", t.shape[0], t.shape[1], 1,
                          "stays " + dtype_name(j.stored), bytes});
    if (t.shape.size() != 1) continue;
    norms += bytes;
    ++count;
  }
  if (j.o.cache_rounded) {  // two more numbers a layer
    norms += static_cast<std::uint64_t>(2 * j.model.layers * size_of(j.stored));
    count += 2 * j.model.layers;
  }
  out.rows.push_back({j.o.cache_rounded ? "norms, cache scales" : "norms", "", j.model.hidden, 0, count,
                      "stay " + dtype_name(j.stored), norms});
}

std::uint64_t activation_bytes(const job& j) {
  return static_cast<std::uint64_t>(j.activations()) * sizeof(float);
}

/// The samples that SmoothQuant looks at, one of them scaled, and the outputs of gate and up on it.
std::uint64_t sample_bytes(const job& j) {
  index_t channels = 0, most = 0;
  for (const layer_input input : layer_inputs)
    channels += width(j.model, input), most = max(most, width(j.model, input));
  const index_t tokens = min(2 * smoothing_tokens, j.samples.tokens());
  return static_cast<std::uint64_t>(4 * tokens * (channels + most + 2 * j.model.intermediate));
}

/// What changes of a half of a layer before its last linear is quantized, as it was, for the original's activations.
std::uint64_t remembered_bytes(const job& j, layer_part half) {
  if (!j.o.drift_followed()) return 0;
  index_t elements = 0;
  for (const projection p : projections)
    if (belongs(input_of(p), half) && (j.o.scaled() || p != last_linear(half)))
      elements += outputs(j.model, p) * inputs(j.model, p);
  return static_cast<std::uint64_t>(4 * elements);
}

/// What products and statistics read, packed in bfloat16, perhaps twice for those that read both sides of it; tokens that are compared with the
/// original's, as floats.
std::uint64_t packed_bytes(const job& j) {
  constexpr index_t tokens = 512;
  const index_t widest = max(j.model.intermediate, max(j.model.q_width(), j.model.hidden));
  index_t bytes = 0;
  if (j.precision == host::matmul_precision::bfloat16) bytes += tokens * 2 * widest * (j.o.drift_followed() ? 6 : 3);
  if (j.o.drift_followed()) bytes += tokens * 4 * (2 * widest + j.model.hidden);
  return static_cast<std::uint64_t>(bytes);
}

/// What each thread packs of a tile of rows: rounded to bfloat16, and where sweeps split them what that leaves, which is also there as floats.
std::uint64_t tile_bytes(const job& j) {
  if (j.precision != host::matmul_precision::bfloat16) return 0;
  const bool split = host::detail::splitting_pays() && j.o.solved() && j.o.sweeps > 0;
  const index_t widest = max(j.model.intermediate, max(j.model.q_width(), j.model.hidden));
  return static_cast<std::uint64_t>(host::pool().size() * host::detail::loss_rows * widest * (split ? 10 : 2));
}

/// What was measured to be resident at the worst moment, tensor by tensor (docs/awq_mistral.md).
std::uint64_t memory_needed(const job& j, bool on_gpu) {
  std::uint64_t layer = 0, largest = 0, grams = 0, before = 0, before_solver = 0, sums = 0, solvers = 0;
  for (const projection p : projections) {
    const auto size = static_cast<std::uint64_t>(outputs(j.model, p) * inputs(j.model, p));
    layer += 4 * size;
    largest = std::max(largest, size);
  }
  if (j.o.calibrated() && !on_gpu)
    for (const projection p : {projection::q, projection::o, projection::gate, projection::down}) {
      const auto k = static_cast<std::uint64_t>(inputs(j.model, p));
      const index_t seen = j.o.correlations_seen() ? j.samples.tokens() : min(j.samples.tokens(), 2 * smoothing_tokens);
      std::uint64_t moment = 4 * k * std::min(k, static_cast<std::uint64_t>(seen));
      // The same in bfloat16, and what that leaves.
      if (j.precision == host::matmul_precision::bfloat16 && static_cast<std::uint64_t>(seen) >= k)
        moment += 2 * k * k * (host::detail::splitting_pays() && j.o.solved() && j.o.sweeps > 0 ? 2 : 1);
      std::uint64_t own = moment;
      if (j.o.drift_followed()) own += 4 * k * k;
      if (j.o.residual_followed() && p == projection::down) own += 4 * k * static_cast<std::uint64_t>(j.model.hidden);
      // The factor; the Gram matrix where there are tokens instead, or the drift in the order of the factor.
      std::uint64_t solver = j.o.solved() ? 4 * 2 * k * k : 0;
      if (j.o.solved() && j.o.order == activation_order::descending) solver += moment;  // its statistics in that order
      if (!j.o.by_halves()) {
        sums += own, solvers = std::max(solvers, solver);
        grams = sums + solvers;
        continue;
      }
      // An input's are gone before the next one's are there, but that scales are found under both of a half.
      const bool last = is_last(input_of(p));
      const std::uint64_t was =
          remembered_bytes(j, p == projection::q || p == projection::o ? layer_part::attention : layer_part::mlp);
      grams = std::max({grams, own + (last ? std::max(solver, was) : solver + was),
                        last && j.o.scaled() ? before + moment + std::max(before_solver, solver) + was : 0});
      before = own, before_solver = solver;
    }
  if (j.o.by_halves() && !on_gpu)
    grams += static_cast<std::uint64_t>(
        min(kept_bytes, 4 * j.samples.tokens() * max(j.model.q_width(), j.model.intermediate)));
  if (j.o.by_halves() && j.o.scaled()) grams += 4 * largest;  // rows that are put back for a moment
  if (j.o.solved() && !on_gpu)
    grams += 5 * largest;  // a linear's target, or its columns in order, and codes a byte each
  if (j.o.smoothed() && !on_gpu) grams += sample_bytes(j);
  if (j.o.drift_followed() && !on_gpu) grams += std::uint64_t(16) << 20;  // what is kept of the original's chunk
  if (j.o.calibrated() && !on_gpu) grams += packed_bytes(j) + tile_bytes(j);
  // What attention and MLP read and gave; of linears that are rounded on trial, copies have the room of 2 largest.
  if (!on_gpu) grams += static_cast<std::uint64_t>(16 * j.judged_tokens() * j.model.hidden);
  const std::uint64_t rest = static_cast<std::uint64_t>(j.model.vocabulary * j.model.hidden * size_of(j.stored));
  return std::max(rest, layer + 2 * largest + grams + 2 * activation_bytes(j)) +
         (std::uint64_t(on_gpu ? 128 : 64) << 20);  // pinned buffers
}

/// Answering holds the whole original as it is stored, and keys and values of the prompts that are decoded together.
std::uint64_t answering_memory(const job& j) {
  index_t longest = 0, weights = 0;
  for (const question& q : j.text.questions) longest = max(longest, static_cast<index_t>(q.ids.size()) + answer_tokens);
  if (longest == 0) return 0;
  for (const auto& [name, t] : j.files.tensors()) weights += t.bytes;
  const index_t together = min(generation_options{}.batch, static_cast<index_t>(j.text.questions.size()));
  const index_t cached = 2 * together * longest * j.model.layers * j.model.kv_heads * j.model.head_dim;
  return static_cast<std::uint64_t>(weights + cached * static_cast<index_t>(sizeof(float)));
}

std::filesystem::path directory_of(const job& j) {
  const auto parent = std::filesystem::absolute(j.o.output).lexically_normal().parent_path();
  return parent.empty() ? "." : parent;
}

/// What lies in OUTPUT.partial already.
std::uint64_t left_bytes(const job& j) {
  std::uint64_t bytes = 0;
  std::error_code failed;
  auto partial = std::filesystem::absolute(j.o.output).lexically_normal();
  partial += ".partial";
  for (const auto& entry : std::filesystem::directory_iterator(partial, failed))
    bytes += entry.is_regular_file(failed) ? entry.file_size(failed) : 0;
  return bytes;
}

}  // namespace

plan plan_run(const job& j) {
  plan out;
  add_linears(j, out);
  add_rest(j, out);
  for (const auto& [name, t] : j.files.tensors()) out.original_bytes += static_cast<std::uint64_t>(t.bytes);
  for (const plan_row& each : out.rows) out.output_bytes += each.bytes;
  // A shard is copied when its header does not fit its room, and two states' activations are kept for a moment.
  const std::uint64_t copied = std::min(out.output_bytes, std::uint64_t(512) << 20);
  const std::uint64_t needed = out.output_bytes + copied + (j.o.calibrated() ? 2 * activation_bytes(j) : 0);
  out.disk_bytes = needed - std::min(needed, left_bytes(j));
  struct statvfs disk = {};
  if (::statvfs(directory_of(j).c_str(), &disk) == 0) out.free_bytes = std::uint64_t(disk.f_bavail) * disk.f_frsize;
  out.machine_bytes = available_bytes();
  if (j.on && j.o.calibrated()) {
    try {
      out.gpu_bytes = gpu_memory(j, *j.on);
    } catch (const gpu_unusable&) {
      if (j.o.backend.insists()) throw;  // the run takes the CPU, and says why
    }
  }
  out.memory_bytes = std::max(memory_needed(j, out.gpu_bytes > 0), answering_memory(j));

  const double rate = efficiency * product_rate(host::matmul_precision::float32);
  const bool rounded = j.o.calibrated() && !j.on && j.precision == host::matmul_precision::bfloat16;
  const double calibration_rate = rounded ? efficiency * product_rate(j.precision) : rate;
  const auto tokens = static_cast<double>(j.samples.tokens());
  const products p{j, tokens, tokens / std::max<double>(1, static_cast<double>(j.samples.sequences.size()))};
  double seconds = 0, weights = 0;
  for (index_t layer = 0; layer < j.model.layers; ++layer)
    if (j.o.calibrated())
      seconds += (p.of_statistics() + p.of_blocks() + p.of_search(j.packings(layer)).choosing) / calibration_rate +
                 p.of_search(j.packings(layer)).floats / rate +
                 (p.made_by(p.of_forwards() + p.of_blocks()) * between + p.fitted(j.packings(layer)) * fit_and_round) /
                     host::pool().size();
  for (const auto& [name, t] : j.files.tensors()) weights += static_cast<double>(t.size());
  constexpr double read_and_pack =
      20e-9;  // seconds a weight on one thread: convert, fit, round, pack, write, read back
  out.quantization_seconds = seconds + weights * read_and_pack / host::pool().size();
  const products evaluated{j, static_cast<double>(j.text.ids.size()), 1024};
  if (!j.o.evaluate.empty()) {
    const double head = 2 * static_cast<double>(j.model.vocabulary * j.model.hidden) * evaluated.tokens;
    const int models = j.o.calibrated() ? 3 : 2;
    // Windows overlap by half: each token is read twice.
    const double operations = 2 * evaluated.of_forward() * static_cast<double>(j.model.layers);
    out.evaluation_seconds =
        models * ((operations + head) / rate + evaluated.made_by(operations) * between / host::pool().size());
  }
  return out;
}

void check_room(const plan& p, const job& j) {
  if (p.free_bytes == 0 || p.free_bytes >= p.disk_bytes) return;
  throw error("the disk of " + directory_of(j).string() + " has " + size_text(static_cast<double>(p.free_bytes)) +
              " free, and this run needs " + size_text(static_cast<double>(p.disk_bytes)) +
              "; free some, or choose another --output");
}

std::string to_text(const plan& p, const job& j) {
  std::string out;
  char line[256];
  const auto add = [&](const char* format, auto... values) {
    std::snprintf(line, sizeof(line), format, values...);
    out += line;
  };
  add("%-22s %-12s %15s %6s %9s  %s\n", "", "layers", "outputs x inputs", "count", "size", "how");
  for (const plan_row& row : p.rows) {
    const std::string shape =
        std::to_string(row.outputs) + (row.inputs > 0 ? " x " + std::to_string(row.inputs) : std::string());
    add("%-22s %-12s %16s %6lld %9s  %s\n", row.name.c_str(), row.layers.c_str(), shape.c_str(),
        static_cast<long long>(row.count), size_text(static_cast<double>(row.bytes)).c_str(), row.how.c_str());
  }
  const auto size = [](std::uint64_t bytes) { return size_text(static_cast<double>(bytes)); };
  add("\nweights      %s now, %s quantized\n", size(p.original_bytes).c_str(), size(p.output_bytes).c_str());
  if (j.o.calibrated())
    add("calibration  %lld tokens in %zu sequences of %s\n", static_cast<long long>(j.samples.tokens()),
        j.samples.sequences.size(), j.o.calibration.c_str());
  if (p.gpu_bytes > 0)
    add("time         not known for %s", j.on->name.c_str());
  else
    add("time         about %s to quantize on %d threads", duration_text(p.quantization_seconds).c_str(),
        host::pool().size());
  if (p.evaluation_seconds > 0 && !j.on) add(", %s to evaluate", duration_text(p.evaluation_seconds).c_str());
  if (!j.text.questions.empty()) add(" but for the answers to %zu prompts", j.text.questions.size());
  add("\nmemory       %s at most; %s can be had now\n", size(p.memory_bytes).c_str(), size(p.machine_bytes).c_str());
  if (p.gpu_bytes > 0)
    add("GPU memory   %s at most; %s free on %s\n", size(p.gpu_bytes).c_str(), size(j.on->free_bytes).c_str(),
        j.on->name.c_str());
  add("disk         %s at most; %s free in %s\n", size(p.disk_bytes).c_str(), size(p.free_bytes).c_str(),
      directory_of(j).c_str());
  return out;
}

}  // namespace nibble::mistral
