// SPDX-License-Identifier: Apache-2.0
#include "overlap.hpp"

#include <map>
#include <unordered_set>

#include "words.hpp"

namespace nibble::mistral {
namespace {

constexpr size_t run_words = 13, least_words = 8;

using hashes = std::vector<std::uint64_t>;

/// FNV-1a of each word.
hashes word_hashes(const std::vector<std::string>& words) {
  hashes out;
  for (const std::string& word : words) {
    std::uint64_t hash = 0xcbf29ce484222325u;
    for (const char byte : word) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3u;
    out.push_back(hash);
  }
  return out;
}

/// Of the `length` words from `begin` on. Two of a million different runs collide with a probability of 3e-8.
std::uint64_t run_hash(const hashes& words, size_t begin, size_t length) {
  std::uint64_t hash = length;
  for (size_t i = begin; i < begin + length; ++i) {
    hash = (hash ^ words[i]) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  }
  return hash;
}

/// All runs of the samples, by length; a length's are found when first asked for.
class sample_runs {
 public:
  explicit sample_runs(const std::vector<std::string>& samples) {
    for (const std::string& sample : samples) samples_.push_back(word_hashes(words_of(sample)));
  }
  const std::unordered_set<std::uint64_t>& of(size_t length) {
    const auto [found, fresh] = runs_.try_emplace(length);
    if (fresh)
      for (const hashes& words : samples_)
        for (size_t begin = 0; begin + length <= words.size(); ++begin)
          found->second.insert(run_hash(words, begin, length));
    return found->second;
  }

 private:
  std::vector<hashes> samples_;
  std::map<size_t, std::unordered_set<std::uint64_t>> runs_;
};

}  // namespace

overlap find_overlap(const std::vector<std::string>& samples, const std::vector<std::string>& documents) {
  sample_runs runs(samples);
  overlap out;
  for (const std::string& document : documents) {
    const std::vector<std::string> words = words_of(document);
    out.words += static_cast<index_t>(words.size());
    ++out.documents;
    if (words.size() < least_words) continue;
    const size_t length = std::min(run_words, words.size());
    const auto& known = runs.of(length);
    const hashes own = word_hashes(words);
    size_t shared = 0, counted = 0;  // words [0, counted) are counted
    for (size_t begin = 0; begin + length <= words.size(); ++begin) {
      if (known.count(run_hash(own, begin, length)) == 0) continue;
      if (out.example.empty())
        for (size_t i = begin; i < begin + length; ++i) out.example += (i > begin ? " " : "") + words[i];
      shared += begin + length - std::max(begin, counted);
      counted = begin + length;
    }
    out.shared += static_cast<index_t>(shared);
    if (5 * shared >= 4 * words.size()) ++out.repeated;
  }
  return out;
}

}  // namespace nibble::mistral
