// Contiguous arrays 16 bytes at a time: loads, stores, and what lies before the first aligned address.
#pragma once

#include "elements.cuh"
#include "ptx.cuh"

namespace octavo {
namespace cuda {

// kCount results of a byte each, the first lowest, so that they are written at once.
template <int kCount>
struct ByteWord;
template <>
struct ByteWord<1> {
  using Type = uint8_t;
};
template <>
struct ByteWord<2> {
  using Type = uint16_t;
};
template <>
struct ByteWord<4> {
  using Type = uint32_t;
};
template <>
struct ByteWord<8> {
  using Type = uint64_t;
};
template <int kCount>
using PackedBytes = typename ByteWord<kCount>::Type;

static __host__ __device__ __forceinline__ bool is_aligned(const void* p, int bytes) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0;
}

// How many elements stand before the first one at a multiple of 16 bytes.
template <class T>
__device__ __forceinline__ int unaligned_head(const T* p) {
  return static_cast<int>((16 - reinterpret_cast<uintptr_t>(p) % 16) % 16 / sizeof(T));
}

// What this kernel only reads.
template <class T>
__device__ __forceinline__ Pack<T> load_constant(const T* p) {
  const uint4 raw = ptx::ld_global_nc_no_allocate(p);
  Pack<T> pack;
  memcpy(&pack, &raw, sizeof raw);
  return pack;
}

// What this kernel may also write, read and written once.
template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* p) {
  const uint4 raw = __ldcs(reinterpret_cast<const uint4*>(p));
  Pack<T> pack;
  memcpy(&pack, &raw, sizeof raw);
  return pack;
}
template <class T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T>& pack) {
  uint4 raw;
  memcpy(&raw, &pack, sizeof raw);
  __stcs(reinterpret_cast<uint4*>(p), raw);
}

}  // namespace cuda
}  // namespace octavo
