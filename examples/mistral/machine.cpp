// SPDX-License-Identifier: Apache-2.0
#include "machine.hpp"

#include <cstdlib>
#include <fstream>
#include <string>

namespace nibble::mistral {
namespace {

/// "Key:  123 kB" → 123 · 1024
std::uint64_t bytes_of(const char* file, const std::string& key) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);)
    if (line.rfind(key, 0) == 0) return std::strtoull(line.c_str() + key.size(), nullptr, 10) * 1024;
  return 0;
}

}  // namespace

std::uint64_t peak_resident_bytes() {
  return bytes_of("/proc/self/status", "VmHWM:");
}

std::uint64_t available_bytes() {
  return bytes_of("/proc/meminfo", "MemAvailable:");
}

}  // namespace nibble::mistral
