// SPDX-License-Identifier: Apache-2.0
/// @file
/// Calibration text in the evaluation text, and samples that do not suit what is evaluated.
#include "mistral/overlap.hpp"

#include <catch2/catch.hpp>

#include "mistral/calibration_check.hpp"
#include "support/model.hpp"
#include "support/program.hpp"
#include "support/tokens.hpp"

namespace overlap_tests {

using namespace nibble;
using namespace nibble::mistral;
using Catch::Matchers::Contains;
using test::words;

namespace {

/// "NAME<first> … NAME<last − 1>": words that no other name has.
std::string distinct(const std::string& name, int first, int last) {
  std::string text;
  for (int i = first; i < last; ++i) text += (i > first ? " " : "") + name + std::to_string(i);
  return text;
}

/// What find_overlap counts, by trying every run of every document against every sample.
index_t shared_by_trying(const std::vector<words>& samples, const std::vector<words>& documents) {
  index_t shared = 0;
  for (const words& document : documents) {
    const size_t length = std::min<size_t>(13, document.size());
    std::vector<char> in(document.size());
    for (size_t at = 0; length >= 8 && at + length <= document.size(); ++at)
      for (const words& sample : samples) {
        const auto begin = document.begin() + static_cast<std::ptrdiff_t>(at);
        const auto end = begin + static_cast<std::ptrdiff_t>(length);
        if (std::search(sample.begin(), sample.end(), begin, end) == sample.end()) continue;
        std::fill_n(in.begin() + static_cast<std::ptrdiff_t>(at), length, char{1});
      }
    shared += std::count(in.begin(), in.end(), char{1});
  }
  return shared;
}

std::string joined(const words& all) {
  std::string text;
  for (const std::string& word : all) text += word + " ";
  return text;
}

calibration_set samples_of(const tokenizer& tok, const words& texts, size_t copies = 1) {
  calibration_set set;
  for (size_t i = 0; i < copies; ++i)
    for (const std::string& text : texts) set.sequences.push_back(tok.encode_framed(text));
  return set;
}

struct fixture {
  std::unique_ptr<tokenizer> tok = open_tokenizer(test::embedded_model());
  evaluation_text text;
  std::vector<window> windows;

