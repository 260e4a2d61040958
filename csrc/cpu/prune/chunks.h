// A list of tensors that is treated as one, cut into chunks that threads share.
#pragma once

#include <vector>

#include "cpu/rows.h"
#include "parallel.h"

namespace octavo {

constexpr int64_t kChunk = 1 << 14;  // elements

struct Chunk {
  const Segment* segment;
  int64_t begin, count;
  int64_t index;  // of its first element among those of the whole list
  const void* w() const { return static_cast<const char*>(segment->w) + begin * size_of(segment->dtype); }
};

// In index order.
static inline std::vector<Chunk> cut(const Segment* segments, int64_t count) {
  std::vector<Chunk> chunks;
  int64_t index = 0;
  for (const Segment* s = segments; s < segments + count; ++s) {
    for (int64_t i = 0; i < s->n; i += kChunk)
      chunks.push_back({s, i, s->n - i < kChunk ? s->n - i : kChunk, index + i});
    index += s->n;
  }
  return chunks;
}

// body(number, chunk)
template <class Body>
static inline void for_chunks(const std::vector<Chunk>& chunks, int threads, Body body) {
  auto range = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i, chunks[static_cast<size_t>(i)]);
  };
  parallel_for(static_cast<int64_t>(chunks.size()), 1, threads, range);
}

}  // namespace octavo
