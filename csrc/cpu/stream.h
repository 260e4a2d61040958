// Walking through more memory than the caches hold: reading ahead, and writing past the caches.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace octavo {

constexpr int64_t kStreamLine = 64;
// The hardware prefetcher stops at every page and takes a few lines to see the next one.
constexpr int64_t kStreamAhead = 2048;
// Larger outputs have left the caches before they are read.
constexpr int64_t kStreamBytes = 8 << 20;
// Elements that are computed into a buffer before it is streamed out: buffer and source fit the first-level cache.
constexpr int64_t kStreamPiece = 2048;

// Prefetches the `bytes` bytes at p + ahead. Beyond the end of an array that does nothing.
static inline void prefetch_ahead(const void* p, int64_t bytes, int64_t ahead = kStreamAhead) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(ahead);
  for (int64_t i = 0; i < bytes; i += kStreamLine)
    __builtin_prefetch(reinterpret_cast<const void*>(first + static_cast<uintptr_t>(i)));
}

// How far ahead to prefetch in the first of two passes over a row of `bytes` bytes: the next row, if two rows fit the
// second-level cache with room to spare.
static inline int64_t row_ahead(int64_t bytes) {
  constexpr int64_t kLongRow = 64 << 10;
  return bytes >= kStreamAhead && bytes <= kLongRow ? bytes : kStreamAhead;
}

// memcpy that does not read the lines which it overwrites: half of an ordinary store's traffic. Its stores are not ordered
// with others: stream_fence() has to come before the data is handed on.
static inline void stream_copy(void* target, const void* source, int64_t bytes) {
#if defined(__x86_64__)
  char* p = static_cast<char*>(target);
  const char* s = static_cast<const char*>(source);
  const int64_t head = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(p) % kStreamLine);
  if (head + kStreamLine > bytes) {
    memcpy(p, s, static_cast<size_t>(bytes));
    return;
  }
  memcpy(p, s, static_cast<size_t>(head));
  int64_t i = head;
  for (; i + kStreamLine <= bytes; i += kStreamLine) {
    for (int64_t j = i; j < i + kStreamLine; j += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(p + j),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(s + j)));
    }
  }
  memcpy(p + i, s + i, static_cast<size_t>(bytes - i));
#else
  memcpy(target, source, static_cast<size_t>(bytes));
#endif
}

static inline void copy(void* target, const void* source, int64_t bytes) {
  memcpy(target, source, static_cast<size_t>(bytes));
}

static inline void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace octavo
