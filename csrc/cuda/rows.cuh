// How rows are dealt out to threads. A span is what has one scale of its own: a row, or a group of one. A team of threads
// holds a span in registers, or one of equal parts of it where it is too long; unit u of a piece is with thread u % team, so
// that neighbours read what is adjacent.
#pragma once

#include <cstring>

#include "cpu/vec/unroll.h"
#include "elements.cuh"
#include "ptx.cuh"

namespace octavo {
namespace cuda {

constexpr int kMaxTeam = 512;   // where a span has to be seen as a whole
constexpr int kPartTeam = 256;  // of a part; the threads of a block of small teams
// The smallest teams: 4 accesses of 16 bytes are whole sectors of memory; an access of single elements is one run of a warp's.
constexpr int kMinTeamPacked = 4, kMinTeamStrided = kWarp;

// What a thread reads at once: 16 bytes, or one element where strides or addresses allow no more. kPerThread of them, up to
// 128 bytes, are under way before the first is used.
template <class T, bool kPacked>
struct alignas(kPacked ? 16 : alignof(T)) Unit {
  static constexpr int kWidth = kPacked ? 16 / static_cast<int>(sizeof(T)) : 1;
  static constexpr int kPerThread = kPacked || sizeof(T) > 4 ? 8 : 16;
  static constexpr int kMinTeam = kPacked ? kMinTeamPacked : kMinTeamStrided;
  T v[kWidth];
};

// Makes the compiler keep what was read, not the twice as many registers of float32 that two uses of it have in common.
template <class T>
__device__ __forceinline__ void keep_packed(Unit<T, true>& unit) {
  uint4 raw;
  memcpy(&raw, &unit, sizeof raw);
  ptx::forget(raw);
  memcpy(&unit, &raw, sizeof unit);
}
// 0 where it is not valid.
template <class T>
__device__ __forceinline__ Unit<T, true> load_packed(const T* from, bool valid) {
  const uint4 raw = ptx::ld_global_nc_no_allocate(from, valid);
  Unit<T, true> unit;
  memcpy(&unit, &raw, sizeof unit);
  return unit;
}
template <class T>
__device__ __forceinline__ void store_packed(T* to, const Unit<T, true>& unit) {
  uint4 raw;
  memcpy(&raw, &unit, sizeof raw);
  *reinterpret_cast<uint4*>(to) = raw;
}

struct Teams {
  int64_t pieces, parts, groups, group_size, part_size;
  int team;

  dim3 block() const {
    return dim3(static_cast<unsigned>(team), static_cast<unsigned>(team > kWarp ? 1 : kPartTeam / team));
  }
  dim3 grid() const { return dim3(static_cast<unsigned>((pieces + block().y - 1) / block().y)); }
};

// For `rows * groups` spans, cut up where they need a larger team than max_team.
template <class Unit>
Teams make_teams(int64_t rows, int64_t groups, int64_t group_size, int max_team) {
  constexpr int64_t kHeld = Unit::kWidth * Unit::kPerThread;
  const int64_t threads = (group_size + kHeld - 1) / kHeld;
  int64_t team = Unit::kMinTeam;
  if (threads > max_team) {
    team = kPartTeam;
  } else if (threads > kWarp) {
    team = (threads + kWarp - 1) / kWarp * kWarp;
  } else {
    while (team < threads) team *= 2;
  }
  const int64_t part_size = team * kHeld;
  const int64_t parts = group_size > part_size ? (group_size + part_size - 1) / part_size : 1;
  return {rows * groups * parts, parts, groups, group_size, part_size, static_cast<int>(team)};
}

// Groups of contiguous rows are rows of their own, and contiguous rows with one scale for all are a single one.
static inline void flatten(bool per_tensor, int64_t* rows, int64_t* groups, int64_t* group_size) {
  if (per_tensor) {
    *group_size *= *rows;
    *rows = 1;
  } else {
    *rows *= *groups;
    *groups = 1;
  }
}

// Whether every row, row_bytes after the one before, begins at a multiple of `alignment`.
static inline bool is_aligned(const void* p, int64_t rows, int64_t row_bytes, int64_t alignment) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(alignment) == 0 &&
         (rows <= 1 || row_bytes % alignment == 0);
}

// A team's piece; teams beyond the last piece get that one, of length 0.
struct Piece {
  bool exists;
  int64_t span, part, row, begin;  // begin: the first column
  int length;
};

static __device__ __forceinline__ Piece piece_of(const Teams& teams) {
  const int64_t team = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool exists = team < teams.pieces;
  const int64_t i = exists ? team : teams.pieces - 1;
  const int64_t span = teams.parts == 1 ? i : i / teams.parts, part = i - span * teams.parts;
  const int64_t row = teams.groups == 1 ? span : span / teams.groups;
  const int64_t first = part * teams.part_size, left = teams.group_size - first;
  const int64_t length = left < teams.part_size ? left : teams.part_size;
  return {exists,
          span,
          part,
          row,
          (span - row * teams.groups) * teams.group_size + first,
          exists ? static_cast<int>(length) : 0};
}

// Where unit i of this thread begins in the piece.
template <class Unit>
__device__ __forceinline__ int offset_of(int i) {
  return (i * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * Unit::kWidth;
}

// The largest v.x and v.y among `team` threads that follow each other: a power of two up to a warp, or the block, all of
// which comes here, once.
static __device__ __forceinline__ uint2 max_of(uint2 v, int team) {
  const int lanes = team < kWarp ? team : kWarp;
  const auto over_lanes = [&] {
    for (int step = lanes / 2; step > 0; step /= 2) {
      const uint32_t x = __shfl_xor_sync(kAllLanes, v.x, step), y = __shfl_xor_sync(kAllLanes, v.y, step);
      v.x = x > v.x ? x : v.x;
      v.y = y > v.y ? y : v.y;
    }
  };
  over_lanes();
  if (team > kWarp) {
    __shared__ uint2 of_warp[kMaxTeam / kWarp];
    const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x), lane = thread % kWarp;
    if (lane == 0) of_warp[thread / kWarp] = v;
    __syncthreads();
    v = of_warp[lane < team / kWarp ? lane : 0];
    over_lanes();
  }
  return v;
}

// clamp(rint(v), q_min, q_max); the conversion makes 0 of NaN and the last integer of what is beyond.
static __device__ __forceinline__ int round_clamped(float v, int q_min, int q_max) {
  int q = __float2int_rn(v);
  q = q > q_min ? q : q_min;
  return q < q_max ? q : q_max;
}

// kCount signed bytes, in memory as they are in the words.
template <int kCount>
struct alignas(kCount < 4 ? 4 : kCount) Bytes {
  uint32_t word[(kCount + 3) / 4];
  __device__ __forceinline__ int get(int i) const {
    return static_cast<int8_t>(word[i / 4] >> (8 * (i % 4)));
  }
};

template <int kCount>
__device__ __forceinline__ void store_low_bytes(int8_t* to, const int (&v)[kCount]) {
  Bytes<kCount> bytes;
  OCTAVO_UNROLL
  for (int i = 0; i < kCount; i += 4) {
    const uint32_t v01 = __byte_perm(static_cast<uint32_t>(v[i]), static_cast<uint32_t>(v[i + 1]), 0x0040);
    const uint32_t v23 =
        __byte_perm(static_cast<uint32_t>(v[i + 2]), static_cast<uint32_t>(v[i + 3]), 0x0040);
    bytes.word[i / 4] = __byte_perm(v01, v23, 0x5410);
  }
  *reinterpret_cast<Bytes<kCount>*>(to) = bytes;
}

}  // namespace cuda
}  // namespace octavo
