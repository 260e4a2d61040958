// Faults that the emulator and its sanitizers must find: test_emulator NAME runs one and fails; `none` succeeds.
#include "../../csrc/cuda/ptx.cuh"
#include "../../csrc/cuda/runtime.h"

namespace octavo {
namespace cuda {
namespace {

enum Fault {
  none,
  no_barrier,
  no_release,
  no_acquire,
  unwaited,
  unequal_lanes,
  lost_lane,
  outside,
  block_order
};
const char* const kNames[] = {"none",          "no_barrier", "no_release", "no_acquire", "unwaited",
                              "unequal_lanes", "lost_lane",  "outside",    "block_order"};

// The sum of x [gridDim.x, n] as the last block to arrive finds it.
template <int kFault>
__global__ void sum(const int* x, int n, int* partial, unsigned* arrived, int* out) {
  __shared__ int part[4];
  __shared__ bool last;
  int* staged = dynamic_shared<int>();
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
  ptx::cp_async_16(staged + 4 * thread, x + blockIdx.x * static_cast<unsigned>(n) + 4 * thread,
                   4 * thread < n);
  ptx::cp_async_commit();
  if (kFault != unwaited) ptx::cp_async_wait<0>();
  int s = 0;
  for (int i = 0; i < 4 + (kFault == outside && thread == 127); ++i) s += staged[4 * thread + i];
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    if (kFault == unequal_lanes && thread == 5) {
      s += __shfl_down_sync(kAllLanes, s, lanes);
    } else if (kFault != lost_lane || thread != 5) {
      s += __shfl_xor_sync(kAllLanes, s, lanes);
    }
  }
  if (thread % kWarp == 0) part[warp] = s;
  if (kFault != no_barrier) __syncthreads();
  if (kFault == block_order && thread == 0) {
    out[0] = blockIdx.x == 0 ? 0 : out[0] + 1;
    last = false;
  } else if (thread == 0) {
    partial[blockIdx.x] = part[0] + part[1] + part[2] + part[3];
    if (kFault != no_release) __threadfence();
    last = atomicAdd(arrived, 1u) == gridDim.x - 1;
    if (kFault != no_acquire) __threadfence();
  }
  __syncthreads();
  if (last && threadIdx.x < gridDim.x) atomicAdd(out, partial[thread]);
}

template <int kFault>
int run() {
  constexpr int kBlocks = 20, kCount = 100;
  std::vector<int> x(kBlocks * kCount), partial(kBlocks);
  int expected = 0, out = 0;
  for (size_t i = 0; i < x.size(); ++i) expected += x[i] = static_cast<int>(i % 7);
  unsigned arrived = 0;
  const Context c = {};
  launch<sum<kFault>>(c, "sum", kBlocks, 128, 4 * 128 * 4, static_cast<const int*>(x.data()), kCount,
                      partial.data(), &arrived, &out);
  return out == expected ? 0 : 1;
}

template <int kFault>
int run_named(const char* name) {
  if constexpr (kFault > block_order) {
    fprintf(stderr, "no such fault: %s\n", name);
    return 2;
  } else {
    return strcmp(name, kNames[kFault]) ? run_named<kFault + 1>(name) : run<kFault>();
  }
}

}  // namespace
}  // namespace cuda
}  // namespace octavo

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    return octavo::cuda::run_named<0>(argv[1]);
  } catch (const std::exception& e) {
    fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
