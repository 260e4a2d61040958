// The k-th smallest magnitude of a list of tensors, exactly, in one pass over memory.
//
// A sample brackets it: it almost surely lies between two sampled keys, kDeviations standard deviations of the order statistic
// to either side. The pass counts what is below the bracket and at its two ends, and gathers the keys strictly
// inside, some 2 %; among those the same search goes on. Keys at the ends are only counted, because that is where a tensor
// has its ties: zeros, a constant, what was quantized before. If the bracket misses, or too much lies inside, a radix
// histogram finds the key in three passes.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <mutex>

#include "chunks.h"

namespace octavo {
namespace {

constexpr int64_t kFew = 1 << 13;  // elements that are selected from directly
constexpr int64_t kMaxSample = 1 << 15, kSampledShare = 32;
constexpr double kDeviations = 4;
constexpr int64_t kShared =
    1 << 19;  // candidates from here on are worth several threads: waiting for one costs more

// Where the k-th smallest stands: it is the rank-th (from 1) of `equal` elements with this key.
struct Found {
  uint32_t key;
  int64_t rank, equal;
};

// What the pass found in a chunk; its candidates are keys[first, first + inside).
struct ChunkCounts {
  KeyCounts counts;
  int64_t first;
};

struct Candidates {
  int32_t lo, hi;
  std::vector<ChunkCounts> chunks;
  std::unique_ptr<int32_t[]> keys;
  int64_t capacity;
  std::atomic<int64_t> size{0};  // beyond the capacity: some are missing
  bool complete() const { return size <= capacity; }
};

int64_t total_of(const std::vector<Chunk>& chunks) {
  return chunks.empty() ? 0 : chunks.back().index + chunks.back().count;
}

// ---- the plain ways ------------------------------------------------------------------------------------------------

Found find_among_few(const std::vector<Chunk>& chunks, int64_t k) {
  std::vector<uint32_t> keys;
  for (const Chunk& chunk : chunks) {
    for (int64_t i = 0; i < chunk.count; ++i)
      keys.push_back(magnitude_key(element(chunk.w(), chunk.segment->dtype, i)));
  }
  std::nth_element(keys.begin(), keys.begin() + (k - 1), keys.end());
  const uint32_t key = keys[static_cast<size_t>(k - 1)];
  const int64_t below = std::count_if(keys.begin(), keys.end(), [&](uint32_t other) { return other < key; });
  return {key, k - below, std::count(keys.begin(), keys.end(), key)};
}

// Keys have 31 bits: three rounds of a radix histogram, from the upper bits down.
struct Digit {
  int shift, bits;
};
constexpr Digit kDigits[] = {{20, 11}, {10, 10}, {0, 10}};

Found find_by_radix(const std::vector<Chunk>& chunks, int64_t k, int threads) {
  Found found = {0, k, 0};  // key: its upper digits, as found so far; rank: among the keys with those
  for (const Digit& digit : kDigits) {
    const uint32_t buckets = 1u << digit.bits;
    const int above = digit.shift + digit.bits;
    std::vector<int64_t> total(buckets, 0);
    std::mutex mutex;
    for_chunks(chunks, threads, [&](int64_t, const Chunk& chunk) {
      uint32_t histogram[1 << 11] = {};  // a chunk counts less than 2^32
      for (int64_t i = 0; i < chunk.count; ++i) {
        const uint32_t key = magnitude_key(element(chunk.w(), chunk.segment->dtype, i));
        if (key >> above == found.key) ++histogram[(key >> digit.shift) & (buckets - 1)];
      }
      const std::lock_guard<std::mutex> lock(mutex);
      for (uint32_t b = 0; b < buckets; ++b) total[b] += histogram[b];
    });
    uint32_t bucket = 0;
    while (bucket < buckets - 1 && found.rank > total[bucket]) found.rank -= total[bucket++];
    found.key = found.key << digit.bits | bucket;
    found.equal = total[bucket];
  }
  return found;
}

// ---- the bracket ---------------------------------------------------------------------------------------------------

Found find(const std::vector<Chunk>& chunks, int64_t k, int threads, Candidates* candidates);

Found find_in(const int32_t* keys, int64_t n, int64_t k, int threads) {
  // A key is the magnitude's bits, so that keys are float32 values with the same keys.
  const Segment segment = {keys, DType::f32, n, nullptr, nullptr};
  Candidates candidates;
  return find(cut(&segment, 1), k, n < kShared ? 1 : threads, &candidates);
}

// One element of every n / size, at a place that the golden ratio spreads evenly, so that no period of the data meets it.
std::vector<int32_t> sample_of(const std::vector<Chunk>& chunks, int64_t n, int64_t size, int threads) {
  std::vector<int32_t> sample(static_cast<size_t>(size));
  const double stride = static_cast<double>(n) / static_cast<double>(size);
  auto range = [&](int64_t begin, int64_t end) {
    constexpr int64_t kAtOnce =
        64;  // asked for before the first of them is read: they are all far from a cache
    const void* places[kAtOnce];
    DType dtypes[kAtOnce];
    auto chunk = chunks.begin();
    for (int64_t first = begin; first < end; first += kAtOnce) {
      const int64_t count = std::min(kAtOnce, end - first);
      for (int64_t j = 0; j < count; ++j) {
        const int64_t i = first + j;
        const uint32_t spread = static_cast<uint32_t>(i) * 0x9E3779B9u;
        const double place = (static_cast<double>(i) + static_cast<double>(spread) * 0x1p-32) * stride;
        const int64_t index = std::min(static_cast<int64_t>(place), n - 1);
        const auto starts_behind = [](int64_t at, const Chunk& c) { return at < c.index; };
        chunk = std::upper_bound(chunk, index < chunk->index + chunk->count ? chunk + 1 : chunks.end(), index,
                                 starts_behind) -
                1;
        dtypes[j] = chunk->segment->dtype;
        places[j] = static_cast<const char*>(chunk->w()) + (index - chunk->index) * size_of(dtypes[j]);
        __builtin_prefetch(places[j]);
      }
      for (int64_t j = 0; j < count; ++j)
        sample[static_cast<size_t>(first + j)] =
            static_cast<int32_t>(magnitude_key(element(places[j], dtypes[j], 0)));
    }
  };
  parallel_for(size, 1 << 12, threads, range);
  return sample;
}

void bracket(const std::vector<Chunk>& chunks, int64_t n, int64_t k, int threads, Candidates* candidates) {
  const int64_t size = std::min(n / kSampledShare, kMaxSample);
  const std::vector<int32_t> sample = sample_of(chunks, n, size, threads);
  const double share = (static_cast<double>(k) - 0.5) / static_cast<double>(n), s = static_cast<double>(size);
  const double rank = share * s, margin = kDeviations * std::sqrt(s * share * (1 - share)) + 2;
  const auto first = static_cast<int64_t>(rank - margin), last = static_cast<int64_t>(rank + margin) + 1;
  // Without a sampled key on that side, everything there is inside.
  candidates->lo = first < 1 ? -1 : static_cast<int32_t>(find_in(sample.data(), size, first, threads).key);
  candidates->hi = last > size ? static_cast<int32_t>(kNanKey) + 1
                               : static_cast<int32_t>(find_in(sample.data(), size, last, threads).key);
}

KeyCounts gather(const std::vector<Chunk>& chunks, int threads, Candidates* candidates) {
  candidates->chunks.resize(chunks.size());
  for_chunks(chunks, threads, [&](int64_t i, const Chunk& chunk) {
    constexpr int64_t kWholeVector = 16;  // the last store is of a whole one
    int32_t inside[kChunk + kWholeVector];
    ChunkCounts& found = candidates->chunks[static_cast<size_t>(i)];
    found.counts = kernels().prune->bracket(chunk.w(), chunk.segment->dtype, chunk.count, candidates->lo,
                                            candidates->hi, inside);
    found.first = candidates->size.fetch_add(found.counts.inside);
    if (found.first + found.counts.inside <= candidates->capacity) {
      memcpy(candidates->keys.get() + found.first, inside,
             static_cast<size_t>(found.counts.inside) * sizeof(int32_t));
    }
  });
  KeyCounts total = {};
  for (const ChunkCounts& chunk : candidates->chunks) {
    total.below += chunk.counts.below;
    total.at_lo += chunk.counts.at_lo;
    total.at_hi += chunk.counts.at_hi;
    total.inside += chunk.counts.inside;
  }
  return total;
}

// Leaves in `candidates` what it gathered; no chunks there if it found the key another way.
Found find(const std::vector<Chunk>& chunks, int64_t k, int threads, Candidates* candidates) {
  const int64_t n = total_of(chunks);
  if (n <= kFew) return find_among_few(chunks, k);
  bracket(chunks, n, k, threads, candidates);
  int64_t bytes = 0;
  for (const Chunk& chunk : chunks) bytes += chunk.count * size_of(chunk.segment->dtype);
  // 5 % of the tensors: more than is expected inside, and little beside the masks.
  candidates->capacity = std::max(bytes / 20 / static_cast<int64_t>(sizeof(int32_t)), 8 * kFew);
  candidates->keys.reset(new int32_t[static_cast<size_t>(candidates->capacity)]);
  const KeyCounts counts = gather(chunks, threads, candidates);

  const auto lo = static_cast<uint32_t>(candidates->lo), hi = static_cast<uint32_t>(candidates->hi);
  const int64_t at_hi = lo == hi ? 0 : counts.at_hi;  // counted once
  int64_t rank = k - counts.below;
  if (rank >= 1) {
    if (rank <= counts.at_lo) return {lo, rank, counts.at_lo};
    rank -= counts.at_lo;
    if (rank <= counts.inside) {
      if (candidates->complete()) return find_in(candidates->keys.get(), counts.inside, rank, threads);
    } else if (rank - counts.inside <= at_hi) {
      return {hi, rank - counts.inside, at_hi};
    }
  }
  candidates->chunks.clear();
  return find_by_radix(chunks, k, threads);
}

// How many elements with this key a chunk has.
int64_t count_in(const Chunk& chunk, int64_t number, const Candidates& candidates, uint32_t key) {
  if (candidates.chunks.empty())
    return kernels().prune->count_equal(chunk.w(), chunk.segment->dtype, chunk.count, key);
  const ChunkCounts& found = candidates.chunks[static_cast<size_t>(number)];
  if (static_cast<int32_t>(key) == candidates.lo) return found.counts.at_lo;
  if (static_cast<int32_t>(key) == candidates.hi) return found.counts.at_hi;
  return kernels().prune->count_equal(candidates.keys.get() + found.first, DType::f32, found.counts.inside,
                                      key);
}

}  // namespace

Selection magnitude_select(const Segment* segments, int64_t count, int64_t k, int threads) {
  const DefaultFloatEnvironment environment;  // float64 elements are converted outside the loops too
  const std::vector<Chunk> chunks = cut(segments, count);
  Candidates candidates;
  const Found found = find(chunks, k, threads, &candidates);
  if (found.rank >= found.equal) return {found.key, kNoneEqual};
  std::vector<int64_t> equal(chunks.size());
  for_chunks(chunks, threads, [&](int64_t i, const Chunk& chunk) {
    equal[static_cast<size_t>(i)] = count_in(chunk, i, candidates, found.key);
  });
  int64_t left = found.rank;
  size_t last = 0;  // the chunk of the last one that goes
  // The ends of the lists stop these loops only if another thread changes the tensors meanwhile.
  while (left > equal[last] && last + 1 < chunks.size()) left -= equal[last++];
  const Chunk& chunk = chunks[last];
  int64_t i = 0;
  while (i + 1 < chunk.count &&
         (magnitude_key(element(chunk.w(), chunk.segment->dtype, i)) != found.key || --left > 0))
    ++i;
  return {found.key, chunk.index + i + 1};
}

}  // namespace octavo
