// SPDX-License-Identifier: Apache-2.0
/// @file
/// tokenizer.json: text → added tokens cut out → normalizer → pre_tokenizer → byte-pair encoding.
/// Source: the `tokenizers` package, TokenizerImpl and AddedVocabulary.
#include <algorithm>
#include <unordered_set>

#include "added_tokens.hpp"
#include "bpe.hpp"
#include "json.hpp"
#include "pipeline.hpp"
#include "tokenizer_files.hpp"
#include "utf8.hpp"

namespace nibble::mistral {
namespace {

using nlohmann::json;

/// A component of the file, null where it has none.
const json& component(const json& file, const char* key) {
  static const json none;
  const auto found = file.find(key);
  return found == file.end() ? none : *found;
}

/// Puts Tekken's pattern where a conversion left the other one, as transformers does with fix_mistral_regex=True.
void repair_pattern(json& file) {
  const auto pointer = "/pre_tokenizer/pretokenizers/0/pattern/Regex"_json_pointer;
  if (file.contains(pointer) && file[pointer] == converted_pattern) file[pointer] = tekken_pattern;
}

class json_tokenizer final : public tokenizer {
 public:
  json_tokenizer(const json& file, const std::string& where, const tokenizer_settings& settings)
      : model_(component(file, "model"), where + ", model"),
        normalize_(read_normalizer(component(file, "normalizer"), where + ", normalizer")),
        pre_tokenize_(read_pre_tokenizer(component(file, "pre_tokenizer"), where + ", pre_tokenizer")),
        decode_(read_decoder(component(file, "decoder"), where + ", decoder")) {
    read_added(component(file, "added_tokens"), where);
    bos_ = named(settings.bos, where);
    eos_ = named(settings.eos, where);
    frame_ = read_post_processor(component(file, "post_processor"), where + ", post_processor");
    if (settings.add_bos || settings.add_eos) {
      frame_ = {};
      if (settings.add_bos.value_or(false) && bos_ >= 0) frame_.before = {bos_};
      if (settings.add_eos.value_or(false) && eos_ >= 0) frame_.after = {eos_};
    }
    for (const auto& ids : {frame_.before, frame_.after})
      for (const int32_t id : ids)
        if (id >= vocabulary())
          throw error(where + ": post_processor adds the id " + std::to_string(id) + " that no token has");
  }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    if (utf8_error(text) == std::string_view::npos)
      append(text, ids);
    else
      append(utf8_repaired(text), ids);
    return ids;
  }

  std::vector<int32_t> encode_framed(std::string_view text) const override {
    std::vector<int32_t> ids = encode(text);
    ids.insert(ids.begin(), frame_.before.begin(), frame_.before.end());
    ids.insert(ids.end(), frame_.after.begin(), frame_.after.end());
    return ids;
  }

  std::string decode(const std::vector<int32_t>& ids, bool keep_special) const override {
    std::vector<std::string> tokens;
    for (const int32_t id : ids) {
      if (id < 0 || id >= vocabulary()) throw error("the tokenizer has no token " + std::to_string(id));
      if (keep_special || special_.count(id) == 0) tokens.push_back(token(id));
    }
    std::string text;
    for (const std::string& part : decode_(std::move(tokens))) text += part;
    return text;
  }

  index_t vocabulary() const override { return vocabulary_; }
  int32_t bos() const override { return bos_; }
  int32_t eos() const override { return eos_; }

 private:
  void read_added(const json& list, const std::string& where);
  void append(std::string_view text, std::vector<int32_t>& ids) const;
  int32_t named(const std::optional<std::string>& name, const std::string& where) const;

  const std::string& token(int32_t id) const {
    const auto found = added_.find(id);
    return found != added_.end() ? found->second : model_.token(id);
  }

