// The product on AVX-VNNI: vpdpbusd on 256-bit registers, for processors without AVX-512.
// Tile: 6 rows x 16 columns = 12 accumulators, 2 vectors of weights, 1 broadcast: 15 of 16 registers. Two loads and six
// broadcasts feed 12 multiply-adds, and 12 independent chains hide their latency.
#include "cpu/vec/vec_avx2.h"

#include "cpu/vec/unroll.h"
#include "epilogue.inl"
#include "tiles.inl"

namespace octavo {
namespace {

constexpr int kTileM = 6;
constexpr int kTileN = 2 * kLanes;
static_assert(kTileN == kPanelN, "a tile is as wide as a panel");

template <int kRows>
OCTAVO_NOINLINE void tile(const GemmBlock& g, int64_t row, int64_t p) {
  __m256i low[kRows], high[kRows];
  OCTAVO_UNROLL
  for (int r = 0; r < kRows; ++r) low[r] = high[r] = _mm256_setzero_si256();
  const uint8_t* a = g.a + row * g.lda;
  const int8_t* b = g.panels + p * panel_bytes(g.k);
  const int64_t groups = (g.k + kGroupK - 1) / kGroupK;
  for (int64_t group = 0; group < groups; ++group, a += kGroupK, b += kPanelN * kGroupK) {
    const __m256i b_low = load(reinterpret_cast<const int32_t*>(b));
    const __m256i b_high = load(reinterpret_cast<const int32_t*>(b) + kLanes);
    OCTAVO_UNROLL
    for (int r = 0; r < kRows; ++r) {
      int32_t four;
      memcpy(&four, a + r * g.lda, sizeof four);
      const __m256i a_row = set1(four);
      low[r] = _mm256_dpbusd_avx_epi32(low[r], a_row, b_low);
      high[r] = _mm256_dpbusd_avx_epi32(high[r], a_row, b_high);
    }
  }
  int32_t acc[kRows * kTileN];
  OCTAVO_UNROLL
  for (int r = 0; r < kRows; ++r) {
    settle(low[r]);
    settle(high[r]);
    store(acc + r * kTileN, low[r]);
    store(acc + r * kTileN + kLanes, high[r]);
  }
  finish_tile<kTileN, kTileN>(g.epilogue, column_end(g), row, kRows, p * kPanelN, acc);
}

void gemm(const GemmBlock& g) {
  for_tiles<kTileM, 1>(g, [&](auto rows, int64_t row, int64_t p) { tile<rows.value>(g, row, p); });
}

int64_t peak(int64_t iterations) {
  constexpr int kChains = 12;
  __m256i acc[kChains], one = _mm256_set1_epi8(1);
  OCTAVO_UNROLL
  for (auto& v : acc) v = _mm256_setzero_si256();
  for (int64_t i = 0; i < iterations; ++i) {
    OCTAVO_UNROLL
    for (auto& v : acc) v = _mm256_dpbusd_avx_epi32(v, one, one);
    // Keeps the additions apart, and the chains in registers.
    asm volatile(""
                 : "+x"(acc[0]), "+x"(acc[1]), "+x"(acc[2]), "+x"(acc[3]), "+x"(acc[4]), "+x"(acc[5]),
                   "+x"(acc[6]), "+x"(acc[7]), "+x"(acc[8]), "+x"(acc[9]), "+x"(acc[10]), "+x"(acc[11]));
  }
  return iterations * kChains * 32;
}

}  // namespace

const GemmKernels gemm_on::avxvnni = {kTileM, gemm, peak};

}  // namespace octavo
