// SPDX-License-Identifier: Apache-2.0
/// @file
/// Streams of the executor: what is given to one waits there until the host waits for it, and then streams go on in a random order,
/// one far ahead of the others now and then, that only events restrict. So what a missing event, or a buffer of the host that is filled again too early, would do on a GPU
/// happens here as well. What is given to no stream (null) runs at once, as nothing here makes a blocking stream.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

struct simt_stream {
  /// Each: false as long as it has to wait.
  std::deque<std::function<bool()>> work;
};

namespace simt {

struct event_state {
  std::uint64_t recorded = 0, happened = 0;  ///< how often
  std::chrono::steady_clock::time_point when{};
};

}  // namespace simt

struct simt_event {
  std::shared_ptr<simt::event_state> state = std::make_shared<simt::event_state>();
};

namespace simt {

inline std::vector<simt_stream*> streams;
inline std::minstd_rand stream_order = [] {
  const char* text = std::getenv("NIBBLE_SIMT_SEED");
  return std::minstd_rand(text == nullptr ? 1u : static_cast<unsigned>(std::strtoul(text, nullptr, 10)));
}();

/// Lets streams go on until done(). One that was drawn stays drawn in seven of eight turns: short turns for all would hide what
/// happens when one is far ahead.
template <class F>
void advance(F done) {
  static simt_stream* drawn = nullptr;
  std::vector<simt_stream*> ready;
  while (!done()) {
    ready.clear();
    for (simt_stream* const each : streams)
      if (!each->work.empty()) ready.push_back(each);
    for (;;) {
      if (ready.empty()) {
        std::fprintf(stderr, "streams wait for an event that never happens\n");
        std::abort();
      }
      std::size_t i = static_cast<std::size_t>(std::find(ready.begin(), ready.end(), drawn) - ready.begin());
      if (i == ready.size() || (stream_order() >> 8) % 8 == 0) i = (stream_order() >> 8) % ready.size();
      simt_stream* const chosen = drawn = ready[i];
      const auto next = std::move(chosen->work.front());
      chosen->work.pop_front();  // first: what runs may look at streams
      if (next()) break;
      chosen->work.push_front(next);
      ready.erase(ready.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
}
inline void finish(const simt_stream* in) {
  advance([=] { return in->work.empty(); });
}
inline void finish_all() {
  for (const simt_stream* const each : streams) finish(each);
}

/// Now, or when its stream comes to it.
template <class F>
void give(simt_stream* to, F work) {
  if (to == nullptr)
    work();
  else
    to->work.emplace_back([work = std::move(work)] { return work(), true; });
}

/// Memory of cudaMalloc and cudaMallocHost, by address.
struct heap {
  std::map<const std::byte*, std::size_t> blocks;
  std::size_t bytes = 0, most = 0;  ///< now, at most so far

  void* take(std::size_t count, std::size_t alignment) {
    void* p = nullptr;
    if (::posix_memalign(&p, alignment, count) != 0) return nullptr;
    blocks[static_cast<const std::byte*>(p)] = count;
    bytes += count;
    most = bytes > most ? bytes : most;
    return p;
  }
  void give_back(void* p) {
    if (p == nullptr) return;
    const auto found = blocks.find(static_cast<const std::byte*>(p));
    bytes -= found->second;
    blocks.erase(found);
    std::free(p);
  }
  bool holds(const void* p) const {
    auto after = blocks.upper_bound(static_cast<const std::byte*>(p));
    return after != blocks.begin() && static_cast<const std::byte*>(p) < (--after)->first + after->second;
  }
};
inline heap device_heap, pinned_heap;

/// Bytes that cudaMalloc gives in all, for tests to set, or the environment.
inline std::size_t device_capacity = [] {
  const char* text = std::getenv("NIBBLE_SIMT_MEMORY");
  return text == nullptr ? std::size_t{8} << 30 : static_cast<std::size_t>(std::strtoull(text, nullptr, 10));
}();
inline std::size_t free_device_memory() {
  return device_capacity > device_heap.bytes ? device_capacity - device_heap.bytes : 0;
}
/// While one lives, so many bytes can be had besides those that are taken now.
struct pretended_memory {
  explicit pretended_memory(std::size_t free) : before(device_capacity) { device_capacity = device_heap.bytes + free; }
  pretended_memory(const pretended_memory&) = delete;
  pretended_memory& operator=(const pretended_memory&) = delete;
  ~pretended_memory() { device_capacity = before; }
  std::size_t before;
};

}  // namespace simt
