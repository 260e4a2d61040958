// The product on the int8 matrix instructions. usmmla multiplies 2 rows x 8 terms of u8 by 8 terms x 2
// columns of s8 and adds to a 2 x 2 block of int32, modulo 2^32: twice the products of sdot, and unsigned
// rows as they are.
// A register of a panel holds 4 terms of 4 columns: zip1 and zip2 of two groups give 8 terms of 2 columns
// each.
// Tile: 8 rows x 8 columns = 16 accumulators, 4 pairs of rows, 4 pairs of columns, 2 vectors of weights: 26
// of 32 registers. The zips run on the pipes of the multiplications, 4 for weights and 4 for rows beside 16
// of those; taller or wider tiles save little of that and spill. Of an odd count of rows, the last is paired
// with the padding of A.
#include "cpu/vec/vec_neon.h"

#include "cpu/vec/unroll.h"
#include "epilogue.inl"
#include "tiles.inl"

namespace octavo {
namespace {

constexpr int kTileM = 8;
constexpr int kTileN = 8;
constexpr int kStepK = 8;
constexpr int64_t kSmallM = 4;  // up to here the zips cost what the matrix instruction saves

// 2 * kPairs rows from `row` on, of which `rows` are not padding.
template <int kPairs>
OCTAVO_NOINLINE void tile(const GemmBlock& g, int64_t row, int64_t rows, int64_t column, const int8_t* b) {
  I32 acc[kPairs][kTileN / 2];  // acc[p][c]: rows 2p and 2p + 1, each by columns 2c and 2c + 1
  OCTAVO_UNROLL
  for (auto& pair : acc) {
    OCTAVO_UNROLL
    for (auto& v : pair) v = vdupq_n_s32(0);
  }
  const uint8_t* a = g.a + row * g.lda;
  for (int64_t k = 0; k < g.k; k += kStepK, a += kStepK, b += kStepK * kPanelN) {
    uint8x16_t pairs[kPairs];
    OCTAVO_UNROLL
    for (int p = 0; p < kPairs; ++p) {
      pairs[p] = vcombine_u8(vld1_u8(a + 2 * p * g.lda), vld1_u8(a + (2 * p + 1) * g.lda));
    }
    OCTAVO_UNROLL
    for (int c = 0; c < kTileN / 4; ++c) {
      const I32 first = vreinterpretq_s32_s8(vld1q_s8(b + c * 16));
      const I32 second = vreinterpretq_s32_s8(vld1q_s8(b + kPanelN * kGroupK + c * 16));
      const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(first, second));
      const int8x16_t high = vreinterpretq_s8_s32(vzip2q_s32(first, second));
      OCTAVO_UNROLL
      for (int p = 0; p < kPairs; ++p) {
        acc[p][2 * c] = vusmmlaq_s32(acc[p][2 * c], pairs[p], low);
        acc[p][2 * c + 1] = vusmmlaq_s32(acc[p][2 * c + 1], pairs[p], high);
      }
    }
  }
  int32_t sums[2 * kPairs * kTileN];
  OCTAVO_UNROLL
  for (int p = 0; p < kPairs; ++p) {
    OCTAVO_UNROLL
    for (int c = 0; c < kTileN / 2; ++c) {
      settle(acc[p][c]);
      int32_t* block = sums + 2 * p * kTileN + 2 * c;
      vst1_s32(block, vget_low_s32(acc[p][c]));
      vst1_s32(block + kTileN, vget_high_s32(acc[p][c]));
    }
  }
  const int stored = rows < 2 * kPairs ? static_cast<int>(rows) : 2 * kPairs;
  finish_tile<kTileN, kTileN>(g.epilogue, column_end(g), row, stored, column, sums);
}

void gemm(const GemmBlock& g) {
  if (g.m <= kSmallM) return gemm_on::neondot.gemm(g);
  const int64_t end = column_end(g);
  for (int64_t column = g.panel_begin * kPanelN; column < end; column += kTileN) {
    const int8_t* b = g.panels + column / kPanelN * panel_bytes(g.k) + column % kPanelN * kGroupK;
    for_row_tiles<kTileM / 2>((g.m + 1) / 2, [&](auto pairs, int64_t pair) {
      tile<pairs.value>(g, 2 * pair, g.m - 2 * pair, column, b);
    });
  }
}

int64_t peak(int64_t iterations) {
  constexpr int kChains = 16;
  I32 acc[kChains];
  uint8x16_t ones = vdupq_n_u8(1);
  const int8x16_t one = vdupq_n_s8(1);
  OCTAVO_UNROLL
  for (auto& v : acc) v = vdupq_n_s32(0);
  for (int64_t i = 0; i < iterations; ++i) {
    OCTAVO_UNROLL
    for (auto& v : acc) {
      v = vusmmlaq_s32(v, ones, one);
      asm volatile("" : "+w"(v));  // keeps the additions apart, and the chains in registers
    }
  }
  return iterations * kChains * 32;
}

}  // namespace

const GemmKernels gemm_on::neoni8mm = {kTileM, gemm, peak, kSmallM, "neondot"};

}  // namespace octavo
