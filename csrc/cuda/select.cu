// The k-th smallest magnitude of a list of tensors, or of unit scores, exactly: a radix search from the upper digits down.
//
// For each digit every block counts the bins of its own range of the list in shared memory and stores them as a row; the
// rows' sums tell in which bin the k-th element lies. A list of one 16-bit dtype needs a single digit of 15 bits, which is
// 128 KiB of counters, one block to a multiprocessor. The rows of the last digit also tell in which block's range the last of
// the equal elements that go stands, and only that range is read again to find its index.
#include <type_traits>
#include <vector>

#include "octavo_cuda.h"
#include "segments.cuh"

namespace octavo {
namespace cuda {
namespace {

constexpr int kCountThreads = 1024, kFindThreads = 256;
constexpr int kMaxBlocks = kFindThreads;  // a thread looks at each block's row
constexpr int kSumBlocks = 2;             // on a multiprocessor, of sum_rows
constexpr int kGroupBins = 128;           // bins that sum_rows adds up beside each other
constexpr int kMinDigit = 7, kMaxDigit = 15;
static_assert(1 << kMinDigit >= kGroupBins && 1 << kMaxDigit <= kGroupBins * kFindThreads,
              "pick_bin has a thread for each group, and for each bin of a group");
constexpr int64_t kMinRange = 1 << 14;  // elements worth a block
constexpr int64_t kRangeStep = 1 << 11;

// ---- what elements are ranked by: unsigned integers of kBits bits ---------------------------------------------------

// Magnitudes of any dtypes: the key itself.
struct MagnitudeKeys {
  using Rank = uint32_t;
  using Result = Selection;
  static constexpr int kBits = 31;
  template <class F>
  static __device__ __forceinline__ void with_type(DType dtype, F f) {
    with_segment_dtype(dtype, f);
  }
  template <class T>
  static __device__ __forceinline__ Rank rank(T v) {
    return magnitude_key(to_float(v));
  }
  static __device__ __forceinline__ uint32_t key(Rank rank) { return rank; }
};

// Magnitudes of one 16-bit dtype: its own bits without the sign, all NaN being one above Inf.
template <class T, uint32_t kNan>
struct HalfKeys {
  using Rank = uint32_t;
  using Result = Selection;
  static constexpr int kBits = 15;
  template <class F>
  static __device__ __forceinline__ void with_type(DType, F f) {
    f(T());
  }
  static __device__ __forceinline__ Rank rank(T v) {
    const uint32_t magnitude = v.bits & 0x7FFFu;
    return magnitude < kNan ? magnitude : kNan;
  }
  static __device__ __forceinline__ uint32_t key(Rank rank) {
    return magnitude_key(to_float(T{static_cast<uint16_t>(rank)}));
  }
};
using F16Keys = HalfKeys<f16, 0x7C01>;
using Bf16Keys = HalfKeys<bf16, 0x7F81>;

// Scores, which are not negative: their bits, all NaN being one above Inf.
struct ScoreSelection {
  uint64_t key;
  int64_t keep_equal_from;
};
constexpr uint64_t kInfScore = 0x7FF0000000000000u;
struct ScoreKeys {
  using Rank = uint64_t;
  using Result = ScoreSelection;
  static constexpr int kBits = 63;
  template <class F>
  static __device__ __forceinline__ void with_type(DType, F f) {
    f(double());
  }
  static __device__ __forceinline__ Rank rank(double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits <= kInfScore ? bits : kInfScore + 1;
  }
  static __device__ __forceinline__ uint64_t key(Rank rank) { return rank; }
};

// ---- the search ------------------------------------------------------------------------------------------------------

struct Digit {
  int shift, bits;
};

// Where the k-th element stands, as far as it is known; it begins as zeros.
struct Search {
  uint64_t prefix;         // the upper digits of its rank
  int64_t below;           // elements with a smaller prefix
  int64_t equal;           // elements with this prefix
  int64_t block;           // the block whose range holds the k-th
  int64_t order_in_block;  // which of the elements with this prefix it is there, from 1
};

// How the blocks share the list.
struct Ranges {
  int64_t length;
  int count;
  __device__ __forceinline__ int64_t begin(int64_t block) const { return block * length; }
  __device__ __forceinline__ int64_t end(int64_t block, int64_t total) const {
    const int64_t end = (block + 1) * length;
    return end < total ? end : total;
  }
};

// f(rank) for elements [begin, end), shared out between the block's threads.
template <class Keys, class F>
__device__ __forceinline__ void for_ranks(const SegmentList& list, int64_t begin, int64_t end, F f) {
  for_segments(list, begin, end, [&](const DeviceSegment& segment, int64_t first, int64_t last) {
    Keys::with_type(segment.dtype, [&](auto type) {
      using T = decltype(type);
      for_elements(static_cast<const T*>(segment.w) + first, last - first, [&](T v) { f(Keys::rank(v)); });
    });
  });
}

// kWhole: the digit is all that there is of a rank, and every element counts.
template <class Keys, bool kWhole>
__global__ void __launch_bounds__(kCountThreads)
    count_bins(SegmentList list, Ranges ranges, Digit digit, const Search* search, uint32_t* rows) {
  using Rank = typename Keys::Rank;
  auto* bins = dynamic_shared<uint32_t>();
  const int count = 1 << digit.bits;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kCountThreads) bins[i] = 0;
  __syncthreads();
  const auto prefix = static_cast<Rank>(search->prefix);
  for_ranks<Keys>(list, ranges.begin(blockIdx.x), ranges.end(blockIdx.x, list.total), [&](Rank rank) {
    if constexpr (kWhole) {
      atomicAdd(&bins[rank], 1u);
    } else if (rank >> (digit.shift + digit.bits) == prefix) {
      atomicAdd(&bins[(rank >> digit.shift) & static_cast<Rank>(count - 1)], 1u);
    }
  });
  __syncthreads();
  uint32_t* row = rows + static_cast<int64_t>(blockIdx.x) * count;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kCountThreads) row[i] = bins[i];
}

// The sum over the block's threads, for all of them.
__device__ __forceinline__ int64_t block_sum(int64_t v) {
  __shared__ int64_t warps[kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int step = kWarp / 2; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
  if (lane == 0) warps[threadIdx.x / kWarp] = v;
  __syncthreads();
  int64_t sum = 0;
  for (int i = 0; i < static_cast<int>(blockDim.x) / kWarp; ++i) sum += warps[i];
  __syncthreads();  // the next call writes there
  return sum;
}

// Blocks add up kGroupBins columns at a time: a lane four of them, each warp the rows of its own number modulo the warps.
__global__ void __launch_bounds__(kFindThreads)
    sum_rows(const uint32_t* rows, int row_count, int bins, int64_t* totals, int64_t* groups) {
  constexpr int kWarps = kFindThreads / kWarp;
  static_assert(kGroupBins == 4 * kWarp, "a warp reads a group of a row at once");
  __shared__ int64_t sums[kWarps][kGroupBins];
  const int t = static_cast<int>(threadIdx.x), lane = t % kWarp, warp = t / kWarp;
  for (int group = static_cast<int>(blockIdx.x); group < bins / kGroupBins;
       group += static_cast<int>(gridDim.x)) {
    const uint32_t* columns = rows + group * kGroupBins + 4 * lane;
    int64_t sum[4] = {};
#pragma unroll 4
    for (int row = warp; row < row_count; row += kWarps) {
      const uint4 v = *reinterpret_cast<const uint4*>(columns + static_cast<int64_t>(row) * bins);
      sum[0] += v.x;
      sum[1] += v.y;
      sum[2] += v.z;
      sum[3] += v.w;
    }
    for (int i = 0; i < 4; ++i) sums[warp][4 * lane + i] = sum[i];
    __syncthreads();
    int64_t total = 0;
    if (t < kGroupBins) {
      for (int i = 0; i < kWarps; ++i) total += sums[i][t];
      totals[group * kGroupBins + t] = total;
    }
    total = block_sum(total);
    if (t == 0) groups[group] = total;
  }
}

// Thread i brings the size of part i: the part that holds the `order`-th element (from 1), and how many stand before it.
// Part 0 if there is none, which happens only if the tensors are written to meanwhile.
struct Place {
  int64_t part, before;
};
__device__ __forceinline__ Place find_part(int64_t size, int64_t order) {
  __shared__ int64_t warps[kWarp];
  __shared__ Place found;
  const int t = static_cast<int>(threadIdx.x), lane = t % kWarp, warp = t / kWarp;
  int64_t end = size;
  for (int step = 1; step < kWarp; step *= 2) {
    const int64_t lower = __shfl_up_sync(kAllLanes, end, step);
    if (lane >= step) end += lower;
  }
  if (lane == kWarp - 1) warps[warp] = end;
  if (t == 0) found = {0, 0};
  __syncthreads();
  for (int i = 0; i < warp; ++i) end += warps[i];
  if (end >= order && end - size < order) found = {t, end - size};
  __syncthreads();
  const Place place = found;
  __syncthreads();  // the next call writes there
  return place;
}

__global__ void pick_bin(const int64_t* groups, const int64_t* totals, const uint32_t* rows, int row_count,
                         Digit digit, int64_t k, Search* search) {
  const int t = static_cast<int>(threadIdx.x), bins = 1 << digit.bits;
  int64_t order = k - search->below;
  const Place group = find_part(t < bins / kGroupBins ? groups[t] : 0, order);
  order -= group.before;
  const int64_t* group_totals = totals + group.part * kGroupBins;
  const Place place = find_part(t < kGroupBins ? group_totals[t] : 0, order);
  order -= place.before;
  const int64_t bin = group.part * kGroupBins + place.part;
  const Place block = find_part(t < row_count ? rows[static_cast<int64_t>(t) * bins + bin] : 0, order);
  if (t > 0) return;
  search->prefix = search->prefix << digit.bits | static_cast<uint64_t>(bin);
  search->below = k - order;
  search->equal = totals[bin];
  search->block = block.part;
  search->order_in_block = order - block.before;
}

// ---- where the elements that equal the k-th are divided --------------------------------------------------------------

__device__ __forceinline__ bool divides_equal(const Search& search, int64_t k) {
  return k - search.below < search.equal;
}

// The range of the block that holds the k-th element, again cut into as many as there are blocks.
__device__ __forceinline__ Ranges slices_of(const Ranges& ranges) {
  return {(ranges.length + ranges.count - 1) / ranges.count, ranges.count};
}

template <class Keys>
__global__ void __launch_bounds__(kCountThreads)
    count_equal(SegmentList list, Ranges ranges, const Search* search, int64_t k, int64_t* counts) {
  if (!divides_equal(*search, k)) return;
  const int64_t begin = ranges.begin(search->block), end = ranges.end(search->block, list.total);
  const Ranges slices = slices_of(ranges);
  const auto wanted = static_cast<typename Keys::Rank>(search->prefix);
  int64_t count = 0;
  for_ranks<Keys>(list, begin + slices.begin(blockIdx.x), begin + slices.end(blockIdx.x, end - begin),
                  [&](typename Keys::Rank rank) { count += rank == wanted; });
  count = block_sum(count);
  if (threadIdx.x == 0) counts[blockIdx.x] = count;
}

// f(index) for those of the elements [begin, end) that have this rank: all by this thread, in order.
template <class Keys, class F>
__device__ __forceinline__ void for_equal(const SegmentList& list, int64_t begin, int64_t end,
                                          typename Keys::Rank wanted, F f) {
  for_segments(list, begin, end, [&](const DeviceSegment& segment, int64_t first, int64_t last) {
    Keys::with_type(segment.dtype, [&](auto type) {
      using T = decltype(type);
      const T* w = static_cast<const T*>(segment.w);
      for (int64_t i = first; i < last; ++i) {
        if (Keys::rank(w[i]) == wanted) f(segment.first + i);
      }
    });
  });
}

template <class Keys>
__global__ void __launch_bounds__(kCountThreads)
    find_boundary(SegmentList list, Ranges ranges, const Search* search, int64_t k, const int64_t* counts,
                  typename Keys::Result* result) {
  const int t = static_cast<int>(threadIdx.x);
  const auto wanted = static_cast<typename Keys::Rank>(search->prefix);
  if (!divides_equal(*search, k)) {
    if (t == 0) *result = {Keys::key(wanted), kNoneEqual};
    return;
  }
  const Ranges slices = slices_of(ranges);
  const Place slice = find_part(t < slices.count ? counts[t] : 0, search->order_in_block);
  const int64_t range = ranges.begin(search->block), range_end = ranges.end(search->block, list.total);
  const int64_t begin = range + slices.begin(slice.part),
                end = range + slices.end(slice.part, range_end - range);
  const int64_t step = (end - begin + kCountThreads - 1) / kCountThreads;
  const int64_t own = begin + t * step, own_end = own + step < end ? own + step : end;
  int64_t count = 0;
  for_equal<Keys>(list, own, own_end, wanted, [&](int64_t) { ++count; });
  const int64_t order = search->order_in_block - slice.before;
  const Place owner = find_part(count, order);
  if (t != owner.part) return;
  int64_t left = order - owner.before, boundary = kNoneEqual;
  for_equal<Keys>(list, own, own_end, wanted, [&](int64_t index) {
    if (--left == 0) boundary = index + 1;
  });
  *result = {Keys::key(wanted), boundary};
}

// ---- the host's part -------------------------------------------------------------------------------------------------

Ranges ranges_of(const Context& c, int64_t total) {
  const int64_t most = c.multiprocessors < kMaxBlocks ? c.multiprocessors : kMaxBlocks;
  const int64_t worth = (total + kMinRange - 1) / kMinRange, blocks = worth < most ? worth : most;
  const int64_t length = round_up((total + blocks - 1) / blocks, kRangeStep);
  return {length, static_cast<int>((total + length - 1) / length)};
}

// The widest digit whose counters fit a block's shared memory.
int widest_digit(const Context& c) { return has_large_shared(c.capability) ? kMaxDigit : kMaxDigit - 1; }

// As few digits as there can be, all of about one width, the upper ones first.
std::vector<Digit> digits_of(int bits, int widest) {
  std::vector<Digit> digits;
  for (int left = bits, count = (bits + widest - 1) / widest; count > 0; --count) {
    const int width = (left + count - 1) / count;
    left -= width;
    digits.push_back({left, width});
  }
  return digits;
}

template <class Keys>
void select(const Context& c, const SegmentList& list, int64_t k, typename Keys::Result* result) {
  const Ranges ranges = ranges_of(c, list.total);
  const unsigned blocks = static_cast<unsigned>(ranges.count);
  const std::vector<Digit> digits = digits_of(Keys::kBits, widest_digit(c));
  const int64_t most_bins = int64_t{1} << digits[0].bits;
  auto* rows = c.workspace<uint32_t>(ranges.count * most_bins);
  auto* totals = c.workspace<int64_t>(most_bins);
  auto* groups = c.workspace<int64_t>(most_bins / kGroupBins);
  auto* equal = c.workspace<int64_t>(ranges.count);
  auto* search = c.workspace<Search>(1);
  zero(c, search, sizeof(Search));
  for (const Digit& digit : digits) {
    const int bins = 1 << digit.bits;
    const auto count = [&](auto whole) {
      launch<count_bins<Keys, decltype(whole)::value>>(c, "count_bins", blocks, kCountThreads,
                                                       bins * static_cast<int64_t>(sizeof(uint32_t)), list,
                                                       ranges, digit, search, rows);
    };
    if constexpr (Keys::kBits <= kMaxDigit) {
      if (digits.size() == 1) count(std::true_type());
    }
    if (digits.size() > 1) count(std::false_type());
    launch<sum_rows>(c, "sum_rows", static_cast<unsigned>(kSumBlocks * c.multiprocessors), kFindThreads, 0,
                     rows, ranges.count, bins, totals, groups);
    launch<pick_bin>(c, "pick_bin", 1, kFindThreads, 0, groups, totals, rows, ranges.count, digit, k, search);
  }
  launch<count_equal<Keys>>(c, "count_equal", blocks, kCountThreads, 0, list, ranges, search, k, equal);
  launch<find_boundary<Keys>>(c, "find_boundary", 1, kCountThreads, 0, list, ranges, search, k, equal,
                              result);
}

// ---- limits that are a share of the largest --------------------------------------------------------------------------

template <class Keys>
__global__ void __launch_bounds__(kCountThreads)
    max_finite(SegmentList list, Ranges ranges, typename Keys::Rank infinite, unsigned long long* result) {
  typename Keys::Rank top = 0;
  for_ranks<Keys>(list, ranges.begin(blockIdx.x), ranges.end(blockIdx.x, list.total),
                  [&](typename Keys::Rank rank) {
                    if (rank < infinite && rank > top) top = rank;
                  });
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const auto other = __shfl_xor_sync(kAllLanes, top, step);
    if (other > top) top = other;
  }
  if (threadIdx.x % kWarp == 0) atomicMax(result, static_cast<unsigned long long>(top));
}

// The largest finite rank, on the device; 0 if there is none.
template <class Keys>
unsigned long long* largest(const Context& c, const SegmentList& list, typename Keys::Rank infinite) {
  auto* result = c.workspace<unsigned long long>(1);
  zero(c, result, sizeof *result);
  if (list.total) {
    const Ranges ranges = ranges_of(c, list.total);
    launch<max_finite<Keys>>(c, "max_finite", static_cast<unsigned>(ranges.count), kCountThreads, 0, list,
                             ranges, infinite, result);
  }
  return result;
}

__global__ void ratio_limit(const unsigned long long* key, float ratio, Selection* selection) {
  const float limit = __fmul_rn(ratio, float_of(static_cast<uint32_t>(*key)));
  *selection = {bits_of(limit), kNoneEqual};
}

// ---- units: a thread for each ----------------------------------------------------------------------------------------

unsigned blocks_for(int64_t count) {
  return static_cast<unsigned>((count + kFindThreads - 1) / kFindThreads);
}

__global__ void keep_selected(const double* scores, int64_t count, const ScoreSelection* selection,
                              bool* keep) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kFindThreads + threadIdx.x;
  if (i >= count) return;
  const uint64_t rank = ScoreKeys::rank(scores[i]);
  keep[i] = rank > selection->key || (rank == selection->key && i >= selection->keep_equal_from);
}

