// Sixteen lanes of float; the words are explained in vec_scalar.h. Partial vectors are masked: a masked-out lane is
// neither read nor written, so nothing faults beyond the end.
#pragma once

#include <immintrin.h>

#include "numerics.h"

namespace octavo {
namespace {

constexpr int kLanes = 16;
using F32 = __m512;
using I32 = __m512i;
using Mask = __mmask16;

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

inline Mask first_lanes(int n) { return static_cast<Mask>((1u << n) - 1u); }

inline F32 set1(float v) { return _mm512_set1_ps(v); }
inline I32 set1(int32_t v) { return _mm512_set1_epi32(v); }

inline F32 load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline F32 load_n(const f16* p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
inline F32 load_n(const bf16* p, int n) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(n), p)), 16));
}
inline F32 load_n(const double* p, int n) {
  const __m256 low = _mm512_cvtpd_ps(_mm512_maskz_loadu_pd(static_cast<__mmask8>(first_lanes(n)), p));
  const __m256 high =
      _mm512_cvtpd_ps(_mm512_maskz_loadu_pd(static_cast<__mmask8>(first_lanes(n) >> 8), p + 8));
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
inline I32 load_n(const int32_t* p, int n) { return _mm512_maskz_loadu_epi32(first_lanes(n), p); }
inline I32 load_n(const int8_t* p, int n) {
  return _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_lanes(n), p));
}
inline Mask load_mask_n(const bool* p, int n) {
  const __m128i bytes = _mm_maskz_loadu_epi8(first_lanes(n), p);
  return _mm_test_epi8_mask(bytes, bytes);
}
template <class T>
inline auto load(const T* p) {
  return load_n(p, kLanes);
}
inline Mask load_mask(const bool* p) { return load_mask_n(p, kLanes); }

inline void store_n(float* p, F32 v, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
inline void store_n(f16* p, F32 v, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n),
                           _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// A bfloat16 in the upper half of each lane; below it, anything.
inline __m512i round_to_bf16(F32 v) {
  const __m512i u = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i h = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(h, nan, u, _mm512_set1_epi32(0x400000));
}
inline void store_n(bf16* p, F32 v, int n) {
  const __m512i h = _mm512_srli_epi32(round_to_bf16(v), 16);
  _mm256_mask_storeu_epi16(p, first_lanes(n), _mm512_cvtepi32_epi16(h));
}
inline void store_pair(bf16* p, F32 a, F32 b) {
  alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                      23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                      45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i upper = _mm512_load_si512(kUpper);
  _mm512_storeu_si512(p, _mm512_permutex2var_epi16(round_to_bf16(a), upper, round_to_bf16(b)));
}
inline void store_n(double* p, F32 v, int n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(first_lanes(n)), _mm512_cvtps_pd(_mm512_castps512_ps256(v)));
  _mm512_mask_storeu_pd(p + 8, static_cast<__mmask8>(first_lanes(n) >> 8),
                        _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
}
inline void store_n(int32_t* p, I32 v, int n) { _mm512_mask_storeu_epi32(p, first_lanes(n), v); }
template <class T, class V>
inline void store(T* p, V v) {
  store_n(p, v, kLanes);
}
inline void store_i8_n(int8_t* p, I32 v, uint8_t flip, int n) {
  const __m128i bytes = _mm_xor_si128(_mm512_cvtepi32_epi8(v), _mm_set1_epi8(static_cast<char>(flip)));
  _mm_mask_storeu_epi8(p, first_lanes(n), bytes);
}
inline void store_i8(int8_t* p, I32 v, uint8_t flip) { store_i8_n(p, v, flip, kLanes); }
inline void store_i8_4(int8_t* p, const I32 (&v)[4], uint8_t flip) {
  // Packing works on 128-bit lanes and leaves four bytes of each vector in each of them.
  const __m512i lanes = _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i bytes = _mm512_permutexvar_epi32(order, lanes);
  _mm512_storeu_si512(p, _mm512_xor_si512(bytes, _mm512_set1_epi8(static_cast<char>(flip))));
}
inline void store_mask_n(bool* p, Mask v, int n) {
  _mm_mask_storeu_epi8(p, first_lanes(n), _mm_maskz_set1_epi8(v, 1));
}
inline void store_mask(bool* p, Mask v) { store_mask_n(p, v, kLanes); }

inline void store_mask_4(bool* p, const Mask (&v)[4]) {
  const __mmask32 low = _mm512_kunpackw(v[1], v[0]), high = _mm512_kunpackw(v[3], v[2]);
  _mm512_storeu_si512(p, _mm512_maskz_set1_epi8(_mm512_kunpackd(high, low), 1));
}
inline void store_kept_n(float* p, const float* source, Mask m, int n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), _mm512_maskz_loadu_ps(m & first_lanes(n), source));
}
inline void store_kept_n(double* p, const double* source, Mask m, int n) {
  const Mask in = first_lanes(n);
  const auto low = static_cast<__mmask8>(in), high = static_cast<__mmask8>(in >> 8);
  _mm512_mask_storeu_pd(p, low, _mm512_maskz_loadu_pd(static_cast<__mmask8>(m) & low, source));
  _mm512_mask_storeu_pd(p + 8, high, _mm512_maskz_loadu_pd(static_cast<__mmask8>(m >> 8) & high, source + 8));
}
template <class Half>
inline void store_kept_n(Half* p, const Half* source, Mask m, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), _mm256_maskz_loadu_epi16(m & first_lanes(n), source));
}
template <class T>
inline void store_kept(T* p, const T* source, Mask m) {
  store_kept_n(p, source, m, kLanes);
}
// Through a register: the instruction that compresses to memory takes a hundred cycles on some processors.
inline int compress(int32_t* p, Mask m, I32 v) {
  _mm512_storeu_si512(p, _mm512_maskz_compress_epi32(m, v));
  return __builtin_popcount(m);
}

