// SPDX-License-Identifier: Apache-2.0
#include "bpe.hpp"

#include <algorithm>
#include <cstdio>
#include <queue>

#include "json.hpp"
#include "utf8.hpp"

namespace nibble::mistral {
namespace {

/// A candidate: the pair whose left symbol is at `place`. Lowest rank first, then leftmost.
struct candidate {
  int32_t rank, place, id;
  bool operator<(const candidate& other) const {  // priority_queue puts the greatest on top
    return rank != other.rank ? rank > other.rank : place > other.place;
  }
};

/// The two tokens of a merge, written "a b" or ["a", "b"].
std::pair<std::string, std::string> merge_pair(const nlohmann::json& entry, const std::string& where) {
  if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string())
    return {entry[0].get<std::string>(), entry[1].get<std::string>()};
  if (entry.is_string()) {
    const auto text = entry.get<std::string>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos)
      return {text.substr(0, space), text.substr(space + 1)};
  }
  throw error(where + ": " + excerpt(entry) + " is no merge of two tokens");
}

}  // namespace

bpe::bpe(const nlohmann::json& model, const std::string& where) {
  const auto type = json_get<std::string>(model, "type", where, "BPE");
  if (type != "BPE") throw error(where + ": the model type " + type + " is not supported, only BPE");
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"})
    if (const auto found = model.find(key);
        found != model.end() && excerpt(*found) != "null" && excerpt(*found) != "\"\"" && excerpt(*found) != "0.0")
      throw error(where + ": BPE with \"" + key + "\" is not supported");
  byte_fallback_ = json_get<bool>(model, "byte_fallback", where, false);
  fuse_unknown_ = json_get<bool>(model, "fuse_unk", where, false);
  ignore_merges_ = json_get<bool>(model, "ignore_merges", where, false);
  for (const char* key : {"vocab", "merges"})
    if (!model.contains(key)) throw error(where + ": the model has no \"" + key + "\"");
  read_vocabulary(model.at("vocab"), where);
  read_merges(model.at("merges"), where);
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", byte);
    bytes_[byte] = id(name);
  }
  if (const auto token = json_get<std::string>(model, "unk_token", where, ""); !token.empty()) {
    unknown_ = id(token);
    if (unknown_ < 0) throw error(where + ": the unknown token " + token + " is not in the vocabulary");
  }
}

void bpe::read_vocabulary(const nlohmann::json& vocabulary, const std::string& where) {
  if (!vocabulary.is_object() || vocabulary.empty()) throw error(where + ": \"vocab\" must be an object of token: id");
  int32_t last = -1;
  for (const auto& [token, id] : vocabulary.items()) {
    if (!json_is<int32_t>(id) || id.get<int32_t>() < 0 || id.get<int32_t>() > max_id)
      throw error(where + ": the id " + excerpt(id) + " of token " + excerpt(nlohmann::json(token)) +
                  " is not an integer from 0 to " + std::to_string(max_id));
    last = std::max(last, id.get<int32_t>());
  }
  tokens_.resize(static_cast<size_t>(last) + 1);
  ids_.reserve(vocabulary.size());
  std::vector<bool> taken(tokens_.size());
  for (const auto& [token, value] : vocabulary.items()) {
    const auto id = value.get<int32_t>();
    const auto at = static_cast<size_t>(id);
    if (taken[at])
      throw error(where + ": the id " + std::to_string(id) + " belongs to two tokens, " +
                  excerpt(nlohmann::json(tokens_[at])) + " and " + excerpt(nlohmann::json(token)));
    taken[at] = true;
    tokens_[at] = token;
    ids_.emplace(tokens_[at], id);
  }
}

