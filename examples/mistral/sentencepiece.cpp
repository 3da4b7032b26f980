// SPDX-License-Identifier: Apache-2.0
/// @file
/// tokenizer.model by libsentencepiece. The library does not see control pieces such as [INST] when they are written in
/// a text; here they are cut out first, and what is between them is encoded. The mark ▁ goes only where the text begins
/// (unless white space is there): the ids of the tokenizer.json that transformers makes of such a file.
#include <sentencepiece_processor.h>

#include "added_tokens.hpp"
#include "json.hpp"
#include "pipeline.hpp"
#include "tokenizer_files.hpp"
#include "utf8.hpp"

namespace nibble::mistral {
namespace {

constexpr std::string_view mark = "▁";

/// A NormalizerSpec (ModelProto's field 3) that says add_dummy_prefix = false (its field 3). Protocol buffers merge
/// messages that follow each other, so appended to a model it switches off the library's own ▁ and nothing else.
constexpr std::string_view no_dummy_prefix("\x1a\x02\x18\x00", 4);

/// How tokens become text, in the words of tokenizer.json.
constexpr const char* decoding = R"({"type": "Sequence", "decoders": [
  {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]})";

class sentencepiece_tokenizer final : public tokenizer {
 public:
  sentencepiece_tokenizer(const std::string& bytes, std::string where, const tokenizer_settings& settings)
      : where_(std::move(where)), decode_(read_decoder(nlohmann::json::parse(decoding), where_)) {
    load(bytes);
    for (int32_t id = 0; id < vocabulary(); ++id) {
      if (!is_special(id)) continue;
      added_token token;
      token.id = id;
      token.content = processor_.IdToPiece(id);
      token.special = true;
      special_.add(token, token.content);
    }
    bos_ = named(settings.bos);
    eos_ = named(settings.eos);
    add_bos_ = settings.add_bos.value_or(true) && bos_ >= 0;
    add_eos_ = settings.add_eos.value_or(false) && eos_ >= 0;
  }

  std::vector<int32_t> encode(std::string_view text) const override {
    const std::string repaired = utf8_error(text) == std::string_view::npos ? "" : utf8_repaired(text);
    if (!repaired.empty()) text = repaired;
    std::vector<int32_t> ids;
    for (const auto& part : special_.split(text))
      if (part.id >= 0)
        ids.push_back(part.id);
      else
        append(text.substr(part.begin, part.end - part.begin), part.begin == 0, ids);
    return ids;
  }

  std::vector<int32_t> encode_framed(std::string_view text) const override {
    std::vector<int32_t> ids = encode(text);
    if (add_bos_) ids.insert(ids.begin(), bos_);
    if (add_eos_) ids.push_back(eos_);
    return ids;
  }

  std::string decode(const std::vector<int32_t>& ids, bool keep_special) const override {
    std::vector<std::string> tokens;
    for (const int32_t id : ids) {
      if (id < 0 || id >= vocabulary()) throw error("the tokenizer has no token " + std::to_string(id));
      if (keep_special || !is_special(id)) tokens.push_back(processor_.IdToPiece(id));
    }
    std::string text;
    for (const std::string& part : decode_(std::move(tokens))) text += part;
    if (prefix_ && !text.empty() && text[0] == ' ') text.erase(0, 1);
    return text;
  }

  index_t vocabulary() const override { return processor_.GetPieceSize(); }
  int32_t bos() const override { return bos_; }
  int32_t eos() const override { return eos_; }

 private:
  void load(const std::string& bytes) {
    check_sentencepiece_model(bytes, where_);
    check(processor_.LoadFromSerializedProto(bytes));
    std::vector<std::string> pieces;
    check(processor_.Encode("a", &pieces));
    prefix_ = !pieces.empty() && pieces[0].compare(0, mark.size(), mark) == 0;
    if (prefix_) check(processor_.LoadFromSerializedProto(bytes + std::string(no_dummy_prefix)));
  }

  void check(const sentencepiece::util::Status& status) const {
    if (!status.ok()) throw error(where_ + " is no SentencePiece model, or a damaged one: " + status.ToString());
  }

  bool is_special(int32_t id) const { return processor_.IsControl(id) || processor_.IsUnknown(id); }

  int32_t named(const std::optional<std::string>& name) const {
    if (!name) return -1;
    const int32_t id = processor_.PieceToId(*name);
    if (processor_.IdToPiece(id) != *name)
      throw error(where_ + " has no token " + *name + ", which begins or ends a text by tokenizer_config.json");
    return id;
  }

  void append(std::string_view text, bool first, std::vector<int32_t>& ids) const {
    std::string marked(text);
    if (prefix_ && first && text[0] != ' ' && text.substr(0, mark.size()) != mark) marked.insert(0, mark);
    std::vector<int> own;
    check(processor_.Encode(marked, &own));
    ids.insert(ids.end(), own.begin(), own.end());
  }

  std::string where_;
  sentencepiece::SentencePieceProcessor processor_;
  added_tokens special_;
  text_decoder decode_;
  bool prefix_ = false, add_bos_ = true, add_eos_ = false;
  int32_t bos_ = -1, eos_ = -1;
};

}  // namespace

std::unique_ptr<tokenizer> read_tokenizer_model(const std::filesystem::path& file, const tokenizer_settings& settings) {
  return make_sentencepiece_tokenizer(read_file(file), file.string(), settings);
}

std::unique_ptr<tokenizer> make_sentencepiece_tokenizer(const std::string& bytes, const std::string& where,
                                                        const tokenizer_settings& settings) {
  return std::make_unique<sentencepiece_tokenizer>(bytes, where, settings);
}

}  // namespace nibble::mistral
