// SPDX-License-Identifier: Apache-2.0
#include "calibration_check.hpp"

#include <algorithm>
#include <cstdio>

#include "error.hpp"

namespace nibble::mistral {
namespace {

/// The upper one of the two in the middle. @pre values is not empty.
index_t median(std::vector<index_t> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::string percentage(double share) {
  char text[32];
  std::snprintf(text, sizeof(text), share < 0.1 ? "%.2f %%" : "%.1f %%", 100 * share);
  return text;
}

std::string overlap_text(const std::filesystem::path& file, const overlap& shared) {
  std::string text = percentage(shared.share()) + " of the words of " + file.string() +
                     " stand in the calibration samples too, in runs such as \"" + shared.example + "\"";
  if (shared.documents > 1)
    text += ", and " + std::to_string(shared.repeated) + " of its " + std::to_string(shared.documents) +
            " documents nearly whole";
  return text + ", so its figures would flatter";
}

}  // namespace

calibration_findings check_calibration(const calibration_set& set, const tokenizer& tok, index_t context,
                                       const planned_evaluation* planned, bool allow_overlap) {
  calibration_findings out;
  const auto samples = static_cast<index_t>(set.sequences.size());
  if (samples < few_samples)
    out.warnings.push_back("there " +
                           std::string(samples == 1 ? "is 1 calibration sample"
                                                    : "are " + std::to_string(samples) + " calibration samples") +
                           "; statistics of fewer than " + std::to_string(few_samples) + " are noisy");
  if (set.longest() > context)
    out.warnings.push_back("calibration samples of up to " + std::to_string(set.longest()) +
                           " tokens are beyond the model's context of " + std::to_string(context) +
                           ", where its activations are none that it will have; lower --max-seq-length");
  if (planned == nullptr) return out;
  std::vector<index_t> sample_lengths, window_lengths;
  std::vector<std::string> texts;
  for (const auto& ids : set.sequences) {
    sample_lengths.push_back(static_cast<index_t>(ids.size()));
    texts.push_back(tok.decode(ids));
  }
  for (const window& w : planned->windows) window_lengths.push_back(w.length);
  const index_t sample = median(sample_lengths), evaluated = median(window_lengths);
  if (sample > 4 * evaluated || evaluated > 4 * sample)
    out.warnings.push_back("calibration samples of " + std::to_string(sample) + " tokens (median) are much " +
                           (sample > evaluated ? "longer" : "shorter") + " than the " + std::to_string(evaluated) +
                           " that are read at once of " + planned->file.string());
  out.shared = find_overlap(texts, planned->text.documents);
  if (!out.shared.reappears()) return out;
  const std::string said = overlap_text(planned->file, out.shared);
  if (!allow_overlap) throw error(said + "; evaluate another text, or allow it with --allow-overlap");
  out.warnings.push_back(said);
  return out;
}

}  // namespace nibble::mistral
