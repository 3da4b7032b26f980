// SPDX-License-Identifier: Apache-2.0
#include "interruption.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <mutex>
#include <thread>

namespace nibble::mistral {
namespace {

struct notice {
  std::mutex changing;
  std::string said;
  std::function<void()> cleanup;
};

/// Never destroyed: the thread that reads it ends with the process.
notice& current() {
  static notice& n = *new notice;
  return n;
}

int signals[2];  // a pipe, written by the handler

void remember(int signal) {
  const auto number = static_cast<unsigned char>(signal);
  const int before = errno;
  static_cast<void>(!::write(signals[1], &number, 1));
  errno = before;
}

[[noreturn]] void end(const char* program, int signal) {
  notice& n = current();
  n.changing.lock();  // and keep it: nothing changes any more
  if (n.cleanup) n.cleanup();
  std::fprintf(stderr, "%s%s: interrupted%s%s\n", ::isatty(2) != 0 ? "\n" : "", program, n.said.empty() ? "" : "; ",
               n.said.c_str());
  ::_exit(128 + signal);
}

}  // namespace

void watch_interruptions(const char* program) {
  if (::pipe2(signals, O_CLOEXEC) != 0) return;
  std::thread([program] {
    unsigned char signal = 0;
    while (::read(signals[0], &signal, 1) != 1) {
    }
    end(program, signal);
  }).detach();
  struct sigaction action = {};
  action.sa_handler = remember;
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction present;
    // nohup has the program ignore SIGHUP, and a shell SIGINT of what it runs in the background.
    if (::sigaction(signal, nullptr, &present) == 0 && present.sa_handler != SIG_IGN)
      ::sigaction(signal, &action, nullptr);
  }
}

interruption_scope::interruption_scope(std::string said, std::function<void()> cleanup) {
  change(std::move(said), std::move(cleanup));
}

interruption_scope::~interruption_scope() {
  change({}, nullptr);
}

void interruption_scope::change(std::string said, std::function<void()> cleanup, const std::function<void()>& step) {
  notice& n = current();
  const std::lock_guard<std::mutex> hold(n.changing);
  if (step) step();
  n.said = std::move(said);
  n.cleanup = std::move(cleanup);
}

}  // namespace nibble::mistral
