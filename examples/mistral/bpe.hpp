// SPDX-License-Identifier: Apache-2.0
/// @file
/// Byte-pair encoding over a vocabulary with ranked merges:
///     while any neighbours (a, b) have a merge: replace the pair of the lowest rank, the leftmost of equals, by ab
/// in O(n log n) with a queue of candidate pairs, so that a whole book in one piece is no harder than its words.
/// Source: Sennrich, Haddow and Birch, ACL 2016 (arXiv:1508.07909); the order of equals, byte fallback and the fusing
/// of unknowns are those of the `tokenizers` package's BPE.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "nibble/core.hpp"

namespace nibble::mistral {

class bpe {
 public:
  /// `model`: the "model" of a tokenizer.json. @throws error naming `where`: another model than BPE, an option that is
  /// not implemented (dropout, affixes), ids that are negative, duplicate or beyond max_id, merges of unknown tokens.
  bpe(const nlohmann::json& model, const std::string& where);
  bpe(const bpe&) = delete;  // ids_ looks into tokens_
  bpe& operator=(const bpe&) = delete;

  static constexpr int32_t max_id = (1 << 24) - 1;  ///< what a table of tokens by id may cost is bounded

  /// Appends the ids of `piece`. @pre piece is UTF-8.
  void encode(std::string_view piece, std::vector<int32_t>& out) const;

  int32_t id(std::string_view token) const;                              ///< −1 if there is none
  const std::string& token(int32_t id) const;                            ///< empty for an id that no token has
  index_t size() const { return static_cast<index_t>(tokens_.size()); }  ///< ids are in [0, size())

 private:
  struct merge {
    int32_t rank, id;
  };
  struct symbol {
    int32_t id, previous, next;  // neighbours' places, −1 at the ends; id is −1 once merged away
  };

  void read_vocabulary(const nlohmann::json& vocabulary, const std::string& where);
  void read_merges(const nlohmann::json& merges, const std::string& where);
  void append_characters(std::string_view piece, std::vector<symbol>& symbols) const;
  void merge_all(std::vector<symbol>& symbols) const;
  const merge* find(int32_t left, int32_t right) const;

  std::vector<std::string> tokens_;                    // by id
  std::unordered_map<std::string_view, int32_t> ids_;  // keys lie in tokens_
  std::unordered_map<uint64_t, merge> merges_;         // left << 32 | right
  int32_t bytes_[256];                                 // ids of <0x00> … <0xFF>, −1 where missing
  int32_t unknown_ = -1;
  bool byte_fallback_ = false, fuse_unknown_ = false, ignore_merges_ = false;
};

}  // namespace nibble::mistral
