// Patterns over the vector words of the vec_*.h included before: n:m groups, scores of rows, columns and blocks, and masks
// that are given.
#include "cpu/stream.h"
#include "cpu/vec/unroll.h"
#include "octavo.h"

namespace octavo {
namespace {

// ---- n:m: element i of a group stays if fewer than n are larger, or equal with a lower index -----------------------

// Whole groups in a vector: each lane meets the others of its group by rotation. An equal key with a lower index counts
// as larger, which is what adding 1 to it says: keys are integers.
template <int kM, class T>
void prune_nm_in_lanes(const T* w, int64_t elements, int n, bool* mask, T* pruned) {
  I32 partner[kM], lower[kM];
  for (int rotation = 1; rotation < kM; ++rotation) {
    int32_t index[kLanes], is_lower[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int i = lane % kM, j = (i + rotation) % kM;
      index[lane] = lane - i + j;
      is_lower[lane] = j < i;
    }
    partner[rotation] = load(index);
    lower[rotation] = load(is_lower);
  }
  const I32 kept_ranks = set1(n);
  const auto kept_of = [&](I32 key) {
    I32 larger = set1(0);
    OCTAVO_UNROLL
    for (int rotation = 1; rotation < kM; ++rotation) {
      const I32 other = add(permute(key, partner[rotation]), lower[rotation]);
      larger = increment(larger, greater(other, key));
    }
    return greater(kept_ranks, larger);
  };
  int64_t i = 0;
  for (; i + 4 * kLanes <= elements; i += 4 * kLanes) {
    prefetch_ahead(w + i, 4 * kLanes * static_cast<int64_t>(sizeof(T)));
    Mask kept[4];
    for (int part = 0; part < 4; ++part) {
      const int64_t at = i + part * kLanes;
      kept[part] = kept_of(keys(load(w + at)));
      if (pruned) store_kept(pruned + at, w + at, kept[part]);
    }
    if (mask) store_mask_4(mask + i, kept);
  }
  for (; i < elements; i += kLanes) {
    const int lanes = elements - i < kLanes ? static_cast<int>(elements - i) : kLanes;
    const Mask kept = kept_of(keys(load_n(w + i, lanes)));
    if (pruned) store_kept_n(pruned + i, w + i, kept, lanes);
    if (mask) store_mask_n(mask + i, kept, lanes);
  }
}

// A group in each lane.
template <class T>
void prune_nm_across_lanes(const T* w, int64_t groups, int n, int m, bool* mask, T* pruned) {
  const I32 kept_ranks = set1(n), one = set1(1);
  for (int64_t first = 0; first < groups; first += kLanes) {
    const int64_t in_lanes = groups - first < kLanes ? groups - first : kLanes;
    const int64_t elements = in_lanes * m, start = first * m;
    int32_t key[kMaxGroup * kLanes] = {}, across[kMaxGroup * kLanes];
    bool kept[kMaxGroup * kLanes], kept_across[kMaxGroup * kLanes];
    for (int64_t i = 0; i < elements; i += kLanes) {
      const int lanes = elements - i < kLanes ? static_cast<int>(elements - i) : kLanes;
      store(key + i, keys(load_n(w + start + i, lanes)));
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int i = 0; i < m; ++i) across[i * kLanes + lane] = key[lane * m + i];
    }
    for (int i = 0; i < m; ++i) {
      const I32 mine = load(across + i * kLanes), below_mine = sub(mine, one);
      I32 larger = set1(0);
      for (int j = 0; j < i; ++j) larger = increment(larger, greater(load(across + j * kLanes), below_mine));
      for (int j = i + 1; j < m; ++j) larger = increment(larger, greater(load(across + j * kLanes), mine));
      store_mask(kept_across + i * kLanes, greater(kept_ranks, larger));
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int i = 0; i < m; ++i) kept[lane * m + i] = kept_across[i * kLanes + lane];
    }
    if (mask) memcpy(mask + start, kept, static_cast<size_t>(elements));
    for (int64_t i = 0; pruned && i < elements; i += kLanes) {
      const int lanes = elements - i < kLanes ? static_cast<int>(elements - i) : kLanes;
      store_kept_n(pruned + start + i, w + start + i, load_mask_n(kept + i, lanes), lanes);
    }
  }
}

template <class T>
void prune_nm_of(const T* w, int64_t groups, int n, int m, bool* mask, T* pruned) {
  switch (kLanes % m == 0 ? m : 0) {
    case 2: return prune_nm_in_lanes<2>(w, groups * 2, n, mask, pruned);
    case 4: return prune_nm_in_lanes<4>(w, groups * 4, n, mask, pruned);
    case 8: return prune_nm_in_lanes<8>(w, groups * 8, n, mask, pruned);
    case 16: return prune_nm_in_lanes<16>(w, groups * 16, n, mask, pruned);
    default: return prune_nm_across_lanes(w, groups, n, m, mask, pruned);
  }
}

