// SPDX-License-Identifier: Apache-2.0
/// @file
/// Both directions go through the files that a model directory has: a tokenizer.model or a tokenizer.json is made of the keys
/// and read as those are.
#include "gguf_tokenizer.hpp"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "chat.hpp"
#include "error.hpp"
#include "gguf_model.hpp"
#include "json.hpp"
#include "utf8.hpp"

namespace nibble::mistral {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// llama.cpp's token types, which are SentencePiece's.
enum token_type : std::int32_t {
  normal = 1,
  unknown = unknown_token,
  control = control_token,
  user = user_token,
  unused = 5,
  byte = 6
};

struct token_table {
  std::vector<std::string> tokens;  ///< by id; an empty one is nobody's
  std::vector<float> scores;
  std::vector<std::int32_t> types;
  std::vector<std::string> merges;  ///< byte-level only
  std::string where, model, pre = "default";
  bool prefixed = true;  ///< a space before the text; SentencePiece only

  /// Makes room for `id`. @throws error when the model's embedding has none.
  void reach(index_t id, index_t vocabulary) {
    if (id < 0 || id >= vocabulary)
      throw error(where + ": the tokenizer gives the id " + std::to_string(id) + ", but config.json's vocab_size is " +
                  std::to_string(vocabulary));
    const auto size = static_cast<size_t>(id) + 1;
    if (tokens.size() >= size) return;
    tokens.resize(size), scores.resize(size), types.resize(size, unused);
  }
  void set(index_t id, const std::string& text, token_type type, index_t vocabulary) {
    reach(id, vocabulary);
    tokens[static_cast<size_t>(id)] = text, types[static_cast<size_t>(id)] = type;
  }
  void add_special(index_t id, const std::string& text, bool special, index_t vocabulary) {
    reach(id, vocabulary);
    const auto at = static_cast<size_t>(id);
    if (types[at] == unknown && tokens[at] == text) return;
    if (tokens[at].empty() && !is_byte_level()) scores[at] = -1000;
    set(id, text, special ? control : user, vocabulary);
  }
  bool is_byte_level() const { return model == "gpt2"; }
};

/// The pre_tokenizer itself, or the parts of a Sequence.
std::vector<json> parts_of(const json& file, const char* component, const char* list) {
  const auto found = file.find(component);
  if (found == file.end() || !found->is_object()) return {};
  const auto parts = found->find(list);
  if (parts == found->end() || !parts->is_array()) return {*found};
  return parts->get<std::vector<json>>();
}

bool is_kind(const json& component, std::string_view kind) {
  const auto type = component.is_object() ? component.find("type") : component.end();
  return type != component.end() && type->is_string() && type->get_ref<const std::string&>() == kind;
}

bool is_byte_level(const json& file) {
  const auto parts = parts_of(file, "pre_tokenizer", "pretokenizers");
  return std::any_of(parts.begin(), parts.end(), [](const json& part) { return is_kind(part, "ByteLevel"); });
}

/// llama.cpp's name of the pattern that a byte-level tokenizer splits texts by.
std::string pattern_name(const json& file, const std::string& where, bool mistral) {
  for (const json& part : parts_of(file, "pre_tokenizer", "pretokenizers")) {
    const auto pattern = "/pattern/Regex"_json_pointer;
    if (!is_kind(part, "Split") || !part.contains(pattern)) continue;
    if (part[pattern] == tekken_pattern) return "tekken";
    if (part[pattern] == converted_pattern) return mistral ? "tekken" : "llama-bpe";
  }
  throw error(
      where +
      ": its pre_tokenizer splits texts by a regular expression that is neither Tekken's nor Llama 3's; llama.cpp's " +
      "name of it is not known here");
}

/// Whether a tokenizer.json like SentencePiece's puts ▁ before the text.
bool is_prefixed(const json& file) {
  for (const json& part : parts_of(file, "normalizer", "normalizers"))
    if (is_kind(part, "Prepend")) return true;
  for (const json& part : parts_of(file, "pre_tokenizer", "pretokenizers"))
    if (is_kind(part, "Metaspace"))
      return json_get<std::string>(part, "prepend_scheme", "tokenizer.json", "always") != "never" &&
             json_get<bool>(part, "add_prefix_space", "tokenizer.json", true);
  return false;
}

/// "a b" for each merge, which the file has so or as a pair.
std::vector<std::string> merges_of(const json& model, const std::string& where) {
  std::vector<std::string> merges;
  const auto list = model.find("merges");
  if (list == model.end() || !list->is_array()) throw error(where + ": the model's \"merges\" are missing");
  for (const json& merge : *list) {
    if (merge.is_string())
      merges.push_back(merge.get<std::string>());
    else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string())
      merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
    else
      throw error(where + ": a merge must be two tokens, but is " + excerpt(merge));
  }
  return merges;
}

