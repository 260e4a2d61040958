// Masks by magnitude: exact selection of the k-th smallest over a list of tensors, and the patterns.
#include <atomic>
#include <mutex>
#include <vector>

#include "../check.h"
#include "../parallel.h"
#include "rows.h"

namespace octavo {
namespace {

constexpr int64_t kGrain = 1 << 16;  // elements of a chunk

// A list of tensors cut into chunks, in index order.
struct Chunk {
  const Segment* segment;
  int64_t begin, count;
  const void* w() const { return static_cast<const char*>(segment->w) + begin * size_of(segment->dtype); }
};

std::vector<Chunk> cut(const Segment* segments, int64_t count) {
  std::vector<Chunk> chunks;
  for (const Segment* s = segments; s < segments + count; ++s) {
    for (int64_t i = 0; i < s->n; i += kGrain)
      chunks.push_back({s, i, s->n - i < kGrain ? s->n - i : kGrain});
  }
  return chunks;
}

template <class Body>
void for_chunks(const std::vector<Chunk>& chunks, int threads, Body body) {
  auto range = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i, chunks[static_cast<size_t>(i)]);
  };
  parallel_for(static_cast<int64_t>(chunks.size()), 1, threads, range);
}

// Keys have 31 bits: three rounds of a radix histogram, from the upper bits down.
struct Digit {
  int shift, bits;
};
constexpr Digit kDigits[] = {{20, 11}, {10, 10}, {0, 10}};

}  // namespace

Selection magnitude_select(const Segment* segments, int64_t count, int64_t k, int threads) {
  const std::vector<Chunk> chunks = cut(segments, count);
  uint32_t prefix = 0;  // the upper digits of the k-th key, as found so far
  int64_t rank = k;     // among the keys with that prefix, from 1
  for (const Digit& digit : kDigits) {
    const uint32_t buckets = 1u << digit.bits;
    const int above = digit.shift + digit.bits;
    std::vector<int64_t> total(buckets, 0);
    std::mutex mutex;
    for_chunks(chunks, threads, [&](int64_t, const Chunk& chunk) {
      uint32_t histogram[1 << 11] = {};  // a chunk counts less than 2^32
      for (int64_t i = 0; i < chunk.count; ++i) {
        const uint32_t key = magnitude_key(element(chunk.w(), chunk.segment->dtype, i));
        if (key >> above == prefix) ++histogram[(key >> digit.shift) & (buckets - 1)];
      }
      const std::lock_guard<std::mutex> lock(mutex);
      for (uint32_t b = 0; b < buckets; ++b) total[b] += histogram[b];
    });
    uint32_t bucket = 0;
    while (bucket < buckets - 1 && rank > total[bucket]) rank -= total[bucket++];
    prefix = prefix << digit.bits | bucket;
  }
  return {prefix, rank};
}

uint32_t max_key(const Segment* segments, int64_t count, int threads) {
  std::atomic<uint32_t> result{0};  // magnitudes order as their bits
  for_chunks(cut(segments, count), threads, [&](int64_t, const Chunk& chunk) {
    Range r = {0.0f, 0.0f};
    kernels().quantize->range(chunk.w(), chunk.segment->dtype, nullptr, chunk.count, &r);
    const uint32_t low = magnitude_key(r.lo), high = magnitude_key(r.hi), key = low > high ? low : high;
    uint32_t seen = result.load();
    while (key > seen && !result.compare_exchange_weak(seen, key)) {
    }
  });
  return result.load();
}

