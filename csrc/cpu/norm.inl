// RMSNorm and LayerNorm of a row over the vector words of the vec_*.h included before. Only the first pass reads memory: the
// others find y, and what they need beside it, in the cache.
#include "../octavo.h"
#include "stream.h"
#include "vectors.h"

namespace octavo {
namespace {

// The lane sums of a row of n values. They begin at +0.0, so that no sum is -0.0 and lanes without a value change nothing:
// only the ones that a short row has are kept.
class LaneSums {
 public:
  explicit LaneSums(int64_t n) {
    while (width_ < kSumLanes && width_ < n) width_ *= 2;
    for (int64_t j = 0; j < width_; j += kLanes) store(lanes_ + j, set1(0.0f));
  }

  // Adds the values that body(i, lanes) returns, vector by vector.
  template <class Body>
  void add_row(int64_t n, Body body) {
    for (int64_t first = 0; first < n; first += kSumLanes) {
      for_vectors(n - first < kSumLanes ? n - first : kSumLanes, [&](int64_t j, int lanes) {
        store(lanes_ + j, add(load(lanes_ + j), body(first + j, lanes)));
      });
    }
  }

  float total() {
    for (; width_ > kLanes; width_ /= 2) {
      for (int64_t j = 0; j < width_ / 2; j += kLanes)
        store(lanes_ + j, add_pairs(load(lanes_ + 2 * j), load(lanes_ + 2 * j + kLanes)));
    }
    F32 v = load(lanes_);
    for (int width = kLanes; width > 1; width /= 2) v = add_pairs(v, v);
    store(lanes_, v);
    return lanes_[0];
  }

 private:
  int64_t width_ = kLanes;
  alignas(64) float lanes_[kSumLanes];
};

// y = h; returns the sum of f(h).
template <class T, class F>
float load_row(const NormRow& row, float* y, F f) {
  const auto *x = static_cast<const T*>(row.x), *residual = static_cast<const T*>(row.residual);
  auto* sum = static_cast<T*>(row.sum);
  const int64_t ahead = row_ahead(row.cols * static_cast<int64_t>(sizeof(T)));
  LaneSums sums(row.cols);
  sums.add_row(row.cols, [&](int64_t i, int lanes) {
    prefetch_ahead(x + i, kLanes * static_cast<int64_t>(sizeof(T)), ahead);
    F32 h = load_lanes(x + i, lanes);
    if (residual) {
      prefetch_ahead(residual + i, kLanes * static_cast<int64_t>(sizeof(T)), ahead);
      store_lanes(sum + i, add(h, load_lanes(residual + i, lanes)), lanes);
      h = load_lanes(sum + i, lanes);  // rounded
    }
    store_lanes(y + i, h, lanes);
    return f(h);
  });
  return sums.total();
}

// y = y - mean; returns the sum of its squares.
float center(float* y, int64_t n, float mean) {
  const F32 vmean = set1(mean);
  LaneSums sums(n);
  sums.add_row(n, [&](int64_t i, int lanes) {
    const F32 d = sub(load_lanes(y + i, lanes), vmean);
    store_lanes(y + i, d, lanes);
    const F32 there = load_lanes(y + i, lanes);  // 0 beyond the end
    return mul(there, there);
  });
  return sums.total();
}

// y = y * r [* weight] [+ bias]
void scale(const NormRow& row, float r, float* y) {
  const F32 vr = set1(r);
  for_vectors(row.cols, [&](int64_t i, int lanes) {
    F32 v = mul(load_lanes(y + i, lanes), vr);
    if (row.weight) v = mul(v, load_lanes(row.weight + i, lanes));
    if (row.bias) v = add(v, load_lanes(row.bias + i, lanes));
    store_lanes(y + i, v, lanes);
  });
}

template <class T>
void normalize_row(const NormRow& row, float* y) {
  const auto n = static_cast<float>(row.cols);
  float squares;
  if (row.centered) {
    const float sum = load_row<T>(row, y, [](F32 h) { return h; });
    squares = center(y, row.cols, sum / n);
  } else {
    squares = load_row<T>(row, y, [](F32 h) { return mul(h, h); });
  }
  scale(row, 1.0f / __builtin_sqrtf(squares / n + row.eps), y);
}

void normalize(const NormRow& row, float* y) {
  switch (row.dtype) {
    case DType::f32: return normalize_row<float>(row, y);
    case DType::f16: return normalize_row<f16>(row, y);
    case DType::bf16: return normalize_row<bf16>(row, y);
    default: return normalize_row<double>(row, y);
  }
}

}  // namespace
}  // namespace octavo
