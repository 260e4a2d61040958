// What a kernel file needs around its kernels: the caller's stream and memory, launches, errors. Nothing here waits for the
// device except read_back(). With OCTAVO_EMULATED the same names run the kernels on the host, thread by thread
// (tests/cuda/emulator.h), so that they are proven on machines without a GPU.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef OCTAVO_EMULATED
#include "emulator.h"
#else
#include <cuda_runtime.h>

#include <atomic>
#endif

namespace octavo {
namespace cuda {

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

// Whether a block can have 160 KB of shared memory; on the smaller chips of a generation it is 99 KB.
static inline bool has_large_shared(int capability) {
  return capability == 80 || capability == 87 || (capability >= 90 && capability < 120);
}

// One call of the library: where it runs, and whose memory it may use. Work is in stream order, so memory from allocate()
// may be given back as soon as everything is launched: the caching allocators of torch and CuPy are in stream order too.
struct Context {
  cudaStream_t stream;
  int device;
  int multiprocessors;
  int capability;  // 10 * major + minor
  void* (*allocate)(void* user, int64_t bytes);
  void* user;

  // Uninitialised device memory, aligned to 256 bytes, for the kernels of this call.
  template <class T>
  T* workspace(int64_t count) const {
    return static_cast<T*>(allocate(user, count * static_cast<int64_t>(sizeof(T))));
  }
};

#ifndef OCTAVO_EMULATED

static inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that is reported is not found again by the next caller
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status) + " (" +
                           cudaGetErrorName(status) + ")");
}

static inline void zero(const Context& c, void* p, int64_t bytes) {
  if (bytes) check_cuda(cudaMemsetAsync(p, 0, static_cast<size_t>(bytes), c.stream), "cudaMemsetAsync");
}

// Waits for the stream: only for results that are numbers on the host.
static inline void read_back(const Context& c, void* host, const void* device, int64_t bytes) {
  check_cuda(cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, c.stream),
             "cudaMemcpyAsync");
  check_cuda(cudaStreamSynchronize(c.stream), "cudaStreamSynchronize");
}

#ifdef __CUDACC__  // the bindings are C++

// launch<kernel>(context, "kernel", grid, block, bytes of dynamic shared memory, arguments...)
template <auto kKernel, class... Args>
void launch(const Context& c, const char* name, dim3 grid, dim3 block, int64_t shared, Args... args) {
  if (shared >
      0) {  // 48 KiB, static and dynamic together, are free: more has to be asked for, once per kernel and device
    static std::atomic<uint64_t> asked{0};
    const uint64_t bit = uint64_t{1} << (c.device & 63);
    if (!(asked.load(std::memory_order_relaxed) & bit)) {
      int limit = 0;
      check_cuda(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, c.device), name);
      cudaFuncAttributes attributes;
      check_cuda(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kKernel)), name);
      check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kKernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      limit - static_cast<int>(attributes.sharedSizeBytes)),
                 name);
      asked.fetch_or(bit, std::memory_order_relaxed);
    }
  }
  kKernel<<<grid, block, static_cast<size_t>(shared), c.stream>>>(args...);
  check_cuda(cudaGetLastError(), name);
}

// The kernel's dynamic shared memory, aligned to 128 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char octavo_dynamic_shared[];
  return reinterpret_cast<T*>(octavo_dynamic_shared);
}

#endif
#endif

}  // namespace cuda
}  // namespace octavo
