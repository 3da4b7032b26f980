// SPDX-License-Identifier: Apache-2.0
// What the executor says when it ends a program. Compiled without -fsanitize=thread, as executor.cpp.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernel_name.hpp"
#include "state.hpp"

namespace simt {
namespace {

void print_place(std::string& text, place at) {
  text += std::string(at.file) + ":" + std::to_string(at.line);
}

std::string triple(uint3 i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

}  // namespace

void deadlock(const block_state& b) {
  std::string text;
  std::vector<bool> told(b.threads.size());
  place first{"", 0};
  for (std::size_t i = 0; i < b.threads.size(); ++i) {
    const thread_state& t = b.threads[i];
    if (told[i] || t.now == state::ended) continue;
    unsigned count = 0;
    for (std::size_t j = i; j < b.threads.size(); ++j) {
      const thread_state& u = b.threads[j];
      if (u.now != t.now || u.operation != t.operation || u.at.line != t.at.line || u.mask != t.mask) continue;
      told[j] = true;
      ++count;
    }
    if (text.empty()) first = t.at;
    text += text.empty() ? "" : "; ";
    text += std::to_string(count) + " wait at " + t.operation + " in ";
    print_place(text, t.at);
    if (t.now == state::at_meeting) {
      char mask[32];
      std::snprintf(mask, sizeof(mask), " with mask 0x%08x", t.mask);
      text += mask;
    }
    text += ", the first being " + triple(t.index);
  }
  fail(first, "deadlock: of the threads of block %s, %s", triple(b.index).c_str(), text.c_str());
}

void fail(place at, const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  const std::string name = current ? kernel_name(current->of.kernel) : "no kernel";
  std::fprintf(stderr, "%s:%d: %s [%s, block %s, thread %s, schedule %llu of NIBBLE_SIMT_SEED=%llu]\n", at.file,
               at.line, text, name.c_str(), triple(blockIdx).c_str(), triple(threadIdx).c_str(),
               static_cast<unsigned long long>(schedule), static_cast<unsigned long long>(seed));
  std::abort();
}

}  // namespace simt
