// Patterns: n:m groups, the scores of rows, columns and blocks, masks of whole units, and masks as bits.
#include "check.h"
#include "octavo_cuda.h"
#include "packs.cuh"

namespace octavo {
namespace cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(int64_t threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); }

__device__ __forceinline__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

// ---- n:m: element i of a group stays if fewer than n are larger, or equal with a lower index -------------------------

// A thread has whole groups, and whole packs.
template <class T, int kM>
constexpr int kRun = kM > Pack<T>::kCount ? kM : Pack<T>::kCount;

template <class T, int kM>
__global__ void __launch_bounds__(kThreads)
    prune_nm_packs(const T* w, int64_t runs, int n, bool* mask, T* pruned) {
  constexpr int kCount = Pack<T>::kCount, kElements = kRun<T, kM>, kPacks = kElements / kCount;
  const int64_t first = thread_index() * kElements;
  if (first >= runs * kElements) return;
  Pack<T> packs[kPacks];
  uint32_t keys[kElements];
  int larger[kElements];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) packs[p] = load_pack(w + first + p * kCount);
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    keys[i] = magnitude_key(to_float(packs[i / kCount].v[i % kCount]));
    larger[i] = 0;
  }
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
#pragma unroll
    for (int j = i + 1; j < (i / kM + 1) * kM; ++j) {
      const bool second = keys[j] > keys[i];
      larger[i] += second;
      larger[j] += !second;
    }
  }
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    using Word = PackedBytes<kCount>;
    Word kept_bytes = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool kept = larger[p * kCount + i] < n;
      kept_bytes |= static_cast<Word>(static_cast<Word>(kept) << (8 * i));
      if (!kept) packs[p].v[i] = T();
    }
    if (mask) __stcs(reinterpret_cast<Word*>(mask + first) + p, kept_bytes);
    if (pruned) store_pack(pruned + first + p * kCount, packs[p]);
  }
}

// Any m, any alignment: a block has as many groups as fit its threads, a thread one element of them.
template <class T>
__global__ void __launch_bounds__(kThreads)
    prune_nm_elements(const T* w, int64_t groups, int n, int m, bool* mask, T* pruned) {
  __shared__ uint32_t keys[kThreads];
  const int t = static_cast<int>(threadIdx.x), in_block = kThreads / m * m;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * in_block + t;
  const bool has_element = t < in_block && at < groups * m;
  const T v = has_element ? w[at] : T();
  keys[t] = magnitude_key(to_float(v));
  __syncthreads();  // also: the whole group is read before any of it is written
  if (!has_element) return;
  const int first = t / m * m;
  int larger = 0;
  for (int j = first; j < first + m; ++j) larger += keys[j] > keys[t] || (keys[j] == keys[t] && j < t);
  const bool kept = larger < n;
  if (mask) mask[at] = kept;
  if (pruned) pruned[at] = kept ? v : T();
}

template <class T>
void launch_nm_elements(const Context& c, const T* w, int64_t groups, int n, int m, bool* mask, T* pruned) {
  const int64_t in_block = kThreads / m, blocks = (groups + in_block - 1) / in_block;
  if (blocks == 0) return;
  launch<prune_nm_elements<T>>(c, "prune_nm_elements", static_cast<unsigned>(blocks), kThreads, 0, w, groups,
                               n, m, mask, pruned);
}

template <int kM, class T>
void launch_nm_packs(const Context& c, const T* w, int64_t groups, int n, bool* mask, T* pruned) {
  constexpr int kElements = kRun<T, kM>;
  const int64_t runs = groups * kM / kElements, done = runs * kElements;
  if (runs) {
    launch<prune_nm_packs<T, kM>>(c, "prune_nm_packs", blocks_for(runs), kThreads, 0, w, runs, n, mask,
                                  pruned);
  }
  launch_nm_elements(c, w + done, groups - done / kM, n, kM, mask ? mask + done : nullptr,
                     pruned ? pruned + done : nullptr);
}

// ---- scores: eight partial sums, in the order that docs/numerics.md gives --------------------------------------------

constexpr int kSums = 8;
constexpr int kScoreUnits = kThreads / kSums;

