// CUDA on the host, for tests: every thread of a block is a fiber, and a kernel's source runs as it is. What the hardware
// leaves open is drawn at random, so that code which relies on it fails here: the order of the blocks, the order of the
// threads between two barriers, and whether a cp.async arrives at once or when it is waited for. Warp instructions wait for
// every lane of their mask and fail when lanes disagree about what they execute. Shared memory starts as garbage.
//
// The address sanitizer sees accesses outside of shared memory, and of any other buffer. The thread sanitizer sees races, in
// shared and in global memory, between the threads of a block and between blocks: to it, fibers are threads that only
// barriers, __syncwarp and fences around atomics put in order. A shuffle or a vote orders nothing.
#pragma once

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

#if defined(__SANITIZE_THREAD__)
#include <thread>
#endif

#include "fiber.h"

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
  std::unique_ptr<Stack> stack;
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
  char order[2];  // addresses that stand for every other barrier
  std::function<void()> kernel;
  std::string error;
  const char* name = "";
};

inline Block* block = nullptr;
inline Fiber* fiber = nullptr;
inline std::mt19937 random(1);         // tests seed it
inline char launch_begin, launch_end;  // addresses that stand for the order of one launch after the other

inline void yield(Wait wait) {
  fiber->wait = wait;
  fiber->stack->leave();
}

[[noreturn]] inline void stop(const std::string& why) {
  block->error = std::string(block->name) + ": " + why;
  yield(Wait::done);
  abort();  // a stopped fiber is never entered again
}

inline void run_fiber() {
  fiber->stack->entered();
  order_after(&launch_begin);
  try {
    block->kernel();
  } catch (const std::exception& e) {
    block->error = std::string(block->name) + ": " + e.what();
  }
  if (!fiber->open.empty()) block->error = std::string(block->name) + ": cp.async left uncommitted";
  order_before(&launch_end);
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
        fiber = f;
        f->stack->enter();
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
  thread_local std::vector<std::unique_ptr<Stack>> stacks;
  while (stacks.size() < static_cast<size_t>(threads)) stacks.push_back(std::make_unique<Stack>());
  b.fibers.resize(static_cast<size_t>(threads));
  for (int i = 0; i < threads; ++i) {
    Fiber& f = b.fibers[static_cast<size_t>(i)];
    const unsigned u = static_cast<unsigned>(i);
    f.index = i;
    f.thread = dim3(u % b.size.x, u / b.size.x % b.size.y, u / (b.size.x * b.size.y));
    f.stack = std::move(stacks[static_cast<size_t>(i)]);
    f.stack->begin(run_fiber);
  }
  block = &b;
  run_block();
  block = nullptr;
  for (int i = 0; i < threads; ++i) {
    stacks[static_cast<size_t>(i)] = std::move(b.fibers[static_cast<size_t>(i)].stack);
  }
}

// Under the thread sanitizer a block has a thread of its own, with new __shared__ variables and new stacks, in which the
// blocks before it left no trace.
inline void run_on_host_thread(Block& b) {
#if defined(__SANITIZE_THREAD__)
  std::thread([&b] {
    const Unseen unseen;
    order_before(&launch_begin);  // the new thread's memory, too, was there before
    make_and_run(b);
  }).join();
#else
  make_and_run(b);
#endif
}

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
    for (int i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      memcpy(r.taken[i], r.brought[i], sizeof(T));
      if (i != self) block->fibers[static_cast<size_t>(warp * 32 + i)].wait = Wait::nothing;
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
  emulated::reuse_fibers();
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
  emulated::order_after(&emulated::launch_end);
}

}  // namespace cuda
}  // namespace octavo

#include "emulated_device.h"
