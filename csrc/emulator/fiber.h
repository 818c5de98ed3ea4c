// A stack to switch to and back. By hand on x86-64, where it takes 2 ns; ucontext asks the kernel for the signal mask at
// every switch and was 2 to 7 times slower over a whole kernel.
#pragma once
#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace pyconv::emulator {

#if defined(__x86_64__)
using Context = void*;  // the stack pointer; what a switch must keep lies on the stack

// Calls entry() on the stack [low, low + bytes) when first switched to; entry must not return.
inline void prepare(Context& context, char* low, size_t bytes, void (*entry)()) {
  auto* top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(low) + bytes) & ~uintptr_t(15));
  *--top = nullptr;  // in the place of a return address: entry sees the stack as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; saved++) *--top = nullptr;
  context = top;
}
// Keeps rbp, rbx and r12 to r15, all that a call of the System V ABI must keep.
void switch_stacks(Context* from, Context to);
inline void switch_to(Context& from, Context& to) { switch_stacks(&from, to); }
#else
using Context = ucontext_t;

inline void prepare(Context& context, char* low, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = low;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
inline void switch_to(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

}  // namespace pyconv::emulator
