// One lane of float: the vocabulary of the .inl files on any machine. vec_avx2.h and
// vec_avx512.h say the same words for 8 and 16 lanes; a `_n` suffix touches only the first n of them.
#pragma once

#include "numerics.h"

namespace octavo {
namespace {

constexpr int kLanes = 1;
using F32 = float;
using I32 = int32_t;
using Mask = bool;

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

inline F32 set1(float v) { return v; }
inline I32 set1(int32_t v) { return v; }

template <class T>
inline T load_raw(const T* p) {  // p may be unaligned
  T v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline F32 load(const float* p) { return load_raw(p); }
inline F32 load(const f16* p) { return f16_to_float(load_raw(p).bits); }
inline F32 load(const bf16* p) { return bf16_to_float(load_raw(p).bits); }
inline F32 load(const double* p) { return static_cast<float>(load_raw(p)); }
inline I32 load(const int32_t* p) { return load_raw(p); }
inline I32 load(const int8_t* p) { return *p; }
inline Mask load_mask(const bool* p) { return load_raw(reinterpret_cast<const uint8_t*>(p)) != 0; }
template <class T>
inline auto load_n(const T* p, int) {
  return load(p);
}
inline Mask load_mask_n(const bool* p, int) { return load_mask(p); }

inline void store(float* p, F32 v) { memcpy(p, &v, sizeof v); }
inline void store(f16* p, F32 v) {
  const uint16_t h = float_to_f16(v);
  memcpy(p, &h, sizeof h);
}
inline void store(bf16* p, F32 v) {
  const uint16_t h = float_to_bf16(v);
  memcpy(p, &h, sizeof h);
}
inline void store(double* p, F32 v) {
  const double d = v;
  memcpy(p, &d, sizeof d);
}
inline void store(int32_t* p, I32 v) { memcpy(p, &v, sizeof v); }
inline void store_mask(bool* p, Mask v) { *p = v; }
template <class T, class V>
inline void store_n(T* p, V v, int) {
  store(p, v);
}
inline void store_mask_n(bool* p, Mask v, int) { *p = v; }
inline void store_mask_4(bool* p, const Mask (&v)[4]) {  // four vectors in a row
  for (int i = 0; i < 4; ++i) p[i] = v[i];
}
// Copies what m selects and writes zeros elsewhere: bits, not numbers, so that a NaN keeps its payload. p may be source.
template <class T>
inline void store_kept(T* p, const T* source, Mask m) {
  const T v = m ? load_raw(source) : T{};
  memcpy(p, &v, sizeof v);
}
template <class T>
inline void store_kept_n(T* p, const T* source, Mask m, int) {
  store_kept(p, source, m);
}
// Puts the lanes that m selects one after the other; writes a whole vector, and returns how many count.
inline int compress(int32_t* p, Mask m, I32 v) {
  *p = v;
  return m;
}
// Narrows lanes within [-128, 127].
inline void store_i8(int8_t* p, I32 v, uint8_t flip) {
  *p = static_cast<int8_t>(static_cast<uint8_t>(v) ^ flip);
}
inline void store_i8_4(int8_t* p, const I32 (&v)[4], uint8_t flip) {  // four vectors in a row
  for (int i = 0; i < 4; ++i) store_i8(p + i, v[i], flip);
}
inline void store_i8_n(int8_t* p, I32 v, uint8_t flip, int) { store_i8(p, v, flip); }

inline F32 add(F32 a, F32 b) { return a + b; }
// Sums of adjacent lanes: those of a, then those of b.
inline F32 add_pairs(F32 a, F32 b) { return a + b; }
inline F32 sub(F32 a, F32 b) { return a - b; }
inline F32 mul(F32 a, F32 b) { return a * b; }
inline F32 div(F32 a, F32 b) { return a / b; }
inline F32 fma(F32 a, F32 b, F32 c) { return __builtin_fmaf(a, b, c); }
inline F32 min(F32 a, F32 b) { return a < b ? a : b; }  // b if either is NaN, as the x86 instruction
inline F32 max(F32 a, F32 b) { return a > b ? a : b; }
inline F32 round(F32 v) { return round_even(v); }
inline F32 abs(F32 v) { return float_of(bits_of(v) & 0x7FFFFFFFu); }
inline Mask is_finite(F32 v) { return (bits_of(v) & 0x7FFFFFFFu) < kInfKey; }
inline Mask less_equal(F32 a, F32 b) { return a <= b; }
inline Mask is_ordered(F32 v) { return v == v; }
inline F32 keep(Mask m, F32 v) { return m ? v : 0.0f; }  // 0 elsewhere
inline float reduce_min(F32 v) { return v; }
inline float reduce_max(F32 v) { return v; }

// Modulo 2^32, as the vector instructions; a value out of range becomes INT32_MIN.
inline I32 add(I32 a, I32 b) { return static_cast<I32>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b)); }
inline I32 sub(I32 a, I32 b) { return static_cast<I32>(static_cast<uint32_t>(a) - static_cast<uint32_t>(b)); }
inline I32 mul(I32 a, I32 b) { return static_cast<I32>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b)); }
inline F32 to_f32(I32 v) { return static_cast<float>(v); }
template <int kByte>
inline F32 byte_to_f32(I32 v) {  // signed byte kByte of each lane
  return static_cast<int8_t>(static_cast<uint32_t>(v) >> 8 * kByte);
}
inline I32 to_i32(F32 v) {
  const float r = round_even(v);
  return r >= -2147483648.0f && r < 2147483648.0f ? static_cast<I32>(r) : INT32_MIN;
}
inline F32 bits_to_exponent(F32 v) { return float_of(bits_of(v) << 23); }  // its last bits

inline I32 magnitude_bits(F32 v) { return static_cast<I32>(bits_of(v) & 0x7FFFFFFFu); }
inline I32 max(I32 a, I32 b) { return a > b ? a : b; }
inline I32 keys(F32 v) { return static_cast<I32>(magnitude_key(v)); }
inline Mask greater(I32 a, I32 b) { return a > b; }
inline Mask equal(I32 a, I32 b) { return a == b; }
inline int count(Mask m) { return m; }
inline Mask both(Mask a, Mask b) { return a && b; }
inline I32 increment(I32 v, Mask m) { return v + m; }  // adds 1 to the lanes that m selects
inline I32 permute(I32 v, I32) { return v; }           // lane i of the result is lane index[i] of v

}  // namespace
}  // namespace octavo
