// SPDX-License-Identifier: Apache-2.0
/// @file
/// How much of an evaluation text stands in the calibration samples. A model calibrated on what it is judged by looks
/// better than it is.
///
/// A word of a document (words_of) is shared when it lies in a run of 13 words that a sample has too; a document of 8 to
/// 12 words is one run, and words of a shorter one are never shared: runs that short repeat by chance. 13 and 8 are
/// GPT-3's lengths (Brown et al., arXiv 2005.14165, appendix C); the share of words so covered, and calling a document
/// repeated from 80 % on, are Llama 2's measures (Touvron et al., arXiv 2307.09288, appendix A.6).
#pragma once

#include <string>
#include <vector>

#include "nibble/core.hpp"

namespace nibble::mistral {

/// Phrases that speakers share make up 0.16 % of the embedded texts' words; from this share on it is more than that.
inline constexpr double most_shared_words = 0.01;

struct overlap {
  index_t words = 0, shared = 0;        ///< of all documents
  index_t documents = 0, repeated = 0;  ///< repeated: those that share 80 % of their words at least
  std::string example;                  ///< the first run of shared words, at most 13 of it

  double share() const { return words == 0 ? 0.0 : static_cast<double>(shared) / static_cast<double>(words); }
  /// Whether the texts are the same in part: most_shared_words exceeded, or a whole document repeated.
  bool reappears() const { return share() > most_shared_words || repeated > 0; }
};

overlap find_overlap(const std::vector<std::string>& samples, const std::vector<std::string>& documents);

}  // namespace nibble::mistral