// One thread adds up elements `sum`, `sum` + 8, ... of a unit; the loads do not wait for the additions.
template <class T>
__device__ __forceinline__ double partial_sum(const T* unit, int64_t cols, int64_t unit_cols,
                                              int64_t elements, int sum) {
  constexpr int kAtOnce = 16;
  const int64_t row_step = kSums / unit_cols, col_step = kSums % unit_cols;
  int64_t col = sum % unit_cols;
  const T* next = unit + sum / unit_cols * cols + col;
  const auto load = [&] {
    const T v = *next;
    next += row_step * cols + col_step;
    col += col_step;
    if (col >= unit_cols) {
      col -= unit_cols;
      next += cols - unit_cols;
    }
    return v;
  };
  double total = 0.0;
  const auto add = [&](T v) {
    total = __dadd_rn(total, static_cast<double>(float_of(bits_of(to_float(v)) & 0x7FFFFFFFu)));
  };
  int64_t i = sum;
  for (; i + (kAtOnce - 1) * kSums < elements; i += kAtOnce * kSums) {
    T held[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) held[u] = load();
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) add(held[u]);
  }
  for (; i < elements; i += kSums) add(load());
  return total;
}

// A block has kScoreUnits units beside each other. Neighbours in a warp read neighbours in memory: the partial sums of a unit,
// or, where units are narrow, the units.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_units(const T* w, int64_t cols, int64_t unit_rows, int64_t unit_cols, int64_t units, double* scores) {
  __shared__ double sums[kSums][kScoreUnits];
  const int t = static_cast<int>(threadIdx.x);
  const bool narrow = unit_cols < kSums;
  const int in_block = narrow ? t % kScoreUnits : t / kSums, sum = narrow ? t / kScoreUnits : t % kSums;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kScoreUnits, unit = first + in_block;
  if (unit < units) {
    const int64_t across = cols / unit_cols, band = unit / across;
    sums[sum][in_block] = partial_sum(w + band * unit_rows * cols + unit % across * unit_cols, cols,
                                      unit_cols, unit_rows * unit_cols, sum);
  }
  __syncthreads();
  if (t >= kScoreUnits || first + t >= units) return;
  const auto at = [&](int i) { return sums[i][t]; };
  scores[first + t] = ((at(0) + at(4)) + (at(2) + at(6))) + ((at(1) + at(5)) + (at(3) + at(7)));
}

// ---- masks of whole units --------------------------------------------------------------------------------------------

// The unit of one element after the other, in row-major order: divisions are for the first only, and for new rows.
struct UnitWalk {
  UnitGrid grid;
  int64_t across, row, col, unit, unit_end;
  __device__ __forceinline__ UnitWalk(const UnitGrid& grid_, int64_t at)
      : grid(grid_), across(grid.cols / grid.unit_cols), row(at / grid.cols), col(at - row * grid.cols) {
    const int64_t in_band = col / grid.unit_cols;
    unit = row / grid.unit_rows * across + in_band;
    unit_end = (in_band + 1) * grid.unit_cols;
  }
  __device__ __forceinline__ void advance() {
    if (++col < unit_end) return;
    ++unit;
    unit_end += grid.unit_cols;
    if (col < grid.cols) return;
    ++row;
    col = 0;
    unit = row / grid.unit_rows * across;
    unit_end = grid.unit_cols;
  }
};

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    prune_units_of(UnitGrid grid, const bool* keep, const T* w, bool* mask, T* pruned) {
  using Word = PackedBytes<kCount>;
  const int64_t first = thread_index() * kCount, n = grid.rows * grid.cols;
  const int count = static_cast<int>(n - first < kCount ? n - first : kCount);
  if (count <= 0) return;
  UnitWalk walk(grid, first);
  bool kept[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    kept[i] = i < count && keep[walk.unit];
    if (i + 1 < count) walk.advance();
  }
  if (count < kCount) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count && mask) mask[first + i] = kept[i];
      if (i < count && pruned) pruned[first + i] = kept[i] ? w[first + i] : T();
    }
    return;
  }
  if (mask) {
    Word kept_bytes = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) kept_bytes |= static_cast<Word>(static_cast<Word>(kept[i]) << (8 * i));
    __stcs(reinterpret_cast<Word*>(mask + first), kept_bytes);
  }
  if (!pruned) return;
  if constexpr (kCount == 1) {
    pruned[first] = kept[0] ? w[first] : T();
  } else {
    Pack<T> pack = load_pack(w + first);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (!kept[i]) pack.v[i] = T();
    }
    store_pack(pruned + first, pack);
  }
}

// ---- masks as bits: a thread for each byte, little bit order ---------------------------------------------------------

constexpr uint64_t kOnes = 0x0101010101010101u;

