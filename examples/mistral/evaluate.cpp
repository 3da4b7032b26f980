// SPDX-License-Identifier: Apache-2.0
#include "evaluate.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "error.hpp"
#include "finite.hpp"

namespace nibble::mistral {
namespace {

/// What is kept of one model: −ln p summed by window, and what each scored position has to say, in the windows' order.
struct model_scores {
  std::vector<double> nll;
  std::vector<double> divergence;  ///< empty for the first model
  std::vector<char> same_top;
};

/// Sums of all windows.
struct totals {
  index_t tokens = 0;
  double nll = 0;

  double mean() const { return nll / static_cast<double>(tokens); }
  double perplexity() const { return std::exp(mean()); }
};

totals add_up(const std::vector<window>& windows, const std::vector<double>& nll) {
  totals all;
  for (size_t i = 0; i < windows.size(); ++i) {
    all.tokens += windows[i].scored;
    all.nll += nll[i];
  }
  return all;
}

/// √(W/(W−1) · Σ residual²) / N. @param residual of window i.
template <class F>
double ratio_error(size_t windows, index_t tokens, F&& residual) {
  if (windows < 2) return std::numeric_limits<double>::quiet_NaN();
  double squares = 0;
  for (size_t i = 0; i < windows; ++i) squares += residual(i) * residual(i);
  const auto count = static_cast<double>(windows);
  return std::sqrt(count / (count - 1.0) * squares) / static_cast<double>(tokens);
}

/// Divergences and agreement of some positions.
struct shift_sums {
  std::vector<double> divergence;
  index_t agreeing = 0;

  void add(double d, bool same) {
    divergence.push_back(d);
    agreeing += same ? 1 : 0;
  }
  prediction_shift summary() {
    const size_t count = divergence.size();
    if (count == 0) return {};
    const double sum = std::accumulate(divergence.begin(), divergence.end(), 0.0);
    const size_t rank = (99 * count + 99) / 100 - 1;  // ⌈0.99 · count⌉, from zero
    std::nth_element(divergence.begin(), divergence.begin() + static_cast<std::ptrdiff_t>(rank), divergence.end());
    return {static_cast<index_t>(count), sum / static_cast<double>(count), divergence[rank],
            static_cast<double>(agreeing) / static_cast<double>(count)};
  }
};

void summarise_shift(const std::vector<window>& windows, const model_scores& own, evaluation& e) {
  index_t longest = 0;
  for (const window& w : windows) longest = max(longest, w.length);
  const index_t bins = min(position_bins, longest);
  std::vector<shift_sums> parts(static_cast<size_t>(bins));
  shift_sums all;
  size_t at = 0;
  for (const window& w : windows)
    for (index_t position = w.length - w.scored; position < w.length; ++position, ++at) {
      parts[static_cast<size_t>(position * bins / longest)].add(own.divergence[at], own.same_top[at] != 0);
      all.add(own.divergence[at], own.same_top[at] != 0);
    }
  e.shift = all.summary();
  for (index_t bin = 0; bin < bins; ++bin) {
    position_shift part;
    static_cast<prediction_shift&>(part) = parts[static_cast<size_t>(bin)].summary();
    part.first = ceil_div(bin * longest, bins);
    part.last = ceil_div((bin + 1) * longest, bins);
    if (part.tokens > 0) e.by_position.push_back(part);
  }
}

evaluation summarise(const std::vector<window>& windows, const model_scores& own, const model_scores& first) {
  const totals all = add_up(windows, own.nll), reference = add_up(windows, first.nll);
  const auto residual = [&](const model_scores& scores, const totals& t, size_t i) {
    return t.perplexity() * (scores.nll[i] - t.mean() * static_cast<double>(windows[i].scored));
  };
  evaluation e;
  e.windows = static_cast<index_t>(windows.size());
  e.tokens = all.tokens;
  e.perplexity = all.perplexity();
  e.standard_error = ratio_error(windows.size(), all.tokens, [&](size_t i) { return residual(own, all, i); });
  if (&own == &first) return e;
  e.increase = e.perplexity - reference.perplexity();
  e.increase_standard_error = ratio_error(
      windows.size(), all.tokens, [&](size_t i) { return residual(own, all, i) - residual(first, reference, i); });
  summarise_shift(windows, own, e);
  return e;
}

/// Some of the windows, as one batch of sequences.
struct window_batch {
  size_t first, last;            ///< windows [first, last)
  batch tokens;                  ///< all the windows read
  std::vector<int32_t> targets;  ///< the ids they score

  window_batch(const std::vector<int32_t>& ids, const std::vector<window>& windows, size_t first_, index_t most)
      : first(first_), last(first_) {
    while (last < windows.size() && (last == first || tokens.tokens() + windows[last].length <= most)) {
      const window& w = windows[last++];
      tokens.append(ids.data() + w.begin, w.length);
      const auto after = ids.begin() + w.begin + w.length + 1;
      targets.insert(targets.end(), after - w.scored, after);
    }
  }
};

/// The rows that predict the ids a batch scores; the others served as context.
std::vector<row_range> scored_rows(const std::vector<window>& windows, const window_batch& b) {
  std::vector<row_range> rows;
  for (size_t w = b.first; w < b.last; ++w)
    rows.push_back({b.tokens.starts[w - b.first + 1] - windows[w].scored, windows[w].scored});
  return rows;
}

class host_scorer : public batch_scorer {
 public:
  void score(const evaluated_model& m, const batch& tokens, const std::vector<row_range>& rows, const int32_t* targets,
             token_score* scores, bool first, const std::function<void()>& step) override {
    const config& c = m.settings;
    if (first) first_ = {};  // of the batch before
    output own;
    own.x.resize(static_cast<size_t>(tokens.tokens() * c.hidden));
    own.hidden = c.hidden;
    const matrix<float> x(own.x.data(), tokens.tokens(), c.hidden);
    embed(m.files, c, tokens, x);
    for (index_t i = 0; i < c.layers; ++i) {
      forward_layer(c, m.layer ? m.layer(i) : load_layer(m.files, c, i), x, tokens.starts);
      step();
    }
    index_t count = 0;  // the scored rows move to the front
    for (const row_range& r : rows) {
      std::copy(x.row(r.first), x.row(r.first) + r.count * c.hidden, x.row(count));
      count += r.count;
    }
    own.head = load_head(m.files, c);
    mistral::score(own.head, matrix<const float>(own.x.data(), count, c.hidden), targets, scores,
                   first ? nullptr : &first_.head, {first_.x.data(), count, first_.hidden});
    if (first) first_ = std::move(own);
  }

