// RMSNorm and LayerNorm that give int8. The order of their sums is made for this kernel: element i of a row belongs to lane sum
// i % 1024, and each of a block's 128 threads has 8 adjacent lanes. A row that fits stays in float32 registers, 64 of them or
// 16; of a longer one, or of one without 16-byte accesses, every pass reads again what the caches kept.
#include <cmath>

#include "octavo_cuda.h"
#include "rows.cuh"

namespace octavo {
namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 8;  // of a thread
constexpr int kStripe = kThreads * kLanes;
static_assert(kStripe == kSumLanes, "a lane sum stays with its thread");
constexpr int kFewStripes = 2,
              kManyStripes = 8;  // that a thread holds; rows that are held by many have no more

// The lanes of a thread in one stripe of a row, as they are in memory.
template <class T>
struct alignas(16) Lanes {
  T v[kLanes];
};

// Beyond the row's end it reads `spare`, which nothing writes: loads without branches are all under way at once.
template <bool kPacked, class T>
__device__ __forceinline__ Lanes<T> load_lanes(const T* row, int64_t stride, int64_t first, int64_t cols,
                                               const T* spare) {
  Lanes<T> lanes;
  if constexpr (kPacked) {
    const uint4* from = reinterpret_cast<const uint4*>(first < cols ? row + first : spare);
    uint4 raw[sizeof lanes / 16];
    OCTAVO_UNROLL
    for (int i = 0; i < static_cast<int>(sizeof lanes / 16); ++i) raw[i] = from[i];
    memcpy(&lanes, raw, sizeof lanes);
  } else {
    OCTAVO_UNROLL
    for (int i = 0; i < kLanes; ++i) lanes.v[i] = *(first + i < cols ? row + (first + i) * stride : spare);
  }
  return lanes;
}

template <bool kPacked, class T>
__device__ __forceinline__ void store_lanes(T* row, int64_t first, int64_t cols, const Lanes<T>& lanes) {
  if constexpr (kPacked) {
    uint4 raw[sizeof lanes / 16];
    memcpy(raw, &lanes, sizeof lanes);
    if (first >= cols) return;
    OCTAVO_UNROLL
    for (int i = 0; i < static_cast<int>(sizeof lanes / 16); ++i)
      reinterpret_cast<uint4*>(row + first)[i] = raw[i];
  } else {
    OCTAVO_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      if (first + i < cols) row[first + i] = lanes.v[i];
    }
  }
}

// 1024 lane sums, in ten steps of adjacent pairs: 3 in the thread, 5 in the warp, 2 between warps.
__device__ __forceinline__ float add_lanes(const float (&s)[kLanes], float (&of_warp)[kThreads / kWarp]) {
  static_assert(kThreads == 4 * kWarp && kLanes == 8, "the pairs below");
  float sum = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
  OCTAVO_UNROLL
  for (int step = 1; step < kWarp; step *= 2) sum = sum + __shfl_xor_sync(kAllLanes, sum, step);
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = sum;
  __syncthreads();
  return (of_warp[0] + of_warp[1]) + (of_warp[2] + of_warp[3]);
}

// A row of x in registers: kStripes stripes of it at a time.
template <class T, bool kPacked, int kStripes>
struct Row {
  const NormArgs& args;
  int64_t row;
  float h[kStripes][kLanes];

  __device__ __forceinline__ int64_t first(int64_t base, int stripe) const {
    return base + stripe * kStripe + static_cast<int64_t>(threadIdx.x) * kLanes;
  }

  // body(h, whether it exists, the lane's number) for each element.
  template <class Body>
  __device__ __forceinline__ void each(int64_t base, Body body) {
    OCTAVO_UNROLL
    for (int stripe = 0; stripe < kStripes; ++stripe) {
      if (base + stripe * kStripe >= args.x.cols) continue;
      OCTAVO_UNROLL
      for (int i = 0; i < kLanes; ++i) body(h[stripe][i], first(base, stripe) + i < args.x.cols, i);
    }
  }

  // h = x, or x + residual, which goes to `sum` the first time and is found there again.
  __device__ __forceinline__ void read(int64_t base, bool again) {
    const int64_t cols = args.x.cols;
    const T* x = static_cast<const T*>(args.x.data) + row * args.x.row_stride;
    const T* residual = static_cast<const T*>(args.residual) + row * cols;
    T* sum = static_cast<T*>(args.sum) + row * cols;
    const bool adds = args.residual && !again, finds = args.residual && again;
    Lanes<T> lanes[kStripes], added[kStripes];
    OCTAVO_UNROLL
    for (int s = 0; s < kStripes; ++s)
      lanes[s] = load_lanes<kPacked>(finds ? sum : x, finds ? 1 : args.x.col_stride, first(base, s), cols, x);
    if (adds) {
      OCTAVO_UNROLL
      for (int s = 0; s < kStripes; ++s) added[s] = load_lanes<kPacked>(residual, 1, first(base, s), cols, x);
      OCTAVO_UNROLL
      for (int s = 0; s < kStripes; ++s) {
        OCTAVO_UNROLL
        for (int i = 0; i < kLanes; ++i)
          lanes[s].v[i] = from_float<T>(to_float(lanes[s].v[i]) + to_float(added[s].v[i]));
        store_lanes<kPacked>(sum, first(base, s), cols, lanes[s]);
      }
    }
    OCTAVO_UNROLL
    for (int s = 0; s < kStripes; ++s) {
      OCTAVO_UNROLL
      for (int i = 0; i < kLanes; ++i) h[s][i] = first(base, s) + i < cols ? to_float(lanes[s].v[i]) : 0.0f;
    }
  }

