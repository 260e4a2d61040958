// What the drivers share: walking a strided row in contiguous pieces, and quantizing it.
#pragma once

#include "dispatch.h"
#include "layouts.h"
#include "numerics.h"
#include "stream.h"

namespace octavo {

static inline int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    default: return 2;
  }
}

// Bytes between staged rows of A. A line of padding where the padded k is a multiple of 128: rows a power of two apart
// would share few cache sets.
static inline int64_t staged_stride(int64_t k) {
  const int64_t padded = padded_k(k);
  return padded / kPanelK % 2 == 0 ? padded + kPanelK : padded;
}

// Element i of a contiguous array, as float32.
static inline float element(const void* x, DType dtype, int64_t i) {
  const char* p = static_cast<const char*>(x) + i * size_of(dtype);
  uint16_t h;
  float f;
  double d;
  switch (dtype) {
    case DType::f16: memcpy(&h, p, sizeof h); return f16_to_float(h);
    case DType::bf16: memcpy(&h, p, sizeof h); return bf16_to_float(h);
    case DType::f64: memcpy(&d, p, sizeof d); return static_cast<float>(d);
    default: memcpy(&f, p, sizeof f); return f;
  }
}

// Calls body(pointer, dtype, first column, count) on contiguous pieces of columns [begin, end) of a row. Columns that are
// not adjacent are gathered through the stack.
template <class Body>
static inline void for_pieces(const FloatRows& x, int64_t row, int64_t begin, int64_t end, Body body) {
  const int64_t size = size_of(x.dtype);
  const char* base = static_cast<const char*>(x.data) + row * x.row_stride * size;
  if (begin >= end) return;
  if (x.col_stride == 1) return body(base + begin * size, x.dtype, begin, end - begin);
  constexpr int64_t kPiece = 512;
  float piece[kPiece];
  for (int64_t i = begin; i < end; i += kPiece) {
    const int64_t count = end - i < kPiece ? end - i : kPiece;
    for (int64_t j = 0; j < count; ++j) piece[j] = element(base + (i + j) * x.col_stride * size, x.dtype, 0);
    body(piece, DType::f32, i, count);
  }
}

// Widens r by columns [begin, end) of a row.
static inline void widen_range(const FloatRows& x, const bool* mask, int64_t row, int64_t begin, int64_t end,
                               Range* r) {
  for_pieces(x, row, begin, end, [&](const void* p, DType dtype, int64_t first, int64_t count) {
    kernels().quantize->range(p, dtype, mask ? mask + row * x.cols + first : nullptr, count, r);
  });
}

static inline Affine symmetric_affine(const Range& r) {
  const float amax = -r.lo > r.hi ? -r.lo : r.hi;
  return symmetric_affine(amax);
}

// quantize_bounded past the caches; stream_fence() has to follow.
static inline void quantize_streaming(const void* x, DType dtype, int64_t n, float inv, int8_t* q) {
  const char* p = static_cast<const char*>(x);
  for (int64_t i = 0; i < n; i += kStreamPiece) {
    alignas(kStreamLine) int8_t piece[kStreamPiece];
    const int64_t count = n - i < kStreamPiece ? n - i : kStreamPiece;
    kernels().quantize->quantize_bounded(p + i * size_of(dtype), dtype, count, inv, 0, piece);
    stream_copy(q + i, piece, count);
  }
}

// Quantizes columns [begin, end) of a row, of which `top` are the max_bits, by their own symmetric scale, to
// q[column - begin]; returns the scale. Where everything is finite, as nearly always, nothing needs to be clamped.
// streaming: writes past the caches, without flip; stream_fence() has to follow.
static inline float quantize_symmetric(const FloatRows& x, int64_t row, int64_t begin, int64_t end,
                                       uint32_t top, uint8_t flip, int8_t* q, bool streaming) {
  const QuantizeKernels& kernel = *kernels().quantize;
  const bool finite = top < kInfKey;
  Range range = {0.0f, finite ? float_of(top) : 0.0f};
  if (!finite) widen_range(x, nullptr, row, begin, end, &range);
  const Affine affine = symmetric_affine(range);
  for_pieces(x, row, begin, end, [&](const void* p, DType dtype, int64_t first, int64_t count) {
    int8_t* target = q + first - begin;
    if (!finite) return kernel.quantize(p, dtype, nullptr, count, affine.inv, 0.0f, -127.0f, flip, target);
    if (streaming) return quantize_streaming(p, dtype, count, affine.inv, target);
    kernel.quantize_bounded(p, dtype, count, affine.inv, flip, target);
  });
  return affine.scale;
}

// Quantizes columns [begin, end) of a row by their own scale and zero point, to q[column - begin].
static inline Affine quantize_asymmetric(const FloatRows& x, int64_t row, int64_t begin, int64_t end,
                                         uint8_t flip, int8_t* q) {
  Range range = {0.0f, 0.0f};
  widen_range(x, nullptr, row, begin, end, &range);
  const Affine affine = asymmetric_affine(range.lo, range.hi);
  const float zero = static_cast<float>(affine.zero_point);
  for_pieces(x, row, begin, end, [&](const void* p, DType dtype, int64_t first, int64_t count) {
    kernels().quantize->quantize(p, dtype, nullptr, count, affine.inv, zero, -128.0f, flip,
                                 q + first - begin);
  });
  return affine;
}

// quantize_symmetric where the largest magnitude has to be found first.
static inline float quantize_symmetric(const FloatRows& x, int64_t row, int64_t begin, int64_t end,
                                       uint8_t flip, int8_t* q, bool streaming = false) {
  uint32_t top = 0;
  for_pieces(x, row, begin, end, [&](const void* p, DType dtype, int64_t, int64_t count) {
    const uint32_t bits = kernels().quantize->max_bits(p, dtype, count);
    top = bits > top ? bits : top;
  });
  return quantize_symmetric(x, row, begin, end, top, flip, q, streaming);
}

}  // namespace octavo
