// Stacks that take turns on one thread, and what the sanitizers are told of them. To the thread sanitizer each is a thread
// of its own, which only order_before and order_after put in order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#if defined(__x86_64__)
#include <cstring>
#else
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreReadsBegin(const char*, int);
extern "C" void AnnotateIgnoreReadsEnd(const char*, int);
extern "C" void AnnotateIgnoreWritesBegin(const char*, int);
extern "C" void AnnotateIgnoreWritesEnd(const char*, int);
#endif

namespace emulated {

#if defined(__SANITIZE_THREAD__)
constexpr size_t kStackBytes = 32 << 10;  // made anew for every block, each time with its shadow
#else
constexpr size_t kStackBytes = 256 << 10;
#endif

// Where a stack was left.
#if defined(__x86_64__)
// swapcontext would ask the kernel for the signal mask, twice a switch.
struct Place {
  void* top = nullptr;
};
// Keeps what a call has to keep on this stack, and returns on the other one.
__attribute__((naked, noinline)) inline void change_stacks(Place*, const Place*) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq (%rsi), %rsp\n\t"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n\t"
      "ret");
}
inline Place begin_of(char* stack, void (*run)()) {
  constexpr int kKept = 6;
  const uintptr_t end = reinterpret_cast<uintptr_t>(stack + kStackBytes) / 16 * 16;
  void** top = reinterpret_cast<void**>(end) - 2 - kKept;  // run, and a return address of nobody
  memset(top, 0, (kKept + 2) * sizeof(void*));
  top[kKept] = reinterpret_cast<void*>(run);
  return {top};
}
#else
struct Place {
  ucontext_t context;
};
inline void change_stacks(Place* from, const Place* to) { swapcontext(&from->context, &to->context); }
inline Place begin_of(char* stack, void (*run)()) {
  Place place;
  getcontext(&place.context);
  place.context.uc_stack.ss_sp = stack;
  place.context.uc_stack.ss_size = kStackBytes;
  place.context.uc_link = nullptr;
  makecontext(&place.context, run, 0);
  return place;
}
#endif

class Stack {
 public:
  Stack() : memory_(new char[kStackBytes]) {}
  void begin(void (*run)()) {
    place_ = begin_of(memory_.get(), run);
    begun_ = false;
  }
  // From the thread's own stack to this one, until it leaves.
  void enter();
  // Back. A stack's function calls entered() first, and never returns.
  void leave();
  void entered();

 private:
  std::unique_ptr<char[]> memory_;
  Place place_;
  bool begun_ = false;
  void* sanitizer_ = nullptr;  // the sanitizer's name for this stack, or for what is on it
};

inline thread_local Place thread_place;

#if defined(__SANITIZE_ADDRESS__)
inline void* thread_fake_stack = nullptr;
inline const void* thread_stack = nullptr;
inline size_t thread_stack_bytes = 0;
inline void Stack::enter() {
  __sanitizer_start_switch_fiber(&thread_fake_stack, memory_.get(), kStackBytes);
  change_stacks(&thread_place, &place_);
  __sanitizer_finish_switch_fiber(thread_fake_stack, nullptr, nullptr);
}
inline void Stack::entered() {
  __sanitizer_finish_switch_fiber(sanitizer_, &thread_stack, &thread_stack_bytes);
}
inline void Stack::leave() {
  __sanitizer_start_switch_fiber(&sanitizer_, thread_stack, thread_stack_bytes);
  change_stacks(&place_, &thread_place);
  entered();
}
#elif defined(__SANITIZE_THREAD__)
// A fiber costs the sanitizer more than most blocks: they are kept for the next launch. Within a launch each is used once,
// while there are fewer than the sanitizer can count: the same fiber in two blocks would put the two in order.
struct FiberPool {
  std::vector<void*> fibers;
  size_t next = 0;
  void* take() {
    constexpr size_t kMost = 6000;
    if (next == kMost) next = 0;
    if (next == fibers.size()) fibers.push_back(__tsan_create_fiber(0));
    return fibers[next++];
  }
};
inline FiberPool fiber_pool;
inline thread_local void* thread_sanitizer = nullptr;
inline void Stack::enter() {
  if (!begun_) sanitizer_ = fiber_pool.take();
  begun_ = true;
  thread_sanitizer = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(sanitizer_, __tsan_switch_to_fiber_no_sync);
  change_stacks(&thread_place, &place_);
}
inline void Stack::entered() {}
inline void Stack::leave() {
  __tsan_switch_to_fiber(thread_sanitizer, __tsan_switch_to_fiber_no_sync);
  change_stacks(&place_, &thread_place);
}
#else
inline void Stack::enter() { change_stacks(&thread_place, &place_); }
inline void Stack::entered() {}
inline void Stack::leave() { change_stacks(&place_, &thread_place); }
#endif

// What happens after order_after(address) comes after what happened before order_before(address). Unseen: what is done
// while there is one is the emulator's own business.
#if defined(__SANITIZE_THREAD__)
inline void order_after(void* address) { __tsan_acquire(address); }
inline void order_before(void* address) { __tsan_release(address); }
inline void
reuse_fibers() {  // what ran on them is over: a function that never returned is forgotten with its fiber
  constexpr int kTimes = 4096;
  static int times = 0;
  if (++times % kTimes == 0) {
    for (void* fiber : fiber_pool.fibers) __tsan_destroy_fiber(fiber);
    fiber_pool.fibers.clear();
  }
  fiber_pool.next = 0;
}
struct Unseen {
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};
#else
inline void order_after(void*) {}
inline void order_before(void*) {}
inline void reuse_fibers() {}
struct Unseen {
  Unseen() {}
};
#endif

}  // namespace emulated
