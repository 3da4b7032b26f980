// SPDX-License-Identifier: Apache-2.0
#include "questions.hpp"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "generation.hpp"

namespace nibble::mistral {

answered_questions answer_questions(decoder& model, const tokenizer& tok, const std::vector<question>& questions,
                                    const std::vector<std::int32_t>& stop, const std::function<void(index_t)>& done) {
  std::vector<std::vector<std::int32_t>> prompts;
  for (const question& q : questions) prompts.push_back(q.ids);
  generation_options options;
  options.max_new_tokens = answer_tokens;
  options.stop = stop;
  index_t ended = 0;
  const auto listener = [&](index_t, std::int32_t id) {
    if (id < 0 && done) done(++ended);
  };
  answered_questions out;
  for (const answer& each : generate(model, prompts, options, listener)) {
    const question& q = questions[out.answers.size()];
    const std::string said = answer_of(tok.decode(each.ids));
    out.answers.push_back({said, judge(said, q.accepted)});
    out.figures.add(out.answers.back().judged);
  }
  return out;
}

nlohmann::ordered_json answers_json(const std::vector<question>& questions,
                                    const std::vector<answered_questions>& models) {
  auto out = nlohmann::ordered_json::array();
  for (size_t i = 0; i < questions.size(); ++i) {
    auto given = nlohmann::ordered_json::array();
    for (const answered_questions& model : models) {
      const given_answer& a = model.answers[i];
      given.push_back({{"text", a.text},
                       {"exact", a.judged.exact},
                       {"contained", a.judged.contained},
                       {"abstained", a.judged.abstained}});
    }
    out.push_back({{"prompt", questions[i].prompt}, {"accepted", questions[i].accepted}, {"given", given}});
  }
  return out;
}

std::string answers_table(const std::vector<std::pair<std::string, const answer_figures*>>& rows) {
  size_t width = 18;
  for (const auto& [name, figures] : rows) width = std::max(width, name.size());
  const auto named = [&](const std::string& name) { return name + std::string(width - name.size(), ' '); };
  char line[128];
  std::snprintf(line, sizeof(line), " %9s %9s %9s   of %lld answers\n", "right", "exact", "abstained",
                static_cast<long long>(rows.front().second->questions));
  std::string out = named("") + line;
  for (const auto& [name, figures] : rows) {
    std::snprintf(line, sizeof(line), " %8.1f%% %8.1f%% %8.1f%%\n", 100 * figures->accuracy(),
                  100 * figures->exact_share(), 100 * figures->abstained_share());
    out += named(name) + line;
  }
  return out;
}

void add_answers(nlohmann::ordered_json& out, const answer_figures& f) {
  out["accuracy"] = f.accuracy();
  out["exact_match"] = f.exact_share();
  out["abstained"] = f.abstained_share();
}

}  // namespace nibble::mistral