inline F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
inline F32 add_pairs(F32 a, F32 b) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
  return _mm512_add_ps(_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b));
}
inline F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
inline F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
inline F32 div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
inline F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
inline F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
inline F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
inline F32 round(F32 v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F32 abs(F32 v) { return _mm512_abs_ps(v); }
inline Mask is_finite(F32 v) {
  return _mm512_cmp_ps_mask(abs(v), _mm512_castsi512_ps(_mm512_set1_epi32(kInfKey)), _CMP_LT_OQ);
}
inline Mask less_equal(F32 a, F32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
inline Mask is_ordered(F32 v) { return _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q); }
inline F32 keep(Mask m, F32 v) { return _mm512_maskz_mov_ps(m, v); }
inline float reduce_min(F32 v) { return _mm512_reduce_min_ps(v); }
inline float reduce_max(F32 v) { return _mm512_reduce_max_ps(v); }

inline I32 add(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
inline I32 sub(I32 a, I32 b) { return _mm512_sub_epi32(a, b); }
inline I32 mul(I32 a, I32 b) { return _mm512_mullo_epi32(a, b); }
inline F32 to_f32(I32 v) { return _mm512_cvtepi32_ps(v); }
template <int kByte>
inline F32 byte_to_f32(I32 v) {
  if constexpr (kByte < 3) v = _mm512_slli_epi32(v, 24 - 8 * kByte);
  return to_f32(_mm512_srai_epi32(v, 24));
}
inline I32 to_i32(F32 v) { return _mm512_cvtps_epi32(v); }
inline F32 bits_to_exponent(F32 v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 23));
}

inline I32 magnitude_bits(F32 v) {
  return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7FFFFFFF));
}
inline I32 max(I32 a, I32 b) { return _mm512_max_epi32(a, b); }
// A magnitude's bits are a signed int, and above Inf there is only NaN.
inline I32 keys(F32 v) { return _mm512_min_epi32(magnitude_bits(v), _mm512_set1_epi32(kNanKey)); }
inline Mask greater(I32 a, I32 b) { return _mm512_cmpgt_epi32_mask(a, b); }
inline Mask equal(I32 a, I32 b) { return _mm512_cmpeq_epi32_mask(a, b); }
inline int count(Mask m) { return __builtin_popcount(m); }
inline Mask both(Mask a, Mask b) { return a & b; }
inline I32 increment(I32 v, Mask m) { return _mm512_mask_sub_epi32(v, m, v, _mm512_set1_epi32(-1)); }
inline I32 permute(I32 v, I32 index) { return _mm512_permutexvar_epi32(index, v); }

}  // namespace
}  // namespace octavo
