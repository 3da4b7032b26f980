// SPDX-License-Identifier: Apache-2.0
/// @file
/// A disk that is full, as far as this process can tell.
#pragma once

#include <sys/resource.h>

#include <catch2/catch.hpp>

#include "mistral/file.hpp"

namespace nibble::test {

/// While it lives, no file of this process grows beyond `bytes`.
class file_size_limit {
 public:
  explicit file_size_limit(rlim_t bytes) {
    mistral::fail_writes_past_a_size_limit();
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &before_) == 0);
    const struct rlimit now = {bytes, before_.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &now) == 0);
  }
  ~file_size_limit() { ::setrlimit(RLIMIT_FSIZE, &before_); }
  file_size_limit(const file_size_limit&) = delete;
  file_size_limit& operator=(const file_size_limit&) = delete;

 private:
  struct rlimit before_ = {};
};

}  // namespace nibble::test
