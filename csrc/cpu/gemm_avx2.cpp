// The product on AVX2. Bytes are widened to int16 and multiplied by vpmaddwd, whose int32 sums are exact; vpmaddubsw
// would saturate at 16 bits. An accumulator holds two partial sums for each of 4 columns, added at the end.
// Tile: 4 rows x 8 columns = 8 accumulators, 4 broadcast rows, 2 widened columns: 14 of 16 registers.
#include "vec_avx2.h"

#include "epilogue.inl"

namespace octavo {
namespace {

constexpr int kTileM = 4;

// Four bytes of a row as (k0 k1 k2 k3) int16, for each of 4 columns.
inline __m256i broadcast_row(const uint8_t* a) {
  int32_t four;
  memcpy(&four, a, sizeof four);
  return _mm256_cvtepu8_epi16(_mm_set1_epi32(four));
}

template <int kRows>
inline void tile(const GemmBlock& g, int64_t row, int64_t column, const int8_t* b) {
  __m256i low[kRows], high[kRows];
  for (int r = 0; r < kRows; ++r) low[r] = high[r] = _mm256_setzero_si256();
  const uint8_t* a = g.a + row * g.lda;
  const int64_t groups = (g.k + kGroupK - 1) / kGroupK;
  for (int64_t group = 0; group < groups; ++group, a += kGroupK, b += kPanelN * kGroupK) {
    const __m256i b_low = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b)));
    const __m256i b_high = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + 16)));
    for (int r = 0; r < kRows; ++r) {
      const __m256i a_row = broadcast_row(a + r * g.lda);
      low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(a_row, b_low));
      high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(a_row, b_high));
    }
  }
  int32_t acc[kRows * kLanes];
  for (int r = 0; r < kRows; ++r) {
    // hadd leaves columns 0 1 4 5 | 2 3 6 7
    store(acc + r * kLanes, _mm256_permute4x64_epi64(_mm256_hadd_epi32(low[r], high[r]), 0xD8));
  }
  finish_tile<kLanes, kLanes>(g.epilogue, column_end(g), row, kRows, column, acc);
}

void gemm(const GemmBlock& g) {
  for (int64_t p = g.panel_begin; p < g.panel_end; ++p) {
    for (int64_t c = 0; c < kPanelN && p * kPanelN + c < g.n; c += kLanes) {
      const int8_t* b = g.panels + p * panel_bytes(g.k) + c * kGroupK;
      const int64_t column = p * kPanelN + c;
      int64_t row = 0;
      for (; row + kTileM <= g.m; row += kTileM) tile<kTileM>(g, row, column, b);
      switch (g.m - row) {
        case 1: tile<1>(g, row, column, b); break;
        case 2: tile<2>(g, row, column, b); break;
        case 3: tile<3>(g, row, column, b); break;
        default: break;
      }
    }
  }
}

int64_t peak(int64_t iterations) {
  __m256i acc[8];
  for (auto& v : acc) v = _mm256_setzero_si256();
  __m256i one = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < iterations; ++i) {
    for (auto& v : acc) v = _mm256_add_epi32(v, _mm256_madd_epi16(one, one));
    asm volatile(""
                 : "+x"(one), "+x"(acc[0]), "+x"(acc[1]), "+x"(acc[2]), "+x"(acc[3]), "+x"(acc[4]),
                   "+x"(acc[5]), "+x"(acc[6]), "+x"(acc[7]));
  }
  return iterations * 8 * 16;
}

}  // namespace

extern const GemmKernels kGemmAvx2 = {kTileM, gemm, peak};

}  // namespace octavo
