// SPDX-License-Identifier: Apache-2.0
#include "calibration.hpp"

#include <algorithm>
#include <numeric>

#include "json.hpp"
#include "text_file.hpp"

namespace nibble::mistral {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

/// SplitMix64. Source: Steele, Lea and Flood, OOPSLA 2014.
struct splitmix64 {
  uint64_t state;

  uint64_t operator()() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }

  /// Uniform in [0, n): draws from the incomplete last run of n are thrown away. @pre n > 0.
  uint64_t below(uint64_t n) {
    const uint64_t surplus = (UINT64_MAX % n + 1) % n;  // 2^64 mod n
    uint64_t drawn = (*this)();
    while (drawn > UINT64_MAX - surplus) drawn = (*this)();
    return drawn % n;
  }
};

std::vector<std::vector<int32_t>> windows(const std::vector<int32_t>& ids, const calibration_options& options) {
  const auto length = static_cast<size_t>(options.max_length);
  std::vector<std::vector<int32_t>> out;
  if (!ids.empty() && ids.size() < length) return {ids};
  for (size_t begin = 0; begin + length <= ids.size() && out.size() < static_cast<size_t>(options.samples);
       begin += length)
    out.emplace_back(ids.begin() + static_cast<std::ptrdiff_t>(begin),
                     ids.begin() + static_cast<std::ptrdiff_t>(begin + length));
  return out;
}

/// Alpaca's prompt and the answer behind it, as llm-compressor's open_platypus builds them.
/// Source: tatsu-lab/stanford_alpaca, README, "Data Release".
std::string alpaca(const ordered_json& object, const std::string& where) {
  const auto instruction = json_get<std::string>(object, "instruction", where);
  const auto input = json_get<std::string>(object, "input", where, "");
  const std::string task = input.empty() ? "" : ", paired with an input that provides further context";
  return "Below is an instruction that describes a task" + task +
         ". Write a response that appropriately completes the request.\n\n### Instruction:\n" + instruction +
         (input.empty() ? "" : "\n\n### Input:\n" + input) + "\n\n### Response:\n" +
         json_get<std::string>(object, "output", where, "");
}

std::vector<int32_t> line_ids(const jsonl_line& from, const tokenizer& tok, const chat_template* chat) {
  const auto object = parse_json(from.text, from.where);
  if (object.contains("text")) {
    const auto text = json_get<std::string>(object, "text", from.where);
    return text.empty() ? std::vector<int32_t>{} : tok.encode_framed(text);
  }
  if (object.contains("messages")) {
    if (chat == nullptr)
      throw error(from.where + " has \"messages\", but the model has no chat template; use lines with \"text\"");
    const auto messages = read_messages(object.at("messages"), from.where);
    try {
      return tok.encode(chat->render(messages));
    } catch (const error& refused) {
      throw error(from.where + ": " + refused.what());
    }
  }
  if (object.contains("instruction")) return tok.encode_framed(alpaca(object, from.where));
  throw error(from.where + " has none of the keys \"text\", \"messages\" and \"instruction\"");
}

/// Tokens of as many lines as wanted: in the file's order if all are, else in the order of a Fisher–Yates shuffle.
std::vector<std::vector<int32_t>> draw(std::vector<jsonl_line> lines, const tokenizer& tok, const chat_template* chat,
                                       const calibration_options& options) {
  const auto wanted = static_cast<size_t>(options.samples);
  const bool shuffled = lines.size() > wanted;
  splitmix64 random{options.seed};
  std::vector<std::vector<int32_t>> out;
  for (size_t i = 0; i < lines.size() && out.size() < wanted; ++i) {
    if (shuffled) std::swap(lines[i], lines[i + random.below(lines.size() - i)]);
    std::vector<int32_t> ids = line_ids(lines[i], tok, chat);
    if (ids.size() > static_cast<size_t>(options.max_length)) ids.resize(static_cast<size_t>(options.max_length));
    if (!ids.empty()) out.push_back(std::move(ids));
  }
  return out;
}

}  // namespace

index_t calibration_set::tokens() const {
  return std::accumulate(sequences.begin(), sequences.end(), index_t{0},
                         [](index_t sum, const auto& ids) { return sum + static_cast<index_t>(ids.size()); });
}

index_t calibration_set::longest() const {
  size_t most = 0;
  for (const auto& ids : sequences) most = std::max(most, ids.size());
  return static_cast<index_t>(most);
}

calibration_set read_calibration(const fs::path& file, const tokenizer& tok, const chat_template* chat,
                                 const calibration_options& options) {
  if (options.samples < 1 || options.max_length < 1)
    throw usage_error("calibration needs at least one sample of at least one token");
  const std::string kind = file.extension().string();
  if (kind != ".txt" && kind != ".jsonl")
    throw error("calibration file " + file.string() + " must end in .txt (a text) or .jsonl (an object a line)");
  if (!fs::exists(file)) throw error("there is no calibration file " + file.string());
  const std::string text = read_text(file);
  calibration_set set;
  set.sequences =
      kind == ".txt" ? windows(tok.encode(text), options) : draw(read_lines(text, file), tok, chat, options);
  if (set.sequences.empty()) throw error(file.string() + " gives no tokens; calibration needs a text");
  return set;
}

}  // namespace nibble::mistral
