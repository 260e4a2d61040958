// Float rows times int8 panels over the vector words of the vec_*.h included before. Four weights of an output stand in one
// int32 lane: they are cut out by shifts and become floats in registers, once for all rows of a tile.
// A tile keeps rows x panels x kVectors sums in registers. Each is a chain of additions in the order of the terms, so that
// several chains, and nothing within one, hide an addition's latency.
#include "cpu/stream.h"
#include "cpu/vec/activation.inl"
#include "cpu/vec/unroll.h"
#include "cpu/vec/vectors.h"
#include "layouts.h"

namespace octavo {
namespace {

constexpr int kVectors = kPanelN / kLanes;  // of a panel
// Sums: 16 of AVX-512's 32 registers and of NEON's, 8 of AVX2's 16.
constexpr int kMaxRowPanels = kLanes == 16 ? 16 : (kLanes == 1 ? 1 : 4);
constexpr int kMaxRows = kMaxRowPanels < 8 ? kMaxRowPanels : 8;
constexpr int64_t kAhead = 64 * kLine;  // of each panel is prefetched; harmless beyond the end

// A fused multiply-add is the same where the product is exact, and half the work.
template <bool kExact>
inline F32 add_product(F32 sum, F32 x, F32 w) {
  if constexpr (kExact && kLanes > 1) return fma(x, w, sum);  // one lane would call a library
  return add(sum, mul(x, w));
}

template <bool kExact, int kByte, int kRows, int kColumns>
inline void add_term(const float* x, int64_t ldx, const I32 (&lines)[kColumns],
                     F32 (&sums)[kRows][kColumns]) {
  F32 w[kColumns];
  OCTAVO_UNROLL
  for (int v = 0; v < kColumns; ++v) w[v] = byte_to_f32<kByte>(lines[v]);
  OCTAVO_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const F32 term = set1(x[r * ldx + kByte]);
    OCTAVO_UNROLL
    for (int v = 0; v < kColumns; ++v) {
      sums[r][v] = add_product<kExact>(sums[r][v], term, w[v]);
      settle(sums[r][v]);
    }
  }
}

// totals[r * kStripColumns + c]
template <bool kExact, int kRows, int kPanels>
void multiply_tile(const WeightOnlyStrip& s, const float* x, const int8_t* panels, const float* scale,
                   float* totals) {
  constexpr int kColumns = kPanels * kVectors;
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kColumns; ++v) store(totals + r * kStripColumns + v * kLanes, set1(0.0f));
  }
  const int8_t* line[kPanels];
  for (int i = 0; i < kPanels; ++i) line[i] = panels + i * s.panel_bytes;
  const float* x_end = x + s.k;
  while (x < x_end) {
    F32 sums[kRows][kColumns];
    OCTAVO_UNROLL
    for (auto& row : sums) {
      OCTAVO_UNROLL
      for (auto& sum : row) sum = set1(0.0f);
    }
    for (const float* group_end = x + s.group_size; x < group_end; x += kGroupK) {
      I32 lines[kColumns];
      OCTAVO_UNROLL
      for (int i = 0; i < kPanels; ++i) {
        __builtin_prefetch(line[i] + kAhead);
        OCTAVO_UNROLL
        for (int v = 0; v < kVectors; ++v)
          lines[i * kVectors + v] = load(reinterpret_cast<const int32_t*>(line[i]) + v * kLanes);
        line[i] += kLine;
      }
      add_term<kExact, 0>(x, s.ldx, lines, sums);
      add_term<kExact, 1>(x, s.ldx, lines, sums);
      add_term<kExact, 2>(x, s.ldx, lines, sums);
      add_term<kExact, 3>(x, s.ldx, lines, sums);
    }
    OCTAVO_UNROLL
    for (int r = 0; r < kRows; ++r) {
      OCTAVO_UNROLL
      for (int v = 0; v < kColumns; ++v) {
        float* total = totals + r * kStripColumns + v * kLanes;
        store(total, add(load(total), mul(sums[r][v], load(scale + v * kLanes))));
      }
    }
    scale += kStripColumns;
  }
}