void read_vocabulary(token_table& t, const json& model, index_t vocabulary) {
  const auto list = model.find("vocab");
  if (list == model.end() || !list->is_object()) throw error(t.where + ": the model's \"vocab\" is missing");
  for (const auto& [text, id] : list->items()) {
    if (!json_is<std::int32_t>(id)) throw error(t.where + ": the id of the token " + excerpt(json(text)) + " is none");
    t.set(id.get<std::int32_t>(), text, normal, vocabulary);
  }
}

void read_added(token_table& t, const json& list, index_t vocabulary) {
  if (!list.is_array()) return;
  for (const json& entry : list)
    t.add_special(json_get<std::int32_t>(entry, "id", t.where), json_get<std::string>(entry, "content", t.where),
                  json_get<bool>(entry, "special", t.where, false), vocabulary);
}

bool is_byte_token(const std::string& text) {
  constexpr std::string_view digits = "0123456789ABCDEF";
  return text.size() == 6 && text.compare(0, 3, "<0x") == 0 && text[5] == '>' && digits.find(text[3]) != digits.npos &&
         digits.find(text[4]) != digits.npos;
}

/// Scores by which SentencePiece merges as the list does. Trained models number tokens as they were merged, each a point below
/// the one before. Mistral's later ones merge runs of spaces last, whatever their ids: -1e9. Where ids follow the list neither
/// way, the places in it count.
void score_by_merges(token_table& t, const json& model) {
  std::unordered_map<std::string, size_t> ids;
  size_t first = t.tokens.size();
  for (size_t id = t.tokens.size(); id-- > 0;)
    if (ids[t.tokens[id]] = id; t.types[id] == normal) first = id;
  std::vector<size_t> made;
  for (const std::string& merge : merges_of(model, t.where)) {
    const size_t space = merge.find(' ');
    const auto found = space == merge.npos ? ids.end() : ids.find(merge.substr(0, space) + merge.substr(space + 1));
    if (found == ids.end()) throw error(t.where + ": a merge makes no token: " + excerpt(json(merge)));
    made.push_back(found->second);
  }
  const auto late = std::is_sorted_until(made.begin(), made.end());
  const auto early = [&](size_t id) { return std::binary_search(made.begin(), late, id); };
  const bool follow = std::is_sorted(late, made.end()) && std::none_of(late, made.end(), early);
  for (size_t id = first; id < t.tokens.size(); ++id)
    if (t.types[id] == normal) t.scores[id] = -static_cast<float>(follow ? id - first : made.size());
  for (auto last = late; follow && last != made.end(); ++last) t.scores[*last] = -1e9f;
  if (const auto space = ids.find("▁"); follow && late != made.end() && space != ids.end())
    t.scores[space->second] = -1e9f;  // a run of one
  for (size_t rank = made.size(); !follow && rank-- > 0;) t.scores[made[rank]] = -static_cast<float>(rank);
}

