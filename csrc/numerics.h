// Scalar semantics used by host and device: conversions, keys, scales, the random generator. Everything has internal
// linkage: an inline function compiled with AVX-512 flags in one file and picked by the linker for all would crash
// older machines.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define OCTAVO_HD __host__ __device__
#else
#define OCTAVO_HD
#endif

namespace octavo {

constexpr uint32_t kInfKey = 0x7F800000u;
constexpr uint32_t kNanKey = 0x7F800001u;  // every NaN: above Inf, and all NaN tie

OCTAVO_HD static inline uint32_t bits_of(float v) {
  uint32_t u;
  memcpy(&u, &v, sizeof u);
  return u;
}
OCTAVO_HD static inline float float_of(uint32_t u) {
  float v;
  memcpy(&v, &u, sizeof v);
  return v;
}

// Order-preserving key of a magnitude; an integer, so that flush-to-zero cannot touch denormals.
OCTAVO_HD static inline uint32_t magnitude_key(float v) {
  uint32_t u = bits_of(v) & 0x7FFFFFFFu;
  return u > kInfKey ? kNanKey : u;
}

OCTAVO_HD static inline float bf16_to_float(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

OCTAVO_HD static inline uint16_t float_to_bf16(float v) {
  uint32_t u = bits_of(v);
  if ((u & 0x7FFFFFFFu) > kInfKey)
    return static_cast<uint16_t>((u >> 16) | 0x40u);  // quiet, and never rounded to Inf
  return static_cast<uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

OCTAVO_HD static inline float f16_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  uint32_t mantissa = h & 0x3FFu;
  const uint32_t exponent = (h >> 10) & 0x1Fu;
  if (exponent == 31) return float_of(sign | kInfKey | (mantissa << 13) | (mantissa ? 0x400000u : 0u));
  if (exponent != 0) return float_of(sign | ((exponent + 112) << 23) | (mantissa << 13));
  if (mantissa == 0) return float_of(sign);
  uint32_t shift = 0;  // denormal: normalize
  while (!(mantissa & 0x400u)) {
    mantissa <<= 1;
    ++shift;
  }
  return float_of(sign | ((113 - shift) << 23) | ((mantissa & 0x3FFu) << 13));
}

OCTAVO_HD static inline uint16_t float_to_f16(float v) {
  const uint32_t u = bits_of(v);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7FFFFFFFu;
  if (magnitude > kInfKey) return static_cast<uint16_t>(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu));
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 65520 and above round to Inf
  if (magnitude < 0x33000001u) return static_cast<uint16_t>(sign);             // 2^-25 and below round to 0
  uint32_t result, rest, half;
  if (magnitude >= 0x38800000u) {  // normal in float16
    result = (magnitude - 0x38000000u) >> 13;
    rest = magnitude & 0x1FFFu;
    half = 0x1000u;
  } else {
    const uint32_t shift = 126u - (magnitude >> 23);  // 14..24
    const uint32_t mantissa = (magnitude & 0x7FFFFFu) | 0x800000u;
    result = mantissa >> shift;
    rest = mantissa & ((1u << shift) - 1u);
    half = 1u << (shift - 1);
  }
  if (rest > half || (rest == half && (result & 1u))) ++result;
  return static_cast<uint16_t>(sign | result);
}

// Round to nearest even without a library call: from 2^23 on there are no fraction bits, so adding 2^23 rounds them off.
OCTAVO_HD static inline float round_even(float v) {
  constexpr float kMagic = 8388608.0f;
  const uint32_t sign = bits_of(v) & 0x80000000u;
  const float magnitude = float_of(bits_of(v) ^ sign);
  return magnitude < kMagic ? float_of(bits_of((magnitude + kMagic) - kMagic) | sign) : v;
}

struct Affine {
  float scale, inv;
  int32_t zero_point;
  bool flat;  // no usable scale: every finite element becomes 0, whatever the rounding
};

OCTAVO_HD static inline bool usable_scale(float scale) {  // normal and finite
  const uint32_t u = bits_of(scale);
  return u >= 0x00800000u && u < kInfKey;
}

// scale = amax / 127, inv = 127 / amax. A flat row gets 1 and 1: its finite elements, all below 127 * 2^-126, round to 0
// (stochastic rounding has to look at `flat`), and +-Inf still clamps.
OCTAVO_HD static inline Affine symmetric_affine(float amax) {
  const float scale = amax / 127.0f;
  if (!usable_scale(scale)) return {1.0f, 1.0f, 0, true};
  return {scale, 127.0f / amax, 0, false};
}

// The same over 255 steps; lo <= 0 <= hi, so 0.0 is representable. An infinite hi - lo is flat too. Its finite elements
// can be large and Inf must not meet inv = 0 (NaN), so the smallest positive float stands in.
OCTAVO_HD static inline Affine asymmetric_affine(float lo, float hi) {
  const float range = hi - lo;
  const float scale = range / 255.0f;
  if (!usable_scale(scale)) return {1.0f, range > 1.0f ? 0x1p-149f : 1.0f, 0, true};
  const float inv = 255.0f / range;
  float z = round_even(-128.0f - lo * inv);
  z = z < -128.0f ? -128.0f : (z > 127.0f ? 127.0f : z);
  return {scale, inv, static_cast<int32_t>(z), false};
}

constexpr int kSumLanes = 1024;  // partial sums of a row, whatever the machine's vectors (docs/numerics.md)

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), one word per element.
OCTAVO_HD static inline uint32_t philox_word(uint64_t seed, uint64_t index) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  const uint64_t block = index >> 2;
  uint32_t c[4] = {static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), 0, 0};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c[0];
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c[2];
    const uint32_t next0 = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ key0;
    const uint32_t next2 = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ key1;
    c[1] = static_cast<uint32_t>(p1);
    c[3] = static_cast<uint32_t>(p0);
    c[0] = next0;
    c[2] = next2;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  // an index known at run time would keep c in a GPU's memory
  return index & 2 ? (index & 1 ? c[3] : c[2]) : (index & 1 ? c[1] : c[0]);
}

// u in [0, 1) with 24 bits: exact in float32.
OCTAVO_HD static inline float uniform_of(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

}  // namespace octavo
