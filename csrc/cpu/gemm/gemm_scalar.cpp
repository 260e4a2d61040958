// The product in plain C++: one row by one panel, 16 accumulators that a compiler can keep in vectors. Runs everywhere;
// the other files are held against it.
#include "cpu/vec/vec_scalar.h"

#include "epilogue.inl"

namespace octavo {
namespace {

// Sums are taken modulo 2^32: a partial sum of u8 * s8 can pass 2^31, the final value cannot.
void gemm(const GemmBlock& g) {
  const int64_t groups = (g.k + kGroupK - 1) / kGroupK;
  for (int64_t p = g.panel_begin; p < g.panel_end; ++p) {
    const int8_t* panel = g.panels + p * panel_bytes(g.k);
    for (int64_t row = 0; row < g.m; ++row) {
      const uint8_t* a = g.a + row * g.lda;
      int32_t acc[kPanelN] = {};
      for (int64_t group = 0; group < groups; ++group) {
        const int8_t* b = panel + group * kPanelN * kGroupK;
        for (int c = 0; c < kPanelN; ++c) {
          int32_t sum = 0;
          for (int i = 0; i < kGroupK; ++i) sum += a[group * kGroupK + i] * b[c * kGroupK + i];
          acc[c] = add(acc[c], sum);
        }
      }
      finish_tile<kPanelN, kPanelN>(g.epilogue, column_end(g), row, 1, p * kPanelN, acc);
    }
  }
}

int64_t peak(int64_t iterations) {
  uint32_t acc[16] = {};
  for (int64_t i = 0; i < iterations; ++i) {
    for (int c = 0; c < 16; ++c) acc[c] += static_cast<uint32_t>(i & 255) * 3u;
    asm volatile("" : : "r"(acc) : "memory");
  }
  return iterations * 16;
}

}  // namespace

const GemmKernels gemm_on::scalar = {1, gemm, peak};

}  // namespace octavo
