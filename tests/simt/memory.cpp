// SPDX-License-Identifier: Apache-2.0
// Shared memory and cp.async. Compiled without -fsanitize=thread, as executor.cpp.
#include <cstdlib>
#include <cstring>

#include "state.hpp"

namespace simt {

void forbid([[maybe_unused]] const void* p, [[maybe_unused]] std::size_t bytes) noexcept {
#if defined(NIBBLE_SIMT_ASAN)
  __asan_poison_memory_region(p, bytes);
#endif
}
void allow([[maybe_unused]] const void* p, [[maybe_unused]] std::size_t bytes) noexcept {
#if defined(NIBBLE_SIMT_ASAN)
  __asan_unpoison_memory_region(p, bytes);
#endif
}

namespace {

constexpr std::size_t most_static_bytes = 48 * 1024;

void* new_array(block_state& b, const void* site, std::size_t bytes) {
  void* p = nullptr;
  if (::posix_memalign(&p, 16, bytes) != 0) std::abort();
  std::memset(p, 0xff, bytes);
  b.arrays.push_back({site, {static_cast<unsigned char*>(p), &std::free}});
  return p;
}

void* find_array(const block_state& b, const void* site) {
  for (const array_state& a : b.arrays)
    if (a.site == site) return a.bytes.get();
  return nullptr;
}

}  // namespace

void* shared_array(const void* site, std::size_t bytes, place at) {
  const overlooked own;
  block_state& b = *running().block;
  if (void* there = find_array(b, site)) return there;
  b.static_bytes += (bytes + 15) / 16 * 16;
  if (b.static_bytes > most_static_bytes)
    fail(at, "the kernel's shared arrays take %zu bytes, and CUDA gives %zu", b.static_bytes, most_static_bytes);
  return new_array(b, site, bytes);
}

void* dynamic_shared(place at) {
  const overlooked own;
  block_state& b = *running().block;
  if (void* there = find_array(b, nullptr)) return there;
  if (current->of.dynamic_shared_bytes == 0) fail(at, "the launch gave no dynamic shared memory");
  return new_array(b, nullptr, current->of.dynamic_shared_bytes);
}

void begin_copy(const copy& c) {
  const overlooked own;
  thread_state& t = running();
  forbid(c.to, c.bytes);
  t.copies.push_back(c);
  ++t.uncommitted;
}

void commit_copies() {
  const overlooked own;
  thread_state& t = running();
  t.groups.push_back(t.uncommitted);
  t.uncommitted = 0;
}

bool next_copy(unsigned left, copy& c) {
  const overlooked own;
  thread_state& t = running();
  while (t.groups.size() > left) {
    if (t.groups.front() == 0) {
      t.groups.erase(t.groups.begin());
      continue;
    }
    --t.groups.front();
    c = t.copies.front();
    t.copies.erase(t.copies.begin());
    allow(c.to, c.bytes);
    return true;
  }
  return false;
}

}  // namespace simt
