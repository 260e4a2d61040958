// A list of tensors that is treated as one: a table on the device of where each of them begins. Kernels that carry the
// table as an argument write it there, so that a captured graph holds it and no copy waits for the host.
#pragma once

#include "packs.cuh"

namespace octavo {
namespace cuda {
namespace {

struct DeviceSegment {
  const void* w;
  bool* mask;
  void* pruned;
  int64_t first;  // the index of its first element among those of the whole list
  DType dtype;
};

// The segments that have elements; after them stands one that only says where the list ends.
struct SegmentList {
  const DeviceSegment* segments;
  int64_t count, total;
};

constexpr int kSegmentsPerLaunch = 96;  // a kernel's arguments have 4 KB
struct SegmentBatch {
  DeviceSegment segments[kSegmentsPerLaunch];
  int count;
};

__global__ void store_segments(const __grid_constant__ SegmentBatch batch, DeviceSegment* table) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < batch.count) table[i] = batch.segments[i];
}

// Whether the list has elements of this dtype.
bool has_dtype(const Segment* segments, int64_t count, DType dtype) {
  for (const Segment* s = segments; s < segments + count; ++s) {
    if (s->n > 0 && s->dtype == dtype) return true;
  }
  return false;
}

SegmentList upload(const Context& c, const Segment* segments, int64_t count) {
  auto* table = c.workspace<DeviceSegment>(count + 1);
  SegmentList list = {table, 0, 0};
  SegmentBatch batch = {};
  const auto store = [&] {
    launch<store_segments>(c, "store_segments", 1, kSegmentsPerLaunch, 0, batch, table);
    table += batch.count;
    batch.count = 0;
  };
  const auto append = [&](const DeviceSegment& segment) {
    if (batch.count == kSegmentsPerLaunch) store();
    batch.segments[batch.count++] = segment;
  };
  for (const Segment* s = segments; s < segments + count; ++s) {
    if (s->n == 0) continue;
    append({s->w, s->mask, s->pruned, list.total, s->dtype});
    ++list.count;
    list.total += s->n;
  }
  append({nullptr, nullptr, nullptr, list.total, DType::f32});
  store();
  return list;
}

// Calls body(segment, begin, end) for the segments that [begin, end) of the list meets; there begin and end count from the
// segment's first element.
template <class Body>
__device__ __forceinline__ void for_segments(const SegmentList& list, int64_t begin, int64_t end, Body body) {
  int64_t low = 0, high = list.count;  // `begin` lies in segments [low, high)
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (list.segments[middle].first <= begin ? low : high) = middle;
  }
  for (; begin < end; ++low) {
    const DeviceSegment segment = list.segments[low];
    const int64_t next = list.segments[low + 1].first, stop = next < end ? next : end;
    body(segment, begin - segment.first, stop - segment.first);
    begin = stop;
  }
}

// f(T()) with the type of a float dtype; the choice is the same for a whole block.
template <class F>
__device__ __forceinline__ void with_segment_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::f32: return f(float());
    case DType::f16: return f(f16());
    case DType::bf16: return f(bf16());
    default: return f(double());
  }
}

// f(element) for w[0, n), shared out between the block's threads.
template <class T, class F>
__device__ __forceinline__ void for_elements(const T* w, int64_t n, F f) {
  constexpr int kCount = Pack<T>::kCount, kAtOnce = 4;
  const int64_t head = unaligned_head(w) < n ? unaligned_head(w) : n, packs = (n - head) / kCount;
  const int t = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const auto for_pack = [&](const Pack<T>& pack) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) f(pack.v[i]);
  };
  int64_t p = t;
  for (; p + (kAtOnce - 1) * threads < packs; p += kAtOnce * threads) {
    Pack<T> held[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) held[u] = load_constant(w + head + (p + u * threads) * kCount);
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) for_pack(held[u]);
  }
  for (; p < packs; p += threads) for_pack(load_constant(w + head + p * kCount));
  const int64_t rest = n - packs * kCount;  // before and after the packs: fewer than two of them
  if (t < rest) f(w[t < head ? t : t + packs * kCount]);
}

}  // namespace
}  // namespace cuda
}  // namespace octavo
