// Few rows of A (m <= 16): as fast as the weight can be read. The weight is mma's left operand, 16 of its rows for a warp, so
// that 8 rows of A cost as much as one. k is permuted alike in both operands: a lane's 16 bytes, contiguous in memory, are
// four of the words that mma wants, so weights go straight to registers, and kRing lines (16 loads of a lane) are always
// under way. A block's share of A lies in shared memory; the first weights are asked for before A is read.
#include <type_traits>

#include "octavo_cuda.h"
#include "product.cuh"
#include "ptx.cuh"

namespace octavo {
namespace cuda {
namespace {

constexpr int kThreads = kWarp * kGemvWarps;
constexpr int kBatch = 8;  // elements of x that a thread has under way

struct GemvArgs {
  Product product;
  FloatRows x;  // read instead of product.a if X is a float type
  GemvPlan plan;
  Splits splits;
};

// Columns [begin, begin + bytes) of A into shared memory, zeros from k on.
__device__ __forceinline__ void stage_bytes(const Product& p, int begin, int bytes, int pitch, int8_t* to) {
  const int chunks = bytes / kChunk, padded_k = static_cast<int>(ceil_div(p.k, kChunk)) * kChunk;
  for (int i = threadIdx.x; i < p.m * chunks; i += kThreads) {
    const int row = i / chunks, at = i % chunks * kChunk;
    const bool valid = begin + at < padded_k;
    ptx::cp_async_16(to + row * pitch + at, p.a + row * p.a_pitch + begin + at, valid);
  }
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}

__device__ __forceinline__ uint32_t quantized(float x, float inv) {
  const float v = x * inv;
  if (v != v) return 0;
  return static_cast<uint32_t>(__float2int_rn(v < -127.0f ? -127.0f : (v > 127.0f ? 127.0f : v))) & 0xFFu;
}

// The same of float rows, each quantized by the largest finite magnitude of all its columns.
template <class X>
__device__ __forceinline__ void stage_quantized(const FloatRows& x, int begin, int bytes, int pitch,
                                                int8_t* to, float* scales) {
  __shared__ uint32_t tops[kGemvWarps];
  const int cols = static_cast<int>(x.cols), thread = threadIdx.x;
  for (int row = 0; row < x.rows; ++row) {
    const X* const from = static_cast<const X*>(x.data) + row * x.row_stride;
    // Columns beyond the last are read as the last one.
    const auto at = [&](int column) { return from[(column < cols ? column : cols - 1) * x.col_stride]; };
    uint32_t top = 0;
    for (int first = thread; first < cols; first += kBatch * kThreads) {
      X batch[kBatch];
      OCTAVO_UNROLL
      for (int i = 0; i < kBatch; ++i) batch[i] = at(first + i * kThreads);
      OCTAVO_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        const uint32_t key = magnitude_key(to_float(batch[i]));
        top = key > top && key < kInfKey ? key : top;
      }
    }
    top = __reduce_max_sync(kAllLanes, top);
    if (thread % kWarp == 0) tops[thread / kWarp] = top;
    __syncthreads();
    for (int w = 0; w < kGemvWarps; ++w) top = tops[w] > top ? tops[w] : top;
    const Affine affine = symmetric_affine(float_of(top));
    if (thread == 0) scales[row] = affine.scale;
    for (int i = 4 * thread; i < bytes; i += 4 * kThreads) {
      X four[4];
      OCTAVO_UNROLL
      for (int j = 0; j < 4; ++j) four[j] = at(begin + i + j);
      uint32_t word = 0;
      OCTAVO_UNROLL
      for (int j = 0; j < 4; ++j) {
        const uint32_t byte = quantized(to_float(four[j]), affine.inv);
        word |= (begin + i + j < cols ? byte : 0) << (8 * j);
      }
      *reinterpret_cast<uint32_t*>(to + row * pitch + i) = word;
    }
    __syncthreads();  // before the next row's tops
  }
}

// Adds a line of k to the sums: 16 rows of the weight by 8 * kTiles rows of A. x: this lane's bytes of A, a row for each tile.
template <int kTiles>
__device__ __forceinline__ void add_line(const uint4 (&w)[2][2], const int8_t* const (&x)[kTiles], int offset,
                                         int32_t (&acc)[kTiles][4]) {
  OCTAVO_UNROLL
  for (int half = 0; half < 2; ++half) {
    const uint4 lo = w[half][0], hi = w[half][1];
    const uint32_t left[2][4] = {{lo.x, hi.x, lo.y, hi.y}, {lo.z, hi.z, lo.w, hi.w}};
    OCTAVO_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4 v = *reinterpret_cast<const uint4*>(x[tile] + offset + half * (kLineBytes / 2));
      const uint32_t right[2][2] = {{v.x, v.y}, {v.z, v.w}};
      ptx::mma_m16n8k32_s8(acc[tile], left[0], right[0]);
      ptx::mma_m16n8k32_s8(acc[tile], left[1], right[1]);
    }
  }
}

// X: int8_t, or the float type of x. kTiles: of 8 rows of A.
template <int kTiles, class X>
__global__ void __launch_bounds__(kThreads, kGemvBlocks) gemv(GemvArgs args) {
  constexpr bool kQuantizes = !std::is_same<X, int8_t>::value;
  constexpr int kM = 8 * kTiles;
  __shared__ int32_t sums[kGemvWarps * kM * (kGemvRows + 4)];
  __shared__ float scales[kFusedRows];
  int8_t* const shared_x = dynamic_shared<int8_t>();

  const Product& p = args.product;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warps_n = args.plan.warps_n, warps_k = kGemvWarps / warps_n;
  const int warp_n = warp % warps_n, warp_k = warp / warps_n;
  const int block_n = warps_n * kGemvRows;
  const int first_n = static_cast<int>(blockIdx.x) * block_n;
  const int m = static_cast<int>(p.m), padded_k = static_cast<int>(ceil_div(p.k, kChunk)) * kChunk;
  const int share = static_cast<int>(args.plan.lines), begin = static_cast<int>(blockIdx.y) * share;
  const int lines = static_cast<int>(ceil_div(p.k, kLineBytes));
  const int end = begin + share < lines ? begin + share : lines;
  const int k_end = end * kLineBytes < padded_k ? end * kLineBytes : padded_k;

  // Rows beyond n are read as the last one: their sums go nowhere.
  const int row = first_n + warp_n * kGemvRows + lane / 4, last = p.n - 1;
  const int8_t* const lo = p.b + (row < last ? row : last) * p.b_pitch;
  const int8_t* const hi = p.b + (row + 8 < last ? row + 8 : last) * p.b_pitch;
  uint4 ring[kRing][2][2];
  const auto load = [&](int slot, int line) {
    OCTAVO_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int at = line * kLineBytes + lane_offset(lane, half);
      ring[slot][half][0] = ptx::ld_global_nc_no_allocate(lo + at, at < k_end);
      ring[slot][half][1] = ptx::ld_global_nc_no_allocate(hi + at, at < k_end);
    }
  };
  OCTAVO_UNROLL
  for (int slot = 0; slot < kRing; ++slot) load(slot, begin + warp_k + slot * warps_k);

