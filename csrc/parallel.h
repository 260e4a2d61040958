// parallel_for over the OpenMP runtime that the process already has.
//
// A thread pool of our own beside torch's would fight it for the cores: each keeps spinning for work while the other
// runs. So a loaded libgomp, libiomp5 or libomp is looked up (torch's first) and its GOMP_parallel called; without one,
// libgomp.so.1 is loaded if the system has it, else plain threads are started. Nothing links OpenMP.
// Serial when nested, and in a forked child whose parent may have used the runtime: its pool does not survive the fork,
// and waiting for it would hang.
#pragma once

#include <cstdint>
#include <string>

#include "scratch.h"

namespace octavo {

// Round to nearest, denormals kept, for the current scope. The caller may have set flush-to-zero
// (torch.set_flush_denormal) or another rounding; results must not depend on it.
class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment();
  ~DefaultFloatEnvironment();
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

 private:
  uint64_t before_;
};

using ChunkFunction = void (*)(void* context, int64_t begin, int64_t end);

// Calls function over chunks of [0, n), each at least `grain` long (but the last), on at most `threads` threads. Chunks
// are handed out dynamically: results must not depend on who runs what. An exception
// ends its thread's chunks and is thrown again here.
// Every chunk runs in the default floating-point environment.
void parallel_for(int64_t n, int64_t grain, int threads, ChunkFunction function, void* context);

// body(begin, end)
template <class Body>
void parallel_for(int64_t n, int64_t grain, int threads, Body& body) {
  parallel_for(
      n, grain, threads,
      [](void* context, int64_t begin, int64_t end) { (*static_cast<Body*>(context))(begin, end); }, &body);
}

// The runtime's own idea (OMP_NUM_THREADS, affinity), or the same without one.
int default_threads();

struct ThreadsInfo {
  std::string runtime;  // path of the library, or "std::thread", or why everything is serial
  int threads;
};
ThreadsInfo threads_info();

}  // namespace octavo
