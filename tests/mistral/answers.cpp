// SPDX-License-Identifier: Apache-2.0
#include "mistral/answers.hpp"

#include <catch2/catch.hpp>

namespace answers_tests {

using namespace nibble;
using namespace nibble::mistral;

namespace {

verdict judged(std::string_view answer, const std::vector<const char*>& accepted) {
  std::vector<std::string> normalised;
  for (const char* each : accepted) normalised.push_back(normalised_answer(each));
  return judge(answer, normalised);
}

}  // namespace

TEST_CASE("answers are compared in lower case, without punctuation and articles, words one space apart") {
  const std::pair<const char*, const char*> pairs[] = {{"  The  U.S.A.\n", "usa"},
                                                       {"an Apple, a day", "apple day"},
                                                       {"Theatre and another", "theatre and another"},
                                                       {"$1,000.50", "100050"},
                                                       {"well-known", "wellknown"},
                                                       {"“L’Été” — «là»…", "lété là"},
                                                       {"ΑΘΗΝΑ Москва ÀÉÎ", "αθηνα москва àéî"},
                                                       {"A", "a"},
                                                       {"(A)", "a"},
                                                       {"the", "the"},
                                                       {"non\u00a0breaking\u3000space", "non breaking space"},
                                                       {"東京タワー、とても", "東 京 タ ワ ー と て も"},
                                                       {"?!", ""},
                                                       {"", ""}};
  for (const auto& [text, expected] : pairs) CHECK(normalised_answer(text) == expected);
  CHECK(normalised_answer("a\xff b") == "a\ufffd b");
}

TEST_CASE("an answer is exact when it is an accepted one, and contained when its words stand in it whole") {
  CHECK(judged("Paris.", {"paris"}).exact);
  CHECK(judged("The Paris", {"London", "PARIS!"}).exact);
  CHECK(judged("Paris.", {"paris"}).contained);
  const verdict among = judged("It is Paris, of course", {"paris"});
  CHECK_FALSE(among.exact);
  CHECK(among.contained);
  CHECK_FALSE(judged("Parisians", {"Paris"}).contained);
  CHECK(judged("in New York City", {"new york"}).contained);
  CHECK_FALSE(judged("a new, old York", {"new york"}).contained);
  CHECK(judged("out of the box thinking", {"out of a box"}).contained);
  CHECK(judged("A.", {"A"}).exact);
  CHECK_FALSE(judged("It is a cat", {"A"}).contained);
  CHECK(judged("東京タワーです", {"東京"}).contained);
  CHECK_FALSE(judged("", {"paris"}).contained);
}

TEST_CASE("saying nothing and the usual refusals are abstentions, unless the answer is right all the same") {
  for (const char* said : {"", " \n", "...", "I don't know.", "I don’t know the answer", "I do not know",
                           "I'm sorry, but I can't help with that", "Sorry.", "I am sorry", "Sorry, I cannot say",
                           "I'm not sure, maybe Lyon", "As an AI language model, I", "Unknown", "unanswerable.",
                           "No answer", "There is no answer to that", "I am unable to answer"})
    CHECK(judged(said, {"paris"}).abstained);
  for (const char* said : {"Lyon", "I know it: Lyon", "Unknown Pleasures", "I cantered home", "Sorrynot",
                           "nobody knows", "It is said that I do not know"})
    CHECK_FALSE(judged(said, {"paris"}).abstained);
  CHECK_FALSE(judged("I'm not sure, perhaps Paris", {"paris"}).abstained);
  CHECK_FALSE(judged("Unknown", {"unknown"}).abstained);
}

TEST_CASE("of a generated text its first line that is not blank is the answer") {
  CHECK(answer_of("\n  Paris. \r\nQ: What next?") == "Paris.");
  CHECK(answer_of("Paris") == "Paris");
  CHECK(answer_of(" \n\t\n").empty());
  CHECK(answer_of("").empty());
}

TEST_CASE("figures count what was judged, and of no questions all shares are zero") {
  answer_figures figures;
  CHECK(figures.accuracy() == 0.0);
  for (const char* said : {"Paris", "It is Paris", "Lyon", ""}) figures.add(judged(said, {"Paris"}));
  CHECK(figures.questions == 4);
  CHECK(figures.exact_share() == 0.25);
  CHECK(figures.accuracy() == 0.5);
  CHECK(figures.abstained_share() == 0.25);
}

}  // namespace answers_tests
