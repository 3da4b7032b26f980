// SPDX-License-Identifier: Apache-2.0
#include "output.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "error.hpp"
#include "file.hpp"

namespace nibble::mistral {
namespace {

namespace fs = std::filesystem;

/// Whether `inner` is `outer` or lies in it; both canonical.
bool within(const fs::path& inner, const fs::path& outer) {
  const auto [end, ignored] = std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end());
  return end == outer.end();
}

void remove_contents(const fs::path& directory) {
  std::error_code failed;
  for (fs::directory_iterator at(directory, failed), end; !failed && at != end; at.increment(failed)) {
    std::error_code ignored;
    fs::remove_all(at->path(), ignored);
  }
}

/// Exchanges two names in one step; false where the system or file system cannot.
bool exchange(const fs::path& a, const fs::path& b) {
#if defined(RENAME_EXCHANGE)
  return ::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0;
#else
  return static_cast<void>(a), static_cast<void>(b), false;
#endif
}

void refuse_existing(const fs::path& name, bool overwrite) {
  std::error_code failed;
  if (!fs::exists(fs::symlink_status(name, failed))) return;
  if (!overwrite) throw error("the output " + name.string() + " exists already; --overwrite replaces it");
  const bool replaceable =
      fs::is_directory(name, failed) && (fs::is_empty(name, failed) || fs::exists(name / "config.json", failed));
  if (!replaceable)
    throw error("the output " + name.string() + " exists and is no checkpoint, so --overwrite does not replace it");
}

}  // namespace

fs::path check_output(const fs::path& name, const fs::path& model, bool overwrite) {
  std::error_code failed;
  fs::path full = fs::absolute(name).lexically_normal();
  if (!full.has_filename()) full = full.parent_path();  // "out/"
  const fs::path parent = full.parent_path();
  if (!full.has_filename())
    throw error("the output " + name.string() + " is the root of the file system; name a new directory");
  if (!fs::is_directory(parent, failed))
    throw error("the output " + full.string() + " cannot be made: there is no directory " + parent.string());
  const fs::path own = fs::weakly_canonical(full, failed), from = fs::weakly_canonical(model, failed);
  if (within(own, from) || within(from, own))
    throw error("the output " + full.string() + " must lie outside the model's directory " + model.string());
  refuse_existing(full, overwrite);
  if (::access(parent.c_str(), W_OK | X_OK) != 0)
    throw error("cannot make the directory " + full.string() + ".partial: " + std::strerror(errno));
  return full;
}

output_directory::output_directory(const fs::path& name, const fs::path& model, bool overwrite)
    : name_(check_output(name, model, overwrite)), partial_(name_) {
  partial_ += ".partial";
  lock();
  std::error_code failed;
  kept_ = fs::exists(partial_ / resume_file, failed);
  if (!kept_) clear();
}

void output_directory::clear() {
  remove_contents(partial_);
}

void output_directory::lock() {
  if (::mkdir(partial_.c_str(), 0777) != 0 && errno != EEXIST)
    throw error("cannot make the directory " + partial_.string() + ": " + std::strerror(errno));
  lock_ = ::open(partial_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (lock_ < 0) throw error("cannot use the directory " + partial_.string() + ": " + std::strerror(errno));
  if (::flock(lock_, LOCK_EX | LOCK_NB) == 0) return;
  ::close(lock_);
  throw error("the output " + name_.string() + " is being written by another process, which holds " +
              partial_.string());
}

output_directory::~output_directory() {
  std::error_code ignored;
  if (!committed_ && !kept_) fs::remove_all(partial_, ignored);
  ::close(lock_);
}

void output_directory::commit() {
  std::error_code failed;
  sync_directory(partial_);
  const fs::path parent = name_.parent_path();
  if (!fs::exists(fs::symlink_status(name_, failed))) {
    rename_file(partial_, name_);
    committed_ = true;
    return sync_directory(parent);
  }
  fs::path old = partial_;
  if (!exchange(partial_, name_)) {
    old = name_;
    old += ".replaced";
    rename_file(name_, old);
    try {
      rename_file(partial_, name_);
    } catch (const error&) {
      fs::rename(old, name_, failed);
      throw;
    }
  }
  committed_ = true;
  sync_directory(parent);
  fs::remove_all(old, failed);
}

std::uint64_t copy_sidecars(const fs::path& model, const fs::path& out) {
  constexpr std::array<std::string_view, 9> names = {
      "tokenizer.json",          "tokenizer.model",   "tokenizer_config.json",
      "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
      "chat_template.json",      "tekken.json",       "generation_config.json"};
  std::uint64_t bytes = 0;
  std::error_code failed;
  fs::directory_iterator entries(model, failed);
  if (failed) throw error("cannot list " + model.string() + ": " + failed.message());
  for (const auto& entry : entries) {
    const std::string name = entry.path().filename().string();
    const bool wanted = std::find(names.begin(), names.end(), name) != names.end() || name.rfind("LICENSE", 0) == 0;
    if (!wanted || !entry.is_regular_file(failed)) continue;
    copy_whole_file(entry.path(), out / name);
    bytes += fs::file_size(out / name, failed);
  }
  return bytes;
}

void write_config(const fs::path& out, const config& model, const std::string& dtype,
                  const nlohmann::ordered_json& quantization_config) {
  nlohmann::ordered_json json = model.json;
  json[json.contains("dtype") ? "dtype" : "torch_dtype"] = dtype;
  json["quantization_config"] = quantization_config;
  write_file(out / "config.json", json.dump(2) + "\n");
  if (quantization_config.value("quant_method", "") == "gptq")  // GPTQModel looks here first
    write_file(out / "quantize_config.json", quantization_config.dump(2) + "\n");
}

}  // namespace nibble::mistral