void prune_mask(const Segment* segments, int64_t count, Selection selection, int threads) {
  const std::vector<Chunk> chunks = cut(segments, count);
  int64_t total = 0;
  for (const Chunk& chunk : chunks) total += chunk.count;
  // How many ties the chunks before this one have used. Where all or none go, nobody needs to count.
  std::vector<int64_t> used(chunks.size(), 0);
  const bool all = selection.ties >= total, none = selection.ties <= 0;
  if (!all && !none) {
    for_chunks(chunks, threads, [&](int64_t i, const Chunk& chunk) {
      used[static_cast<size_t>(i)] =
          kernels().prune->count_equal(chunk.w(), chunk.segment->dtype, chunk.count, selection.key);
    });
    int64_t before = 0;
    for (int64_t& ties : used) {
      const int64_t here = ties;
      ties = before;
      before += here;
    }
  }
  for_chunks(chunks, threads, [&](int64_t i, const Chunk& chunk) {
    const DType dtype = chunk.segment->dtype;
    bool* mask = chunk.segment->mask + chunk.begin;
    int64_t left = selection.ties - used[static_cast<size_t>(i)];
    if (left <= 0 || left >= chunk.count) {
      return kernels().prune->mask(chunk.w(), dtype, chunk.count, selection.key, left <= 0, mask);
    }
    for (int64_t j = 0; j < chunk.count; ++j) {
      const uint32_t key = magnitude_key(element(chunk.w(), dtype, j));
      mask[j] = key > selection.key || (key == selection.key && left-- <= 0);
    }
  });
}

void prune_mask_nm(const void* w, DType dtype, int64_t groups, int n, int m, bool* mask, int threads) {
  constexpr int kMaxM = 32;
  check(m >= 1 && m <= kMaxM, "m", "between 1 and 32", m);
  auto body = [&](int64_t begin, int64_t end) {
    uint32_t keys[kMaxM];
    for (int64_t group = begin; group < end; ++group) {
      for (int i = 0; i < m; ++i) keys[i] = magnitude_key(element(w, dtype, group * m + i));
      for (int i = 0; i < m; ++i) {
        int larger = 0;  // or equal, with a lower index
        for (int j = 0; j < m; ++j) larger += j < i ? keys[j] >= keys[i] : keys[j] > keys[i];
        mask[group * m + i] = larger < n;
      }
    }
  };
  parallel_for(groups, kGrain / (8 * m) + 1, threads, body);
}

void unit_scores(const void* w, DType dtype, int64_t rows, int64_t cols, int64_t unit_rows, int64_t unit_cols,
                 double* scores, int threads) {
  const int64_t across = cols / unit_cols;
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = unit / across * unit_rows, col = unit % across * unit_cols;
      double s[8] = {};
      int64_t index = 0;
      for (int64_t r = row; r < row + unit_rows; ++r) {
        for (int64_t c = col; c < col + unit_cols; ++c, ++index) {
          const float v = element(w, dtype, r * cols + c);
          s[index & 7] += static_cast<double>(v < 0 ? -v : v);
        }
      }
      scores[unit] = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
    }
  };
  parallel_for(rows / unit_rows * across, kGrain / (unit_rows * unit_cols) + 1, threads, body);
}

namespace {

template <class Bits>
void apply_mask_to(const Bits* w, const bool* mask, int64_t n, Bits* out, int threads) {
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Bits v;
      memcpy(&v, w + i, sizeof v);
      v = mask[i] ? v : Bits{0};
      memcpy(out + i, &v, sizeof v);
    }
  };
  parallel_for(n, kGrain, threads, body);
}

}  // namespace

void apply_mask(const void* w, int itemsize, const bool* mask, int64_t n, void* out, int threads) {
  switch (itemsize) {
    case 2:
      return apply_mask_to(static_cast<const uint16_t*>(w), mask, n, static_cast<uint16_t*>(out), threads);
    case 4:
      return apply_mask_to(static_cast<const uint32_t*>(w), mask, n, static_cast<uint32_t*>(out), threads);
    case 8:
      return apply_mask_to(static_cast<const uint64_t*>(w), mask, n, static_cast<uint64_t*>(out), threads);
    default: fail("itemsize", "2, 4 or 8", itemsize);
  }
}

}  // namespace octavo