 private:
  /// The last layer's output where a batch is scored, and the head that turns it into predictions.
  struct output {
    std::vector<float> x;
    index_t hidden = 0;
    lm_head head;
  };
  output first_;
};

void add_scores(const evaluated_model& m, const std::vector<window>& windows, const window_batch& b,
                const std::vector<token_score>& scores, bool compared, model_scores& own) {
  auto s = scores.begin();
  for (size_t w = b.first; w < b.last; ++w)
    for (index_t i = 0; i < windows[w].scored; ++i, ++s) {
      own.nll[w] += s->nll;
      if (!std::isfinite(s->nll))
        throw error(m.files.directory().string() + " predicts no probability in window " + std::to_string(w) +
                    " of the text: " + cause_of_nan(m.files) + "; check the checkpoint");
      if (!compared) continue;
      own.divergence.push_back(s->divergence);
      own.same_top.push_back(s->same_top ? 1 : 0);
    }
}

void check(const std::vector<evaluated_model>& models, const std::vector<int32_t>& ids) {
  for (const evaluated_model& m : models) {
    const std::string where = m.files.directory().string();
    m.files.at("model.embed_tokens.weight", {m.settings.vocabulary, m.settings.hidden});  // activations have its width
    if (m.settings.vocabulary != models.front().settings.vocabulary)
      throw error(where + " has a vocabulary of " + std::to_string(m.settings.vocabulary) + ", but " +
                  models.front().files.directory().string() + " one of " +
                  std::to_string(models.front().settings.vocabulary) + ", so their predictions cannot be compared");
    check_ids(m.files, m.settings, ids);
  }
}

}  // namespace

std::vector<window> plan_windows(index_t ids, index_t context, const window_options& options) {
  if (options.window < 1) throw usage_error("--window must be at least 1");
  if (options.stride < 1) throw usage_error("--stride must be at least 1");
  if (options.max_windows < 0) throw usage_error("--max-windows must not be negative");
  const index_t length = min(options.window, context), stride = min(options.stride, length);
  if (options.stride > options.window)
    throw usage_error("--stride (" + std::to_string(options.stride) + ") beyond --window (" +
                      std::to_string(options.window) + ") would leave ids unscored");
  if (ids < 2) throw error("a text needs at least one id after BOS to be scored");
  std::vector<window> windows;
  for (index_t begin = 0, scored = 0; scored < ids - 1; begin += stride) {
    if (options.max_windows > 0 && static_cast<index_t>(windows.size()) == options.max_windows) break;
    const index_t end = min(begin + length, ids - 1);
    windows.push_back({begin, end - begin, end - scored});
    scored = end;
  }
  return windows;
}

std::vector<evaluation> evaluate(const std::vector<evaluated_model>& models, const std::vector<int32_t>& ids,
                                 const std::vector<window>& windows, const evaluation_progress& progress,
                                 index_t activation_bytes, batch_scorer* scorer) {
  check(models, ids);
  host_scorer on_host;
  if (scorer == nullptr) scorer = &on_host;
  index_t widest = 1, layers = 0;
  for (const evaluated_model& m : models) widest = max(widest, m.settings.hidden), layers += m.settings.layers;
  const index_t most = activation_bytes / (widest * static_cast<index_t>(sizeof(float)));
  std::vector<window_batch> batches;
  for (size_t at = 0; at < windows.size(); at = batches.back().last) batches.emplace_back(ids, windows, at, most);

  std::vector<model_scores> kept(models.size());
  for (model_scores& own : kept) own.nll.resize(windows.size());
  const index_t steps = layers * static_cast<index_t>(batches.size());
  index_t done = 0;
  const auto step = [&] {
    ++done;
    if (progress) progress(done, steps);
  };
  for (const window_batch& b : batches) {
    std::vector<token_score> scores(b.targets.size());
    for (size_t m = 0; m < models.size(); ++m) {
      scorer->score(models[m], b.tokens, scored_rows(windows, b), b.targets.data(), scores.data(), m == 0, step);
      add_scores(models[m], windows, b, scores, m > 0, kept[m]);
    }
  }
  std::vector<evaluation> results;
  for (const model_scores& own : kept) results.push_back(summarise(windows, own, kept.front()));
  return results;
}

void add_shift(nlohmann::ordered_json& out, const evaluation& e) {
  const auto add = [](nlohmann::ordered_json& to, const prediction_shift& s) {
    to["kl_divergence"] = s.divergence;
    to["kl_divergence_99"] = s.divergence_99;
    to["top_token_agreement"] = s.agreement;
  };
  add(out, e.shift);
  auto parts = nlohmann::ordered_json::array();
  for (const position_shift& each : e.by_position) {
    nlohmann::ordered_json part = {{"first", each.first}, {"last", each.last}, {"tokens", each.tokens}};
    add(part, each);
    parts.push_back(std::move(part));
  }
  out["kl_by_position"] = std::move(parts);
}

}  // namespace nibble::mistral