void prune_nm(const void* w, DType dtype, int64_t groups, int n, int m, bool* mask, void* pruned) {
  switch (dtype) {
    case DType::f32:
      return prune_nm_of(static_cast<const float*>(w), groups, n, m, mask, static_cast<float*>(pruned));
    case DType::f16:
      return prune_nm_of(static_cast<const f16*>(w), groups, n, m, mask, static_cast<f16*>(pruned));
    case DType::bf16:
      return prune_nm_of(static_cast<const bf16*>(w), groups, n, m, mask, static_cast<bf16*>(pruned));
    default:
      return prune_nm_of(static_cast<const double*>(w), groups, n, m, mask, static_cast<double*>(pruned));
  }
}

// ---- scores: eight partial sums, in the order that docs/numerics.md gives -------------------------------------------

// The compiler's own vectors: eight sums are one register here, four there, and the words know no double.
constexpr int kSums = 8;
typedef float Eight __attribute__((vector_size(kSums * sizeof(float))));
typedef double Sums __attribute__((vector_size(kSums * sizeof(double))));

template <class T>
inline void add_eight(const T* w, Sums& sums) {
  constexpr int kStep = kLanes < kSums ? kLanes : kSums;
  float lanes[kLanes < kSums ? kSums : kLanes];
  for (int i = 0; i < kSums; i += kStep) store(lanes + i, abs(load_n(w + i, kStep)));
  Eight magnitudes;
  memcpy(&magnitudes, lanes, sizeof magnitudes);
  sums += __builtin_convertvector(magnitudes, Sums);
}

template <class T>
inline double magnitude(const T* w) {
  float lanes[kLanes];
  store(lanes, abs(load_n(w, 1)));
  return static_cast<double>(lanes[0]);
}

template <class T>
void add_units_of(const T* w, int64_t units, int64_t unit_cols, int64_t index, double* sums) {
  for (int64_t unit = 0; unit < units; ++unit, w += unit_cols, sums += kSums) {
    int64_t i = 0;
    for (; i < unit_cols && (index + i) % kSums; ++i) sums[(index + i) % kSums] += magnitude(w + i);
    if (i + kSums <= unit_cols) {
      Sums s;
      memcpy(&s, sums, sizeof s);
      for (; i + kSums <= unit_cols; i += kSums) {
        prefetch_ahead(w + i, kSums * static_cast<int64_t>(sizeof(T)));
        add_eight(w + i, s);
      }
      memcpy(sums, &s, sizeof s);
    }
    for (; i < unit_cols; ++i) sums[(index + i) % kSums] += magnitude(w + i);
  }
}

template <class T>
void add_columns_of(const T* w, int64_t n, int64_t stride, double* sums) {
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(w + i) +
                                                     static_cast<uintptr_t>(stride) * sizeof(T)));
    Sums s;
    memcpy(&s, sums + i, sizeof s);
    add_eight(w + i, s);
    memcpy(sums + i, &s, sizeof s);
  }
  for (; i < n; ++i) sums[i] += magnitude(w + i);
}

void add_units(const void* w, DType dtype, int64_t units, int64_t unit_cols, int64_t index, double* sums) {
  switch (dtype) {
    case DType::f32: return add_units_of(static_cast<const float*>(w), units, unit_cols, index, sums);
    case DType::f16: return add_units_of(static_cast<const f16*>(w), units, unit_cols, index, sums);
    case DType::bf16: return add_units_of(static_cast<const bf16*>(w), units, unit_cols, index, sums);
    default: return add_units_of(static_cast<const double*>(w), units, unit_cols, index, sums);
  }
}

void add_columns(const void* w, DType dtype, int64_t n, int64_t stride, double* sums) {
  switch (dtype) {
    case DType::f32: return add_columns_of(static_cast<const float*>(w), n, stride, sums);
    case DType::f16: return add_columns_of(static_cast<const f16*>(w), n, stride, sums);
    case DType::bf16: return add_columns_of(static_cast<const bf16*>(w), n, stride, sums);
    default: return add_columns_of(static_cast<const double*>(w), n, stride, sums);
  }
}

// ---- a given mask -----------------------------------------------------------------------------------------------------

template <class T>
void apply_mask_of(const T* w, const bool* mask, int64_t n, T* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    if (n - i >= kLanes) {
      store_kept(out + i, w + i, load_mask(mask + i));
    } else {
      const int lanes = static_cast<int>(n - i);
      store_kept_n(out + i, w + i, load_mask_n(mask + i, lanes), lanes);
    }
  }
}

void apply_mask(const void* w, DType dtype, const bool* mask, int64_t n, void* out) {
  switch (dtype) {
    case DType::f32: return apply_mask_of(static_cast<const float*>(w), mask, n, static_cast<float*>(out));
    case DType::f64: return apply_mask_of(static_cast<const double*>(w), mask, n, static_cast<double*>(out));
    default:
      return apply_mask_of(static_cast<const f16*>(w), mask, n, static_cast<f16*>(out));  // only bits matter
  }
}

}  // namespace
}  // namespace octavo