  __device__ __forceinline__ void subtract(int64_t base, float mean) {
    each(base, [&](float& v, bool exists, int) { v = exists ? v - mean : 0.0f; });
  }

  // h = (h * r) * weight + bias
  __device__ __forceinline__ void scale(int64_t base, float r) {
    const int64_t cols = args.x.cols;
    OCTAVO_UNROLL
    for (int s = 0; s < kStripes; ++s) {
      if (base + s * kStripe >= cols) continue;
      Lanes<float> weight, bias;
      if (args.weight) weight = load_lanes<kPacked>(args.weight, 1, first(base, s), cols, args.weight);
      if (args.bias) bias = load_lanes<kPacked>(args.bias, 1, first(base, s), cols, args.bias);
      OCTAVO_UNROLL
      for (int i = 0; i < kLanes; ++i) {
        float y = h[s][i] * r;
        if (args.weight) y = y * weight.v[i];
        if (args.bias) y = y + bias.v[i];
        h[s][i] = y;
      }
    }
  }

  __device__ __forceinline__ void store(int64_t base, float inv) {
    int8_t* data = args.data + row * args.x.cols;
    OCTAVO_UNROLL
    for (int s = 0; s < kStripes; ++s) {
      const int64_t at = first(base, s);
      int q[kLanes];
      OCTAVO_UNROLL
      for (int i = 0; i < kLanes; ++i) q[i] = round_clamped(h[s][i] * inv, -127, 127);
      if constexpr (kPacked) {
        if (at < args.x.cols) store_low_bytes(data + at, q);
      } else {
        OCTAVO_UNROLL
        for (int i = 0; i < kLanes; ++i) {
          if (at + i < args.x.cols) data[at + i] = static_cast<int8_t>(q[i]);
        }
      }
    }
  }
};

template <class T, bool kPacked, int kStripes>
__global__ void __launch_bounds__(kThreads) normalize_rows(NormArgs args) {
  constexpr int64_t kHeld = kStripes * kStripe;
  const int64_t cols = args.x.cols;
  const bool is_held = kStripes == kManyStripes || cols <= kHeld;
  __shared__ float of_warp[2][kThreads / kWarp];
  Row<T, kPacked, kStripes> row = {args, static_cast<int64_t>(blockIdx.x), {}};

  float s[kLanes] = {};
  for (int64_t base = 0; base < cols; base += kHeld) {
    row.read(base, false);
    row.each(base, [&](float& v, bool, int i) { s[i] = s[i] + (args.centered ? v : v * v); });
  }
  float mean = __fdiv_rn(add_lanes(s, of_warp[0]), static_cast<float>(cols));
  const float center = mean;
  if (args.centered) {
    for (float& lane : s) lane = 0.0f;
    for (int64_t base = 0; base < cols; base += kHeld) {
      if (!is_held) row.read(base, true);
      row.subtract(base, center);
      row.each(base, [&](float& v, bool, int i) { s[i] = s[i] + v * v; });
    }
    mean = __fdiv_rn(add_lanes(s, of_warp[1]), static_cast<float>(cols));
  }
  const float r = __fdiv_rn(1.0f, __fsqrt_rn(mean + args.eps));

  const auto normalize = [&](int64_t base) {
    if (!is_held) {
      row.read(base, true);
      if (args.centered) row.subtract(base, center);
    }
    row.scale(base, r);
  };
  uint32_t top = 0;
  for (int64_t base = 0; base < cols; base += kHeld) {
    normalize(base);
    row.each(base, [&](float& v, bool exists, int) {
      const uint32_t key = magnitude_key(v);
      top = exists && key < kInfKey && key > top ? key : top;
    });
  }
  const Affine affine = symmetric_affine(float_of(max_of(make_uint2(top, 0), kThreads).x));
  if (threadIdx.x == 0) args.scale[blockIdx.x] = affine.scale;
  for (int64_t base = 0; base < cols; base += kHeld) {
    if (!is_held) normalize(base);
    row.store(base, affine.inv);
  }
}

template <class T>
bool can_pack(const NormArgs& args) {
  const FloatRows& x = args.x;
  const auto aligned = [](const void* p) { return is_aligned(p, 1, 0, 16); };
  return x.col_stride == 1 && x.cols % kLanes == 0 &&
         is_aligned(x.data, x.rows, x.row_stride * static_cast<int64_t>(sizeof(T)), 16) &&
         aligned(args.residual) && aligned(args.sum) && aligned(args.weight) && aligned(args.bias) &&
         is_aligned(args.data, 1, 0, kLanes);
}

}  // namespace

void norm_quantize(const Context& c, const NormArgs& args) {
  if (args.x.rows == 0) return;
  with_dtype(args.x.dtype, [&](auto element) {
    using T = decltype(element);
    const dim3 grid(static_cast<unsigned>(args.x.rows));
    const char* name = "norm_quantize";
    if constexpr (sizeof(T) <= 4) {
      if (can_pack<T>(args) && args.x.cols > kFewStripes * kStripe && args.x.cols <= kManyStripes * kStripe)
        return launch<normalize_rows<T, true, kManyStripes>>(c, name, grid, kThreads, 0, args);
      if (can_pack<T>(args))
        return launch<normalize_rows<T, true, kFewStripes>>(c, name, grid, kThreads, 0, args);
    }
    launch<normalize_rows<T, false, kFewStripes>>(c, name, grid, kThreads, 0, args);
  });
}

}  // namespace cuda
}  // namespace octavo
