// SPDX-License-Identifier: Apache-2.0
/// @file
/// Runs one of the project's programs as a user does, and keeps what it prints and how it ends.
#pragma once

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <functional>
#include <string>
#include <vector>

#include "support/files.hpp"
#include "support/places.hpp"

namespace nibble::test {

/// Arguments, or sentences' parts.
using words = std::vector<std::string>;

inline words operator+(words a, const words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

struct outcome {
  int status = -1;  ///< exit status; −N when signal N ended it
  std::string out, err;
};

/// Runs build/bin/`program` with `arguments` in `directory`; the new process calls `prepare` before it becomes the
/// program, to limit itself.
inline outcome run_program(const std::string& program, const words& arguments,
                           const fs::path& directory = fs::current_path(),
                           const std::function<void()>& prepare = nullptr) {
  const temporary_directory streams;
  const std::string binary = std::string(bin_directory) + "/" + program;
  REQUIRE(fs::exists(binary));
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const int out = ::open((streams / "out").c_str(), O_CREAT | O_WRONLY, 0600);
    const int err = ::open((streams / "err").c_str(), O_CREAT | O_WRONLY, 0600);
    std::vector<char*> argv = {const_cast<char*>(binary.c_str())};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    if (prepare) prepare();
    if (::dup2(out, 1) == 1 && ::dup2(err, 2) == 2 && ::chdir(directory.c_str()) == 0) ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  outcome result;
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  result.out = read_bytes(streams / "out");
  result.err = read_bytes(streams / "err");
  return result;
}

/// Checks that a program refused: this status, one line on stderr that names the program, nothing on stdout.
inline std::string refused_by(const std::string& program, const words& arguments, int status) {
  const outcome result = run_program(program, arguments);
  CHECK(result.status == status);
  CHECK(result.out.empty());
  CHECK(result.err.rfind(program + ": ", 0) == 0);
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
  return result.err;
}

}  // namespace nibble::test
