#include "parallel.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dirent.h>
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace octavo {
namespace {

// ---- floating-point environment ------------------------------------------------------------------------------------

// The caller may have set flush-to-zero (torch.set_flush_denormal) or another rounding; results must not depend on it.
class DefaultFloatEnvironment {
 public:
#if defined(__x86_64__)
  DefaultFloatEnvironment() : before_(_mm_getcsr()) {
    if (before_ != kDefault) _mm_setcsr(kDefault);
  }
  ~DefaultFloatEnvironment() {
    if (before_ != kDefault) _mm_setcsr(before_);
  }

 private:
  static constexpr unsigned kDefault = 0x1F80;  // all exceptions masked
  unsigned before_;
#elif defined(__aarch64__)
  DefaultFloatEnvironment() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
  }
  ~DefaultFloatEnvironment() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#endif
};

// ---- the runtime ---------------------------------------------------------------------------------------------------

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using IntFunction = int (*)();

struct Runtime {
  std::string path;
  GompParallel parallel = nullptr;
  IntFunction in_parallel = nullptr, max_threads = nullptr;
};

std::mutex runtime_mutex;
std::atomic<const Runtime*> current_runtime{nullptr};
std::atomic<bool> runtime_used{false};  // by us
std::atomic<bool> forked_after_use{false};
thread_local bool inside = false;

#if defined(__linux__)

unsigned long long scanned_loads = 0;  // dlpi_adds at the last scan

struct Scan {
  std::string best;
  bool best_is_torch = false;
  unsigned long long loads = 0;
};

int visit_library(dl_phdr_info* info, size_t, void* data) {
  auto* scan = static_cast<Scan*>(data);
  scan->loads = info->dlpi_adds;
  const char* path = info->dlpi_name ? info->dlpi_name : "";
  const char* slash = strrchr(path, '/');
  const char* name = slash ? slash + 1 : path;
  if (strncmp(name, "libgomp", 7) != 0 && strncmp(name, "libiomp5", 8) != 0 &&
      strncmp(name, "libomp", 6) != 0)
    return 0;
  const bool is_torch = strstr(path, "/torch/lib/") || strstr(path, "/torch.libs/");
  if (scan->best.empty() || (is_torch && !scan->best_is_torch)) {
    scan->best = path;
    scan->best_is_torch = is_torch;
  }
  return 0;
}

int read_loads(dl_phdr_info* info, size_t, void* data) {
  *static_cast<unsigned long long*>(data) = info->dlpi_adds;
  return 1;  // the first library tells
}

Runtime open_runtime(const std::string& path, int flags) {
  Runtime runtime;
  void* library =
      dlopen(path.c_str(), flags);  // never closed: a runtime cannot be unloaded under its threads
  if (!library) return runtime;
  runtime.parallel = reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
  runtime.in_parallel = reinterpret_cast<IntFunction>(dlsym(library, "omp_in_parallel"));
  runtime.max_threads = reinterpret_cast<IntFunction>(dlsym(library, "omp_get_max_threads"));
  if (!runtime.in_parallel || !runtime.max_threads) runtime.parallel = nullptr;
  runtime.path = path;
  return runtime;
}

int count_tasks() {
  DIR* directory = opendir("/proc/self/task");
  if (!directory) return 2;  // unknown: assume the worst
  int tasks = 0;
  while (const dirent* entry = readdir(directory)) tasks += entry->d_name[0] != '.';
  closedir(directory);
  return tasks;
}

// Runs in the parent. Another user of the runtime (torch) is seen by its threads.
bool may_lose_a_pool() {
  if (runtime_used.load()) return true;
  Scan scan;
  dl_iterate_phdr(visit_library, &scan);
  return !scan.best.empty() && count_tasks() > 1;
}

std::atomic<bool> losing_a_pool{false};
[[maybe_unused]] const int fork_handlers = pthread_atfork(
    [] {
      losing_a_pool.store(may_lose_a_pool());
      runtime_mutex.lock();  // so that no child inherits it locked
    },
    [] { runtime_mutex.unlock(); },
    [] {
      runtime_mutex.unlock();
      if (losing_a_pool.load()) forked_after_use.store(true);
    });

// nullptr: no OpenMP in this process. Looks again only after a library was loaded: torch may be imported after us.
const Runtime* runtime() {
  unsigned long long loads = 0;
  dl_iterate_phdr(read_loads, &loads);
  const Runtime* known = current_runtime.load(std::memory_order_acquire);
  const std::lock_guard<std::mutex> lock(runtime_mutex);
  if (loads == scanned_loads && known == current_runtime.load()) return known;
  Scan scan;
  dl_iterate_phdr(visit_library, &scan);
  known = current_runtime.load();
  const bool have_openmp = known != nullptr;
  if (!scan.best.empty() && (!have_openmp || known->path != scan.best)) {
    Runtime found = open_runtime(scan.best, RTLD_LAZY | RTLD_NOLOAD);
    if (found.parallel)
      current_runtime.store(new Runtime(found));  // a handful in a process's life: never freed
  } else if (!have_openmp) {
    Runtime found = open_runtime("libgomp.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (found.parallel) current_runtime.store(new Runtime(found));
  }
  dl_iterate_phdr(read_loads, &scanned_loads);
  return current_runtime.load();
}

int affinity_threads() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::thread::hardware_concurrency());
}

