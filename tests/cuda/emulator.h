// CUDA on the host, for tests: every thread of a block is a fiber, and a kernel's source runs as it is. What the hardware
// leaves open is drawn at random, so that code which relies on it fails here: the order of the blocks, the order of the
// threads between two barriers, and whether a cp.async arrives at once or when it is waited for. Warp instructions wait for
// every lane of their mask and fail when lanes disagree about what they execute. Shared memory starts as garbage.
//
// The address sanitizer sees accesses outside of shared memory, and of any other buffer. The thread sanitizer sees races, in
// shared and in global memory, between the threads of a block and between blocks: to it, fibers are threads that only
// barriers, __syncwarp and fences around atomics put in order. A shuffle or a vote orders nothing.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>

#include <thread>
extern "C" void AnnotateIgnoreReadsBegin(const char*, int);
extern "C" void AnnotateIgnoreReadsEnd(const char*, int);
extern "C" void AnnotateIgnoreWritesBegin(const char*, int);
extern "C" void AnnotateIgnoreWritesEnd(const char*, int);
#endif

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local  // a block is run by one thread of the host
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using cudaStream_t = void*;

namespace emulated {

// What a fiber waits for.
enum class Wait { nothing, block, warp, done };

struct CpAsync {
  void* to;
  const void* from;
  bool valid;
};

struct Fiber {
  ucontext_t context;
  jmp_buf resume;
  bool started = false;
  std::unique_ptr<char[]> stack;
  void* sanitizer = nullptr;  // its name for this fiber, or for what is on its stack
  dim3 thread;
  int index = 0;
  Wait wait = Wait::nothing;
  std::vector<std::vector<CpAsync>> groups;  // committed and still under way, oldest first
  std::vector<CpAsync> open;                 // not yet committed
  void* last_atomic = nullptr;               // a fence after it acquires, and one before the next releases
  bool fenced = false;
  int barriers = 0;
};

// One instruction of a warp, under way: what each lane brought, and what each lane takes away.
struct Rendezvous {
  uint32_t arrived = 0;
  const char* operation = nullptr;
  char order[2];  // addresses that stand for every other __syncwarp
  int count = 0;
  unsigned char brought[32][64], taken[32][64];
};

struct Block {
  dim3 grid, size, index;
  std::vector<Fiber> fibers;
  std::map<std::pair<int, uint32_t>, Rendezvous> warps;  // of a warp and a mask
  std::unique_ptr<unsigned char, void (*)(void*)> shared{nullptr, free};
  jmp_buf scheduler;
  ucontext_t scheduler_context;
  char order[2];  // addresses that stand for every other barrier
  std::function<void()> kernel;
  std::string error;
  const char* name = "";
};

inline Block* block = nullptr;
inline Fiber* fiber = nullptr;
inline std::mt19937 random(1);  // tests seed it
inline constexpr size_t kStackBytes = 256 << 10;
inline char launches;  // an address that stands for the order of one launch after the other

// What the sanitizers have to be told. Unseen: the emulator's own business. order_after and order_before: what happens here
// comes after what was ordered before the same address.
#if defined(__SANITIZE_ADDRESS__)
inline void* scheduler_fake = nullptr;
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_bytes = 0;
inline void leave_scheduler(Fiber& to) {
  __sanitizer_start_switch_fiber(&scheduler_fake, to.stack.get(), kStackBytes);
}
inline void enter_scheduler() { __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr); }
inline void leave_fiber() {
  __sanitizer_start_switch_fiber(&fiber->sanitizer, scheduler_stack, scheduler_bytes);
}
inline void enter_fiber() {
  __sanitizer_finish_switch_fiber(fiber->sanitizer, &scheduler_stack, &scheduler_bytes);
}
#elif defined(__SANITIZE_THREAD__)
inline void* scheduler_thread = nullptr;
inline void leave_scheduler(Fiber& to) {
  if (!to.started) to.sanitizer = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(to.sanitizer, __tsan_switch_to_fiber_no_sync);
}
inline void enter_scheduler() {}
inline void leave_fiber() { __tsan_switch_to_fiber(scheduler_thread, __tsan_switch_to_fiber_no_sync); }
inline void enter_fiber() {}
#else
inline void leave_scheduler(Fiber&) {}
inline void enter_scheduler() {}
inline void leave_fiber() {}
inline void enter_fiber() {}
#endif

