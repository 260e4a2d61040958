// Quantize and dequantize over the vector words of the vec_*.h included before. Each source vector is read once per pass;
// the second pass of a row hits the cache.
#include "cpu/stream.h"
#include "cpu/vec/unroll.h"
#include "cpu/vec/vectors.h"
#include "octavo.h"

namespace octavo {
namespace {

template <class T>
inline F32 load_kept(const T* x, const bool* mask, int64_t i, int lanes) {
  const F32 v = load_lanes(x + i, lanes);
  if (!mask) return v;
  return keep(lanes == kLanes ? load_mask(mask + i) : load_mask_n(mask + i, lanes), v);
}

template <class T>
void range_of(const T* x, const bool* mask, int64_t n, Range* r) {
  F32 lo = set1(r->lo), hi = set1(r->hi);
  for_vectors(n, [&](int64_t i, int lanes) {
    const F32 v = load_kept(x, mask, i, lanes);
    const F32 finite = keep(is_finite(v), v);
    lo = min(finite, lo);
    hi = max(finite, hi);
  });
  *r = {reduce_min(lo), reduce_max(hi)};
}

// Four chains, so that the latency of max does not bound it; of four quarters, since one stream does not reach what the memory
// can give.
template <class T>
uint32_t max_bits_of(const T* x, int64_t n) {
  constexpr int kChains = 4;
  I32 top[kChains];
  for (auto& t : top) t = set1(0);
  int64_t i = 0;
  constexpr int64_t kSize = sizeof(T);
  const int64_t quarter = n / (kChains * kLanes) * kLanes, ahead = row_ahead(n * kSize);
  for (; i < quarter; i += kLanes) {
    for (int c = 0; c < kChains; ++c) {
      prefetch_ahead(x + c * quarter + i, kLanes * kSize, ahead);
      top[c] = max(top[c], magnitude_bits(load(x + c * quarter + i)));
    }
  }
  i = kChains * quarter;
  for (; i < n; i += kLanes) {
    const int lanes = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    top[0] = max(top[0], magnitude_bits(load_n(x + i, lanes)));
  }
  return reduce_max(max(max(top[0], top[1]), max(top[2], top[3])));
}

template <class T>
void quantize_bounded_to(const T* x, int64_t n, float inv, uint8_t flip, int8_t* q) {
  const F32 vinv = set1(inv);
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    I32 v[4];
    OCTAVO_UNROLL
    for (int part = 0; part < 4; ++part) v[part] = to_i32(mul(load(x + i + part * kLanes), vinv));
    store_i8_4(q + i, v, flip);
  }
  for (; i < n; i += kLanes) {
    const int lanes = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    store_i8_n(q + i, to_i32(mul(load_n(x + i, lanes), vinv)), flip, lanes);
  }
}

template <class T>
void quantize_to(const T* x, const bool* mask, int64_t n, float inv, float zero_point, float q_min,
                 uint8_t flip, int8_t* q) {
  const F32 vinv = set1(inv), vzero = set1(zero_point), vmin = set1(q_min), vmax = set1(127.0f);
  for_vectors(n, [&](int64_t i, int lanes) {
    const F32 scaled = mul(load_kept(x, mask, i, lanes), vinv);
    const F32 shifted = add(round(keep(is_ordered(scaled), scaled)), vzero);
    const I32 v = to_i32(min(max(shifted, vmin), vmax));
    if (lanes == kLanes) {
      store_i8(q + i, v, flip);
    } else {
      store_i8_n(q + i, v, flip, lanes);
    }
  });
}

template <class T>
void dequantize_to(const int8_t* q, int64_t n, int32_t zero_point, float scale, T* out) {
  const I32 vzero = set1(zero_point);
  const F32 vscale = set1(scale);
  for_vectors(n, [&](int64_t i, int lanes) {
    const I32 v = lanes == kLanes ? load(q + i) : load_n(q + i, lanes);
    const F32 y = mul(to_f32(sub(v, vzero)), vscale);
    store_lanes(out + i, y, lanes);
  });
}

void range(const void* x, DType dtype, const bool* mask, int64_t n, Range* r) {
  switch (dtype) {
    case DType::f32: return range_of(static_cast<const float*>(x), mask, n, r);
    case DType::f16: return range_of(static_cast<const f16*>(x), mask, n, r);
    case DType::bf16: return range_of(static_cast<const bf16*>(x), mask, n, r);
    default: return range_of(static_cast<const double*>(x), mask, n, r);
  }
}

uint32_t max_bits(const void* x, DType dtype, int64_t n) {
  switch (dtype) {
    case DType::f32: return max_bits_of(static_cast<const float*>(x), n);
    case DType::f16: return max_bits_of(static_cast<const f16*>(x), n);
    case DType::bf16: return max_bits_of(static_cast<const bf16*>(x), n);
    default: return max_bits_of(static_cast<const double*>(x), n);
  }
}

void quantize_bounded(const void* x, DType dtype, int64_t n, float inv, uint8_t flip, int8_t* q) {
  switch (dtype) {
    case DType::f32: return quantize_bounded_to(static_cast<const float*>(x), n, inv, flip, q);
    case DType::f16: return quantize_bounded_to(static_cast<const f16*>(x), n, inv, flip, q);
    case DType::bf16: return quantize_bounded_to(static_cast<const bf16*>(x), n, inv, flip, q);
    default: return quantize_bounded_to(static_cast<const double*>(x), n, inv, flip, q);
  }
}

void quantize(const void* x, DType dtype, const bool* mask, int64_t n, float inv, float zero_point,
              float q_min, uint8_t flip, int8_t* q) {
  switch (dtype) {
    case DType::f32:
      return quantize_to(static_cast<const float*>(x), mask, n, inv, zero_point, q_min, flip, q);
    case DType::f16: return quantize_to(static_cast<const f16*>(x), mask, n, inv, zero_point, q_min, flip, q);
    case DType::bf16:
      return quantize_to(static_cast<const bf16*>(x), mask, n, inv, zero_point, q_min, flip, q);
    default: return quantize_to(static_cast<const double*>(x), mask, n, inv, zero_point, q_min, flip, q);
  }
}

void dequantize(const int8_t* q, int64_t n, int32_t zero_point, float scale, void* out, DType dtype) {
  switch (dtype) {
    case DType::f32: return dequantize_to(q, n, zero_point, scale, static_cast<float*>(out));
    case DType::f16: return dequantize_to(q, n, zero_point, scale, static_cast<f16*>(out));
    case DType::bf16: return dequantize_to(q, n, zero_point, scale, static_cast<bf16*>(out));
    default: return dequantize_to(q, n, zero_point, scale, static_cast<double*>(out));
  }
}

}  // namespace
}  // namespace octavo