#else

const Runtime* runtime() { return nullptr; }
int affinity_threads() { return static_cast<int>(std::thread::hardware_concurrency()); }

#endif

// ---- the loop ------------------------------------------------------------------------------------------------------

struct Loop {
  ChunkFunction function;
  void* context;
  int64_t n, chunk;
  std::atomic<int64_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;  // the first; it must not leave a thread of the runtime
};

void run_chunks(void* data) {
  auto* loop = static_cast<Loop*>(data);
  const DefaultFloatEnvironment environment;
  inside = true;
  try {
    for (;;) {
      const int64_t begin = loop->next.fetch_add(loop->chunk);
      if (begin >= loop->n) break;
      const int64_t end = loop->n - begin < loop->chunk ? loop->n : begin + loop->chunk;
      loop->function(loop->context, begin, end);
    }
  } catch (...) {
    const std::lock_guard<std::mutex> lock(loop->error_mutex);
    if (!loop->error) loop->error = std::current_exception();
  }
  inside = false;
}

void run_serial(int64_t n, ChunkFunction function, void* context) {
  const DefaultFloatEnvironment environment;
  function(context, 0, n);
}

}  // namespace

void parallel_for(int64_t n, int64_t grain, int threads, ChunkFunction function, void* context) {
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  const int64_t chunks = (n + grain - 1) / grain;
  if (chunks < threads) threads = static_cast<int>(chunks);
  if (threads <= 1 || inside || forked_after_use.load(std::memory_order_relaxed))
    return run_serial(n, function, context);
  const Runtime* openmp = runtime();
  if (openmp && openmp->in_parallel()) return run_serial(n, function, context);

  Loop loop;
  loop.function = function;
  loop.context = context;
  loop.n = n;
  loop.chunk = grain;
  // A few chunks for each thread even out a noisy core; more would only cost.
  const int64_t even = (n + 4 * threads - 1) / (4 * threads);
  if (even > loop.chunk) loop.chunk = (even + grain - 1) / grain * grain;
  if (openmp) {
    runtime_used.store(true, std::memory_order_relaxed);
    openmp->parallel(run_chunks, &loop, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(run_chunks, &loop);
    run_chunks(&loop);
    for (auto& other : others) other.join();
  }
  if (loop.error) std::rethrow_exception(loop.error);
}

int default_threads() {
  const Runtime* openmp = runtime();
  if (openmp) return openmp->max_threads();
  const char* wanted = getenv("OMP_NUM_THREADS");
  const int number = wanted ? atoi(wanted) : 0;
  return number > 0 ? number : affinity_threads();
}

ThreadsInfo threads_info() {
  const Runtime* openmp = runtime();
  std::string name = openmp ? openmp->path : "std::thread";
  if (forked_after_use.load()) name = "serial: forked from a process that had used " + name;
  return {name, default_threads()};
}

namespace {

struct Scratch {
  static constexpr int kSlots = 5;
  void* memory[kSlots] = {};
  int64_t bytes[kSlots] = {};
  ~Scratch() {
    for (void* m : memory) std::free(m);
  }
};
thread_local Scratch thread_scratch;

}  // namespace

void* scratch(Slot slot, int64_t bytes) {
  const int i = static_cast<int>(slot);
  Scratch& s = thread_scratch;
  if (bytes > s.bytes[i]) {
    std::free(s.memory[i]);
    s.bytes[i] = 0;
    const int64_t rounded = (bytes + 4095) / 4096 * 4096;
    s.memory[i] = std::aligned_alloc(64, static_cast<size_t>(rounded));
    if (!s.memory[i]) throw std::bad_alloc();
    s.bytes[i] = rounded;
  }
  return s.memory[i];
}

}  // namespace octavo
