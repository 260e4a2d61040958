// Elements of the float dtypes on the device: what they are in memory, and as float32. Equal to the bit to numerics.h, except
// that a NaN is any NaN: the device's arithmetic keeps no payload either.
#pragma once

#include "numerics.h"
#include "octavo.h"
#include "runtime.h"

namespace octavo {
namespace cuda {

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

// 16 bytes, the widest access of a thread.
template <class T>
struct alignas(16) Pack {
  static constexpr int kCount = 16 / static_cast<int>(sizeof(T));
  T v[kCount];
};

static __device__ __forceinline__ float to_float(float v) { return v; }
static __device__ __forceinline__ float to_float(bf16 v) { return bf16_to_float(v.bits); }
#ifdef OCTAVO_EMULATED
static inline float to_float(double v) { return static_cast<float>(v); }
static inline float to_float(f16 v) { return f16_to_float(v.bits); }
#else
static __device__ __forceinline__ float to_float(double v) { return __double2float_rn(v); }
static __device__ __forceinline__ float to_float(f16 v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
}
#endif

// Rounded once, to nearest even.
template <class T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ double from_float<double>(float v) {
  return static_cast<double>(v);
}
#ifdef OCTAVO_EMULATED
template <>
inline f16 from_float<f16>(float v) {
  return {float_to_f16(v)};
}
template <>
inline bf16 from_float<bf16>(float v) {
  return {float_to_bf16(v)};
}
#else
template <>
__device__ __forceinline__ f16 from_float<f16>(float v) {
  uint16_t h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
  return {h};
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float v) {
  uint16_t h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(v));
  return {h};
}
#endif

// f(T()) with the type of a float dtype: the choice is made once, on the host.
template <class F>
void with_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::f32: return f(float());
    case DType::f16: return f(f16());
    case DType::bf16: return f(bf16());
    case DType::f64: return f(double());
    default: throw std::invalid_argument("dtype: expected a float dtype, got int32");
  }
}

}  // namespace cuda
}  // namespace octavo
