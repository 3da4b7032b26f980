// SPDX-License-Identifier: Apache-2.0
// The kernels' tests, where there is a GPU. Without one their exit status says that they were left out.
#define CATCH_CONFIG_RUNNER
#include <cuda_runtime.h>

#include <catch2/catch.hpp>
#include <iostream>
#include <string>

int main(int count, char** arguments) {
  constexpr int left_out = 77;  // CMakeLists.txt knows it
  const bool lists = count > 1 && std::string(arguments[1]).rfind("--list", 0) == 0;
  int devices = 0;
  if (!lists && (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)) {
    std::cout << "left out: kernels on a GPU, for there is none\n";
    return left_out;
  }
  return Catch::Session().run(count, arguments);
}
