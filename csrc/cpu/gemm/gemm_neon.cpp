// The product on baseline ARMv8-A, for processors without dot products. smull gives 16-bit products and
// sadalp adds neighbours to int32 lanes, all exact; smlal would add in 16 bits, where two products of -128 *
// -128 overflow.
// Rows hold u8 = a. With a' = a xor 0x80 read as s8, which is a - 128, sum a * w = sum a' * w + 128 *
// colsum(w).
// Tile: 4 rows x 8 columns = 16 accumulators with two partial sums for each of 2 columns, 4 halves of
// weights, a row, products: up to 28 of 32 registers.
#include "cpu/vec/vec_neon.h"

#include "cpu/vec/unroll.h"
#include "epilogue.inl"
#include "tiles.inl"

namespace octavo {
namespace {

constexpr int kTileM = 4;
constexpr int kTileN = 8;

// The same four bytes of a row for two columns.
inline int8x8_t broadcast_row(const uint8_t* a) {
  return vreinterpret_s8_u8(veor_u8(vreinterpret_u8_u32(load_bytes(a)), vdup_n_u8(0x80)));
}

template <int kRows>
OCTAVO_NOINLINE void tile(const GemmBlock& g, int64_t row, int64_t column, const int8_t* b) {
  I32 acc[kRows][kTileN / 2];
  OCTAVO_UNROLL
  for (auto& acc_row : acc) {
    OCTAVO_UNROLL
    for (auto& v : acc_row) v = vdupq_n_s32(0);
  }
  const uint8_t* a = g.a + row * g.lda;
  const int64_t groups = (g.k + kGroupK - 1) / kGroupK;
  for (int64_t group = 0; group < groups; ++group, a += kGroupK, b += kPanelN * kGroupK) {
    int8x8_t weights[kTileN / 2];
    OCTAVO_UNROLL
    for (int c = 0; c < kTileN / 2; ++c) weights[c] = vld1_s8(b + c * 8);
    OCTAVO_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int8x8_t a_row = broadcast_row(a + r * g.lda);
      OCTAVO_UNROLL
      for (int c = 0; c < kTileN / 2; ++c) acc[r][c] = vpadalq_s16(acc[r][c], vmull_s8(a_row, weights[c]));
    }
  }
  int32_t sums[kRows * kTileN];
  OCTAVO_UNROLL
  for (int v = 0; v < kTileN / kLanes; ++v) {
    const I32 start = vshlq_n_s32(load(g.epilogue.colsum + column + v * kLanes), 7);
    OCTAVO_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const I32 sum = vpaddq_s32(acc[r][2 * v], acc[r][2 * v + 1]);
      store(sums + r * kTileN + v * kLanes, add(start, sum));
    }
  }
  finish_tile<kTileN, kTileN>(g.epilogue, column_end(g), row, kRows, column, sums);
}

void gemm(const GemmBlock& g) {
  const int64_t end = column_end(g);
  for (int64_t column = g.panel_begin * kPanelN; column < end; column += kTileN) {
    const int8_t* b = g.panels + column / kPanelN * panel_bytes(g.k) + column % kPanelN * kGroupK;
    for_row_tiles<kTileM>(g.m, [&](auto rows, int64_t row) { tile<rows.value>(g, row, column, b); });
  }
}

int64_t peak(int64_t iterations) {
  constexpr int kChains = 16;
  I32 acc[kChains];
  int8x8_t one = vdup_n_s8(1);
  OCTAVO_UNROLL
  for (auto& v : acc) v = vdupq_n_s32(0);
  for (int64_t i = 0; i < iterations; ++i) {
    OCTAVO_UNROLL
    for (auto& v : acc) {
      v = vpadalq_s16(v, vmull_s8(one, one));
      asm volatile("" : "+w"(one), "+w"(v));  // keeps each product, and the additions apart
    }
  }
  return iterations * kChains * 8;
}

}  // namespace

const GemmKernels gemm_on::neon = {kTileM, gemm, peak};

}  // namespace octavo