template <class T, Activation kActivation>
void finish_rows(const WeightOnlyStrip& s, int64_t row, int rows, const float* totals) {
  for (int r = 0; r < rows; ++r, totals += kStripColumns) {
    T* out = static_cast<T*>(s.out) + (row + r) * s.out_row_stride;
    for_vectors(s.columns, [&](int64_t i, int lanes) {
      F32 y = load(totals + i);
      if (s.bias) y = add(y, load_lanes(s.bias + i, lanes));
      store_lanes(out + i, activate<kActivation>(y), lanes);
    });
  }
}

template <class T>
void finish_as(const WeightOnlyStrip& s, int64_t row, int rows, const float* totals) {
  switch (s.activation) {
    case Activation::relu: return finish_rows<T, Activation::relu>(s, row, rows, totals);
    case Activation::gelu: return finish_rows<T, Activation::gelu>(s, row, rows, totals);
    case Activation::gelu_tanh: return finish_rows<T, Activation::gelu_tanh>(s, row, rows, totals);
    case Activation::silu: return finish_rows<T, Activation::silu>(s, row, rows, totals);
    default: return finish_rows<T, Activation::none>(s, row, rows, totals);
  }
}

template <bool kExact, int kRows>
void multiply_rows(const WeightOnlyStrip& s, int64_t row) {
  constexpr int kMost = kMaxRowPanels / kRows;
  constexpr int kPanels = kMost < kStripPanels ? kMost : kStripPanels;
  const int panels = (s.columns + static_cast<int>(kPanelN) - 1) / static_cast<int>(kPanelN);
  const float* x = s.x + row * s.ldx;
  alignas(64) float totals[kRows * kStripColumns];
  int p = 0;
  for (; p + kPanels <= panels; p += kPanels) {
    multiply_tile<kExact, kRows, kPanels>(s, x, s.panels + p * s.panel_bytes, s.scale + p * kPanelN,
                                          totals + p * kPanelN);
  }
  for (; p < panels; ++p)
    multiply_tile<kExact, kRows, 1>(s, x, s.panels + p * s.panel_bytes, s.scale + p * kPanelN,
                                    totals + p * kPanelN);
  switch (s.out_dtype) {
    case DType::f16: return finish_as<f16>(s, row, kRows, totals);
    case DType::bf16: return finish_as<bf16>(s, row, kRows, totals);
    default: return finish_as<float>(s, row, kRows, totals);
  }
}

// Rows from `row` on, fewer than 2 * kRows.
template <bool kExact, int kRows>
void multiply_rest(const WeightOnlyStrip& s, int64_t row) {
  if (s.m - row >= kRows) {
    multiply_rows<kExact, kRows>(s, row);
    row += kRows;
  }
  if constexpr (kRows > 1) multiply_rest<kExact, kRows / 2>(s, row);
}

template <bool kExact>
void multiply_all(const WeightOnlyStrip& s) {
  int64_t row = 0;
  for (; s.m - row >= 2 * kMaxRows; row += kMaxRows) multiply_rows<kExact, kMaxRows>(s, row);
  multiply_rest<kExact, kMaxRows>(s, row);
}

void multiply(const WeightOnlyStrip& s) {
  if (s.exact_products) {
    multiply_all<true>(s);
  } else {
    multiply_all<false>(s);
  }
}

template <class T>
void widen_from(const T* x, int64_t n, float* out) {
  for_vectors(n, [&](int64_t i, int lanes) { store_lanes(out + i, load_lanes(x + i, lanes), lanes); });
}

void widen(const void* x, DType dtype, int64_t n, float* out) {
  switch (dtype) {
    case DType::f32: return widen_from(static_cast<const float*>(x), n, out);
    case DType::f16: return widen_from(static_cast<const f16*>(x), n, out);
    case DType::bf16: return widen_from(static_cast<const bf16*>(x), n, out);
    default: return widen_from(static_cast<const double*>(x), n, out);
  }
}

}  // namespace
}  // namespace octavo