token_table table_of_json(const json& file, const std::string& where, const tokenizer_settings& settings,
                          index_t size) {
  token_table t;
  t.where = where;
  const auto model = file.find("model");
  if (model == file.end() || !model->is_object()) throw error(where + ": the tokenizer's \"model\" is missing");
  t.model = is_byte_level(file) ? "gpt2" : "llama";
  if (t.is_byte_level()) t.pre = pattern_name(file, where, settings.mistral);
  read_vocabulary(t, *model, size);
  if (t.is_byte_level()) {
    t.merges = merges_of(*model, where);
  } else {
    if (!json_get<bool>(*model, "byte_fallback", where, false))
      throw error(where + " is neither byte-level nor has byte_fallback; llama.cpp has no tokenizer like it");
    t.prefixed = is_prefixed(file);
    for (size_t id = 0; id < t.tokens.size(); ++id)
      if (is_byte_token(t.tokens[id])) t.types[id] = byte;
    const auto name = json_get<std::string>(*model, "unk_token", where, "");
    const auto at = std::find(t.tokens.begin(), t.tokens.end(), name);
    if (!name.empty() && at != t.tokens.end()) t.types[static_cast<size_t>(at - t.tokens.begin())] = unknown;
  }
  if (const auto added = file.find("added_tokens"); added != file.end()) read_added(t, *added, size);
  if (!t.is_byte_level()) score_by_merges(t, *model);
  return t;
}

token_table table_of_sentencepiece(const fs::path& file, index_t size) {
  token_table t;
  t.where = file.string(), t.model = "llama";
  const std::string bytes = read_file(file);
  check_sentencepiece_model(bytes, t.where);
  const sentencepiece_model model = read_sentencepiece_model(bytes, t.where);
  if (!model.merges)
    throw error(t.where + " is a unigram model; llama.cpp takes SentencePiece's BPE for this architecture");
  t.prefixed = model.prefixed;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const auto& piece = model.pieces[id];
    if (piece.type < normal || piece.type > byte)
      throw error(t.where + ": the piece " + std::to_string(id) + " has the unknown type " +
                  std::to_string(piece.type));
    t.set(static_cast<index_t>(id), piece.text, static_cast<token_type>(piece.type), size);
    t.scores[id] = piece.score;
  }
  return t;
}

/// Tokens that stand beside a tokenizer.model: tokenizer_config.json's added_tokens_decoder, else added_tokens.json.
void add_tokens_beside(token_table& t, const fs::path& model, index_t size) {
  if (const fs::path file = model / "tokenizer_config.json"; fs::exists(file)) {
    const auto settings = read_json<json>(file);
    const auto list = settings.is_object() ? settings.find("added_tokens_decoder") : settings.end();
    if (list != settings.end() && list->is_object()) {
      t.where = file.string();
      for (const auto& [id, entry] : list->items()) {
        if (id.empty() || id.size() > 9 || id.find_first_not_of("0123456789") != id.npos)
          throw error(t.where + ": \"added_tokens_decoder\" has the key " + excerpt(json(id)) +
                      ", which is no token id");
        t.add_special(std::stoi(id), json_get<std::string>(entry, "content", t.where),
                      json_get<bool>(entry, "special", t.where, false), size);
      }
      return;
    }
  }
  if (const fs::path file = model / "added_tokens.json"; fs::exists(file)) {
    t.where = file.string();
    const auto list = read_json<json>(file);
    if (!list.is_object()) throw error(t.where + " must hold a JSON object");
    for (const auto& [text, id] : list.items()) {
      if (!json_is<std::int32_t>(id)) throw error(t.where + ": the id of " + excerpt(json(text)) + " is none");
      t.add_special(id.get<std::int32_t>(), text, false, size);
    }
  }
}

token_table table_of(const fs::path& model, const tokenizer_settings& settings, index_t size) {
  const fs::path in_json = model / "tokenizer.json", in_model = model / "tokenizer.model";
  json file;
  if (fs::exists(in_json)) file = read_json<json>(in_json);
  token_table t;
  if (fs::exists(in_model) && !is_byte_level(file)) {
    t = table_of_sentencepiece(in_model, size);
    add_tokens_beside(t, model, size);
  } else {
    t = table_of_json(file, in_json.string(), settings, size);
  }
  t.reach(size - 1, size);
  for (size_t id = 0; id < t.tokens.size(); ++id)
    if (t.tokens[id].empty()) t.tokens[id] = "[PAD" + std::to_string(id) + "]", t.types[id] = unused;
  std::vector<std::string> sorted = t.tokens;
  std::sort(sorted.begin(), sorted.end());
  if (const auto twice = std::adjacent_find(sorted.begin(), sorted.end()); twice != sorted.end())
    throw error(t.where + ": the token " + excerpt(json(*twice)) + " has two ids");
  return t;
}

