// One line of a bitmask layout, on AVX-512 with VBMI2.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace octavo {
namespace {

// The 64 bytes at `kept`, of which popcount(mask) belong to the line, moved to where the mask has ones; zeros elsewhere. The
// load stays apart from vpexpandb: with a memory operand that instruction takes three times as long.
inline __m512i expand_line(uint64_t mask, const int8_t* kept) {
  __m512i bytes = _mm512_loadu_si512(kept);
  asm("" : "+v"(bytes));
  return _mm512_maskz_expand_epi8(mask, bytes);
}

inline int64_t kept_by(uint64_t mask) { return __builtin_popcountll(mask); }

}  // namespace
}  // namespace octavo
