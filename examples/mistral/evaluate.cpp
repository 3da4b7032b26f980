// SPDX-License-Identifier: Apache-2.0
#include "evaluate.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "error.hpp"
#include "json.hpp"
#include "utf8.hpp"

namespace nibble::mistral {
namespace {

/// What one window adds up to for one model.
struct window_sums {
  double nll = 0, divergence = 0;
  index_t agreeing = 0;
};

/// Sums of all windows, and each window's residual of the ratio.
struct totals {
  index_t tokens = 0, agreeing = 0;
  double nll = 0, divergence = 0;

  double mean() const { return nll / static_cast<double>(tokens); }
  double perplexity() const { return std::exp(mean()); }
};

totals add_up(const std::vector<window>& windows, const std::vector<window_sums>& sums) {
  totals all;
  for (size_t i = 0; i < windows.size(); ++i) {
    all.tokens += windows[i].scored;
    all.agreeing += sums[i].agreeing;
    all.nll += sums[i].nll;
    all.divergence += sums[i].divergence;
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

evaluation summarise(const std::vector<window>& windows, const std::vector<window_sums>& own,
                     const std::vector<window_sums>& first) {
  const totals all = add_up(windows, own), reference = add_up(windows, first);
  const auto tokens = static_cast<double>(all.tokens);
  const auto residual = [&](const std::vector<window_sums>& sums, const totals& t, size_t i) {
    return t.perplexity() * (sums[i].nll - t.mean() * static_cast<double>(windows[i].scored));
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
  e.divergence = all.divergence / tokens;
  e.agreement = static_cast<double>(all.agreeing) / tokens;
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

/// The last layer's output where a batch is scored, and the head that turns it into predictions.
struct model_output {
  std::vector<float> x;
  lm_head head;
};

/// Moves the rows that predict a window's scored ids to the front; the others served as context.
void keep_scored(const std::vector<window>& windows, const window_batch& b, matrix<float> x) {
  float* out = x.data;
  for (size_t w = b.first; w < b.last; ++w) {
    const float* end = x.row(b.tokens.starts[w - b.first + 1]);
    out = std::copy(end - windows[w].scored * x.cols, end, out);
  }
}

model_output run(const evaluated_model& m, const std::vector<window>& windows, const window_batch& b,
                 const std::function<void()>& step) {
  const config& c = m.settings;
  const batch& tokens = b.tokens;
  model_output out;
  out.x.resize(static_cast<size_t>(tokens.tokens() * c.hidden));
  const matrix<float> x(out.x.data(), tokens.tokens(), c.hidden);
  embed(m.files, c, tokens, x);
  for (index_t i = 0; i < c.layers; ++i) {
    forward_layer(c, m.layer ? m.layer(i) : load_layer(m.files, c, i), x, tokens.starts);
    step();
  }
  keep_scored(windows, b, x);
  out.head = load_head(m.files, c);
  return out;
}

void add_scores(const evaluated_model& m, const std::vector<window>& windows, const window_batch& b,
                const std::vector<token_score>& scores, std::vector<window_sums>& sums) {
  auto s = scores.begin();
  for (size_t w = b.first; w < b.last; ++w)
    for (index_t i = 0; i < windows[w].scored; ++i, ++s) {
      sums[w].nll += s->nll;
      sums[w].divergence += s->divergence;
      sums[w].agreeing += s->same_top ? 1 : 0;
      if (!std::isfinite(s->nll))
        throw error(m.files.directory().string() + " predicts no probability in window " + std::to_string(w) +
                    " of the text; its weights hold NaN or infinity, or values beyond fp32");
    }
}

void check(const std::vector<evaluated_model>& models, const std::vector<int32_t>& ids) {
  for (const evaluated_model& m : models) {
    const std::string where = m.files.directory().string();
    if (m.settings.vocabulary != models.front().settings.vocabulary)
      throw error(where + " has a vocabulary of " + std::to_string(m.settings.vocabulary) + ", but " +
                  models.front().files.directory().string() + " one of " +
                  std::to_string(models.front().settings.vocabulary) + ", so their predictions cannot be compared");
    for (const int32_t id : ids)
      if (id < 0 || id >= m.settings.vocabulary)
        throw error(where + ": the tokenizer gives the id " + std::to_string(id) + ", but vocab_size is " +
                    std::to_string(m.settings.vocabulary));
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

std::vector<int32_t> read_text_ids(const std::filesystem::path& file, const tokenizer& tok) {
  if (tok.bos() < 0)
    throw error(file.string() + " cannot be scored: the model's tokenizer has no BOS to begin it with");
  const std::string text = read_file(file);
  if (text.empty()) throw error(file.string() + " is empty; a text to score is needed");
  if (const size_t at = utf8_error(text); at != std::string::npos)
    throw error(file.string() + " is not UTF-8 at byte " + std::to_string(at) + "; a text to score must be");
  std::vector<int32_t> ids = tok.encode(text);
  ids.insert(ids.begin(), tok.bos());
  return ids;
}

std::vector<evaluation> evaluate(const std::vector<evaluated_model>& models, const std::vector<int32_t>& ids,
                                 const std::vector<window>& windows, const evaluation_progress& progress,
                                 index_t activation_bytes) {
  check(models, ids);
  index_t widest = 1, layers = 0;
  for (const evaluated_model& m : models) widest = max(widest, m.settings.hidden), layers += m.settings.layers;
  const index_t most = activation_bytes / (widest * static_cast<index_t>(sizeof(float)));
  std::vector<window_batch> batches;
  for (size_t at = 0; at < windows.size(); at = batches.back().last) batches.emplace_back(ids, windows, at, most);

  std::vector<std::vector<window_sums>> sums(models.size(), std::vector<window_sums>(windows.size()));
  const index_t steps = layers * static_cast<index_t>(batches.size());
  index_t done = 0;
  const auto step = [&] {
    ++done;
    if (progress) progress(done, steps);
  };
  for (const window_batch& b : batches) {
    const auto rows = static_cast<index_t>(b.targets.size());
    std::vector<token_score> scores(b.targets.size());
    model_output first;
    for (size_t m = 0; m < models.size(); ++m) {
      const config& c = models[m].settings;
      model_output own = run(models[m], windows, b, step);
      const matrix<const float> first_x(first.x.data(), rows, models.front().settings.hidden);
      score(own.head, matrix<const float>(own.x.data(), rows, c.hidden), b.targets.data(), scores.data(),
            m == 0 ? nullptr : &first.head, first_x);
      add_scores(models[m], windows, b, scores, sums[m]);
      if (m == 0) first = std::move(own);
    }
  }
  std::vector<evaluation> results;
  for (const auto& own : sums) results.push_back(summarise(windows, own, sums.front()));
  return results;
}

}  // namespace nibble::mistral
