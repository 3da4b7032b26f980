// SPDX-License-Identifier: Apache-2.0
#include "gguf/modelfile.hpp"

#include <algorithm>
#include <optional>

#include "mistral/error.hpp"
#include "mistral/gguf_tokenizer.hpp"
#include "mistral/jinja.hpp"

namespace nibble::mistral {
namespace {

using text = std::string;

enum class system_place { nowhere, own, first_user, last_user };

/// What a template writes around the messages of a dialogue.
struct dialogue_marks {
  text
      opening;  ///< before the first message where that is no system message; before all where system messages have no marks
  text user, user_end, assistant, assistant_end;
  system_place place = system_place::nowhere;
  text system, system_end;  ///< around a system message, or behind one that goes into a user's
};

/// Words that no template cuts or holds.
const text system_word = "Qsystem", first_word = "Qfirst", answer_word = "Qanswer", last_word = "Qlast";

text without_bos(text told, const text& bos) {
  return !bos.empty() && told.rfind(bos, 0) == 0 ? told.substr(bos.size()) : told;
}

/// What the text has between two of the words, or an end of it for an empty one; nothing where a word is missing.
std::optional<text> between(const text& told, const text& from, const text& to) {
  const size_t begin = from.empty() ? 0 : told.find(from), end = to.empty() ? told.size() : told.find(to);
  if (begin == text::npos || end == text::npos || begin + from.size() > end) return std::nullopt;
  return told.substr(begin + from.size(), end - begin - from.size());
}

text common_end(const text& a, const text& b) {
  const auto [mine, other] = std::mismatch(a.rbegin(), a.rend(), b.rbegin(), b.rend());
  static_cast<void>(other);
  return text(mine.base(), a.end());
}

void place_system(const chat_template& chat, const text& bos, dialogue_marks& m) {
  text told;
  try {
    told = without_bos(
        chat.render({{"system", system_word}, {"user", first_word}, {"assistant", answer_word}, {"user", last_word}}),
        bos);
  } catch (const error&) {  // it allows none
    return;
  }
  const size_t at = told.find(system_word), first = told.find(first_word), answer = told.find(answer_word);
  if (at == text::npos) return;
  if (at > answer) {
    m.place = system_place::last_user;
    m.system_end = between(told, system_word, last_word).value_or("");
    return;
  }
  if (at > first) return;
  const text before = told.substr(0, at), behind = between(told, system_word, first_word).value_or("");
  const bool inside = before.size() >= m.user.size() && common_end(before, m.user) == m.user;
  m.place = inside ? system_place::first_user : system_place::own;
  if (!inside) m.system = before;
  m.system_end = inside ? behind : behind.substr(0, behind.size() - common_end(behind, m.user).size());
}

/// Nothing where the template's dialogues are no sequence of marks and messages.
std::optional<dialogue_marks> marks_of(const chat_template& chat, const text& bos) {
  const text asked = without_bos(chat.render({{"user", first_word}}), bos);
  const text told =
      without_bos(chat.render({{"user", first_word}, {"assistant", answer_word}, {"user", last_word}}), bos);
  const auto start = between(asked, "", first_word), user_end = between(asked, first_word, "");
  const auto turn = between(told, first_word, answer_word), next = between(told, answer_word, last_word);
  if (!start || !user_end || !turn || !next || turn->rfind(*user_end, 0) != 0) return std::nullopt;
  dialogue_marks m;
  m.user = common_end(*start, *next);
  m.opening = start->substr(0, start->size() - m.user.size());
  m.user_end = *user_end;
  m.assistant = turn->substr(user_end->size());
  m.assistant_end = next->substr(0, next->size() - m.user.size());
  place_system(chat, bos, m);
  return m;
}

text replaced(text in, const text& what, const text& by) {
  for (size_t at = in.find(what); at != text::npos; at = in.find(what, at + by.size())) in.replace(at, what.size(), by);
  return in;
}

/// Text as a Go template writes it.
text literal(const text& said) {
  const text braces = "\x01";  // stands for {{ while {{ itself comes in
  text out = replaced(said, "{{", braces);
  out = replaced(std::move(out), jinja::strftime_now("%Y-%m-%d"), "{{ currentDate }}");
  out = replaced(std::move(out), jinja::strftime_now("%Y-%m-%d", 1), "{{ yesterdayDate }}");
  return replaced(std::move(out), braces, "{{ \"{{\" }}");
}

/// Leaves out the space that llama.cpp adds: behind one of `tokens`, and where a text begins or a mark follows on one of them.
void leave_out_spaces(const std::vector<text>& tokens, dialogue_marks& m) {
  if (tokens.empty()) return;
  const auto ends_so = [&](const text& mark) {
    return std::any_of(tokens.begin(), tokens.end(), [&](const text& token) {
      return mark.size() >= token.size() && mark.compare(mark.size() - token.size(), token.size(), token) == 0;
    });
  };
  const auto begin_so = [](text& mark, bool follows) {
    if (follows && !mark.empty() && mark.front() == ' ') mark.erase(0, 1);
  };
  const bool own = m.place == system_place::own;
  const bool starts = (m.opening.empty() || ends_so(m.opening)) && (!own || ends_so(m.system_end));
  begin_so(m.user, starts && ends_so(m.assistant_end));
  begin_so(m.assistant, ends_so(m.user_end));
  begin_so(m.opening, true);
  if (own) begin_so(m.system, true);
  for (text* mark : {&m.opening, &m.user, &m.user_end, &m.assistant, &m.assistant_end, &m.system, &m.system_end})
    for (const text& token : tokens) *mark = replaced(*mark, token + " ", token);
}

text go_template(const dialogue_marks& m) {
  const bool own = m.place == system_place::own;
  text out = "{{ range $i, $_ := .Messages }}";
  if (!m.opening.empty())
    out += text("{{ if ") + (own ? "and (eq $i 0) (ne .Role \"system\")" : "eq $i 0") + " }}" + literal(m.opening) +
           "{{ end }}";
  if (own)
    out += "{{ if eq .Role \"system\" }}" + literal(m.system) + "{{ .Content }}" + literal(m.system_end) + "{{ end }}";
  out += "{{ if eq .Role \"user\" }}" + literal(m.user);
  if (!own) {
    // A template that knows no system message gets it where one that does has it.
    const text which = m.place == system_place::last_user ? "eq (len (slice $.Messages $i)) 1" : "le $i 1";
    const text behind = m.place == system_place::nowhere ? "\n\n" : literal(m.system_end);
    out += "{{ if and $.System (" + which + ") }}{{ $.System }}" + behind + "{{ end }}";
  }
  out += "{{ .Content }}" + literal(m.user_end) + "{{ end }}";
  return out + "{{ if eq .Role \"assistant\" }}" + literal(m.assistant) + "{{ .Content }}" + literal(m.assistant_end) +
         "{{ end }}{{ end }}";
}

}  // namespace

text modelfile_text(const std::filesystem::path& weights, const chat_template* chat, const text& bos,
                    const std::vector<text>& spaced, std::vector<text>& notes) {
  const text from = "FROM ./" + weights.filename().string() + "\n";
  const text plain = from + "TEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n";
  if (!chat) return plain;
  auto marks = marks_of(*chat, bos);
  if (marks) leave_out_spaces(spaced, *marks);
  const text told = marks ? go_template(*marks) : "";
  if (!marks || told.find("\"\"\"") != text::npos) {
    notes.emplace_back("the Modelfile takes prompts as they are: the chat template is none that Ollama's could follow");
    return plain;
  }
  text out = from + "TEMPLATE \"\"\"" + told + "\"\"\"\n";
  for (const char* mark : {"[INST]", "[/INST]"}) out += text("PARAMETER stop ") + mark + "\n";
  return out;
}

std::vector<text> spaced_tokens(const gguf_metadata& file, const tokenizer& own) {
  const auto key = [&](const char* name) -> const gguf_value* {
    const auto found = std::find_if(file.begin(), file.end(), [&](const auto& pair) { return pair.first == name; });
    return found == file.end() ? nullptr : &found->second;
  };
  const gguf_value* prefixed = key("tokenizer.ggml.add_space_prefix");
  if (!prefixed || !std::get<bool>(*prefixed)) return {};
  const auto& tokens = std::get<std::vector<text>>(std::get<gguf_array>(*key("tokenizer.ggml.tokens")));
  const auto& types = std::get<std::vector<std::int32_t>>(std::get<gguf_array>(*key("tokenizer.ggml.token_type")));
  const std::vector<std::int32_t> word = own.encode("x");  // with the space that is put before a text
  std::vector<text> out;
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (types[id] != control_token && types[id] != user_token && types[id] != unknown_token) continue;
    std::vector<std::int32_t> behind = {static_cast<std::int32_t>(id)};
    behind.insert(behind.end(), word.begin(), word.end());
    if (own.encode(tokens[id] + " x") == behind) out.push_back(tokens[id]);
  }
  return out;
}

}  // namespace nibble::mistral
