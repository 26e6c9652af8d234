#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace udml_host {

#if defined(__SANITIZE_ADDRESS__)
// Redzones make frames larger.
const size_t Fiber::STACK = 256 << 10;
#else
const size_t Fiber::STACK = 64 << 10;
#endif

Fiber* Fiber::previous_ = nullptr;
Fiber* Fiber::current_ = nullptr;

namespace {
constexpr size_t PAGE = 4096;
}

Fiber::~Fiber() {
  if (stack_ != nullptr) munmap(stack_ - PAGE, STACK + PAGE);
}

void Fiber::map(unsigned number) {
  void* memory = mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, PAGE, PROT_NONE);
  stack_ = static_cast<char*>(memory) + PAGE;
  // Page-aligned tops would all compete for the same few sets of the first-level cache.
  colour_ = number * 320 % PAGE;
  bottom_ = stack_;
  size_ = STACK;
}

#if !defined(UDML_HOST_UCONTEXT)

// Saves what a call preserves, and continues where the other stack was left the same way.
extern "C" void udml_host_change(void** from, void* to);
__asm__(R"(
.text
.p2align 4
.globl udml_host_change
.hidden udml_host_change
.type udml_host_change, @function
udml_host_change:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmpq *%rcx
.size udml_host_change, . - udml_host_change
)");

void Fiber::prepare(void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  if (abandoned_) __asan_unpoison_memory_region(stack_, STACK);
#endif
  abandoned_ = false;
  fake_stack_ = nullptr;
  // Six registers, the entry, and what would be its return address: on entry the stack is aligned as after a call.
  void** top = reinterpret_cast<void**>(stack_ + STACK - colour_) - 8;
  for (int i = 0; i < 8; ++i) top[i] = nullptr;
  top[6] = reinterpret_cast<void*>(entry);
  top_ = top;
}

#else

void Fiber::prepare(void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  if (abandoned_) __asan_unpoison_memory_region(stack_, STACK);
#endif
  abandoned_ = false;
  fake_stack_ = nullptr;
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = STACK - colour_;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
}

#endif

void Fiber::arrive(Fiber& self) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self.fake_stack_, &previous_->bottom_, &previous_->size_);
#else
  (void)self;
#endif
}

void Fiber::begin() { arrive(*current_); }

void Fiber::change(Fiber& from, Fiber& to, bool last) {
  previous_ = &from;
  current_ = &to;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack_, to.bottom_, to.size_);
#else
  (void)last;
#endif
#if !defined(UDML_HOST_UCONTEXT)
  udml_host_change(&from.top_, to.top_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
  arrive(from);
}

}  // namespace udml_host