__global__ void keep_above(const double* scores, int64_t count, double limit, const unsigned long long* top,
                           bool* keep) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kFindThreads + threadIdx.x;
  if (i >= count) return;
  if (top) {
    double largest;
    memcpy(&largest, top, sizeof largest);
    limit *= largest;
  }
  keep[i] = !(scores[i] <= limit);
}

// Whether the list has no elements of another dtype.
bool has_only(const Segment* segments, int64_t count, DType dtype) {
  for (const DType other : {DType::f32, DType::f16, DType::bf16, DType::f64}) {
    if (other != dtype && has_dtype(segments, count, other)) return false;
  }
  return true;
}

SegmentList upload_scores(const Context& c, const double* scores, int64_t count) {
  const Segment segment = {scores, DType::f64, count, nullptr, nullptr};
  return upload(c, &segment, 1);
}

}  // namespace

void magnitude_select(const Context& c, const Segment* segments, int64_t count, int64_t k,
                      Selection* selection) {
  const SegmentList list = upload(c, segments, count);
  if (has_only(segments, count, DType::bf16)) return select<Bf16Keys>(c, list, k, selection);
  if (has_only(segments, count, DType::f16)) return select<F16Keys>(c, list, k, selection);
  select<MagnitudeKeys>(c, list, k, selection);
}