#if defined(__SANITIZE_THREAD__)
inline void order_after(void* address) { __tsan_acquire(address); }
inline void order_before(void* address) { __tsan_release(address); }
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
// The thread sanitizer follows setjmp by stacks of its own, which fibers don't have.
inline void enter(Fiber& to) {
  fiber = &to;
  leave_scheduler(to);
  to.started = true;
  swapcontext(&block->scheduler_context, &to.context);
}
inline void yield(Wait wait) {
  fiber->wait = wait;
  leave_fiber();
  swapcontext(&fiber->context, &block->scheduler_context);
}
#else
inline void order_after(void*) {}
inline void order_before(void*) {}
struct Unseen {
  Unseen() {}
};
// swapcontext asks the kernel for the signal mask, twice a switch: it only starts a fiber, and jumps do the rest.
inline void enter(Fiber& to) {
  fiber = &to;
  leave_scheduler(to);
  if (!_setjmp(block->scheduler)) {
    if (to.started) _longjmp(to.resume, 1);
    to.started = true;
    setcontext(&to.context);
  }
  enter_scheduler();
}
inline void yield(Wait wait) {
  fiber->wait = wait;
  leave_fiber();
  if (!_setjmp(fiber->resume)) _longjmp(block->scheduler, 1);
  enter_fiber();
}
#endif

[[noreturn]] inline void stop(const std::string& why) {
  block->error = std::string(block->name) + ": " + why;
  yield(Wait::done);
  abort();  // a stopped fiber is never entered again
}

inline void run_fiber() {
  enter_fiber();
  try {
    block->kernel();
  } catch (const std::exception& e) {
    block->error = std::string(block->name) + ": " + e.what();
  }
  if (!fiber->open.empty()) block->error = std::string(block->name) + ": cp.async left uncommitted";
  order_before(&launches);
  yield(Wait::done);
}

// Runs the fibers until all are done, or none can go on.
inline void run_block() {
  const Unseen unseen;
  std::vector<Fiber*> order;
  for (Fiber& f : block->fibers) order.push_back(&f);
  size_t done = 0;
  while (done < order.size()) {
    std::shuffle(order.begin(), order.end(), random);
    size_t moved = 0;
    for (Fiber* f : order) {
      if (f->wait == Wait::nothing) {
        enter(*f);
        ++moved;
        if (!block->error.empty()) return;
      }
    }
    const auto count = [&](Wait wait) {
      return static_cast<size_t>(
          std::count_if(order.begin(), order.end(), [&](Fiber* f) { return f->wait == wait; }));
    };
    const size_t at_barrier = count(Wait::block);
    done = count(Wait::done);
    if (at_barrier && at_barrier + done == order.size()) {
      for (Fiber* f : order) {
        if (f->wait == Wait::block) f->wait = Wait::nothing;
      }
    } else if (!moved && done < order.size()) {
      block->error = std::string(block->name) + ": threads wait for lanes that never come";
      return;
    }
  }
}

// Makes the fibers of a block, and runs it. Stacks are kept: they cost more than most blocks.
inline void make_and_run(Block& b) {
  const int threads = static_cast<int>(b.size.x * b.size.y * b.size.z);
  thread_local std::vector<std::unique_ptr<char[]>> stacks;
  while (stacks.size() < static_cast<size_t>(threads)) stacks.emplace_back(new char[kStackBytes]);
  b.fibers.resize(static_cast<size_t>(threads));
  for (int i = 0; i < threads; ++i) {
    Fiber& f = b.fibers[static_cast<size_t>(i)];
    const unsigned u = static_cast<unsigned>(i);
    f.index = i;
    f.thread = dim3(u % b.size.x, u / b.size.x % b.size.y, u / (b.size.x * b.size.y));
    f.stack = std::move(stacks[static_cast<size_t>(i)]);
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStackBytes;
    f.context.uc_link = nullptr;
    makecontext(&f.context, run_fiber, 0);
  }
  block = &b;
  run_block();
  block = nullptr;
  for (int i = 0; i < threads; ++i) {
    stacks[static_cast<size_t>(i)] = std::move(b.fibers[static_cast<size_t>(i)].stack);
  }
}

