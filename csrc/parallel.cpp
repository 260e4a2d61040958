#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
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

#if defined(__x86_64__)
DefaultFloatEnvironment::DefaultFloatEnvironment() : before_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
DefaultFloatEnvironment::~DefaultFloatEnvironment() { _mm_setcsr(static_cast<unsigned>(before_)); }
#elif defined(__aarch64__)
DefaultFloatEnvironment::DefaultFloatEnvironment() {
  asm volatile("mrs %0, fpcr" : "=r"(before_));
  asm volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
}
DefaultFloatEnvironment::~DefaultFloatEnvironment() { asm volatile("msr fpcr, %0" : : "r"(before_)); }
#else
DefaultFloatEnvironment::DefaultFloatEnvironment() : before_(0) {}
DefaultFloatEnvironment::~DefaultFloatEnvironment() = default;
#endif

namespace {

// ---- the runtime ---------------------------------------------------------------------------------------------------

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using IntFunction = int (*)();

struct Runtime {
  std::string path;
  GompParallel parallel = nullptr;
  IntFunction in_parallel = nullptr, max_threads = nullptr;
};

std::atomic<const Runtime*> current_runtime{nullptr};
std::atomic<bool> runtime_used{false};  // by us
std::atomic<bool> forked_after_use{false};
thread_local bool inside_parallel_for = false;

#if defined(__linux__)

std::atomic<unsigned long long> scanned_loads{0};  // library_loads() at the last scan

// How many libraries the process has ever loaded. Cheap: the first entry tells.
unsigned long long library_loads() {
  unsigned long long loads = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        *static_cast<unsigned long long*>(data) = info->dlpi_adds;
        return 1;
      },
      &loads);
  return loads;
}

// libgomp.so.1, libgomp-a34b3233.so.1 and so on; not libgomp-plugin-nvptx.so, libompitrace.so or libomptarget.so.
bool is_runtime(const char* name) {
  for (const char* known : {"libgomp", "libiomp5", "libomp"}) {
    const size_t length = strlen(known);
    if (strncmp(name, known, length) != 0 || strstr(name, "-plugin")) continue;
    if (name[length] == '.' || name[length] == '-') return true;
  }
  return false;
}

// Paths of the loaded runtimes, torch's own first.
std::vector<std::string> loaded_runtimes() {
  std::vector<std::string> paths;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        auto& found = *static_cast<std::vector<std::string>*>(data);
        const char* path = info->dlpi_name ? info->dlpi_name : "";
        const char* slash = strrchr(path, '/');
        if (!is_runtime(slash ? slash + 1 : path)) return 0;
        const bool is_torch = strstr(path, "/torch/lib/") || strstr(path, "/torch.libs/");
        found.insert(is_torch ? found.begin() : found.end(), path);
        return 0;
      },
      &paths);
  return paths;
}

// nullptr if the library is not there or is not what its name says.
const Runtime* open_runtime(const std::string& path, int flags) {
  void* library =
      dlopen(path.c_str(), flags);  // never closed: a runtime cannot be unloaded under its threads
  if (!library) return nullptr;
  Runtime runtime;
  runtime.path = path;
  runtime.parallel = reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
  runtime.in_parallel = reinterpret_cast<IntFunction>(dlsym(library, "omp_in_parallel"));
  runtime.max_threads = reinterpret_cast<IntFunction>(dlsym(library, "omp_get_max_threads"));
  const bool complete = runtime.parallel && runtime.in_parallel && runtime.max_threads;
  return complete ? new Runtime(runtime) : nullptr;  // a handful in a process's life: never freed
}

int count_tasks() {
  DIR* directory = opendir("/proc/self/task");
  if (!directory) return 2;  // unknown: assume the worst
  int tasks = 0;
  while (const dirent* entry = readdir(directory)) tasks += entry->d_name[0] != '.';
  closedir(directory);
  return tasks;
}

// Runs in the parent, before the fork. Another user of the runtime (torch) is seen by its threads.
std::atomic<bool> losing_a_pool{false};
[[maybe_unused]] const int fork_handlers = pthread_atfork(
    [] { losing_a_pool = runtime_used || (!loaded_runtimes().empty() && count_tasks() > 1); }, nullptr,
    [] {
      if (losing_a_pool) forked_after_use = true;
    });

// nullptr: no OpenMP in this process. Looks again only after a library was loaded: torch may be imported after us.
// Without a lock, because dlopen runs other people's code: threads that look at once find the same.
const Runtime* runtime() {
  const unsigned long long loads = library_loads();
  const Runtime* known = current_runtime.load(std::memory_order_acquire);
  if (loads == scanned_loads.load(std::memory_order_acquire)) return known;
  const Runtime* found = nullptr;
  for (const std::string& path : loaded_runtimes()) {
    found = known && known->path == path ? known : open_runtime(path, RTLD_LAZY | RTLD_NOLOAD);
    if (found) break;
  }
  if (!found) found = open_runtime("libgomp.so.1", RTLD_LAZY | RTLD_LOCAL);
  current_runtime.store(found, std::memory_order_release);
  scanned_loads.store(library_loads(), std::memory_order_release);
  return found;
}

int affinity_threads() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return 1;
}

#else

const Runtime* runtime() { return nullptr; }
int affinity_threads() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

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
  inside_parallel_for = true;
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
  inside_parallel_for = false;
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
  if (threads <= 1 || inside_parallel_for || forked_after_use.load(std::memory_order_relaxed))
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
    others.reserve(static_cast<size_t>(threads));
    try {
      for (int t = 1; t < threads; ++t) others.emplace_back(run_chunks, &loop);
    } catch (const std::system_error&) {
      // Fewer threads take more chunks each.
    }
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
  if (forked_after_use.load()) name = "serial: forked from a process that may have used " + name;
  return {name, default_threads()};
}

namespace {

struct Scratch {
  static constexpr int kSlots = static_cast<int>(Slot::count);
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
  if (bytes < 1) bytes = 1;  // memset and memcpy must not see a null pointer, even for nothing
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
