// SPDX-License-Identifier: Apache-2.0
#include "file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <system_error>
#include <vector>

#include "error.hpp"

namespace nibble::mistral {
namespace {

constexpr std::uint64_t piece_bytes = std::uint64_t{1} << 20;

std::string reason() {
  return std::strerror(errno);
}

/// Exactly `bytes` bytes at `at`; false on failure, with errno 0 at the end of the file.
bool read_exactly(int descriptor, std::uint64_t at, std::byte* out, std::uint64_t bytes) {
  while (bytes > 0) {
    const ssize_t got = ::pread(descriptor, out, bytes, static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) errno = 0;
    if (got <= 0) return false;
    out += got, at += static_cast<std::uint64_t>(got), bytes -= static_cast<std::uint64_t>(got);
  }
  return true;
}

}  // namespace

output_file::output_file(std::filesystem::path path, mode how) : path_(std::move(path)) {
  descriptor_ = ::open(path_.c_str(), O_RDWR | O_CLOEXEC | (how == mode::fresh ? O_CREAT | O_TRUNC : 0), 0666);
  if (descriptor_ < 0) fail(how == mode::fresh ? "create" : "go on with");
  kept_ = how == mode::continued;
}

output_file::~output_file() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  if (!kept_) ::unlink(path_.c_str());
}

void output_file::fail(const char* what) const {
  throw error("cannot " + std::string(what) + " " + path_.string() + ": " + reason());
}

void output_file::write_at(std::uint64_t at, const void* data, std::uint64_t bytes) {
  const auto* from = static_cast<const std::byte*>(data);
  while (bytes > 0) {
    const ssize_t put = ::pwrite(descriptor_, from, bytes, static_cast<off_t>(at));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) fail("write");
    from += put, at += static_cast<std::uint64_t>(put), bytes -= static_cast<std::uint64_t>(put);
  }
}

void output_file::copy(const output_file& other, std::uint64_t from, std::uint64_t to, std::uint64_t bytes) {
  std::vector<std::byte> piece(static_cast<size_t>(std::min(bytes, piece_bytes)));
  for (std::uint64_t done = 0; done < bytes; done += piece.size()) {
    piece.resize(static_cast<size_t>(std::min(piece_bytes, bytes - done)));
    if (!read_exactly(other.descriptor_, from + done, piece.data(), piece.size())) other.fail("read back");
    write_at(to + done, piece.data(), piece.size());
  }
}

void output_file::truncate(std::uint64_t size) {
  if (::ftruncate(descriptor_, static_cast<off_t>(size)) != 0) fail("shorten");
}

void output_file::keep() {
  if (::fsync(descriptor_) != 0) fail("write");
  kept_ = true;
}

void output_file::finish() {
  if (::fsync(descriptor_) != 0) fail("write");
  const int descriptor = descriptor_;
  descriptor_ = -1;
  if (::close(descriptor) == 0) return;
  const std::string why = reason();
  ::unlink(path_.c_str());
  throw error("cannot write " + path_.string() + ": " + why);
}

void write_file(const std::filesystem::path& path, std::string_view text) {
  output_file file(path);
  file.write_at(0, text.data(), text.size());
  file.finish();
}

void copy_whole_file(const std::filesystem::path& from, const std::filesystem::path& to) {
  const int source = ::open(from.c_str(), O_RDONLY | O_CLOEXEC);
  if (source < 0) throw error("cannot read " + from.string() + ": " + reason());
  struct closer {
    int descriptor;
    ~closer() { ::close(descriptor); }
  } const guard{source};
  output_file file(to);
  std::vector<std::byte> piece(static_cast<size_t>(piece_bytes));
  for (std::uint64_t at = 0;;) {
    const ssize_t got = ::read(source, piece.data(), piece.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw error("cannot read " + from.string() + ": " + reason());
    if (got == 0) break;
    file.write_at(at, piece.data(), static_cast<std::uint64_t>(got));
    at += static_cast<std::uint64_t>(got);
  }
  file.finish();
}

void rename_file(const std::filesystem::path& from, const std::filesystem::path& to) {
  std::error_code failed;
  std::filesystem::rename(from, to, failed);
  if (failed) throw error("cannot rename " + from.string() + " to " + to.string() + ": " + failed.message());
}

bool same_file(const std::filesystem::path& a, const std::filesystem::path& b) {
  const auto place = [](const std::filesystem::path& name) {
    std::error_code failed;
    const auto whole = std::filesystem::weakly_canonical(std::filesystem::absolute(name, failed), failed);
    return failed ? name.lexically_normal() : whole;
  };
  return place(a) == place(b);
}

void check_not_read(const char* option, const std::filesystem::path& written,
                    std::initializer_list<std::filesystem::path> read) {
  for (const std::filesystem::path& file : read)
    if (!written.empty() && !file.empty() && same_file(written, file))
      throw usage_error(std::string(option) + " would be written over " + file.string() +
                        ", which is read; name another file");
}

removed_at_exit::~removed_at_exit() {
  if (!path.empty()) ::unlink(path.c_str());
}

pending_file::pending_file(const std::filesystem::path& path) : path_(path), partial_(path) {
  if (path_.empty()) return;
  if (std::filesystem::is_directory(path_))
    throw error(path_.string() + " is a directory, and a file is to be written there");
  partial_ += ".partial";
  const removed_at_exit partial{partial_};
  write_file(partial_, "");
}

void pending_file::finish(std::string_view text) const {
  const removed_at_exit partial{partial_};
  write_file(partial_, text);
  rename_file(partial_, path_);
}

void forget_cached(const std::filesystem::path& file) {
  const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return;
  static_cast<void>(::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED));
  ::close(descriptor);
}

void sync_directory(const std::filesystem::path& path) {
  const int directory = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const bool done = directory >= 0 && (::fsync(directory) == 0 || errno == EINVAL);  // some file systems cannot
  const std::string why = done ? "" : reason();
  if (directory >= 0) ::close(directory);
  if (!done) throw error("cannot write the directory " + path.string() + ": " + why);
}

void fail_writes_past_a_size_limit() {
  std::signal(SIGXFSZ, SIG_IGN);
}

}  // namespace nibble::mistral
