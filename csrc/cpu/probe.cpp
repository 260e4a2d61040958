// The machine's own limits, measured by the benchmarks in the same run as everything else.
#include <atomic>
#include <chrono>
#include <cstring>

#include "dispatch.h"
#include "parallel.h"

namespace octavo {
namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

double probe_peak(double milliseconds, int threads) {
  const GemmKernels& gemm = *kernels().gemm;
  threads = threads < 1 ? 1 : threads > 256 ? 256 : threads;
  int64_t iterations = 1024;
  for (;;) {
    int64_t done[256] = {};
    auto body = [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) done[t] = gemm.peak(iterations);
    };
    const double start = seconds();
    parallel_for(threads, 1, threads, body);
    const double elapsed = seconds() - start;
    int64_t total = 0;
    for (int t = 0; t < threads; ++t) total += done[t];
    if (elapsed * 1e3 >= milliseconds) return 2e-9 * static_cast<double>(total) / elapsed;
    iterations *= 2;
  }
}

// One word of each line, from eight places at once: a single stream stops at every page until the prefetcher has found the
// next, and does not reach what the memory can give.
uint64_t probe_read(const void* buffer, int64_t bytes, int threads) {
  constexpr int kStreams = 8;
  constexpr int64_t kStream = 1 << 16;
  std::atomic<uint64_t> sum{0};
  auto body = [&](int64_t begin, int64_t end) {
    uint64_t parts[kStreams] = {};
    for (int64_t piece = begin; piece < end; ++piece) {
      const char* p = static_cast<const char*>(buffer) + piece * kStreams * kStream;
      for (int64_t i = 0; i < kStream; i += kLine) {
        for (int s = 0; s < kStreams; ++s) {
          uint64_t word;
          memcpy(&word, p + s * kStream + i, sizeof word);
          parts[s] += word;
        }
      }
    }
    for (const uint64_t part : parts) sum += part;
  };
  parallel_for(bytes / (kStreams * kStream), 1, threads, body);
  return sum.load();
}

void probe_copy(const void* source, void* target, int64_t bytes, int threads) {
  constexpr int64_t kPiece = 1 << 20;
  auto body = [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kPiece, last = end * kPiece < bytes ? end * kPiece : bytes;
    memcpy(static_cast<char*>(target) + first, static_cast<const char*>(source) + first,
           static_cast<size_t>(last - first));
  };
  parallel_for((bytes + kPiece - 1) / kPiece, 1, threads, body);
}

}  // namespace octavo
