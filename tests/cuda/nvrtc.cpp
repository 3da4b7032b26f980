// SPDX-License-Identifier: Apache-2.0
// nvrtc [--unfused] ARCHITECTURE FILE INCLUDE_DIR...
// Compiles a program that includes FILE alone with NVRTC, which lacks the standard library. Needs no GPU. Exit status 0
// when it compiles without a warning and, with --unfused, its PTX has no instruction that is a product and a sum of floats in one.
#include <nvrtc.h>

#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace {

/// Lines of PTX that fuse.
int fused(const std::string& ptx) {
  std::istringstream lines(ptx);
  int found = 0;
  for (std::string line; std::getline(lines, line);)
    for (const char* const what : {"fma.r", "fma.f", "mad.r", "mad.f"})
      if (line.find(what) != std::string::npos && ++found <= 10) std::cerr << line << '\n';
  return found;
}

}  // namespace

int main(int count, char** arguments) {
  const bool unfused = count > 1 && std::string(arguments[1]) == "--unfused";
  if (unfused) --count, ++arguments;
  if (count < 4) {
    std::cerr << "usage: nvrtc [--unfused] ARCHITECTURE FILE INCLUDE_DIR...\n";
    return 2;
  }
  const std::string source = "#include \"" + std::string(arguments[2]) + "\"\n__global__ void kernel() {}\n";
  std::vector<std::string> options = {"-std=c++17", "-arch=" + std::string(arguments[1])};
  for (int i = 3; i < count; ++i) options.push_back("-I" + std::string(arguments[i]));
  std::vector<const char*> pointers;
  for (const std::string& option : options) pointers.push_back(option.c_str());

  nvrtcProgram program = nullptr;
  if (nvrtcCreateProgram(&program, source.c_str(), "alone.cu", 0, nullptr, nullptr) != NVRTC_SUCCESS) return 1;
  const nvrtcResult result = nvrtcCompileProgram(program, static_cast<int>(pointers.size()), pointers.data());
  size_t length = 0;
  nvrtcGetProgramLogSize(program, &length);
  std::string log(length, '\0');
  nvrtcGetProgramLog(program, log.data());
  std::string ptx;
  if (unfused && result == NVRTC_SUCCESS && nvrtcGetPTXSize(program, &length) == NVRTC_SUCCESS) {
    ptx.resize(length);
    nvrtcGetPTX(program, ptx.data());
  }
  nvrtcDestroyProgram(&program);
  if (unfused && (ptx.find(".entry") == std::string::npos || fused(ptx) != 0)) {
    std::cerr << arguments[2] << ": operations are fused, or there is no PTX to tell it from\n";
    return 1;
  }
  while (!log.empty() && log.back() == '\0') log.pop_back();
  if (!log.empty()) std::cerr << log << '\n';
  return result == NVRTC_SUCCESS && log.empty() ? 0 : 1;
}
