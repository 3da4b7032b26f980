// SPDX-License-Identifier: Apache-2.0
/// @file
/// Judging what a model answers: right when, both normalised, it is an accepted answer (exact) or says one among other
/// words (contained); abstained when it says nothing or one of the usual refusals.
///
/// Normalised: words as words_of finds them (lower case, punctuation removed), one space apart, the articles a, an, the
/// removed unless nothing else is there.
/// Source: Rajpurkar et al., SQuAD, arXiv 1606.05250, and its evaluation script (normalize_answer, exact match), which
/// knows ASCII's punctuation only and drops an answer that is an article, such as a choice "A".
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "nibble/core.hpp"

namespace nibble::mistral {

std::string normalised_answer(std::string_view text);

/// What counts of a generated text: its first line that is not blank, trimmed. A model that was not taught to stop goes on
/// with something else on the next line.
std::string answer_of(std::string_view generated);

struct verdict {
  bool exact = false, contained = false;  ///< exact implies contained
  bool abstained = false;                 ///< never together with contained
};

/// @param accepted normalised answers, none empty.
///  - contained: all words of an accepted answer, one after the other and whole;
///  - abstained: the normalised answer is empty; is "unknown", "unanswerable", "no answer" or "not sure"; or begins, after
///    "sorry" and "im sorry" or "i am sorry" with "but" or without, with "i dont know", "i do not know", "i cannot", "i cant",
///    "i can not", "i could not", "im not sure", "i am not sure", "im unable", "i am unable", "im not able", "i am not able",
///    "as an ai", "there is no answer" or "it is not possible"; a bare apology counts too.
verdict judge(std::string_view answer, const std::vector<std::string>& accepted);

/// How many answers were what.
struct answer_figures {
  index_t questions = 0;  ///< 0: not measured
  index_t exact = 0, contained = 0, abstained = 0;

  void add(const verdict& v);
  double exact_share() const { return share(exact); }
  /// Share of answers that contain an accepted one: what is called accuracy.
  double accuracy() const { return share(contained); }
  double abstained_share() const { return share(abstained); }

 private:
  double share(index_t count) const {
    return questions == 0 ? 0.0 : static_cast<double>(count) / static_cast<double>(questions);
  }
};

}  // namespace nibble::mistral
