// Rows of an int8 table, summed up, over the vector words of the vec_*.h included before.
#include "../octavo.h"
#include "vectors.h"

namespace octavo {
namespace {

inline F32 load_values(const int8_t* q, int lanes, F32 scale) {
  return mul(to_f32(lanes == kLanes ? load(q) : load_n(q, lanes)), scale);
}

void add_row(const int8_t* q, int64_t n, float scale, float weight, float* sum) {
  const F32 vscale = set1(scale), vweight = set1(weight);
  for_vectors(n, [&](int64_t i, int lanes) {
    const F32 v = mul(load_values(q + i, lanes, vscale), vweight);
    store_lanes(sum + i, add(load_lanes(sum + i, lanes), v), lanes);
  });
}

void max_row(const int8_t* q, int64_t n, float scale, float* top) {
  const F32 vscale = set1(scale);
  for_vectors(n, [&](int64_t i, int lanes) {
    const F32 v = load_values(q + i, lanes, vscale);
    store_lanes(top + i, max(v, load_lanes(top + i, lanes)), lanes);
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