  void evaluated(const words& documents) {
    for (const std::string& each : documents) {
      const auto ids = tok->encode_framed(each);
      text.ids.insert(text.ids.end(), ids.begin(), ids.end());
      text.starts.push_back(static_cast<index_t>(text.ids.size()));
      text.documents.push_back(each);
    }
    windows = plan_windows(text, 512, window_options{});
  }
  calibration_findings found(const calibration_set& set, bool allow = false) const {
    const planned_evaluation planned = {"text.jsonl", text, windows};
    return check_calibration(set, *tok, 512, &planned, allow);
  }
};

}  // namespace

TEST_CASE("words are shared that lie in a run of thirteen which a sample has, however it is set") {
  const std::string run = distinct("w", 0, 13);
  const auto shared = [&](const std::string& sample, const std::string& document) {
    return find_overlap({sample}, {document}).shared;
  };
  CHECK(shared(run, "x y " + run + " z") == 13);
  CHECK(shared("x y " + run + " z", run) == 13);
  CHECK(shared(distinct("w", 0, 12), "x y " + run) == 0);
  CHECK(shared("W0, w1;\n w2 -- w3 w4 w5 w6 w7 w8 w9 W10 w11 “w12”", run + " z z") == 13);
  CHECK(shared(distinct("w", 0, 40), "x " + distinct("w", 5, 25) + " y " + distinct("w", 30, 40) + " z") == 20);
  CHECK(shared(run + " " + distinct("v", 0, 13), "a " + run + " b " + distinct("v", 0, 13)) == 26);
  CHECK(find_overlap({distinct("w", 0, 7), distinct("w", 7, 13)}, {run}).shared == 0);  // never across two samples
}

TEST_CASE("a document of eight to twelve words is one run, and a shorter one repeats by chance") {
  for (const int size : {1, 7, 8, 12, 13, 20}) {
    const auto found = find_overlap({"x " + distinct("w", 0, 30)}, {distinct("w", 0, size)});
    CHECK(found.words == size);
    CHECK(found.shared == (size < 8 ? 0 : size));
    CHECK(found.repeated == (size < 8 ? 0 : 1));
    CHECK(found.reappears() == (size >= 8));
  }
  CHECK(find_overlap({distinct("w", 0, 30)}, {distinct("w", 0, 9) + " x"}).shared == 0);
}

TEST_CASE("shared words are those that trying every run finds") {
  std::uint64_t state = 7;
  const auto drawn = [&](size_t count) {
    words all;
    // Long stretches repeat where words follow each other in a small cycle.
    for (size_t i = 0; i < count; ++i)
      all.push_back("w" + std::to_string(test::mixed(state++) % 10 == 0 ? test::mixed(state++) % 5 : i % 4));
    return all;
  };
  index_t any = 0;
  for (int trial = 0; trial < 20; ++trial) {
    const std::vector<words> samples = {drawn(60), drawn(90)}, documents = {drawn(70), drawn(10), drawn(120)};
    const auto found = find_overlap({joined(samples[0]), joined(samples[1])},
                                    {joined(documents[0]), joined(documents[1]), joined(documents[2])});
    CHECK(found.shared == shared_by_trying(samples, documents));
    CHECK(found.words == 200);
    any += found.shared;
  }
  CHECK(any > 100);
}

TEST_CASE_METHOD(fixture, "evaluated text that stands in the samples is refused with its share, unless allowed") {
  evaluated({distinct("liberty ", 0, 20), distinct("justice ", 0, 60)});
  const auto set = samples_of(*tok, {"so " + distinct("liberty ", 0, 20) + " it is"}, 70);
  const std::string said = test::refusal([&] { found(set); });
  CHECK_THAT(said, Contains("25.0 % of the words of text.jsonl") && Contains("1 of its 2 documents") &&
                       Contains("liberty 0 liberty 1") && Contains("--allow-overlap"));
  const auto allowed = found(set, true);
  REQUIRE(allowed.warnings.size() == 1);
  CHECK_THAT(allowed.warnings[0], Contains("25.0 %"));
  CHECK(allowed.shared.share() == 0.25);
}

TEST_CASE_METHOD(fixture, "fewer than 64 samples and samples of quite another length are told of, and others are not") {
  const std::string sample = distinct("people ", 0, 50), other = distinct("war ", 0, 50);
  evaluated({other});
  CHECK(found(samples_of(*tok, {sample}, 64)).warnings.empty());
  const auto few = found(samples_of(*tok, {sample}, 63)).warnings;
  REQUIRE(few.size() == 1);
  CHECK_THAT(few[0], Contains("63 calibration samples") && Contains("64"));
  CHECK_THAT(found(samples_of(*tok, {sample}, 1)).warnings.at(0), Contains("is 1 calibration sample;"));
  const auto shorter = found(samples_of(*tok, {"We the people"}, 64)).warnings;
  REQUIRE(shorter.size() == 1);
  CHECK_THAT(shorter[0], Contains("much shorter") && Contains("text.jsonl"));
  text = {};
  evaluated({"We the people", "of the United States", "in order to form"});
  const auto longer = found(samples_of(*tok, {sample}, 64)).warnings;
  REQUIRE(longer.size() == 1);
  CHECK_THAT(longer[0], Contains("much longer"));
  CHECK(check_calibration(samples_of(*tok, {sample}, 64), *tok, 512, nullptr, false).warnings.empty());
}

TEST_CASE_METHOD(fixture, "samples beyond the model's context are told of, and one as long as it is not") {
  const auto set = samples_of(*tok, {distinct("people ", 0, 50)}, 64);
  CHECK(check_calibration(set, *tok, set.longest(), nullptr, false).warnings.empty());
  const auto beyond = check_calibration(set, *tok, set.longest() - 1, nullptr, false).warnings;
  REQUIRE(beyond.size() == 1);
  CHECK_THAT(beyond[0], Contains(std::to_string(set.longest() - 1)) && Contains("--max-seq-length"));
}

TEST_CASE("the program with its own texts has nothing to tell, and refuses to be judged by what it calibrated on") {
  const test::temporary_directory work;
  const words usual = {"--output", (work / "out").string()};
  const auto ran = [&](words more) {
    more.insert(more.begin(), usual.begin(), usual.end());
    return test::run_program("awq_mistral", more);
  };
  const std::string own = test::embedded("text/calibration-state-of-the-union-2000-2012.txt").string();
  for (const words& more :
       {words{"--dry-run"},
        {"--dry-run", "--evaluate", test::embedded("text/heldout-state-of-the-union-2013-2021.txt").string()},
        {"--dry-run", "--evaluate", test::embedded("text/heldout-persuasion.txt").string()}}) {
    const auto quiet = ran(more);
    CHECK(quiet.status == 0);
    CHECK(quiet.err.empty());
  }
  const auto refused = ran({"--evaluate", own});
  CHECK(refused.status == 1);
  CHECK(refused.out.empty());
  CHECK_THAT(refused.err, Contains("awq_mistral: ") && Contains(own) && Contains("%") && Contains("--allow-overlap"));
  CHECK(std::count(refused.err.begin(), refused.err.end(), '\n') == 1);
  CHECK(test::listing(work.path()).empty());
  const auto allowed = ran({"--dry-run", "--evaluate", own, "--allow-overlap"});
  CHECK(allowed.status == 0);
  CHECK_THAT(allowed.err, Contains("awq_mistral: note: ") && Contains("% of the words of " + own));
  const auto few = ran({"--dry-run", "--num-calibration-samples", "8"});
  CHECK(few.status == 0);
  CHECK_THAT(few.err, Contains("awq_mistral: note: there are 8 calibration samples"));
}

}  // namespace overlap_tests
