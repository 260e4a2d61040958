// CUDA on the host, for tests: every thread of a block is a fiber, and a kernel's source runs as it is. What the hardware
// leaves open is drawn at random, so that code which relies on it fails here: the order of the blocks, the order of the
// threads between two barriers, and whether a cp.async arrives at once or when it is waited for. Warp instructions wait for
// every lane of their mask and fail when lanes disagree about what they execute. Shared memory starts as garbage; the address
// sanitizer sees accesses outside of it, and of any other buffer.
#pragma once

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
#endif

#define __global__
#define __device__
#define __host__
#define __shared__ static
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
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;
  dim3 thread;
  int index = 0;
  Wait wait = Wait::nothing;
  std::vector<std::vector<CpAsync>> groups;  // committed and still under way, oldest first
  std::vector<CpAsync> open;                 // not yet committed
};

// One instruction of a warp, under way: what each lane brought, and what each lane takes away.
struct Rendezvous {
  uint32_t arrived = 0;
  const char* operation = nullptr;
  unsigned char brought[32][64], taken[32][64];
};

struct Block {
  dim3 grid, size, index;
  std::vector<Fiber> fibers;
  std::map<std::pair<int, uint32_t>, Rendezvous> warps;  // of a warp and a mask
  std::unique_ptr<unsigned char, void (*)(void*)> shared{nullptr, free};
  ucontext_t scheduler;
  std::function<void()> kernel;
  std::string error;
  const char* name = "";
};

inline Block* block = nullptr;
inline Fiber* fiber = nullptr;
inline std::mt19937 random(1);  // tests seed it
inline constexpr size_t kStackBytes = 256 << 10;

#if defined(__SANITIZE_ADDRESS__)
// The sanitizer has to know which stack runs.
inline void* scheduler_fake = nullptr;
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_bytes = 0;
inline void leave_scheduler(Fiber& to) {
  __sanitizer_start_switch_fiber(&scheduler_fake, to.stack.get(), kStackBytes);
}
inline void enter_scheduler() { __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr); }
inline void leave_fiber() {
  __sanitizer_start_switch_fiber(&fiber->fake_stack, scheduler_stack, scheduler_bytes);
}
inline void enter_fiber() {
  __sanitizer_finish_switch_fiber(fiber->fake_stack, &scheduler_stack, &scheduler_bytes);
}
#else
inline void leave_scheduler(Fiber&) {}
inline void enter_scheduler() {}
inline void leave_fiber() {}
inline void enter_fiber() {}
#endif

inline void enter(Fiber& to) {
  fiber = &to;
  leave_scheduler(to);
  swapcontext(&block->scheduler, &to.context);
  enter_scheduler();
}

inline void yield(Wait wait) {
  fiber->wait = wait;
  leave_fiber();
  swapcontext(&fiber->context, &block->scheduler);
  enter_fiber();
}

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
  yield(Wait::done);
}

// Runs the fibers until all are done, or none can go on.
inline void run_block() {
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

inline int lane() { return fiber->index % 32; }

// Every lane of the mask brings a value; when the last one has come, all go on and see what the others brought.
template <class T>
const T* exchange(uint32_t mask, const char* operation, const T& value, T* all) {
  static_assert(sizeof(T) <= 64, "room in a Rendezvous");
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

inline void __syncthreads() { emulated::yield(emulated::Wait::block); }
inline void __syncwarp(uint32_t mask = 0xFFFFFFFFu) {
  int all[32];
  emulated::exchange(mask, "__syncwarp", 0, all);
}
inline void __threadfence() {}
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

template <class T>
T emulated_atomic(T* p, T (*combine)(T, T), T v) {
  const T old = *p;
  *p = combine(old, v);
  return old;
}
template <class T>
T atomicAdd(T* p, T v) {
  return emulated_atomic<T>(p, [](T a, T b) { return static_cast<T>(a + b); }, v);
}
template <class T>
T atomicMax(T* p, T v) {
  return emulated_atomic<T>(p, [](T a, T b) { return a > b ? a : b; }, v);
}
template <class T>
T atomicMin(T* p, T v) {
  return emulated_atomic<T>(p, [](T a, T b) { return a < b ? a : b; }, v);
}
template <class T>
T atomicOr(T* p, T v) {
  return emulated_atomic<T>(p, [](T a, T b) { return static_cast<T>(a | b); }, v);
}
template <class T>
T atomicExch(T* p, T v) {
  return emulated_atomic<T>(p, [](T, T b) { return b; }, v);
}
template <class T>
T atomicCAS(T* p, T expected, T v) {
  const T old = *p;
  if (old == expected) *p = v;
  return old;
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
inline int __float2int_rn(float v) { return static_cast<int>(__builtin_nearbyintf(v)); }
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
  emulated::Block b;
  b.grid = grid;
  b.size = size;
  b.name = name;
  b.kernel = [&] { kKernel(args...); };
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (stacks.size() < static_cast<size_t>(threads)) stacks.emplace_back(new char[emulated::kStackBytes]);
  std::vector<dim3> order;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) order.emplace_back(x, y, z);
    }
  }
  std::shuffle(order.begin(), order.end(), emulated::random);
  for (const dim3& index : order) {
    b.index = index;
    b.warps.clear();
    b.fibers.clear();
    b.fibers.resize(static_cast<size_t>(threads));
    void* raw = nullptr;  // not a byte longer than asked for: the sanitizer sees its end
    if (posix_memalign(&raw, 128, static_cast<size_t>(shared))) throw std::bad_alloc();
    memset(raw, 0xCD, static_cast<size_t>(shared));
    b.shared.reset(static_cast<unsigned char*>(raw));
    emulated::block = &b;
    for (int i = 0; i < threads; ++i) {
      emulated::Fiber& f = b.fibers[static_cast<size_t>(i)];
      const unsigned u = static_cast<unsigned>(i);
      f.index = i;
      f.thread = dim3(u % size.x, u / size.x % size.y, u / (size.x * size.y));
      f.stack = std::move(stacks[static_cast<size_t>(i)]);
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.get();
      f.context.uc_stack.ss_size = emulated::kStackBytes;
      f.context.uc_link = nullptr;
      makecontext(&f.context, emulated::run_fiber, 0);
    }
    emulated::run_block();
    for (int i = 0; i < threads; ++i) {
      stacks[static_cast<size_t>(i)] = std::move(b.fibers[static_cast<size_t>(i)].stack);
    }
    emulated::block = nullptr;
    if (!b.error.empty()) throw std::runtime_error(b.error);
  }
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
  if (emulated::random() & 1) arrive(emulated::fiber->open.back());
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

}  // namespace ptx
}  // namespace cuda
}  // namespace octavo