  bpe model_;
  normalizer normalize_;
  pre_tokenizer pre_tokenize_;
  text_decoder decode_;
  added_tokens verbatim_, normalized_;
  std::unordered_map<int32_t, std::string> added_;      // what decode writes for them
  std::unordered_map<std::string, int32_t> added_ids_;  // by content
  std::unordered_set<int32_t> special_;
  framing frame_;
  index_t vocabulary_ = 0;
  int32_t bos_ = -1, eos_ = -1;
};

void json_tokenizer::read_added(const json& list, const std::string& where) {
  vocabulary_ = model_.size();
  if (!list.is_null() && !list.is_array()) throw error(where + ": \"added_tokens\" must be an array");
  for (const json& entry : list) {
    added_token token;
    token.content = json_get<std::string>(entry, "content", where + ", added_tokens");
    const std::string here = where + ", added token " + excerpt(json(token.content));
    token.id = json_get<int32_t>(entry, "id", here);
    token.special = json_get<bool>(entry, "special", here, false);
    token.normalized = json_get<bool>(entry, "normalized", here, !token.special);
    token.single_word = json_get<bool>(entry, "single_word", here, false);
    token.lstrip = json_get<bool>(entry, "lstrip", here, false);
    token.rstrip = json_get<bool>(entry, "rstrip", here, false);
    const int32_t known = model_.id(token.content);
    if (token.id < 0 || token.id > bpe::max_id || (known >= 0 && known != token.id))
      throw error(here + ": the id " + std::to_string(token.id) +
                  (known < 0 ? " is out of range" : " is not the vocabulary's"));
    const std::string pattern = token.normalized ? normalize_(token.content) : token.content;
    const bool of_another = known < 0 && !model_.token(token.id).empty();
    if (!added_.emplace(token.id, pattern).second || !added_ids_.emplace(token.content, token.id).second || of_another)
      throw error(here + ": the id " + std::to_string(token.id) +
                  " belongs to another token, or the token has two ids");
    vocabulary_ = std::max(vocabulary_, index_t{token.id} + 1);
    if (token.special) special_.insert(token.id);
    (token.normalized ? normalized_ : verbatim_).add(token, pattern);
  }
}

int32_t json_tokenizer::named(const std::optional<std::string>& name, const std::string& where) const {
  if (!name) return -1;
  if (const auto found = added_ids_.find(*name); found != added_ids_.end()) return found->second;
  const int32_t id = model_.id(*name);
  if (id < 0) throw error(where + " has no token " + *name + ", which begins or ends a text by tokenizer_config.json");
  return id;
}

void json_tokenizer::append(std::string_view text, std::vector<int32_t>& ids) const {
  for (const auto& outer : verbatim_.split(text)) {
    if (outer.id >= 0) {
      ids.push_back(outer.id);
      continue;
    }
    const std::string normal = normalize_(std::string(text.substr(outer.begin, outer.end - outer.begin)));
    for (const auto& inner : normalized_.split(normal)) {
      if (inner.id >= 0) {
        ids.push_back(inner.id);
        continue;
      }
      std::vector<piece> pieces;
      pieces.push_back({normal.substr(inner.begin, inner.end - inner.begin), outer.begin == 0 && inner.begin == 0});
      for (const piece& p : pre_tokenize_(std::move(pieces))) model_.encode(p.text, ids);
    }
  }
}

}  // namespace

std::unique_ptr<tokenizer> make_json_tokenizer(const json& file, const std::string& where,
                                               const tokenizer_settings& settings) {
  return std::make_unique<json_tokenizer>(file, where, settings);
}

std::unique_ptr<tokenizer> read_tokenizer_json(const std::filesystem::path& path, const tokenizer_settings& settings) {
  auto file = read_json<json>(path);
  if (!file.is_object() || !file.contains("model") || !file["model"].is_object())
    throw error(path.string() + ": the tokenizer's \"model\" is missing");
  if (settings.mistral) repair_pattern(file);
  return make_json_tokenizer(file, path.string(), settings);
}

}  // namespace nibble::mistral
