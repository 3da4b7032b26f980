// SPDX-License-Identifier: Apache-2.0
#include "generation.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "error.hpp"
#include "finite.hpp"
#include "json.hpp"

namespace nibble::mistral {

namespace {

/// SplitMix64: next state, and the number it stands for. Source: Steele, Lea and Flood, OOPSLA 2014.
std::uint64_t next_random(std::uint64_t& state) {
  std::uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int32_t most_probable(const float* logits, index_t vocabulary) {
  return static_cast<int32_t>(std::max_element(logits, logits + vocabulary) - logits);
}

/// An id with probability ∝ exp(logit / temperature), of the fewest ids, most probable first, that make up top_p.
int32_t drawn(const float* logits, index_t vocabulary, const generation_options& o, std::uint64_t& state) {
  std::vector<int32_t> order(static_cast<size_t>(vocabulary));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  std::vector<double> weight;
  for (const int32_t id : order)
    weight.push_back(
        std::exp((static_cast<double>(logits[id]) - static_cast<double>(logits[order[0]])) / o.temperature));
  const double wanted = o.top_p * std::accumulate(weight.begin(), weight.end(), 0.0);
  size_t kept = 0;
  double mass = 0;
  while (kept < weight.size() && (kept == 0 || mass < wanted)) mass += weight[kept++];
  double left = static_cast<double>(next_random(state) >> 11) * 0x1p-53 * mass;
  for (size_t i = 0; i < kept; ++i)
    if ((left -= weight[i]) < 0) return order[i];
  return order[kept - 1];
}

/// Prompts that are decoded together.
class running_batch {
 public:
  running_batch(decoder& model, const generation_options& options, const generation_listener& listener,
                std::vector<answer>& answers, generation_times& times)
      : model_(model), options_(options), listener_(listener), answers_(answers), times_(times) {}

  void run(const std::vector<std::vector<int32_t>>& prompts, size_t first, size_t last) {
    batch b;
    for (size_t i = first; i < last; ++i) {
      b.append(prompts[i].data(), static_cast<index_t>(prompts[i].size()));
      std::uint64_t stream = options_.seed;
      stream = next_random(stream) ^ static_cast<std::uint64_t>(i);
      running_.push_back({i, stream});
    }
    double started = seconds();
    matrix<const float> logits = model_.prefill(b);
    times_.prompt_tokens += b.tokens();
    times_.prompt_seconds += seconds() - started;
    if (first == 0) times_.first_token_seconds = seconds() - started;
    for (;;) {
      const std::vector<int32_t> ids = choose(logits);
      if (running_.empty()) return;
      started = seconds();
      logits = model_.step(ids);
      times_.step_seconds += seconds() - started;
      times_.stepped_tokens += static_cast<index_t>(ids.size());
    }
  }

 private:
  struct sequence {
    size_t prompt;
    std::uint64_t stream;
  };

  /// The next id of every sequence; those that end leave the batch.
  std::vector<int32_t> choose(matrix<const float> logits) {
    std::vector<int32_t> ids;
    std::vector<index_t> kept;
    std::vector<sequence> still;
    for (index_t i = 0; i < logits.rows; ++i) {
      sequence& s = running_[static_cast<size_t>(i)];
      if (!accept(s, logits.row(i), logits.cols, model_.length(i))) {
        if (listener_) listener_(static_cast<index_t>(s.prompt), -1);
        continue;
      }
      ids.push_back(answers_[s.prompt].ids.back());
      kept.push_back(i);
      still.push_back(s);
    }
    if (still.size() < running_.size()) model_.keep(kept);
    running_ = std::move(still);
    return ids;
  }

  /// Chooses the next id. @returns whether the model is to read it.
  bool accept(sequence& s, const float* logits, index_t vocabulary, index_t length) {
    answer& a = answers_[s.prompt];
    if (static_cast<index_t>(a.ids.size()) >= options_.max_new_tokens) return false;
    if (std::any_of(logits, logits + vocabulary, [](float x) { return !(std::fabs(x) < HUGE_VALF); }))
      throw error(model_.files().directory().string() + " predicts no probability: " + cause_of_nan(model_.files()) +
                  "; check the checkpoint");
    const int32_t id =
        options_.temperature > 0 ? drawn(logits, vocabulary, options_, s.stream) : most_probable(logits, vocabulary);
    if (std::find(options_.stop.begin(), options_.stop.end(), id) != options_.stop.end()) {
      a.why = ending::stop;
      return false;
    }
    a.ids.push_back(id);
    if (listener_) listener_(static_cast<index_t>(s.prompt), id);
    if (static_cast<index_t>(a.ids.size()) >= options_.max_new_tokens) return false;
    if (length < model_.settings().context) return true;
    a.why = ending::context;
    return false;
  }

  decoder& model_;
  const generation_options& options_;
  const generation_listener& listener_;
  std::vector<answer>& answers_;
  generation_times& times_;
  std::vector<sequence> running_;
};

}  // namespace

const char* to_string(ending why) {
  constexpr const char* names[] = {"stop", "length", "context"};
  return names[static_cast<size_t>(why)];
}

std::vector<answer> generate(decoder& model, const std::vector<std::vector<int32_t>>& prompts,
                             const generation_options& options, const generation_listener& listener,
                             generation_times* times) {
  std::vector<answer> answers(prompts.size());
  generation_times unread;
  const auto together = static_cast<size_t>(max(options.batch, index_t(1)));
  for (size_t first = 0; first < prompts.size(); first += together)
    running_batch(model, options, listener, answers, times ? *times : unread)
        .run(prompts, first, std::min(prompts.size(), first + together));
  return answers;
}

std::vector<std::vector<int32_t>> greedy(decoder& model, const std::vector<std::vector<int32_t>>& prompts,
                                         index_t max_new_tokens, const std::vector<int32_t>& stop, index_t batch) {
  generation_options options;
  options.max_new_tokens = max_new_tokens;
  options.stop = stop;
  options.batch = batch;
  std::vector<std::vector<int32_t>> ids;
  for (answer& a : generate(model, prompts, options)) ids.push_back(std::move(a.ids));
  return ids;
}

std::vector<int32_t> stop_ids(const std::filesystem::path& model, const config& settings) {
  const std::filesystem::path file = model / "generation_config.json";
  const auto read = [&](const nlohmann::ordered_json& json, const std::string& where) {
    std::vector<int32_t> ids;
    const auto found = json.is_object() ? json.find("eos_token_id") : json.end();
    if (found == json.end() || found->is_null()) return ids;
    const auto listed = found->is_array() ? *found : nlohmann::ordered_json::array({*found});
    for (const auto& id : listed) {
      if (!json_is<std::int32_t>(id) || id.get<std::int32_t>() < 0)
        throw error(where + ": \"eos_token_id\" must be a token id or a list of them, but is " + excerpt(*found));
      ids.push_back(id.get<std::int32_t>());
    }
    return ids;
  };
  std::vector<int32_t> ids;
  if (std::filesystem::exists(file)) ids = read(read_json(file), file.string());
  if (ids.empty()) ids = read(settings.json, (model / "config.json").string());
  if (ids.empty() && settings.eos >= 0) ids.push_back(settings.eos);
  return ids;
}

}  // namespace nibble::mistral
