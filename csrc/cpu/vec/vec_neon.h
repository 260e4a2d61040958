// Four lanes of float; the words are explained in vec_scalar.h. Partial vectors go through the stack.
// Baseline ARMv8-A: float16 is only converted, never computed with.
#pragma once

#include <arm_neon.h>

#include "numerics.h"

namespace octavo {
namespace {

constexpr int kLanes = 4;
using F32 = float32x4_t;
using I32 = int32x4_t;
struct Mask {
  uint32x4_t m;  // all ones or all zeros per lane
};

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

inline F32 set1(float v) { return vdupq_n_f32(v); }
inline I32 set1(int32_t v) { return vdupq_n_s32(v); }
inline uint32x4_t bits(F32 v) { return vreinterpretq_u32_f32(v); }
inline F32 floats(uint32x4_t u) { return vreinterpretq_f32_u32(u); }

// As bytes, because an intrinsic that is told of a wider type may assume its alignment.
inline uint8x16_t load_any(const void* p) { return vld1q_u8(static_cast<const uint8_t*>(p)); }
inline void store_any(void* p, uint8x16_t v) { vst1q_u8(static_cast<uint8_t*>(p), v); }
inline uint16x4_t load_halves(const void* p) {
  uint64_t four;
  memcpy(&four, p, sizeof four);
  return vcreate_u16(four);
}
inline uint32x2_t load_bytes(const void* p) {
  uint32_t four;
  memcpy(&four, p, sizeof four);
  return vdup_n_u32(four);
}
inline void store_halves(void* p, uint16x4_t v) {
  const uint64_t four = vget_lane_u64(vreinterpret_u64_u16(v), 0);
  memcpy(p, &four, sizeof four);
}
inline void store_bytes(void* p, uint16x4_t v) {  // the low byte of each lane
  const uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(v, v))), 0);
  memcpy(p, &four, sizeof four);
}

inline F32 load(const float* p) { return vreinterpretq_f32_u8(load_any(p)); }
inline F32 load(const f16* p) { return vcvt_f32_f16(vreinterpret_f16_u16(load_halves(p))); }
inline F32 load(const bf16* p) { return floats(vshll_n_u16(load_halves(p), 16)); }
inline F32 load(const double* p) {
  const float64x2_t low = vreinterpretq_f64_u8(load_any(p)), high = vreinterpretq_f64_u8(load_any(p + 2));
  return vcombine_f32(vcvt_f32_f64(low), vcvt_f32_f64(high));
}
inline I32 load(const int32_t* p) { return vreinterpretq_s32_u8(load_any(p)); }
inline I32 load(const int8_t* p) {
  return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(load_bytes(p)))));
}
inline Mask load_mask(const bool* p) {
  const uint32x4_t lanes = vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(load_bytes(p)))));
  return {vtstq_u32(lanes, lanes)};
}
template <class T>
inline auto load_n(const T* p, int n) {
  T lanes[kLanes] = {};
  memcpy(lanes, p, static_cast<size_t>(n) * sizeof(T));
  return load(lanes);
}
inline Mask load_mask_n(const bool* p, int n) {
  bool lanes[kLanes] = {};
  memcpy(lanes, p, static_cast<size_t>(n));
  return load_mask(lanes);
}

inline void store(float* p, F32 v) { store_any(p, vreinterpretq_u8_f32(v)); }
inline void store(f16* p, F32 v) { store_halves(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
inline void store(bf16* p, F32 v) {
  const uint32x4_t u = bits(v), upper = vshrq_n_u32(u, 16);
  const uint32x4_t odd = vandq_u32(upper, vdupq_n_u32(1));
  const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7FFF))), 16);
  const uint32x4_t quiet = vorrq_u32(upper, vdupq_n_u32(0x40));
  store_halves(p, vmovn_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet)));
}
inline void store(double* p, F32 v) {
  store_any(p, vreinterpretq_u8_f64(vcvt_f64_f32(vget_low_f32(v))));
  store_any(p + 2, vreinterpretq_u8_f64(vcvt_high_f64_f32(v)));
}
inline void store(int32_t* p, I32 v) { store_any(p, vreinterpretq_u8_s32(v)); }
inline void store_i8(int8_t* p, I32 v, uint8_t flip) {
  store_bytes(p, veor_u16(vreinterpret_u16_s16(vmovn_s32(v)), vdup_n_u16(flip)));
}
inline void store_mask(bool* p, Mask v) { store_bytes(p, vmovn_u32(vandq_u32(v.m, vdupq_n_u32(1)))); }
template <class T, class V>
inline void store_n(T* p, V v, int n) {
  T lanes[kLanes];
  store(lanes, v);
  memcpy(p, lanes, static_cast<size_t>(n) * sizeof(T));
}
inline void store_i8_4(int8_t* p, const I32 (&v)[4], uint8_t flip) {
  const int16x8_t low = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1]));
  const int16x8_t high = vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3]));
  const uint8x16_t bytes = vreinterpretq_u8_s8(vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
  vst1q_u8(reinterpret_cast<uint8_t*>(p), veorq_u8(bytes, vdupq_n_u8(flip)));
}
inline void store_i8_n(int8_t* p, I32 v, uint8_t flip, int n) {
  int8_t lanes[kLanes];
  store_i8(lanes, v, flip);
  memcpy(p, lanes, static_cast<size_t>(n));
}
inline void store_mask_n(bool* p, Mask v, int n) {
  bool lanes[kLanes];
  store_mask(lanes, v);
  memcpy(p, lanes, static_cast<size_t>(n));
}

