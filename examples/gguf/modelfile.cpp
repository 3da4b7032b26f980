// SPDX-License-Identifier: Apache-2.0
#include "gguf/modelfile.hpp"

namespace nibble::mistral {
namespace {

/// What stands around the parts of a dialogue.
struct dialect_marks {
  const char* user;       ///< before what a user says
  const char* user_end;   ///< behind it
  const char* assistant;  ///< before an answer
  bool own_system;        ///< whether a system message has marks of its own, or goes before the first user's
};

dialect_marks marks_of(const std::string& dialect) {
  if (dialect == "v1") return {"[INST] ", " [/INST]", "", false};
  if (dialect == "v3") return {"[INST] ", "[/INST]", " ", false};
  if (dialect == "v7") return {"[INST] ", "[/INST]", " ", true};
  return {"[INST]", "[/INST]", "", dialect.rfind("v7", 0) == 0};
}

std::string go_template(const dialect_marks& m, const std::string& eos) {
  const std::string user = m.user, space = user.back() == ' ' ? " " : "";
  std::string text = "{{ range $i, $_ := .Messages }}";
  if (m.own_system)
    text += "{{ if eq .Role \"system\" }}[SYSTEM_PROMPT]" + space + "{{ .Content }}[/SYSTEM_PROMPT]{{ end }}";
  text += "{{ if eq .Role \"user\" }}" + user;
  if (!m.own_system) text += "{{ if and $.System (eq (len (slice $.Messages $i)) 1) }}{{ $.System }}\n\n{{ end }}";
  text += "{{ .Content }}" + std::string(m.user_end) + "{{ end }}";
  return text + "{{ if eq .Role \"assistant\" }}" + m.assistant + "{{ .Content }}" + eos + "{{ end }}{{ end }}";
}

}  // namespace

std::string modelfile_text(const std::filesystem::path& weights, const std::string& dialect, const std::string& eos) {
  std::string text = "FROM ./" + weights.filename().string() + "\n";
  if (dialect.empty()) return text + "TEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n";
  text += "TEMPLATE \"\"\"" + go_template(marks_of(dialect), eos) + "\"\"\"\n";
  for (const char* mark : {"[INST]", "[/INST]"}) text += std::string("PARAMETER stop ") + mark + "\n";
  return text;
}

}  // namespace nibble::mistral
