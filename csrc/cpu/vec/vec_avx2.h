// Eight lanes of float; the words are explained in vec_scalar.h. Partial vectors go through the stack: AVX2 has masked
// loads for 32-bit lanes only, and one way for all types is easier to trust.
#pragma once

#include <immintrin.h>

#include "numerics.h"

namespace octavo {
namespace {

constexpr int kLanes = 8;
using F32 = __m256;
using I32 = __m256i;
struct Mask {
  __m256 m;  // all ones or all zeros per lane
};

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

inline F32 set1(float v) { return _mm256_set1_ps(v); }
inline I32 set1(int32_t v) { return _mm256_set1_epi32(v); }

inline F32 load(const float* p) { return _mm256_loadu_ps(p); }
inline F32 load(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline F32 load(const bf16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline F32 load(const double* p) {
  return _mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(p + 4)), _mm256_cvtpd_ps(_mm256_loadu_pd(p)));
}
inline I32 load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline I32 load(const int8_t* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline Mask load_mask(const bool* p) {  // any byte but 0 is true
  const __m256i zero = _mm256_setzero_si256();
  const __m256i is_zero = _mm256_cmpeq_epi32(load(reinterpret_cast<const int8_t*>(p)), zero);
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(is_zero, zero))};
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

inline void store(float* p, F32 v) { _mm256_storeu_ps(p, v); }
inline void store(f16* p, F32 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store(bf16* p, F32 v) {
  const __m256i u = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i h = _mm256_blendv_epi8(rounded, quiet, nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(h, h), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
inline void store(double* p, F32 v) {
  _mm256_storeu_pd(p, _mm256_cvtps_pd(_mm256_castps256_ps128(v)));
  _mm256_storeu_pd(p + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
}
inline void store(int32_t* p, I32 v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline void store_i8(int8_t* p, I32 v, uint8_t flip) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i bytes = _mm_xor_si128(_mm_packs_epi16(words, words), _mm_set1_epi8(static_cast<char>(flip)));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes);
}
inline void store_mask(bool* p, Mask v) {
  const __m256i ones = _mm256_and_si256(_mm256_castps_si256(v.m), _mm256_set1_epi32(1));
  store_i8(reinterpret_cast<int8_t*>(p), ones, 0);
}
template <class T, class V>
inline void store_n(T* p, V v, int n) {
  T lanes[kLanes];
  store(lanes, v);
  memcpy(p, lanes, static_cast<size_t>(n) * sizeof(T));
}
inline void store_i8_4(int8_t* p, const I32 (&v)[4], uint8_t flip) {
  // Packing works on 128-bit lanes and leaves four bytes of each vector in each of them.
  const __m256i lanes = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
  const __m256i bytes = _mm256_permutevar8x32_epi32(lanes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(flip))));
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
  I32 ones[4];
  for (int i = 0; i < 4; ++i) ones[i] = _mm256_and_si256(_mm256_castps_si256(v[i].m), _mm256_set1_epi32(1));
  store_i8_4(reinterpret_cast<int8_t*>(p), ones, 0);
}
inline void store_kept(float* p, const float* source, Mask m) {
  _mm256_storeu_ps(p, _mm256_and_ps(_mm256_loadu_ps(source), m.m));
}
inline void store_kept(double* p, const double* source, Mask m) {
  const __m256i lanes = _mm256_castps_si256(m.m);
  const __m256d low = _mm256_castsi256_pd(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(lanes)));
  const __m256d high = _mm256_castsi256_pd(_mm256_cvtepi32_epi64(_mm256_extracti128_si256(lanes, 1)));
  _mm256_storeu_pd(p, _mm256_and_pd(_mm256_loadu_pd(source), low));
  _mm256_storeu_pd(p + 4, _mm256_and_pd(_mm256_loadu_pd(source + 4), high));
}
template <class Half>
inline void store_kept(Half* p, const Half* source, Mask m) {
  const __m256i lanes = _mm256_castps_si256(m.m);
  const __m128i kept = _mm_packs_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_and_si128(v, kept));
}
template <class T>
inline void store_kept_n(T* p, const T* source, Mask m, int n) {
  T lanes[kLanes] = {};
  memcpy(lanes, source, static_cast<size_t>(n) * sizeof(T));
  store_kept(lanes, lanes, m);
  memcpy(p, lanes, static_cast<size_t>(n) * sizeof(T));
}

// For every selection of eight lanes, their numbers one after the other.
struct CompressOrder {
  uint8_t lanes[256][8];
};
constexpr CompressOrder compress_order() {
  CompressOrder order = {};
  for (int selected = 0; selected < 256; ++selected) {
    int next = 0;
    for (uint8_t lane = 0; lane < 8; ++lane) {
      if (selected >> lane & 1) order.lanes[selected][next++] = lane;
    }
  }
  return order;
}
constexpr CompressOrder kCompressOrder = compress_order();
inline int compress(int32_t* p, Mask m, I32 v) {
  const int selected = _mm256_movemask_ps(m.m);
  const auto* order = reinterpret_cast<const __m128i*>(kCompressOrder.lanes[selected]);
  const __m256i lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(order));
  store(p, _mm256_permutevar8x32_epi32(v, lanes));
  return __builtin_popcount(static_cast<unsigned>(selected));
}