inline void store_mask_4(bool* p, const Mask (&v)[4]) {
  const uint16x8_t low = vcombine_u16(vmovn_u32(v[0].m), vmovn_u32(v[1].m));
  const uint16x8_t high = vcombine_u16(vmovn_u32(v[2].m), vmovn_u32(v[3].m));
  store_any(p, vandq_u8(vcombine_u8(vmovn_u16(low), vmovn_u16(high)), vdupq_n_u8(1)));
}
inline void store_kept(float* p, const float* source, Mask m) {
  store_any(p, vandq_u8(load_any(source), vreinterpretq_u8_u32(m.m)));
}
inline void store_kept(double* p, const double* source, Mask m) {
  const int32x4_t lanes = vreinterpretq_s32_u32(m.m);
  const uint8x16_t low = vreinterpretq_u8_s64(vmovl_s32(vget_low_s32(lanes)));
  const uint8x16_t high = vreinterpretq_u8_s64(vmovl_s32(vget_high_s32(lanes)));
  store_any(p, vandq_u8(load_any(source), low));
  store_any(p + 2, vandq_u8(load_any(source + 2), high));
}
template <class Half>
inline void store_kept(Half* p, const Half* source, Mask m) {
  store_halves(p, vand_u16(load_halves(source), vmovn_u32(m.m)));
}
template <class T>
inline void store_kept_n(T* p, const T* source, Mask m, int n) {
  T lanes[kLanes] = {};
  memcpy(lanes, source, static_cast<size_t>(n) * sizeof(T));
  store_kept(lanes, lanes, m);
  memcpy(p, lanes, static_cast<size_t>(n) * sizeof(T));
}
// There is no instruction for it, and few lanes are selected: one at a time.
inline int compress(int32_t* p, Mask m, I32 v) {
  if (vmaxvq_u32(m.m) == 0) return 0;
  int32_t lanes[kLanes];
  uint32_t selected[kLanes];
  store(lanes, v);
  vst1q_u32(selected, m.m);
  int count = 0;
  for (int i = 0; i < kLanes; ++i) {
    p[count] = lanes[i];
    count += selected[i] & 1;
  }
  return count;
}

inline F32 add(F32 a, F32 b) { return vaddq_f32(a, b); }
inline F32 add_pairs(F32 a, F32 b) { return vpaddq_f32(a, b); }
inline F32 sub(F32 a, F32 b) { return vsubq_f32(a, b); }
inline F32 mul(F32 a, F32 b) { return vmulq_f32(a, b); }
inline F32 div(F32 a, F32 b) { return vdivq_f32(a, b); }
inline F32 fma(F32 a, F32 b, F32 c) { return vfmaq_f32(c, a, b); }
// Not vminq_f32 and vmaxq_f32: those return NaN if either is.
inline F32 min(F32 a, F32 b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline F32 max(F32 a, F32 b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline F32 round(F32 v) { return vrndnq_f32(v); }
inline F32 abs(F32 v) { return vabsq_f32(v); }
inline Mask is_finite(F32 v) { return {vcltq_u32(bits(vabsq_f32(v)), vdupq_n_u32(kInfKey))}; }
inline Mask less_equal(F32 a, F32 b) { return {vcleq_f32(a, b)}; }
inline Mask is_ordered(F32 v) { return {vceqq_f32(v, v)}; }
inline F32 keep(Mask m, F32 v) { return floats(vandq_u32(m.m, bits(v))); }
inline float reduce_min(F32 v) { return vminvq_f32(v); }
inline float reduce_max(F32 v) { return vmaxvq_f32(v); }

inline I32 add(I32 a, I32 b) { return vaddq_s32(a, b); }
inline I32 sub(I32 a, I32 b) { return vsubq_s32(a, b); }
inline I32 mul(I32 a, I32 b) { return vmulq_s32(a, b); }
inline F32 to_f32(I32 v) { return vcvtq_f32_s32(v); }
template <int kByte>
inline F32 byte_to_f32(I32 v) {
  if constexpr (kByte < 3) v = vshlq_n_s32(v, 24 - 8 * kByte);
  return to_f32(vshrq_n_s32(v, 24));
}
inline I32 to_i32(
    F32 v) {  // saturates, and NaN gives 0: what is too large for an int32 is INT32_MIN elsewhere
  return vbslq_s32(vcltq_f32(v, set1(2147483648.0f)), vcvtnq_s32_f32(v), set1(INT32_MIN));
}
inline F32 bits_to_exponent(F32 v) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(v), 23));
}

inline I32 magnitude_bits(F32 v) { return vandq_s32(vreinterpretq_s32_f32(v), vdupq_n_s32(0x7FFFFFFF)); }
inline I32 max(I32 a, I32 b) { return vmaxq_s32(a, b); }
inline I32 keys(F32 v) { return vreinterpretq_s32_u32(vminq_u32(bits(vabsq_f32(v)), vdupq_n_u32(kNanKey))); }
inline Mask greater(I32 a, I32 b) { return {vcgtq_s32(a, b)}; }
inline Mask equal(I32 a, I32 b) { return {vceqq_s32(a, b)}; }
inline int count(Mask m) { return -vaddvq_s32(vreinterpretq_s32_u32(m.m)); }
inline Mask both(Mask a, Mask b) { return {vandq_u32(a.m, b.m)}; }
inline I32 increment(I32 v, Mask m) { return vsubq_s32(v, vreinterpretq_s32_u32(m.m)); }
inline I32 permute(I32 v, I32 index) {
  const int32x4_t first = vmulq_n_s32(index, 0x04040404);  // of each lane's bytes
  const uint8x16_t bytes = vreinterpretq_u8_s32(vaddq_s32(first, vdupq_n_s32(0x03020100)));
  return vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(v), bytes));
}

}  // namespace
}  // namespace octavo