__global__ void __launch_bounds__(kThreads)
    pack_bytes(const bool* mask, int64_t rows, int64_t cols, uint8_t* bits) {
  const int64_t row_bytes = (cols + 7) / 8, at = thread_index();
  if (at >= rows * row_bytes) return;
  const int64_t row = at / row_bytes, first = (at - row * row_bytes) * 8;
  const auto* bools = reinterpret_cast<const uint8_t*>(mask) + row * cols + first;
  uint32_t byte = 0;
  if (first + 8 <= cols && is_aligned(bools, 8)) {
    const uint64_t eight = *reinterpret_cast<const uint64_t*>(bools);
#pragma unroll
    for (int i = 0; i < 8; ++i) byte |= static_cast<uint32_t>((eight >> (8 * i) & 0xFF) != 0) << i;
  } else {
    for (int i = 0; i < 8 && first + i < cols; ++i) byte |= static_cast<uint32_t>(bools[i] != 0) << i;
  }
  bits[at] = static_cast<uint8_t>(byte);
}

__global__ void __launch_bounds__(kThreads)
    unpack_bytes(const uint8_t* bits, int64_t rows, int64_t cols, bool* mask) {
  const int64_t row_bytes = (cols + 7) / 8, at = thread_index();
  if (at >= rows * row_bytes) return;
  const int64_t row = at / row_bytes, first = (at - row * row_bytes) * 8;
  bool* bools = mask + row * cols + first;
  const uint8_t byte = bits[at];
  if (first + 8 <= cols && is_aligned(bools, 8)) {
    const uint64_t own_bit = byte * kOnes & 0x8040201008040201u;  // bit i in byte i
    *reinterpret_cast<uint64_t*>(bools) = (own_bit + 0x7F * kOnes) >> 7 & kOnes;
  } else {
    for (int i = 0; i < 8 && first + i < cols; ++i) bools[i] = byte >> i & 1;
  }
}

}  // namespace

void prune_nm(const Context& c, const void* w, DType dtype, int64_t groups, int n, int m, bool* mask,
              void* pruned) {
  check(m >= 1 && m <= kMaxGroup, "m", "between 1 and 32", m);
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    const T* from = static_cast<const T*>(w);
    T* to = static_cast<T*>(pruned);
    const bool aligned = is_aligned(w, 16) && is_aligned(pruned, 16) && is_aligned(mask, Pack<T>::kCount);
    switch (aligned ? m : 0) {
      case 4: return launch_nm_packs<4>(c, from, groups, n, mask, to);
      case 8: return launch_nm_packs<8>(c, from, groups, n, mask, to);
      case 16: return launch_nm_packs<16>(c, from, groups, n, mask, to);
      default: return launch_nm_elements(c, from, groups, n, m, mask, to);
    }
  });
}

void unit_scores(const Context& c, const void* w, DType dtype, int64_t rows, int64_t cols, int64_t unit_rows,
                 int64_t unit_cols, double* scores) {
  const int64_t units = rows / unit_rows * (cols / unit_cols);
  if (units == 0) return;
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    launch<add_units<T>>(c, "add_units", static_cast<unsigned>((units + kScoreUnits - 1) / kScoreUnits),
                         kThreads, 0, static_cast<const T*>(w), cols, unit_rows, unit_cols, units, scores);
  });
}

void prune_units(const Context& c, const UnitGrid& grid, const bool* keep, const void* w, DType dtype,
                 bool* mask, void* pruned) {
  const int64_t n = grid.rows * grid.cols;
  if (n == 0) return;
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kCount = Pack<T>::kCount;
    const T* from = static_cast<const T*>(w);
    T* to = static_cast<T*>(pruned);
    const bool aligned =
        is_aligned(mask, kCount) && (!pruned || (is_aligned(w, 16) && is_aligned(pruned, 16)));
    if (aligned) {
      return launch<prune_units_of<T, kCount>>(c, "prune_units", blocks_for((n + kCount - 1) / kCount),
                                               kThreads, 0, grid, keep, from, mask, to);
    }
    launch<prune_units_of<T, 1>>(c, "prune_units", blocks_for(n), kThreads, 0, grid, keep, from, mask, to);
  });
}

void pack_mask(const Context& c, const bool* mask, int64_t rows, int64_t cols, uint8_t* bits) {
  const int64_t bytes = rows * ((cols + 7) / 8);
  if (bytes) launch<pack_bytes>(c, "pack_mask", blocks_for(bytes), kThreads, 0, mask, rows, cols, bits);
}

void unpack_mask(const Context& c, const uint8_t* bits, int64_t rows, int64_t cols, bool* mask) {
  const int64_t bytes = rows * ((cols + 7) / 8);
  if (bytes) launch<unpack_bytes>(c, "unpack_mask", blocks_for(bytes), kThreads, 0, bits, rows, cols, mask);
}

}  // namespace cuda
}  // namespace octavo