#if defined(__SANITIZE_THREAD__)
// A new thread of the host has new __shared__ variables and new stacks, in which the blocks before it left no trace. The
// sanitizer takes a fiber with the number of a destroyed one for the same: they go when the launch is over, or when there
// are nearly as many as it can count.
inline std::vector<void*> sanitizer_fibers;
inline void destroy_sanitizer_fibers() {
  for (void* each : sanitizer_fibers) __tsan_destroy_fiber(each);
  sanitizer_fibers.clear();
}
inline void run_on_host_thread(Block& b) {
  if (sanitizer_fibers.size() > 6000) destroy_sanitizer_fibers();
  std::thread([&b] {
    const Unseen unseen;
    scheduler_thread = __tsan_get_current_fiber();
    make_and_run(b);
    for (Fiber& f : b.fibers) sanitizer_fibers.push_back(f.sanitizer);
  }).join();
}
#else
inline void destroy_sanitizer_fibers() {}
inline void run_on_host_thread(Block& b) { make_and_run(b); }
#endif

inline int lane() { return fiber->index % 32; }

inline bool coin() {
  const Unseen unseen;
  return random() & 1;
}

// Every lane of the mask brings a value; when the last one has come, all go on and see what the others brought.
template <class T>
const T* exchange(uint32_t mask, const char* operation, const T& value, T* all) {
  static_assert(sizeof(T) <= 64, "room in a Rendezvous");
  const Unseen unseen;
  const int warp = fiber->index / 32, self = lane();
  if (!(mask >> self & 1)) stop(std::string(operation) + ": a lane that is not in its own mask");
  Rendezvous& r = block->warps[{warp, mask}];
  if (r.arrived && strcmp(r.operation, operation)) {
    stop(std::string("lanes of one warp meet in ") + r.operation + " and " + operation);
  }
  r.operation = operation;
  memcpy(r.brought[self], &value, sizeof value);
  r.arrived |= uint32_t{1} << self;
  if (r.arrived == mask) {
    r.arrived = 0;
    ++r.count;
    memcpy(r.taken, r.brought, sizeof r.taken);
    for (int i = 0; i < 32; ++i) {
      if ((mask >> i & 1) && i != self)
        block->fibers[static_cast<size_t>(warp * 32 + i)].wait = Wait::nothing;
    }
  } else {
    yield(Wait::warp);
  }
  for (int i = 0; i < 32; ++i) {
    if (mask >> i & 1) memcpy(&all[i], r.taken[i], sizeof(T));
  }
  return all;
}

template <class T>
T shuffled(uint32_t mask, const char* operation, T value, int from) {
  T all[32];
  exchange(mask, operation, value, all);
  if (!(mask >> (from & 31) & 1)) stop(std::string(operation) + ": reads a lane that is not in the mask");
  return all[from & 31];
}

}  // namespace emulated

#define threadIdx (::emulated::fiber->thread)
#define blockIdx (::emulated::block->index)
#define blockDim (::emulated::block->size)
#define gridDim (::emulated::block->grid)

inline void __syncthreads() {
  void* order = &emulated::block->order[emulated::fiber->barriers++ % 2];
  emulated::order_before(order);
  emulated::yield(emulated::Wait::block);
  emulated::order_after(order);
}
inline void __syncwarp(uint32_t mask = 0xFFFFFFFFu) {
  int all[32];
  emulated::Rendezvous& r = emulated::block->warps[{emulated::fiber->index / 32, mask}];
  void* order = &r.order[r.count % 2];
  emulated::order_before(order);
  emulated::exchange(mask, "__syncwarp", 0, all);
  emulated::order_after(order);
}
inline void __threadfence() {
  emulated::fiber->fenced = true;
  if (emulated::fiber->last_atomic) emulated::order_after(emulated::fiber->last_atomic);
}
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(uint32_t mask, T value, int from) {
  return emulated::shuffled(mask, "__shfl_sync", value, from);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes) {
  return emulated::shuffled(mask, "__shfl_xor_sync", value, emulated::lane() ^ lanes);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, int lanes) {
  const int from = emulated::lane() + lanes;
  return emulated::shuffled(mask, "__shfl_down_sync", value, from < 32 ? from : emulated::lane());
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, int lanes) {
  const int from = emulated::lane() - lanes;
  return emulated::shuffled(mask, "__shfl_up_sync", value, from >= 0 ? from : emulated::lane());
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  int all[32] = {};
  emulated::exchange(mask, "__ballot_sync", predicate, all);
  uint32_t votes = 0;
  for (int i = 0; i < 32; ++i) votes |= static_cast<uint32_t>(all[i] != 0) << i;
  return votes & mask;
}
inline int __any_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
template <class T>
T emulated_reduce(uint32_t mask, const char* operation, T value, T (*combine)(T, T)) {
  T all[32];
  emulated::exchange(mask, operation, value, all);
  bool first = true;
  T result = value;
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    result = first ? all[i] : combine(result, all[i]);
    first = false;
  }
  return result;
}
inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t v) {
  return emulated_reduce<uint32_t>(mask, "__reduce_max_sync", v,
                                   [](uint32_t a, uint32_t b) { return a > b ? a : b; });
}
inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t v) {
  return emulated_reduce<uint32_t>(mask, "__reduce_add_sync", v,
                                   [](uint32_t a, uint32_t b) { return a + b; });
}
inline int __reduce_add_sync(uint32_t mask, int v) {
  return emulated_reduce<int>(mask, "__reduce_add_sync", v, [](int a, int b) { return a + b; });
}

