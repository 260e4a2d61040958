// The product on ARMv8.2 with dot products. sdot multiplies s8 by s8 and adds four products to each int32
// lane, modulo 2^32 and without saturation; the four bytes of a row come from any lane of a register, so
// nothing is broadcast.
// Rows hold u8 = a. With a' = a xor 0x80 read as s8, which is a - 128,
//   sum a * w = sum a' * w + 128 * colsum(w):
// the accumulators start at 128 * colsum instead of 0, and the algebra costs nothing in the loop.
// Tile: 8 rows x 8 columns = 16 accumulators, 8 rows, 2 vectors of weights, the 0x80: 27 of 32 registers, and
// 16 independent chains hide a latency of 4 cycles on 4 pipes. With fewer rows more columns keep the chains
// many: a single row takes four panels at a time.
#include "cpu/vec/vec_neon.h"

#include "cpu/vec/unroll.h"
#include "epilogue.inl"
#include "tiles.inl"

namespace octavo {
namespace {

constexpr int kTileM = 8;
constexpr int kAccumulators = 16;
constexpr int kStepK = 16;  // one register of a row: four groups
constexpr int kPanelVectors = kPanelN / kLanes;

template <int kGroup, int kRows, int kVectors>
inline void multiply(I32 (&acc)[kRows][kVectors], const int8x16_t (&a)[kRows], const int8_t* const* b,
                     int64_t offset) {
  int8x16_t weights[kVectors];
  OCTAVO_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const int64_t vector = kGroup * kPanelVectors + v % kPanelVectors;
    weights[v] = vld1q_s8(b[v / kPanelVectors] + offset + vector * 16);
  }
  OCTAVO_UNROLL
  for (int r = 0; r < kRows; ++r) {
    OCTAVO_UNROLL
    for (int v = 0; v < kVectors; ++v) acc[r][v] = vdotq_laneq_s32(acc[r][v], weights[v], a[r], kGroup);
  }
}

// kVectors are a part of a panel, or whole panels. Beyond the last panel the last one is read again; those
// sums are not stored.
template <int kRows, int kVectors>
OCTAVO_NOINLINE void tile(const GemmBlock& g, int64_t row, int64_t column) {
  constexpr int kTileN = kVectors * kLanes;
  const int8_t* b[(kVectors + kPanelVectors - 1) / kPanelVectors];
  I32 acc[kRows][kVectors];
  OCTAVO_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    int64_t panel = column / kPanelN + v / kPanelVectors;
    if (panel >= g.panel_end) panel = g.panel_end - 1;
    const int64_t first = column % kPanelN;
    b[v / kPanelVectors] = g.panels + panel * panel_bytes(g.k) + first * kGroupK;
    const int32_t* colsum = g.epilogue.colsum + panel * kPanelN + first + v % kPanelVectors * kLanes;
    OCTAVO_UNROLL
    for (int r = 0; r < kRows; ++r) acc[r][v] = vshlq_n_s32(load(colsum), 7);
  }
  const uint8_t* a = g.a + row * g.lda;
  for (int64_t k = 0; k < g.k; k += kStepK, a += kStepK) {
    int8x16_t rows[kRows];
    OCTAVO_UNROLL
    for (int r = 0; r < kRows; ++r) {
      rows[r] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(a + r * g.lda), vdupq_n_u8(0x80)));
    }
    multiply<0>(acc, rows, b, k * kPanelN);
    multiply<1>(acc, rows, b, k * kPanelN);
    multiply<2>(acc, rows, b, k * kPanelN);
    multiply<3>(acc, rows, b, k * kPanelN);
  }
  int32_t sums[kRows * kTileN];
  OCTAVO_UNROLL
  for (int r = 0; r < kRows; ++r) {
    OCTAVO_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      settle(acc[r][v]);
      store(sums + r * kTileN + v * kLanes, acc[r][v]);
    }
  }
  finish_tile<kTileN, kTileN>(g.epilogue, column_end(g), row, kRows, column, sums);
}

// Vectors of a tile with so many rows: 2 for 5 to 8 of them, 4 for 3 and 4, 8 for two, 16 for one.
constexpr int vectors_for(int rows) {
  int vectors = 2;
  while (2 * vectors * rows <= kAccumulators) vectors *= 2;
  return vectors;
}

// kRows rows by the columns [first, last).
template <int kRows>
inline void tiles(const GemmBlock& g, int64_t row, int64_t first, int64_t last) {
  constexpr int kVectors = vectors_for(kRows);
  for (int64_t c = first; c < last; c += kVectors * kLanes) tile<kRows, kVectors>(g, row, c);
}

void gemm(const GemmBlock& g) {
  constexpr int64_t kBlockN = 4 * kPanelN;
  constexpr int kVectors = vectors_for(kTileM);
  const int64_t whole = g.m - g.m % kTileM, end = column_end(g);
  for (int64_t first = g.panel_begin * kPanelN; first < end; first += kBlockN) {
    const int64_t last = first + kBlockN < end ? first + kBlockN : end;
    for (int64_t c = first; c < last; c += kVectors * kLanes) {
      for (int64_t row = 0; row < whole; row += kTileM) tile<kTileM, kVectors>(g, row, c);
    }
    with_rows<kTileM - 1>(g.m - whole, [&](auto rows) { tiles<rows.value>(g, whole, first, last); });
  }
}

int64_t peak(int64_t iterations) {
  constexpr int kChains = 16;
  I32 acc[kChains];
  int8x16_t one = vdupq_n_s8(1);
  OCTAVO_UNROLL
  for (auto& v : acc) v = vdupq_n_s32(0);
  for (int64_t i = 0; i < iterations; ++i) {
    OCTAVO_UNROLL
    for (auto& v : acc) {
      v = vdotq_laneq_s32(v, one, one, 0);
      asm volatile("" : "+w"(v));  // keeps the additions apart, and the chains in registers
    }
  }
  return iterations * kChains * 16;
}

}  // namespace

const GemmKernels gemm_on::neondot = {kTileM, gemm, peak};

}  // namespace octavo
