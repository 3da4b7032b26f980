// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a program says and does when it is interrupted (SIGINT, SIGTERM, SIGHUP): one sentence, then it ends with 128 plus
/// the signal's number. A thread waits for the signals, so what it calls need not be safe within a handler.
#pragma once

#include <functional>
#include <string>

namespace nibble::mistral {

/// Starts to listen. @param program begins the sentence; lives as long as the process.
void watch_interruptions(const char* program);

/// While it lives, an interruption runs `cleanup` and says "interrupted" and `said`. One at a time.
class interruption_scope {
 public:
  interruption_scope(std::string said, std::function<void()> cleanup);
  ~interruption_scope();
  interruption_scope(const interruption_scope&) = delete;
  interruption_scope& operator=(const interruption_scope&) = delete;

  /// Does `step`, which may not be interrupted, and changes what an interruption says and does from then on.
  void change(std::string said, std::function<void()> cleanup, const std::function<void()>& step = nullptr);
};

}  // namespace nibble::mistral