void ratio_select(const Context& c, const Segment* segments, int64_t count, float ratio,
                  Selection* selection) {
  const auto* key = largest<MagnitudeKeys>(c, upload(c, segments, count), kInfKey);
  launch<ratio_limit>(c, "ratio_limit", 1, 1, 0, key, ratio, selection);
}

void unit_select(const Context& c, const double* scores, int64_t count, int64_t k, bool* keep) {
  if (count == 0) return;
  if (k == 0) return unit_threshold(c, scores, count, -1.0, false, keep);  // scores are not negative
  auto* selection = c.workspace<ScoreSelection>(1);
  select<ScoreKeys>(c, upload_scores(c, scores, count), k, selection);
  launch<keep_selected>(c, "keep_selected", blocks_for(count), kFindThreads, 0, scores, count, selection,
                        keep);
}

void unit_threshold(const Context& c, const double* scores, int64_t count, double limit, bool is_ratio,
                    bool* keep) {
  if (count == 0) return;
  const unsigned long long* top = nullptr;
  if (is_ratio) top = largest<ScoreKeys>(c, upload_scores(c, scores, count), kInfScore);
  launch<keep_above>(c, "keep_above", blocks_for(count), kFindThreads, 0, scores, count, limit, top, keep);
}

}  // namespace cuda
}  // namespace octavo