// ---- reading

std::string token_of(const gguf_file& file, std::uint64_t id, const char* key) {
  const auto& tokens = file.get_array<std::string>("tokenizer.ggml.tokens");
  if (id >= tokens.size())
    throw error(file.path().string() + ": \"" + key + "\" is " + std::to_string(id) + ", but there are " +
                std::to_string(tokens.size()) + " tokens");
  return tokens[static_cast<size_t>(id)];
}

std::optional<std::string> named_token(const gguf_file& file, const char* key, std::optional<std::uint64_t> otherwise) {
  if (file.find(key)) return token_of(file, file.whole(key), key);
  if (otherwise) return token_of(file, *otherwise, key);
  return std::nullopt;
}

bool is_sentencepiece(const gguf_file& file) {
  const auto& model = file.get<std::string>("tokenizer.ggml.model");
  if (model != "llama" && model != "gpt2")
    throw error(file.path().string() + ": \"tokenizer.ggml.model\" must be \"llama\" or \"gpt2\", but is " +
                excerpt(json(utf8_repaired(model.substr(0, 60)))));
  return model == "llama";
}

/// The array of a value a token, all checked to be as many as there are tokens.
template <class T>
const std::vector<T>& by_token(const gguf_file& file, const char* key) {
  const auto& values = file.get_array<T>(key);
  if (values.size() != file.get_array<std::string>("tokenizer.ggml.tokens").size())
    throw error(file.path().string() + ": \"" + key + "\" has " + std::to_string(values.size()) +
                " values, not one a token");
  return values;
}

std::unique_ptr<tokenizer> read_sentencepiece(const gguf_file& file) {
  const auto& tokens = file.get_array<std::string>("tokenizer.ggml.tokens");
  const auto& scores = by_token<float>(file, "tokenizer.ggml.scores");
  const auto& types = by_token<std::int32_t>(file, "tokenizer.ggml.token_type");
  sentencepiece_model model;
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (types[id] < normal || types[id] > byte)
      throw error(file.path().string() + ": \"tokenizer.ggml.token_type\" gives token " + std::to_string(id) +
                  " the type " + std::to_string(types[id]) + "; types are from 1 to 6");
    model.pieces.push_back({tokens[id], scores[id], types[id]});
  }
  model.prefixed = !file.find("tokenizer.ggml.add_space_prefix") || file.get<bool>("tokenizer.ggml.add_space_prefix");
  return make_sentencepiece_tokenizer(sentencepiece_model_bytes(model), file.path().string(),
                                      read_gguf_tokenizer_settings(file));
}

std::string_view pattern_of(const gguf_file& file) {
  const auto& pre = file.get<std::string>("tokenizer.ggml.pre");
  if (pre == "tekken") return tekken_pattern;
  if (pre == "llama-bpe" || pre == "llama3") return converted_pattern;
  throw error(file.path().string() + ": \"tokenizer.ggml.pre\" must be \"tekken\" or \"llama-bpe\", but is " +
              excerpt(json(utf8_repaired(pre.substr(0, 60)))));
}