// What every atomic does around `update`, which reads and writes *p at once.
template <class T, class F>
T emulated_atomic(T* p, F update) {
  if (emulated::fiber->fenced) emulated::order_before(p);
  T old;
  __atomic_load(p, &old, __ATOMIC_RELAXED);
  T changed = update(old);
  __atomic_store(p, &changed, __ATOMIC_RELAXED);
  emulated::fiber->last_atomic = p;
  return old;
}
template <class T>
T atomicAdd(T* p, T v) {
  return emulated_atomic(p, [v](T old) { return static_cast<T>(old + v); });
}
template <class T>
T atomicMax(T* p, T v) {
  return emulated_atomic(p, [v](T old) { return old > v ? old : v; });
}
template <class T>
T atomicMin(T* p, T v) {
  return emulated_atomic(p, [v](T old) { return old < v ? old : v; });
}
template <class T>
T atomicOr(T* p, T v) {
  return emulated_atomic(p, [v](T old) { return static_cast<T>(old | v); });
}
template <class T>
T atomicExch(T* p, T v) {
  return emulated_atomic(p, [v](T) { return v; });
}
template <class T>
T atomicCAS(T* p, T expected, T v) {
  return emulated_atomic(p, [expected, v](T old) { return old == expected ? v : old; });
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T v) {
  *p = v;
}

inline int __popc(uint32_t v) { return __builtin_popcount(v); }
inline int __clz(uint32_t v) { return v ? __builtin_clz(v) : 32; }
inline int __ffs(uint32_t v) { return __builtin_ffs(static_cast<int>(v)); }
inline uint32_t __brev(uint32_t v) {
  uint32_t r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1) << (31 - i);
  return r;
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t s = selector >> (4 * i) & 15;
    uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (s & 7)) & 0xFF);
    if (s & 8) byte = byte & 0x80 ? 0xFF : 0;
    r |= byte << (8 * i);
  }
  return r;
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  return c;
}
inline uint32_t __float_as_uint(float v) {
  uint32_t u;
  memcpy(&u, &v, sizeof u);
  return u;
}
inline float __uint_as_float(uint32_t u) {
  float v;
  memcpy(&v, &u, sizeof v);
  return v;
}
inline int __float2int_rn(float v) {
  if (v != v) return 0;
  if (!(v < 0x1p31f)) return 0x7FFFFFFF;
  return v < -0x1p31f ? -0x7FFFFFFF - 1 : static_cast<int>(__builtin_nearbyintf(v));
}
inline float __int2float_rn(int v) { return static_cast<float>(v); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }

