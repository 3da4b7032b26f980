// SPDX-License-Identifier: Apache-2.0
/// @file
/// A fibre with a stack of its own, and what the sanitizers have to be told about it. NIBBLE_SIMT_ASAN and
/// NIBBLE_SIMT_TSAN say which of them the kernels are built with.
#pragma once

#include <sys/mman.h>

#include <boost/context/detail/fcontext.hpp>
#include <cstddef>
#include <cstdlib>
#include <vector>

#if defined(NIBBLE_SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(NIBBLE_SIMT_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* object);
void __tsan_release(void* object);
void __tsan_ignore_thread_begin();
void __tsan_ignore_thread_end();
}
#endif

namespace simt {

/// What came before release(object) comes before what follows acquire(object).
inline void release([[maybe_unused]] char& object) {
#if defined(NIBBLE_SIMT_TSAN)
  __tsan_release(&object);
#endif
}
inline void acquire([[maybe_unused]] char& object) {
#if defined(NIBBLE_SIMT_TSAN)
  __tsan_acquire(&object);
#endif
}

/// While one lives, ThreadSanitizer overlooks what this fibre does to memory: the executor's own lists are no part of the kernel.
struct overlooked {
#if defined(NIBBLE_SIMT_TSAN)
  overlooked() {
    __tsan_ignore_thread_begin();
  }
  ~overlooked() {
    __tsan_ignore_thread_end();
  }
#else
  overlooked() {}
  ~overlooked() {}
#endif
  overlooked(const overlooked&) = delete;
  overlooked& operator=(const overlooked&) = delete;
};

/// A stack with a page below it that faults, and ThreadSanitizer's idea of the fibre that runs on it.
struct fibre_place {
  static constexpr std::size_t page = 4096, size = 128 * 1024;
  char* stack = nullptr;  ///< its lowest byte
#if defined(NIBBLE_SIMT_TSAN)
  void* tsan = nullptr;
#endif
};

/// Kept for the next fibre. What runs on one place comes, for ThreadSanitizer, before what runs there later.
class fibre_places {
 public:
  fibre_place take() {
    if (free_.empty()) return make();
    const fibre_place p = free_.back();
    free_.pop_back();
    return p;
  }
  void give_back(fibre_place p) { free_.push_back(p); }
  void clear() {
    for (const fibre_place& p : free_) {
#if defined(NIBBLE_SIMT_TSAN)
      __tsan_destroy_fiber(p.tsan);
#endif
      ::munmap(p.stack - p.page, p.page + p.size);
    }
    free_.clear();
  }

 private:
  static fibre_place make() {
    fibre_place p;
    void* const memory =
        ::mmap(nullptr, p.page + p.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || ::mprotect(memory, p.page, PROT_NONE) != 0) std::abort();
    p.stack = static_cast<char*>(memory) + p.page;
#if defined(NIBBLE_SIMT_TSAN)
    p.tsan = __tsan_create_fiber(0);
#endif
    return p;
  }
  std::vector<fibre_place> free_;
};

class fibre {
 public:
  fibre() : place_(places().take()) {}
  ~fibre() { places().give_back(place_); }
  fibre(const fibre&) = delete;
  fibre& operator=(const fibre&) = delete;

  /// Of fibres that are no more.
  static fibre_places& places() {
    static fibre_places all;
    return all;
  }

  /// The next enter() runs `body` from its beginning. @pre the fibre has not begun, or its body has ended.
  void start(void (*body)()) {
#if defined(NIBBLE_SIMT_ASAN)
    __asan_unpoison_memory_region(place_.stack, place_.size);
#endif
    body_ = body;
    ended_ = false;
    inside_ = boost::context::detail::make_fcontext(place_.stack + place_.size, place_.size, &fibre::begin);
  }

  /// From outside: runs the fibre until it leaves or its body ends.
  void enter() {
#if defined(NIBBLE_SIMT_TSAN)
    outer_tsan_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(place_.tsan, no_sync);
#endif
#if defined(NIBBLE_SIMT_ASAN)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, place_.stack, place_.size);
#endif
    inside_ = boost::context::detail::jump_fcontext(inside_, this).fctx;
#if defined(NIBBLE_SIMT_ASAN)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  /// From inside: goes back to who entered.
  void leave() {
#if defined(NIBBLE_SIMT_TSAN)
    __tsan_switch_to_fiber(outer_tsan_, no_sync);
#endif
#if defined(NIBBLE_SIMT_ASAN)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(ended_ ? nullptr : &fake, outer_stack_, outer_size_);
#endif
    outside_ = boost::context::detail::jump_fcontext(outside_, nullptr).fctx;
#if defined(NIBBLE_SIMT_ASAN)
    __sanitizer_finish_switch_fiber(fake, &outer_stack_, &outer_size_);
#endif
  }

 private:
  static void begin(boost::context::detail::transfer_t from) {
    fibre& f = *static_cast<fibre*>(from.data);
#if defined(NIBBLE_SIMT_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, &f.outer_stack_, &f.outer_size_);
#endif
    f.outside_ = from.fctx;
    f.body_();
    f.ended_ = true;
    f.leave();
    std::abort();
  }
  fibre_place place_;
  void (*body_)() = nullptr;
  bool ended_ = false;
  boost::context::detail::fcontext_t inside_ = nullptr, outside_ = nullptr;
#if defined(NIBBLE_SIMT_TSAN)
  static constexpr unsigned no_sync = 1;  ///< a switch orders nothing
  void* outer_tsan_ = nullptr;
#endif
#if defined(NIBBLE_SIMT_ASAN)
  const void* outer_stack_ = nullptr;
  std::size_t outer_size_ = 0;
#endif
};

}  // namespace simt