std::unique_ptr<tokenizer> read_byte_level(const gguf_file& file) {
  const std::string where = file.path().string();
  const auto& tokens = file.get_array<std::string>("tokenizer.ggml.tokens");
  const auto& types = by_token<std::int32_t>(file, "tokenizer.ggml.token_type");
  json vocabulary = json::object(), added = json::array();
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (utf8_error(tokens[id]) != std::string::npos)
      throw error(where + ": \"tokenizer.ggml.tokens\" holds a token " + std::to_string(id) + " that is not UTF-8");
    if (!vocabulary.emplace(tokens[id], id).second)
      throw error(where + ": the token " + excerpt(json(tokens[id])) + " has two ids");
    if (types[id] == control || types[id] == user)
      added.push_back({{"id", id}, {"content", tokens[id]}, {"special", types[id] == control}, {"normalized", false}});
  }
  json merges = json::array();
  for (const std::string& merge : file.get_array<std::string>("tokenizer.ggml.merges")) {
    if (utf8_error(merge) != std::string::npos) throw error(where + ": \"tokenizer.ggml.merges\" is not UTF-8");
    merges.push_back(merge);
  }
  const json whole = {
      {"model",
       {{"type", "BPE"}, {"vocab", std::move(vocabulary)}, {"merges", std::move(merges)}, {"ignore_merges", true}}},
      {"added_tokens", std::move(added)},
      {"pre_tokenizer",
       {{"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Split"}, {"pattern", {{"Regex", pattern_of(file)}}}, {"behavior", "Isolated"}, {"invert", false}},
          {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}}}}}},
      {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}}};
  return make_json_tokenizer(whole, where, read_gguf_tokenizer_settings(file));
}

}  // namespace

void add_tokenizer(gguf_metadata& out, const fs::path& model, const config& c) {
  const tokenizer_settings settings = read_tokenizer_settings(model);
  const auto tok = open_tokenizer(model);
  token_table t = table_of(model, settings, c.vocabulary);
  const auto put = [&](const char* key, gguf_value value) {
    out.emplace_back(std::string("tokenizer.ggml.") + key, std::move(value));
  };
  put("model", t.model);
  put("pre", t.pre);
  const auto unk = std::find(t.types.begin(), t.types.end(), unknown);
  const auto unk_id = static_cast<std::uint32_t>(unk - t.types.begin());
  const bool has_unk = unk != t.types.end();
  put("tokens", gguf_array(std::move(t.tokens)));
  if (!t.is_byte_level()) put("scores", gguf_array(std::move(t.scores)));
  put("token_type", gguf_array(std::move(t.types)));
  if (t.is_byte_level()) put("merges", gguf_array(std::move(t.merges)));
  if (tok->bos() >= 0) put("bos_token_id", static_cast<std::uint32_t>(tok->bos()));
  if (tok->eos() >= 0) put("eos_token_id", static_cast<std::uint32_t>(tok->eos()));
  if (has_unk) put("unknown_token_id", unk_id);
  const std::vector<std::int32_t> frame = tok->encode_framed("");
  put("add_bos_token", !frame.empty() && frame.front() == tok->bos());
  put("add_eos_token", !frame.empty() && frame.back() == tok->eos());
  if (!t.is_byte_level()) put("add_space_prefix", t.prefixed);
  const std::string source = read_chat_template(model).source;
  if (!source.empty()) out.emplace_back("tokenizer.chat_template", source);
}

tokenizer_settings read_gguf_tokenizer_settings(const gguf_file& file) {
  const bool sentencepiece = is_sentencepiece(file);
  tokenizer_settings settings;
  using id = std::optional<std::uint64_t>;
  settings.bos = named_token(file, "tokenizer.ggml.bos_token_id", sentencepiece ? id(1) : id());
  settings.eos = named_token(file, "tokenizer.ggml.eos_token_id", sentencepiece ? id(2) : id());
  const auto flag = [&](const char* key, bool otherwise) { return file.find(key) ? file.get<bool>(key) : otherwise; };
  settings.add_bos = flag("tokenizer.ggml.add_bos_token", true);  // of both models, with the patterns known here
  settings.add_eos = flag("tokenizer.ggml.add_eos_token", false);
  return settings;
}

std::unique_ptr<tokenizer> read_gguf_tokenizer(const gguf_file& file) {
  return is_sentencepiece(file) ? read_sentencepiece(file) : read_byte_level(file);
}

}  // namespace nibble::mistral
