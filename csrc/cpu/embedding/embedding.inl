// Rows of an int8 table, summed up, over the vector words of the vec_*.h included before.
#include "cpu/vec/unroll.h"
#include "cpu/vec/vectors.h"
#include "octavo.h"

namespace octavo {
namespace {

constexpr int kBlock = 8;  // vectors of totals that stay in registers

struct Add {
  static F32 fold(F32 total, F32 v, F32 weight) { return add(total, mul(v, weight)); }
};
struct Max {
  static F32 fold(F32 total, F32 v, F32) { return max(v, total); }
};

// kVectors vectors of columns from i on; only a single one may have fewer than kLanes.
template <class Operation, int kVectors>
void fold_columns(const BagRow* rows, int64_t count, int64_t i, int lanes, float* total) {
  F32 totals[kVectors];
  OCTAVO_UNROLL
  for (int v = 0; v < kVectors; ++v) totals[v] = load_lanes(total + i + v * kLanes, lanes);
  for (const BagRow* row = rows; row < rows + count; ++row) {
    const F32 scale = set1(row->scale), weight = set1(row->weight);
    OCTAVO_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const int8_t* q = row->q + i + v * kLanes;
      const I32 integers = lanes == kLanes ? load(q) : load_n(q, lanes);
      totals[v] = Operation::fold(totals[v], mul(to_f32(integers), scale), weight);
    }
  }
  OCTAVO_UNROLL
  for (int v = 0; v < kVectors; ++v) store_lanes(total + i + v * kLanes, totals[v], lanes);
}

template <class Operation>
void fold_rows(const BagRow* rows, int64_t count, int64_t n, float* total) {
  int64_t i = 0;
  for (; i + kBlock * kLanes <= n; i += kBlock * kLanes)
    fold_columns<Operation, kBlock>(rows, count, i, kLanes, total);
  for_vectors(n - i, [&](int64_t rest, int lanes) {
    fold_columns<Operation, 1>(rows, count, i + rest, lanes, total);
  });
}

template <class T>
void divide_to(const float* x, int64_t n, float divisor, T* out) {
  const F32 vdivisor = set1(divisor);
  for_vectors(
      n, [&](int64_t i, int lanes) { store_lanes(out + i, div(load_lanes(x + i, lanes), vdivisor), lanes); });
}

void divide(const float* x, int64_t n, float divisor, void* out, DType dtype) {
  switch (dtype) {
    case DType::f32: return divide_to(x, n, divisor, static_cast<float*>(out));
    case DType::f16: return divide_to(x, n, divisor, static_cast<f16*>(out));
    case DType::bf16: return divide_to(x, n, divisor, static_cast<bf16*>(out));
    default: return divide_to(x, n, divisor, static_cast<double*>(out));
  }
}

}  // namespace
}  // namespace octavo