namespace octavo {
namespace cuda {

struct Context;
constexpr int kEmulatedMultiprocessors = 3;  // few, so that small shapes take several rounds

inline void zero(const Context&, void* p, int64_t bytes) {
  if (bytes) memset(p, 0, static_cast<size_t>(bytes));
}
inline void read_back(const Context&, void* host, const void* device, int64_t bytes) {
  memcpy(host, device, static_cast<size_t>(bytes));
}

template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(emulated::block->shared.get());
}

template <auto kKernel, class... Args>
void launch(const Context&, const char* name, dim3 grid, dim3 size, int64_t shared, Args... args) {
  const int threads = static_cast<int>(size.x * size.y * size.z);
  if (threads < 1 || threads > 1024)
    throw std::runtime_error(std::string(name) + ": a block of " + std::to_string(threads));
  if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error(std::string(name) + ": a grid that a device refuses");
  if (shared > 227 * 1024) throw std::runtime_error(std::string(name) + ": more shared memory than there is");
  const emulated::Unseen unseen;
  std::vector<dim3> order;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) order.emplace_back(x, y, z);
    }
  }
  std::shuffle(order.begin(), order.end(), emulated::random);
  for (const dim3& index : order) {
    const auto owner =
        std::make_unique<emulated::Block>();  // on the heap: the sanitizer forgets what it freed
    emulated::Block& b = *owner;
    b.grid = grid;
    b.size = size;
    b.index = index;
    b.name = name;
    b.kernel = [&] { kKernel(args...); };
    void* raw = nullptr;  // not a byte longer than asked for: the sanitizer sees its end
    if (posix_memalign(&raw, 128, static_cast<size_t>(shared))) throw std::bad_alloc();
    memset(raw, 0xCD, static_cast<size_t>(shared));
    b.shared.reset(static_cast<unsigned char*>(raw));
    emulated::run_on_host_thread(b);
    if (!b.error.empty()) throw std::runtime_error(b.error);
  }
  emulated::destroy_sanitizer_fibers();
  emulated::order_after(&emulated::launches);
}

namespace ptx {

inline uint4 ld_global_nc_no_allocate(const void* p) {
  uint4 v;
  if (reinterpret_cast<uintptr_t>(p) % 16) emulated::stop("ld.global.v4: a misaligned address");
  memcpy(&v, p, sizeof v);
  return v;
}

inline uint4 ld_global_nc_no_allocate(const void* p, bool valid) {
  return valid ? ld_global_nc_no_allocate(p) : uint4{0, 0, 0, 0};
}

inline void arrive(const emulated::CpAsync& copy) {
  if (copy.valid) {
    memcpy(copy.to, copy.from, 16);
  } else {
    memset(copy.to, 0, 16);
  }
}
inline void cp_async_16(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || (valid && reinterpret_cast<uintptr_t>(global) % 16))
    emulated::stop("cp.async: a misaligned address");
  emulated::fiber->open.push_back({shared, global, valid});
  if (emulated::coin()) arrive(emulated::fiber->open.back());
}
inline void cp_async_commit() {
  emulated::fiber->groups.push_back(std::move(emulated::fiber->open));
  emulated::fiber->open.clear();
}
template <int kPending>
void cp_async_wait() {
  auto& groups = emulated::fiber->groups;
  while (groups.size() > kPending) {
    for (const emulated::CpAsync& copy : groups.front()) arrive(copy);
    groups.erase(groups.begin());
  }
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row) {
  if (reinterpret_cast<uintptr_t>(shared_row) % 16) emulated::stop("ldmatrix: a misaligned row");
  const void* rows[32];
  emulated::exchange(0xFFFFFFFFu, "ldmatrix", shared_row, rows);
  const int l = emulated::lane();
  for (int i = 0; i < 4; ++i) memcpy(&r[i], static_cast<const char*>(rows[8 * i + l / 4]) + 4 * (l % 4), 4);
}

struct MmaOperands {
  int8_t a[4][4], b[2][4];
};
inline void mma_m16n8k32_s8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaOperands mine, all[32];
  memcpy(mine.a, a, sizeof mine.a);
  memcpy(mine.b, b, sizeof mine.b);
  emulated::exchange(0xFFFFFFFFu, "mma", mine, all);
  const int g = emulated::lane() / 4, t = emulated::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row_half = i / 2, column = 2 * t + i % 2;
    uint32_t sum = static_cast<uint32_t>(c[i]);  // wraps as the hardware does
    for (int k = 0; k < 32; ++k) {
      const int8_t left = all[g * 4 + k % 16 / 4].a[row_half + 2 * (k / 16)][k % 4];
      const int8_t right = all[column * 4 + k % 16 / 4].b[k / 16][k % 4];
      sum += static_cast<uint32_t>(left * right);
    }
    c[i] = static_cast<int32_t>(sum);
  }
}

inline void forget(uint4&) {}

}  // namespace ptx
}  // namespace cuda
}  // namespace octavo
