// The product on AVX2. vpmaddubsw would multiply bytes, but it saturates at 16 bits; so bytes are widened to int16 first, and
// vpmaddwd, whose int32 sums are exact, multiplies pairs of them.
// Tile: 6 rows x 16 columns = 12 accumulators, 2 vectors of weights, 1 broadcast, 1 product: all 16 registers. Per 192
// multiply-adds 12 vpmaddwd and 12 vpaddd: 24 a cycle on three vector ports. Widening inside the loop would take half as
// many instructions again, so it is done ahead for a block of rows and columns, and each widened value is used many times.
//
// A group of four terms t0 t1 t2 t3 becomes two steps, the pairs (t0, t2) and (t1, t3): to take them apart, a shift and a
// mask are enough.
#include "cpu/vec/vec_avx2.h"

#include "cpu/vec/unroll.h"
#include "epilogue.inl"
#include "tiles.inl"

namespace octavo {
namespace {

constexpr int kTileM = 6;
constexpr int kBlockM = 48;
constexpr int kBlockN = 128;
constexpr int kBlockSteps = 128;  // 256 terms

// Steps: pairs of int16, each as one int32. 56 KiB: it lives on the stack, and in L2.
struct alignas(32) Block {
  int32_t a[kBlockM][kBlockSteps];
  int32_t b[kBlockSteps][kPanelN];
  int32_t acc[kBlockM][kBlockN];
};

// u8 terms, a vector of 8 groups at a time: A is readable up to kPanelK columns, which are two of them.
inline void widen_row(const uint8_t* a, int64_t steps, int32_t* out) {
  for (int64_t s = 0; s < steps; s += 2 * kLanes) {
    const __m256i terms = load(reinterpret_cast<const int32_t*>(a + s / 2 * kGroupK));
    const __m256i even = _mm256_and_si256(terms, _mm256_set1_epi16(0xFF)), odd = _mm256_srli_epi16(terms, 8);
    const __m256i low = _mm256_unpacklo_epi32(even, odd), high = _mm256_unpackhi_epi32(even, odd);
    store(out + s, _mm256_permute2x128_si256(low, high, 0x20));
    store(out + s + kLanes, _mm256_permute2x128_si256(low, high, 0x31));
  }
}

// s8 terms of a panel.
inline void widen_panel(const int8_t* b, int64_t steps, int32_t (*out)[kPanelN]) {
  for (int64_t s = 0; s < steps; s += 2, b += kPanelN * kGroupK) {
    for (int c = 0; c < kPanelN; c += kLanes) {
      const __m256i terms = load(reinterpret_cast<const int32_t*>(b + c * kGroupK));
      store(out[s] + c, _mm256_srai_epi16(_mm256_slli_epi16(terms, 8), 8));
      store(out[s + 1] + c, _mm256_srai_epi16(terms, 8));
    }
  }
}

template <int kRows>
OCTAVO_NOINLINE void tile(Block& block, int row, int64_t steps, int column) {
  __m256i low[kRows], high[kRows];
  OCTAVO_UNROLL
  for (int r = 0; r < kRows; ++r) {
    low[r] = load(block.acc[row + r] + column);
    high[r] = load(block.acc[row + r] + column + kLanes);
  }
  for (int64_t s = 0; s < steps; ++s) {
    const __m256i b_low = load(block.b[s]), b_high = load(block.b[s] + kLanes);
    OCTAVO_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m256i a = set1(block.a[row + r][s]);
      low[r] = add(low[r], _mm256_madd_epi16(a, b_low));
      high[r] = add(high[r], _mm256_madd_epi16(a, b_high));
      settle(low[r]);
      settle(high[r]);
    }
  }
  OCTAVO_UNROLL
  for (int r = 0; r < kRows; ++r) {
    store(block.acc[row + r] + column, low[r]);
    store(block.acc[row + r] + column + kLanes, high[r]);
  }
}

void multiply(Block& block, int rows, int64_t steps, int column) {
  for_row_tiles<kTileM>(rows, [&](auto count, int row) { tile<count.value>(block, row, steps, column); });
}

void gemm(const GemmBlock& g) {
  constexpr int64_t kPanels = kBlockN / kPanelN;
  const int64_t steps = (g.k + kGroupK - 1) / kGroupK * 2;
  Block block;
  for (int64_t p = g.panel_begin; p < g.panel_end; p += kPanels) {
    const int64_t panels = g.panel_end - p < kPanels ? g.panel_end - p : kPanels;
    for (int64_t row = 0; row < g.m; row += kBlockM) {
      const int rows = static_cast<int>(g.m - row < kBlockM ? g.m - row : kBlockM);
      memset(block.acc, 0, static_cast<size_t>(rows) * sizeof block.acc[0]);
      for (int64_t first = 0; first < steps; first += kBlockSteps) {
        const int64_t count = steps - first < kBlockSteps ? steps - first : kBlockSteps;
        for (int r = 0; r < rows; ++r) {
          widen_row(g.a + (row + r) * g.lda + first / 2 * kGroupK, count, block.a[r]);
        }
        for (int64_t i = 0; i < panels; ++i) {
          widen_panel(g.panels + (p + i) * panel_bytes(g.k) + first / 2 * kPanelN * kGroupK, count, block.b);
          multiply(block, rows, count, static_cast<int>(i * kPanelN));
        }
      }
      finish_tile<kBlockN, kBlockN>(g.epilogue, column_end(g), row, rows, p * kPanelN, block.acc[0]);
    }
  }
}

int64_t peak(int64_t iterations) {
  constexpr int kChains = 12;
  __m256i acc[kChains], one = _mm256_set1_epi16(1);
  OCTAVO_UNROLL
  for (auto& v : acc) v = _mm256_setzero_si256();
  for (int64_t i = 0; i < iterations; ++i) {
    OCTAVO_UNROLL
    for (auto& v : acc) {
      asm volatile("" : "+x"(one), "+x"(v));  // every product anew
      v = add(v, _mm256_madd_epi16(one, one));
    }
  }
  OCTAVO_UNROLL
  for (auto& v : acc) asm volatile("" : : "x"(v));
  return iterations * kChains * 16;
}

}  // namespace

const GemmKernels gemm_on::avx2 = {kTileM, gemm, peak};

}  // namespace octavo
