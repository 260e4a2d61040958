// Masks by magnitude over the vector words of the vec_*.h included before. Magnitudes are compared as integer keys.
#include "cpu/stream.h"
#include "cpu/vec/unroll.h"
#include "octavo.h"

namespace octavo {
namespace {

// >= key is > key - 1; keys are below 2^31, and key 0 with keep_equal compares with -1.
inline I32 just_below(uint32_t key, bool keep_equal) {
  return set1(static_cast<int32_t>(key) - (keep_equal ? 1 : 0));
}

template <bool kMask, bool kPruned, class T>
void prune_to(const T* w, int64_t n, uint32_t key, bool keep_equal, bool* mask, T* pruned) {
  const I32 above = just_below(key, keep_equal);
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    prefetch_ahead(w + i, 4 * kLanes * static_cast<int64_t>(sizeof(T)));
    Mask kept[4];
    OCTAVO_UNROLL
    for (int part = 0; part < 4; ++part) {
      const int64_t at = i + part * kLanes;
      kept[part] = greater(keys(load(w + at)), above);
      if (kPruned) store_kept(pruned + at, w + at, kept[part]);
    }
    if (kMask) store_mask_4(mask + i, kept);
  }
  for (; i < n; i += kLanes) {
    const int lanes = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    const Mask kept = greater(keys(load_n(w + i, lanes)), above);
    if (kPruned) store_kept_n(pruned + i, w + i, kept, lanes);
    if (kMask) store_mask_n(mask + i, kept, lanes);
  }
}

template <class T>
void prune_of(const T* w, int64_t n, uint32_t key, bool keep_equal, bool* mask, T* pruned) {
  if (!pruned) return prune_to<true, false>(w, n, key, keep_equal, mask, pruned);
  if (!mask) return prune_to<false, true>(w, n, key, keep_equal, mask, pruned);
  prune_to<true, true>(w, n, key, keep_equal, mask, pruned);
}

template <class T>
uint32_t prune_max_of(const T* w, int64_t n, uint32_t key, bool keep_equal, bool* mask) {
  const I32 above = just_below(key, keep_equal);
  I32 top[4];
  for (auto& t : top) t = set1(0);
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    prefetch_ahead(w + i, 4 * kLanes * static_cast<int64_t>(sizeof(T)));
    Mask kept[4];
    OCTAVO_UNROLL
    for (int part = 0; part < 4; ++part) {
      const I32 key_of = keys(load(w + i + part * kLanes));
      kept[part] = greater(key_of, above);
      top[part] = max(top[part], key_of);
    }
    store_mask_4(mask + i, kept);
  }
  for (; i < n; i += kLanes) {
    const int lanes = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    const I32 key_of = keys(load_n(w + i, lanes));
    top[0] = max(top[0], key_of);
    store_mask_n(mask + i, greater(key_of, above), lanes);
  }
  int32_t lanes[kLanes];
  store(lanes, max(max(top[0], top[1]), max(top[2], top[3])));
  uint32_t result = 0;
  for (const int32_t lane : lanes)
    result = static_cast<uint32_t>(lane) > result ? static_cast<uint32_t>(lane) : result;
  // The largest of all is the largest of the kept, unless nothing is kept.
  return result > key || (result == key && keep_equal) ? result : 0;
}

template <class T>
void quantize_kept_to(const T* w, int64_t n, uint32_t key, bool keep_equal, float inv, int8_t* q) {
  const I32 above = just_below(key, keep_equal);
  const F32 vinv = set1(inv);
  const auto quantized = [&](F32 v) { return to_i32(mul(keep(greater(keys(v), above), v), vinv)); };
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    I32 v[4];
    OCTAVO_UNROLL
    for (int part = 0; part < 4; ++part) v[part] = quantized(load(w + i + part * kLanes));
    store_i8_4(q + i, v, 0);
  }
  for (; i < n; i += kLanes) {
    const int lanes = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    store_i8_n(q + i, quantized(load_n(w + i, lanes)), 0, lanes);
  }
}

template <class T>
int64_t count_equal_of(const T* w, int64_t n, uint32_t key) {
  const I32 wanted = set1(static_cast<int32_t>(key));
  int64_t total = 0, i = 0;
  for (; i + kLanes <= n; i += kLanes) total += count(equal(keys(load(w + i)), wanted));
  if (i < n) {
    const int lanes = static_cast<int>(n - i);
    total += count(equal(keys(load_n(w + i, lanes)), wanted));
    if (key == 0) total -= kLanes - lanes;  // the lanes beyond the end read as 0
  }
  return total;
}

inline int64_t sum_of(I32 v) {
  int32_t lanes[kLanes];
  store(lanes, v);
  int64_t sum = 0;
  for (const int32_t lane : lanes) sum += lane;
  return sum;
}

