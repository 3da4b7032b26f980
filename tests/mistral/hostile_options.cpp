// SPDX-License-Identifier: Apache-2.0
/// @file
/// Numbers on the command line that are none, or beyond what they may be.
#include <algorithm>
#include <catch2/catch.hpp>
#include <map>

#include "support/victim.hpp"

namespace hostile_options_tests {

using namespace nibble;
using Catch::Matchers::Contains;
using test::victim;
using test::words;

TEST_CASE("numbers of options are decimal and within their range, or refused by option") {
  const victim v;
  const std::map<std::string, std::map<std::string, words>> options = {
      {"awq_mistral",
       {{"--group-size", {"0", "-2", "31", "65", "2147483648"}},
        {"--n-grid", {"0", "-1", "1001"}},
        {"--sweeps", {"-1", "1001"}},
        {"--shrinkage", {"-0.1", "1.1"}},
        {"--num-calibration-samples", {"0", "-1", "1000001"}},
        {"--max-seq-length", {"0", "-1", "10000001"}},
        {"--seed", {"-1", "18446744073709551616"}},
        {"--threads", {"0", "-1", "4097"}},
        {"--max-regression", {"-0.1"}},
        {"--max-shard-size", {"0", "-1", "-5GB", "5XB", "GB"}}}},
      {"gptq_mistral",
       {{"--dampening-frac", {"-0.1", "1.1"}},
        {"--drift", {"-0.1", "1.1"}},
        {"--residual-drift", {"-0.1", "1.1"}},
        {"--sweeps", {"-1", "1001"}},
        {"--num-calibration-samples", {"0", "-1", "1000001"}}}},
      {"smoothquant_mistral",
       {{"--smoothing-strength", {"-0.1", "1.1", "0,5", "1e999"}},
        {"--sweeps", {"-1", "1001"}},
        {"--num-calibration-samples", {"0", "-1", "1000001"}}}},
      {"gguf_mistral",
       {{"--threads", {"0", "-1", "4097"}},
        {"--target-bpw", {"0", "-1", "33"}},
        {"--target-size", {"0", "-1", "-5GB", "5XB", "GB"}}}},
      {"generate",
       {{"--max-new-tokens", {"0", "-1", "16777217"}},
        {"--temperature", {"-1", "1000001"}},
        {"--top-p", {"0", "-0.1", "1.1"}},
        {"--seed", {"-1", "18446744073709551616"}},
        {"--batch", {"0", "-1", "4097"}},
        {"--threads", {"0", "-1", "4097"}}}},
      {"perplexity",
       {{"--window", {"0", "-1"}},
        {"--stride", {"0", "-1"}},
        {"--max-windows", {"-1"}},
        {"--threads", {"0", "-1", "4097"}}}}};
  const words never = {
      "many", "",   " ",   "nan", "inf", "-inf", "1e400", "0x10", "1,5", "0b1", "99999999999999999999999",
      "7x",   "--", "\xff"};
  for (const auto& [program, usual] : std::map<std::string, words>(v.programs.begin(), v.programs.end()))
    for (const auto& [option, beyond] : options.at(program)) {
      words values = beyond;
      values.insert(values.end(), never.begin(), never.end());
      for (const std::string& value : values) {
        CAPTURE(option, value);
        words arguments = usual;
        arguments.push_back(option + "=" + value);
        const std::string before = test::listing(v.root.path());
        CHECK_THAT(test::refused_by(program, arguments, 2), Contains(option) && Contains("--help"));
        CHECK(test::listing(v.root.path()) == before);
      }
    }
}

TEST_CASE("figures and reports are not written over the text that they are about, however its name is spelt") {
  const victim v;
  const std::string text = test::read_bytes(v.text), spelt = (v.model / "../text.txt").string();
  int tried = 0;
  for (const auto& [program, usual] : v.programs)
    for (const std::string option : {"--json", "--report"}) {
      words arguments = usual;
      const auto own = std::find(arguments.begin(), arguments.end(), "--json");
      if (own != arguments.end()) arguments.erase(own, own + 2);
      const bool pass = program != "gguf_mistral" && std::count(arguments.begin(), arguments.end(), "--output") > 0;
      if ((option == "--report" && !pass) || std::count(arguments.begin(), arguments.end(), v.text.string()) == 0)
        continue;
      CAPTURE(program, option);
      arguments.insert(arguments.end(), {option, spelt});
      CHECK_THAT(test::refused_by(program, arguments, 2), Contains(option) && Contains(v.text.string()));
      CHECK(test::listing(v.root.path()) == "model text.txt");
      CHECK(test::read_bytes(v.text) == text);
      ++tried;
    }
  CHECK(tried >= 8);
}

}  // namespace hostile_options_tests
