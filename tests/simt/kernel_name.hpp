// SPDX-License-Identifier: Apache-2.0
/// @file
/// A kernel's name from its address, as far as the program exports its symbols.
#pragma once

#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdlib>
#include <string>

namespace simt {

inline std::string kernel_name(const void* address) {
  Dl_info info{};
  if (::dladdr(address, &info) == 0 || info.dli_sname == nullptr || info.dli_saddr != address) return "a kernel";
  int failed = 0;
  char* const name = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &failed);
  const std::string text = failed == 0 ? name : info.dli_sname;
  std::free(name);
  return text.substr(0, text.find('('));
}

}  // namespace simt