  Epilogue epilogue = p.epilogue;
  if (kQuantizes) epilogue.row_scale = scales;
  const int thread = threadIdx.x, count = m * block_n, own_n = thread % block_n;
  const Columns<1> column(epilogue, thread < count ? first_n + own_n : p.n, p.n);

  const int pitch = static_cast<int>(gemv_pitch(share));
  if constexpr (kQuantizes) {
    stage_quantized<X>(args.x, begin * kLineBytes, (end - begin) * kLineBytes, pitch, shared_x, scales);
  } else {
    stage_bytes(p, begin * kLineBytes, (end - begin) * kLineBytes, pitch, shared_x);
  }
  __syncthreads();

  int32_t acc[kTiles][4] = {};
  const int8_t* x[kTiles];
  OCTAVO_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {  // what is beyond m is read as the last row
    const int x_row = lane / 4 + 8 * tile;
    x[tile] = shared_x + (x_row < m ? x_row : m - 1) * pitch + lane_offset(lane, 0);
  }
  for (int line = begin + warp_k; line < end; line += kRing * warps_k) {
    OCTAVO_UNROLL
    for (int slot = 0; slot < kRing; ++slot) {
      const int at = line + slot * warps_k;
      if (at >= end) break;
      add_line<kTiles>(ring[slot], x, (at - begin) * kLineBytes, acc);
      load(slot, at + kRing * warps_k);
    }
  }

  // sums[warp_k][row of A][row of the weight]; 4 more in each row, so that a warp's stores meet all banks.
  const int sums_pitch = block_n + 4;
  OCTAVO_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    OCTAVO_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int at = warp_k * kM + 8 * tile + mma_column(lane, i);
      sums[at * sums_pitch + warp_n * kGemvRows + mma_row(lane, i)] = acc[tile][i];
    }
  }
  __syncthreads();
  static_assert(kThreads % (kGemvWarps * kGemvRows) == 0, "a thread's sums are all of one column");
  const auto sum_of_warps = [&](int row_of_a) {
    int32_t sum = 0;
    for (int w = 0; w < warps_k; ++w) sum += sums[(w * kM + row_of_a) * sums_pitch + own_n];
    return sum;
  };
  const int split_count = static_cast<int>(gridDim.y);
  int32_t* const tile_sums = args.splits.sums + static_cast<int64_t>(blockIdx.x) * split_count * count;
  if (split_count > 1) {
    int32_t* const own = tile_sums + static_cast<int64_t>(blockIdx.y) * count;
    for (int i = threadIdx.x; i < count; i += kThreads) own[i] = sum_of_warps(i / block_n);
    if (!last_to_arrive(args.splits.arrived + blockIdx.x, split_count)) return;
  }
  for (int i = threadIdx.x; i < count; i += kThreads) {
    int32_t sum[1] = {0};
    if (split_count > 1) {
      for (int s = 0; s < split_count; ++s) sum[0] += tile_sums[static_cast<int64_t>(s) * count + i];
    } else {
      sum[0] = sum_of_warps(i / block_n);
    }
    column.finish(i / block_n, sum);
  }
}

template <int kTiles, class X>
void launch_gemv(const Context& c, const FloatRows& x, const Product& p) {
  const GemvPlan plan = plan_gemv(p.m, p.n, p.k, c.multiprocessors, c.capability);
  const int64_t block_n = plan.warps_n * kGemvRows, tiles = ceil_div(p.n, block_n);
  const Splits splits = allocate_splits(c, tiles, plan.splits, p.m * block_n);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(plan.splits));
  launch<gemv<kTiles, X>>(c, "gemv", grid, kThreads, p.m * gemv_pitch(plan.lines),
                          GemvArgs{p, x, plan, splits});
}

}  // namespace

void gemv(const Context& c, const Product& p) {
  if (p.m <= 8) {
    launch_gemv<1, int8_t>(c, {}, p);
  } else {
    launch_gemv<2, int8_t>(c, {}, p);
  }
}

void gemv_quantized(const Context& c, const FloatRows& x, const Product& p) {
  with_dtype(x.dtype, [&](auto element) { launch_gemv<1, decltype(element)>(c, x, p); });
}

}  // namespace cuda
}  // namespace octavo
