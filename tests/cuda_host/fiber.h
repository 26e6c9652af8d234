// A stack and a place on it to come back to.
#pragma once

#include <cstddef>

// UDML_HOST_UCONTEXT: as on processors that have no switch of their own here.
#if !defined(__x86_64__) && !defined(UDML_HOST_UCONTEXT)
#define UDML_HOST_UCONTEXT
#endif
#if defined(UDML_HOST_UCONTEXT)
#include <ucontext.h>
#endif

namespace udml_host {

class Fiber {
 public:
  // The stack of the calling thread.
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  ~Fiber();

  // Maps a stack of its own, with a page below it that faults. Stacks of other `number`s start in other cache sets.
  void map(unsigned number);
  // To begin with `entry`, whatever ran here before.
  void prepare(void (*entry)());
  // Leave `from`, which is running, for `to`; the last time, nothing of `from` is kept.
  static void change(Fiber& from, Fiber& to, bool last = false);
  // What a fiber does first.
  static void begin();
  // The next prepare() finds frames that were left as they were.
  void abandon() { abandoned_ = true; }

  const char* stack() const { return stack_; }
  static const size_t STACK;

 private:
  static void arrive(Fiber& self);

#if !defined(UDML_HOST_UCONTEXT)
  void* top_ = nullptr;
#else
  ucontext_t context_;
#endif
  char* stack_ = nullptr;
  size_t colour_ = 0;
  bool abandoned_ = false;
  // For AddressSanitizer.
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  static Fiber *previous_, *current_;
};

}  // namespace udml_host