inline F32 add(F32 a, F32 b) { return _mm256_add_ps(a, b); }
inline F32 add_pairs(F32 a, F32 b) {
  const __m256d pairs = _mm256_castps_pd(_mm256_hadd_ps(a, b));  // two of a and two of b in each 128-bit lane
  return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xD8));
}
inline F32 sub(F32 a, F32 b) { return _mm256_sub_ps(a, b); }
inline F32 mul(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
inline F32 div(F32 a, F32 b) { return _mm256_div_ps(a, b); }
inline F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
inline F32 min(F32 a, F32 b) { return _mm256_min_ps(a, b); }
inline F32 max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
inline F32 round(F32 v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F32 abs(F32 v) { return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF))); }
inline Mask is_finite(F32 v) {
  return {_mm256_cmp_ps(abs(v), _mm256_castsi256_ps(_mm256_set1_epi32(kInfKey)), _CMP_LT_OQ)};
}
inline Mask less_equal(F32 a, F32 b) { return {_mm256_cmp_ps(a, b, _CMP_LE_OQ)}; }
inline Mask is_ordered(F32 v) { return {_mm256_cmp_ps(v, v, _CMP_ORD_Q)}; }
inline F32 keep(Mask m, F32 v) { return _mm256_and_ps(m.m, v); }
inline float reduce_min(F32 v) {
  __m128 r = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  r = _mm_min_ps(r, _mm_movehl_ps(r, r));
  return _mm_cvtss_f32(_mm_min_ss(r, _mm_movehdup_ps(r)));
}
inline float reduce_max(F32 v) {
  __m128 r = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  r = _mm_max_ps(r, _mm_movehl_ps(r, r));
  return _mm_cvtss_f32(_mm_max_ss(r, _mm_movehdup_ps(r)));
}

inline I32 add(I32 a, I32 b) { return _mm256_add_epi32(a, b); }
inline I32 sub(I32 a, I32 b) { return _mm256_sub_epi32(a, b); }
inline I32 mul(I32 a, I32 b) { return _mm256_mullo_epi32(a, b); }
inline F32 to_f32(I32 v) { return _mm256_cvtepi32_ps(v); }
template <int kByte>
inline F32 byte_to_f32(I32 v) {
  if constexpr (kByte < 3) v = _mm256_slli_epi32(v, 24 - 8 * kByte);
  return to_f32(_mm256_srai_epi32(v, 24));
}
inline I32 to_i32(F32 v) { return _mm256_cvtps_epi32(v); }
inline F32 bits_to_exponent(F32 v) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 23));
}

inline I32 magnitude_bits(F32 v) {
  return _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7FFFFFFF));
}
inline I32 max(I32 a, I32 b) { return _mm256_max_epi32(a, b); }
// A magnitude's bits are a signed int, and above Inf there is only NaN.
inline I32 keys(F32 v) { return _mm256_min_epi32(magnitude_bits(v), _mm256_set1_epi32(kNanKey)); }
inline Mask greater(I32 a, I32 b) { return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(a, b))}; }
inline Mask equal(I32 a, I32 b) { return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b))}; }
inline int count(Mask m) { return __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(m.m))); }
inline Mask both(Mask a, Mask b) { return {_mm256_and_ps(a.m, b.m)}; }
inline I32 increment(I32 v, Mask m) { return _mm256_sub_epi32(v, _mm256_castps_si256(m.m)); }
inline I32 permute(I32 v, I32 index) { return _mm256_permutevar8x32_epi32(v, index); }

}  // namespace
}  // namespace octavo