void bpe::read_merges(const nlohmann::json& merges, const std::string& where) {
  if (!merges.is_array()) throw error(where + ": \"merges\" must be an array");
  merges_.reserve(merges.size());
  int32_t rank = 0;
  for (const auto& entry : merges) {
    const auto [left, right] = merge_pair(entry, where);
    const int32_t a = id(left), b = id(right), both = id(left + right);
    if (a < 0 || b < 0 || both < 0)
      throw error(where + ": merge " + std::to_string(rank) + ", " + excerpt(entry) + ", names the token " +
                  excerpt(nlohmann::json(a < 0   ? left
                                         : b < 0 ? right
                                                 : left + right)) +
                  " that is not in the vocabulary");
    merges_[static_cast<uint64_t>(a) << 32 | static_cast<uint64_t>(b)] = {rank++, both};
  }
}

int32_t bpe::id(std::string_view token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? -1 : found->second;
}

const std::string& bpe::token(int32_t id) const {
  static const std::string none;
  return id >= 0 && id < size() ? tokens_[static_cast<size_t>(id)] : none;
}

const bpe::merge* bpe::find(int32_t left, int32_t right) const {
  const auto found = merges_.find(static_cast<uint64_t>(left) << 32 | static_cast<uint64_t>(right));
  return found == merges_.end() ? nullptr : &found->second;
}

void bpe::append_characters(std::string_view piece, std::vector<symbol>& symbols) const {
  const auto append = [&](int32_t id) { symbols.push_back({id, 0, 0}); };
  bool pending = false;  // an unknown that a following one may join
  for (size_t at = 0; at < piece.size();) {
    const size_t length = utf8_length(piece, at);
    const std::string_view character = piece.substr(at, length);
    at += length;
    if (const int32_t known = id(character); known >= 0) {
      if (pending) append(unknown_);
      pending = false;
      append(known);
      continue;
    }
    const auto byte_id = [&](char c) { return bytes_[static_cast<unsigned char>(c)]; };
    if (byte_fallback_ && std::all_of(character.begin(), character.end(), [&](char c) { return byte_id(c) >= 0; })) {
      for (const char c : character) append(byte_id(c));
    } else if (unknown_ >= 0) {
      if (pending && !fuse_unknown_) append(unknown_);
      pending = true;
    }  // a character that nothing stands for is dropped
  }
  if (pending) append(unknown_);
}

void bpe::merge_all(std::vector<symbol>& symbols) const {
  const auto count = static_cast<int32_t>(symbols.size());
  const auto at = [&](int32_t place) -> symbol& { return symbols[static_cast<size_t>(place)]; };
  std::vector<candidate> first;
  for (int32_t place = 0; place < count; ++place) {
    at(place).previous = place - 1;
    at(place).next = place + 1 < count ? place + 1 : -1;
    if (place + 1 == count) break;
    if (const merge* m = find(at(place).id, at(place + 1).id)) first.push_back({m->rank, place, m->id});
  }
  std::priority_queue<candidate> queue({}, std::move(first));
  const auto offer = [&](int32_t place) {
    if (place < 0 || at(place).next < 0) return;
    if (const merge* m = find(at(place).id, at(at(place).next).id)) queue.push({m->rank, place, m->id});
  };
  while (!queue.empty()) {
    const candidate best = queue.top();
    queue.pop();
    symbol& left = at(best.place);
    if (left.id < 0 || left.next < 0) continue;
    const merge* still = find(left.id, at(left.next).id);
    if (still == nullptr || still->id != best.id) continue;  // one of the two has been merged since
    symbol& right = at(left.next);
    left.id = best.id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) at(left.next).previous = best.place;
    offer(left.previous);
    offer(best.place);
  }
}

void bpe::encode(std::string_view piece, std::vector<int32_t>& out) const {
  if (ignore_merges_)
    if (const int32_t whole = id(piece); whole >= 0) {
      out.push_back(whole);
      return;
    }
  std::vector<symbol> symbols;
  symbols.reserve(piece.size());
  append_characters(piece, symbols);
  merge_all(symbols);
  for (const symbol& s : symbols)
    if (s.id >= 0) out.push_back(s.id);
}

}  // namespace nibble::mistral
