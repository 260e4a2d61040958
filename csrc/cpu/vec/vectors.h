// Walking a row in the vectors of the vec_*.h included before.
#pragma once

#include <cstdint>

namespace octavo {
namespace {

// Calls body(offset, lanes) over [0, n): whole vectors, then one partial.
template <class Body>
inline void for_vectors(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
  if (i < n) body(i, static_cast<int>(n - i));
}

// A whole or a partial vector, whose other lanes read as 0 and are not written.
template <class T>
inline F32 load_lanes(const T* p, int lanes) {
  return lanes == kLanes ? load(p) : load_n(p, lanes);
}
template <class T, class V>
inline void store_lanes(T* p, V v, int lanes) {
  if (lanes == kLanes) {
    store(p, v);
  } else {
    store_n(p, v, lanes);
  }
}

inline uint32_t reduce_max(I32 v) {
  int32_t lanes[kLanes];
  store(lanes, v);
  int32_t result = lanes[0];
  for (const int32_t lane : lanes) result = lane > result ? lane : result;
  return static_cast<uint32_t>(result);
}

// v in its first lanes, 0 in the others.
inline F32 first_lanes_of(F32 v, int lanes) {
  if (lanes == kLanes) return v;
  float all[kLanes];
  store(all, v);
  return load_n(all, lanes);
}

}  // namespace
}  // namespace octavo
