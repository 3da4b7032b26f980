// SPDX-License-Identifier: Apache-2.0
#include "gguf/modelfile.hpp"

#include <algorithm>
#include <optional>

#include "mistral/error.hpp"
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
                    std::vector<text>& notes) {
  const text from = "FROM ./" + weights.filename().string() + "\n";
  const text plain = from + "TEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n";
  if (!chat) return plain;
  const auto marks = marks_of(*chat, bos);
  const text told = marks ? go_template(*marks) : "";
  if (!marks || told.find("\"\"\"") != text::npos) {
    notes.emplace_back("the Modelfile takes prompts as they are: the chat template is none that Ollama's could follow");
    return plain;
  }
  text out = from + "TEMPLATE \"\"\"" + told + "\"\"\"\n";
  for (const char* mark : {"[INST]", "[/INST]"}) out += text("PARAMETER stop ") + mark + "\n";
  return out;
}

}  // namespace nibble::mistral