template <class T>
KeyCounts bracket_of(const T* w, int64_t n, int32_t lo, int32_t hi, int32_t* inside) {
  const I32 vlo = set1(lo), vhi = set1(hi);
  I32 below = set1(0), at_lo = set1(0), at_hi = set1(0);
  int32_t* next = inside;
  int64_t i = 0;
  // Four quarters at once: a single stream does not reach what the memory can give.
  constexpr int kStreams = 4;
  const int64_t quarter = n / (kStreams * kLanes) * kLanes;
  for (; i < quarter; i += kLanes) {
    OCTAVO_UNROLL
    for (int s = 0; s < kStreams; ++s) {
      const T* p = w + s * quarter + i;
      prefetch_ahead(p, kLanes * static_cast<int64_t>(sizeof(T)));
      const I32 key = keys(load(p));
      below = increment(below, greater(vlo, key));
      at_lo = increment(at_lo, equal(key, vlo));
      at_hi = increment(at_hi, equal(key, vhi));
      next += compress(next, both(greater(key, vlo), greater(vhi, key)), key);
    }
  }
  i = kStreams * quarter;
  KeyCounts counts = {sum_of(below), sum_of(at_lo), sum_of(at_hi), 0};
  for (; i < n; i += kLanes) {
    const int lanes = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    int32_t rest[kLanes];
    store(rest, keys(load_n(w + i, lanes)));
    for (int j = 0; j < lanes; ++j) {
      counts.below += rest[j] < lo;
      counts.at_lo += rest[j] == lo;
      counts.at_hi += rest[j] == hi;
      if (rest[j] > lo && rest[j] < hi) *next++ = rest[j];
    }
  }
  counts.inside = next - inside;
  return counts;
}

void prune(const void* w, DType dtype, int64_t n, uint32_t key, bool keep_equal, bool* mask, void* pruned) {
  switch (dtype) {
    case DType::f32:
      return prune_of(static_cast<const float*>(w), n, key, keep_equal, mask, static_cast<float*>(pruned));
    case DType::f16:
      return prune_of(static_cast<const f16*>(w), n, key, keep_equal, mask, static_cast<f16*>(pruned));
    case DType::bf16:
      return prune_of(static_cast<const bf16*>(w), n, key, keep_equal, mask, static_cast<bf16*>(pruned));
    default:
      return prune_of(static_cast<const double*>(w), n, key, keep_equal, mask, static_cast<double*>(pruned));
  }
}

uint32_t prune_max(const void* w, DType dtype, int64_t n, uint32_t key, bool keep_equal, bool* mask) {
  switch (dtype) {
    case DType::f32: return prune_max_of(static_cast<const float*>(w), n, key, keep_equal, mask);
    case DType::f16: return prune_max_of(static_cast<const f16*>(w), n, key, keep_equal, mask);
    case DType::bf16: return prune_max_of(static_cast<const bf16*>(w), n, key, keep_equal, mask);
    default: return prune_max_of(static_cast<const double*>(w), n, key, keep_equal, mask);
  }
}

void quantize_kept(const void* w, DType dtype, int64_t n, uint32_t key, bool keep_equal, float inv,
                   int8_t* q) {
  switch (dtype) {
    case DType::f32: return quantize_kept_to(static_cast<const float*>(w), n, key, keep_equal, inv, q);
    case DType::f16: return quantize_kept_to(static_cast<const f16*>(w), n, key, keep_equal, inv, q);
    case DType::bf16: return quantize_kept_to(static_cast<const bf16*>(w), n, key, keep_equal, inv, q);
    default: return quantize_kept_to(static_cast<const double*>(w), n, key, keep_equal, inv, q);
  }
}

int64_t count_equal(const void* w, DType dtype, int64_t n, uint32_t key) {
  switch (dtype) {
    case DType::f32: return count_equal_of(static_cast<const float*>(w), n, key);
    case DType::f16: return count_equal_of(static_cast<const f16*>(w), n, key);
    case DType::bf16: return count_equal_of(static_cast<const bf16*>(w), n, key);
    default: return count_equal_of(static_cast<const double*>(w), n, key);
  }
}

KeyCounts bracket(const void* w, DType dtype, int64_t n, int32_t lo, int32_t hi, int32_t* inside) {
  switch (dtype) {
    case DType::f32: return bracket_of(static_cast<const float*>(w), n, lo, hi, inside);
    case DType::f16: return bracket_of(static_cast<const f16*>(w), n, lo, hi, inside);
    case DType::bf16: return bracket_of(static_cast<const bf16*>(w), n, lo, hi, inside);
    default: return bracket_of(static_cast<const double*>(w), n, lo, hi, inside);
  }
}

}  // namespace
}  // namespace octavo
