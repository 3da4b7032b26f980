// SPDX-License-Identifier: Apache-2.0
#include "provenance.hpp"

#include <sys/utsname.h>
#include <unistd.h>

#include <ctime>
#include <fstream>
#include <thread>

#include "nibble/host/parallel.hpp"

namespace nibble::mistral {

namespace {

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

std::string now() {
  const std::time_t seconds = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&seconds, &utc);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

std::string compiler() {
#if defined(__clang__)
  return "clang++ " __clang_version__;
#else
  return "g++ " __VERSION__;
#endif
}

}  // namespace

nlohmann::ordered_json made_by(const std::string& program) {
  nlohmann::ordered_json out = {{"program", program}};
  if (*build_commit != '\0') {
    out["commit"] = build_commit;
    out["commit_changed"] = build_changed;
  }
  out["compiler"] = compiler();
  out["finished"] = now();
  struct utsname system = {};
  const bool known = ::uname(&system) == 0;
  out["machine"] = {
      {"processor", processor()},
      {"logical_processors", std::thread::hardware_concurrency()},
      {"threads", host::pool().size()},
      {"memory_bytes",
       static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(::sysconf(_SC_PAGE_SIZE))},
      {"system", known ? std::string(system.sysname) + " " + system.release + " " + system.machine : "unknown system"}};
  return out;
}

}  // namespace nibble::mistral
