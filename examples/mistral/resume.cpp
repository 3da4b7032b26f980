// SPDX-License-Identifier: Apache-2.0
#include "resume.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <set>

#include "file.hpp"
#include "sha256.hpp"

namespace nibble::mistral {
namespace {

namespace fs = std::filesystem;
using ordered = nlohmann::ordered_json;

/// What a run left: {"key": …, "kept": …, "state": …}.
nlohmann::json read_state(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  auto read = nlohmann::json::from_cbor(in, true, false);
  if (read.is_object() && read.contains("key") && read.contains("kept") && read.contains("state")) return read;
  throw damaged_run(file.string() + " does not tell what an interrupted run left");
}

/// "options/clip" of two flattened objects that differ in it; empty when they are equal.
std::string difference(const nlohmann::json& was, const nlohmann::json& is) {
  const auto before = was.flatten(), now = is.flatten();
  std::set<std::string> names;
  for (const auto& [name, value] : before.items()) names.insert(name);
  for (const auto& [name, value] : now.items()) names.insert(name);
  const auto shown = [](const nlohmann::json& in, const std::string& name) {
    return in.contains(name) ? in[name].dump() : std::string("not given");
  };
  for (const std::string& name : names)
    if (shown(before, name) != shown(now, name))
      return name.substr(1) + " was " + shown(before, name) + " and is " + shown(now, name);
  return {};
}

}  // namespace

resumable_run::resumable_run(output_directory& out, ordered key, bool restart)
    : out_(out), key_(std::move(key)), interruption_("nothing is kept", [&out] {
        out.clear();
        std::error_code ignored;
        fs::remove(out.path(), ignored);
      }) {
  if (restart) forget();
  if (!fs::exists(out_.path() / resume_file)) return;
  const auto left = read_state(out_.path() / resume_file);
  if (const std::string differs = difference(left.at("key"), key_); !differs.empty())
    throw usage_error(out_.path().string() + " holds what an interrupted run made, whose " + differs +
                      "; go on with what it was given, or give --restart to begin anew");
  state_ = left.at("state");
  advice_ = left.at("kept");
  interruption_.change(advice_, nullptr);
}

void resumable_run::save(nlohmann::json state, const std::string& kept) {
  const std::string advice = kept + " kept in " + out_.path().string() + ", and the same command goes on from there";
  const auto bytes = nlohmann::json::to_cbor(
      nlohmann::json{{"key", nlohmann::json::parse(key_.dump())}, {"kept", advice}, {"state", state}});
  const fs::path file = out_.path() / resume_file;
  fs::path fresh = file;
  fresh += ".new";
  write_file(fresh, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  interruption_.change(advice, nullptr, [&] {
    rename_file(fresh, file);
    out_.keep();
  });
  sync_directory(out_.path());
  state_ = std::move(state);
  advice_ = advice;
}

void resumable_run::forget() {
  out_.clear();
  out_.keep(false);
}

std::string resumable_run::advice() const {
  return advice_.empty() ? "" : "; " + advice_;
}

void resumable_run::end() {
  std::error_code ignored;
  fs::remove(out_.name() / resume_file, ignored);
  interruption_.change({}, nullptr);
}

ordered identity_of(const fs::path& model, const checkpoint& files) {
  ordered identity;
  constexpr std::array<const char*, 7> small = {
      "config.json",       "tokenizer.json",      "tokenizer.model",        "tokenizer_config.json",
      "added_tokens.json", "chat_template.jinja", "special_tokens_map.json"};
  std::error_code failed;
  for (const char* name : small)
    if (fs::is_regular_file(model / name, failed)) identity[name] = sha256_of_file(model / name);
  std::set<fs::path> shards;
  for (const auto& [name, t] : files.tensors()) shards.insert(t.file);
  for (const fs::path& file : shards) {
    std::ifstream in(file, std::ios::binary);
    unsigned char length[8] = {};
    in.read(reinterpret_cast<char*>(length), sizeof(length));
    std::uint64_t bytes = 0;
    for (int i = 7; i >= 0; --i) bytes = bytes << 8 | length[i];
    std::string header(static_cast<size_t>(bytes), '\0');  // checked when the checkpoint was opened
    in.read(header.data(), static_cast<std::streamsize>(header.size()));
    if (!in) throw error("cannot read " + file.string() + " to the end of its header");
    identity[file.filename().string()] = {
        {"header", sha256(header)},
        {"bytes", fs::file_size(file)},
        {"written", fs::last_write_time(file).time_since_epoch().count()},
    };
  }
  return identity;
}

}  // namespace nibble::mistral
