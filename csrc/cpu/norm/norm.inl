// RMSNorm and LayerNorm of a row over the vector words of the vec_*.h included before. Only the first pass reads memory: the
// others find the row in the cache.
#include "cpu/stream.h"
#include "cpu/vec/unroll.h"
#include "cpu/vec/vectors.h"
#include "octavo.h"

namespace octavo {
namespace {

// The lane sums of the vectors that f(i, lanes) returns for a row of n values, with zeros beyond its end. All lanes of some
// vectors at a time are summed in registers. They begin at +0.0, so that none ever is -0.0 and lanes without a value change
// nothing: of a short row only the ones that it has are added up.
template <class F>
float lane_sum(int64_t n, F f) {
  constexpr int kVectors = 4;
  constexpr int64_t kStep = kVectors * kLanes;
  alignas(64) float lanes[kSumLanes];
  int64_t width = kStep;
  while (width < kSumLanes && width < n) width *= 2;
  for (int64_t j = 0; j < width; j += kStep) {
    F32 sums[kVectors];
    OCTAVO_UNROLL
    for (auto& sum : sums) sum = set1(0.0f);
    int64_t i = j;
    for (; i + kStep <= n; i += kSumLanes) {
      OCTAVO_UNROLL
      for (int v = 0; v < kVectors; ++v) sums[v] = add(sums[v], f(i + v * kLanes, kLanes));
    }
    OCTAVO_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const int64_t left = n - i - v * kLanes;
      if (left > 0)
        sums[v] = add(sums[v], f(i + v * kLanes, left < kLanes ? static_cast<int>(left) : kLanes));
      store(lanes + j + v * kLanes, sums[v]);
    }
  }
  for (; width > kLanes; width /= 2) {
    for (int64_t j = 0; j < width / 2; j += kLanes)
      store(lanes + j, add_pairs(load(lanes + 2 * j), load(lanes + 2 * j + kLanes)));
  }
  F32 sum = load(lanes);
  for (int left = kLanes; left > 1; left /= 2) sum = add_pairs(sum, sum);
  store(lanes, sum);
  return lanes[0];
}

// The sum of f(h); writes row.sum.
template <class T, class F>
float read_row(const NormRow& row, F f) {
  const auto *x = static_cast<const T*>(row.x), *residual = static_cast<const T*>(row.residual);
  auto* sum = static_cast<T*>(row.sum);
  constexpr int64_t kSize = sizeof(T);
  const int64_t ahead = row_ahead(row.cols * kSize);
  return lane_sum(row.cols, [&](int64_t i, int lanes) {
    prefetch_ahead(x + i, kLanes * kSize, ahead);
    const F32 v = load_lanes(x + i, lanes);
    if (!residual) return f(v);
    prefetch_ahead(residual + i, kLanes * kSize, ahead);
    store_lanes(sum + i, add(v, load_lanes(residual + i, lanes)), lanes);
    return f(load_lanes(sum + i, lanes));  // rounded
  });
}

template <class T>
uint32_t normalize_row(const NormRow& row, float* y) {
  const auto* h = static_cast<const T*>(row.residual ? row.sum : row.x);
  const auto n = static_cast<float>(row.cols);
  F32 mean = set1(0.0f);  // +0.0 takes nothing away
  float squares;
  if (row.centered) {
    mean = set1(read_row<T>(row, [](F32 v) { return v; }) / n);
    squares = lane_sum(row.cols, [&](int64_t i, int lanes) {
      const F32 d = first_lanes_of(sub(load_lanes(h + i, lanes), mean), lanes);
      return mul(d, d);
    });
  } else {
    squares = read_row<T>(row, [](F32 v) { return mul(v, v); });
  }
  const F32 r = set1(1.0f / __builtin_sqrtf(squares / n + row.eps));
  const float *weight = row.weight, *bias = row.bias;
  auto* normed = static_cast<T*>(row.normed);
  I32 top = set1(0);
  for_vectors(row.cols, [&](int64_t i, int lanes) {
    F32 v = mul(sub(load_lanes(h + i, lanes), mean), r);
    if (weight) v = mul(v, load_lanes(weight + i, lanes));
    if (bias) v = add(v, load_lanes(bias + i, lanes));
    store_lanes(y + i, v, lanes);
    if (normed) store_lanes(normed + i, v, lanes);
    top = max(top, magnitude_bits(first_lanes_of(v, lanes)));
  });
  return reduce_max(top);
}

uint32_t normalize(const NormRow& row, float* y) {
  switch (row.dtype) {
    case DType::f32: return normalize_row<float>(row, y);
    case DType::f16: return normalize_row<f16>(row, y);
    case DType::bf16: return normalize_row<bf16>(row, y);
    default: return normalize_row<double>(row, y);
  }
}

}  // namespace
}  // namespace octavo
