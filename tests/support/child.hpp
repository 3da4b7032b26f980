// SPDX-License-Identifier: Apache-2.0
/// @file
/// Runs code that is expected to end the process, in a process of its own.
#pragma once

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <string>

#if defined(NIBBLE_SIMT)
#include "simt/executor.hpp"
#endif

namespace nibble::test {

struct last_words {
  bool ended_well = false;  ///< with exit status 0
  std::string err;          ///< what it wrote to stderr
};

template <class F>
last_words in_child(F f) {
#if defined(NIBBLE_SIMT)
  simt::forget_fibres();
#endif
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    std::signal(SIGABRT, SIG_DFL);  // Catch's would report it as this process's
    ::dup2(ends[1], 2);
    ::dup2(::open("/dev/null", O_WRONLY), 1);
    try {
      f();
    } catch (...) {  // a failed REQUIRE
      ::_exit(1);
    }
    ::_exit(0);
  }
  ::close(ends[1]);
  last_words result;
  char buffer[4096];
  for (ssize_t got = 0; (got = ::read(ends[0], buffer, sizeof(buffer))) > 0;)
    result.err.append(buffer, static_cast<std::size_t>(got));
  ::close(ends[0]);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  result.ended_well = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  return result;
}

}  // namespace nibble::test
