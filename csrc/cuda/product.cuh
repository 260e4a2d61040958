// What linear.cu and the kernels of a product share: the operands as they are staged, and the end of a split k.
#pragma once

#include "epilogue.cuh"
#include "tiles.h"

namespace octavo {
namespace cuda {

// A [m, k] times B [n, k]. Rows begin at multiples of 16 bytes and are zero from k to the next multiple.
struct Product {
  const int8_t* a;
  int64_t a_pitch;
  const int8_t* b;
  int64_t b_pitch;
  int64_t m;
  int n, k;
  Epilogue epilogue;
};
void gemm_mma(const Context& c, const Product& p);
void gemv(const Context& c, const Product& p);  // m <= kGemvMaxM
// A is x, quantized per row by each block for itself; p.a and the epilogue's row_scale are not read.
void gemv_quantized(const Context& c, const FloatRows& x, const Product& p);

// Splits of k leave their sums in memory, and the last one to arrive adds them up.
struct Splits {
  int32_t* sums;      // [tile][split][sums of a tile]
  uint32_t* arrived;  // [tile], zeroed
};
static inline Splits allocate_splits(const Context& c, int64_t tiles, int64_t splits, int64_t tile_sums) {
  if (splits == 1) return {nullptr, nullptr};
  const Splits s = {c.workspace<int32_t>(tiles * splits * tile_sums), c.workspace<uint32_t>(tiles)};
  zero(c, s.arrived, tiles * static_cast<int64_t>(sizeof *s.arrived));
  return s;
}

// Whether this block is the last; then it sees what the others wrote before they called this. Called by all its threads.
static __device__ __forceinline__ bool last_to_arrive(uint32_t* arrived, uint32_t splits) {
  __shared__ bool last;
  __threadfence();  // each thread: its sums, before the arrival
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(arrived, 1u) == splits - 1;
  __syncthreads();
  __threadfence();  // the others' arrivals, before their sums
  return last;
}

}  // namespace cuda
}  // namespace octavo
