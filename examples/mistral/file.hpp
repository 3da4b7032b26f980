// SPDX-License-Identifier: Apache-2.0
/// @file
/// Writing files so that a full disk is an error, not a short file: every byte is accounted for, and a file counts as
/// written only after fsync.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <string_view>

namespace nibble::mistral {

/// A file being written. Removed on destruction unless finish() or keep() was called.
class output_file {
 public:
  enum class mode { fresh, continued };
  /// Creates `path`, or empties it; `continued` takes it as it is. @throws error naming it.
  explicit output_file(std::filesystem::path path, mode how = mode::fresh);
  ~output_file();
  output_file(const output_file&) = delete;
  output_file& operator=(const output_file&) = delete;

  /// Writes at `at`. @throws error naming the file and the reason, such as a full disk or a size limit.
  void write_at(std::uint64_t at, const void* data, std::uint64_t bytes);
  /// Writes `bytes` bytes of `other` from `from` on, at `to`.
  void copy(const output_file& other, std::uint64_t from, std::uint64_t to, std::uint64_t bytes);
  void truncate(std::uint64_t size);
  /// fsync; what is written so far stays, whatever happens to this process.
  void keep();
  /// fsync and close. @throws error naming the file.
  void finish();

  const std::filesystem::path& path() const { return path_; }

 private:
  [[noreturn]] void fail(const char* what) const;

  std::filesystem::path path_;
  int descriptor_ = -1;
  bool kept_ = false;
};

/// Writes a whole file and fsyncs it. @throws error naming it; nothing is left then.
void write_file(const std::filesystem::path& path, std::string_view text);

/// Copies a file's bytes and fsyncs the copy. @throws error naming the file that failed; no copy is left then.
void copy_whole_file(const std::filesystem::path& from, const std::filesystem::path& to);

/// Renames a file or directory, replacing a file of that name. @throws error naming both.
void rename_file(const std::filesystem::path& from, const std::filesystem::path& to);

/// Whether two names are of one file, which need not be there.
bool same_file(const std::filesystem::path& a, const std::filesystem::path& b);

/// @throws usage_error naming the option whose file would take the place of one that is read.
void check_not_read(const char* option, const std::filesystem::path& written,
                    std::initializer_list<std::filesystem::path> read);

/// Removes a file, if there is one, when it goes out of scope.
struct removed_at_exit {
  std::filesystem::path path;  ///< empty: none
  ~removed_at_exit();
};

/// A file to be written after the work: what would fail then fails before it, and no half of it is ever seen.
class pending_file {
 public:
  /// @param path empty: none. @throws error naming it when it cannot be written.
  explicit pending_file(const std::filesystem::path& path);
  /// @pre the path is not empty. @throws error naming the file.
  void finish(std::string_view text) const;

 private:
  std::filesystem::path path_, partial_;
};

/// Asks the system to drop what it holds of a file in memory, so that reading it reads the disk.
void forget_cached(const std::filesystem::path& file);

/// fsync of a directory: makes the names in it last. @throws error naming it.
void sync_directory(const std::filesystem::path& path);

/// For programs, first thing in main: a write past a size limit (ulimit -f) then fails with an error, as one to a full
/// disk does, and does not end the program by a signal that leaves half a file.
void fail_writes_past_a_size_limit();

}  // namespace nibble::mistral
