// The product on AVX-512 with VNNI. vpdpbusd multiplies u8 by s8 and adds four products to each int32 lane, modulo 2^32
// and without saturation.
// Tile: 6 rows x 64 columns = 24 accumulators, 6 broadcasts, 1 vector of weights: 31 of 32 registers. Four loads and six
// broadcasts feed 24 multiply-adds, and 24 independent chains hide the latency of 4 or 5 cycles.
#include "cpu/vec/vec_avx512.h"

#include "cpu/vec/unroll.h"
#include "epilogue.inl"
#include "tiles.inl"

namespace octavo {
namespace {

constexpr int kTileM = 6;
constexpr int kAccumulators = 24;
// For few rows the weights' way from memory counts: the more panels are read at once, the more lines are under way.
constexpr int kFewRows = 4;
constexpr int kMostPanels = 8;
constexpr int64_t kAhead = 64 * kLine;  // of each panel is prefetched; harmless beyond the end

// Panels of a tile with so many rows.
constexpr int panels_for(int rows) {
  const int panels = kAccumulators / rows;
  return panels < kMostPanels ? panels : kMostPanels;
}

template <int kRows, int kPanels>
OCTAVO_NOINLINE void tile(const GemmBlock& g, int64_t row, int64_t p) {
  __m512i acc[kRows][kPanels];
  OCTAVO_UNROLL
  for (auto& acc_row : acc) {
    OCTAVO_UNROLL
    for (auto& v : acc_row) v = _mm512_setzero_si512();
  }
  // Beyond the last panel the last one is read again; those sums are not stored.
  const int8_t* b[kPanels];
  for (int i = 0; i < kPanels; ++i) {
    b[i] = g.panels + (p + i < g.panel_end ? p + i : g.panel_end - 1) * panel_bytes(g.k);
  }
  const uint8_t* a = g.a + row * g.lda;
  const int64_t groups = (g.k + kGroupK - 1) / kGroupK;
  int64_t ahead = kAhead;
  for (int64_t group = 0; group < groups; ++group, a += kGroupK) {
    if (group == groups - kAhead / kLine) ahead += (kPanels - 1) * panel_bytes(g.k);  // on to the next tile
    __m512i rows[kRows];
    OCTAVO_UNROLL
    for (int r = 0; r < kRows; ++r) {
      int32_t four;
      memcpy(&four, a + r * g.lda, sizeof four);
      rows[r] = _mm512_set1_epi32(four);
    }
    OCTAVO_UNROLL
    for (int i = 0; i < kPanels; ++i) {
      const int8_t* line = b[i] + group * kLine;
      _mm_prefetch(line + ahead, _MM_HINT_T0);
      const __m512i weights = _mm512_loadu_si512(line);
      OCTAVO_UNROLL
      for (int r = 0; r < kRows; ++r) acc[r][i] = _mm512_dpbusd_epi32(acc[r][i], rows[r], weights);
    }
  }
  constexpr int kColumns = kPanels * kPanelN;
  alignas(64) int32_t sums[kRows * kColumns];
  OCTAVO_UNROLL
  for (int r = 0; r < kRows; ++r) {
    OCTAVO_UNROLL
    for (int i = 0; i < kPanels; ++i) {
      settle(acc[r][i]);
      store(sums + r * kColumns + i * kPanelN, acc[r][i]);
    }
  }
  finish_tile<kColumns, kColumns>(g.epilogue, column_end(g), row, kRows, p * kPanelN, sums);
}

void gemm(const GemmBlock& g) {
  if (g.m <= kFewRows) {
    return with_rows<kFewRows>(g.m, [&](auto rows) {
      constexpr int kPanels = panels_for(rows.value);
      for (int64_t p = g.panel_begin; p < g.panel_end; p += kPanels) tile<rows.value, kPanels>(g, 0, p);
    });
  }
  constexpr int kPanels = panels_for(kTileM);
  for_tiles<kTileM, kPanels>(
      g, [&](auto rows, int64_t row, int64_t p) { tile<rows.value, kPanels>(g, row, p); });
}

int64_t peak(int64_t iterations) {
  constexpr int kChains = 12;  // 2 per cycle, latency 4 or 5
  __m512i acc[kChains], one = _mm512_set1_epi8(1);
  OCTAVO_UNROLL
  for (auto& v : acc) v = _mm512_setzero_si512();
  for (int64_t i = 0; i < iterations; ++i) {
    OCTAVO_UNROLL
    for (auto& v : acc) v = _mm512_dpbusd_epi32(v, one, one);
    // Keeps the additions apart, and the chains in registers.
    asm volatile(""
                 : "+v"(acc[0]), "+v"(acc[1]), "+v"(acc[2]), "+v"(acc[3]), "+v"(acc[4]), "+v"(acc[5]),
                   "+v"(acc[6]), "+v"(acc[7]), "+v"(acc[8]), "+v"(acc[9]), "+v"(acc[10]), "+v"(acc[11]));
  }
  return iterations * kChains * 64;
}

}  // namespace

const GemmKernels gemm_on::avx512vnni = {kTileM, gemm, peak};

}  // namespace octavo
