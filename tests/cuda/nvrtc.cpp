// SPDX-License-Identifier: Apache-2.0
// nvrtc ARCHITECTURE FILE INCLUDE_DIR...
// Compiles a program that includes FILE alone with NVRTC, which lacks the standard library. Needs no GPU. Exit status 0
// when it compiles without a warning.
#include <nvrtc.h>

#include <iostream>
#include <string>
#include <vector>

int main(int count, char** arguments) {
  if (count < 4) {
    std::cerr << "usage: nvrtc ARCHITECTURE FILE INCLUDE_DIR...\n";
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
  nvrtcDestroyProgram(&program);
  while (!log.empty() && log.back() == '\0') log.pop_back();
  if (!log.empty()) std::cerr << log << '\n';
  return result == NVRTC_SUCCESS && log.empty() ? 0 : 1;
}
