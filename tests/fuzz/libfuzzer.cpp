// SPDX-License-Identifier: Apache-2.0
/// @file
/// The entry that libFuzzer calls, for the target that NIBBLE_FUZZ_TARGET names.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "targets.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  for (const auto& each : nibble::fuzz::targets) {
    if (std::strcmp(each.name, NIBBLE_FUZZ_TARGET) != 0) continue;
    each.run(bytes);
    return 0;
  }
  std::abort();
}
