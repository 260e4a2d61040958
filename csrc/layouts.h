// Packed weights, as index maps. One dense layout serves every CPU instruction set: panels of 16 columns, four terms of k
// beside each other. 64 bytes are one VPDPBUSD operand, the next 64 its successor in k; 16 of them are one AMX tile.
#pragma once

#include <cstdint>

namespace octavo {

constexpr int64_t kPanelN = 16;
constexpr int64_t kPanelK = 64;  // k is padded with zeros to whole AMX tiles
constexpr int64_t kGroupK = 4;

constexpr int64_t kMaxK = 131071;         // 128 * 128 * K fits int32
constexpr int64_t kMaxKUnsigned = 65793;  // 255 * 128 * K fits int32: uint8 activations, or zero points

struct PackedHeader {
  static constexpr uint32_t kMagic = 0x5654434Fu;  // "OCTV"
  static constexpr uint32_t kVersion = 1;
  static constexpr uint32_t kDense = 0;
  static constexpr uint32_t kAnyIsa = 0;
  uint32_t magic, version, layout, isa;
  int64_t n, k;
  int64_t reserved[4];
};
static_assert(sizeof(PackedHeader) == 64, "panels stay aligned to cache lines");

static inline int64_t round_up(int64_t v, int64_t to) { return (v + to - 1) / to * to; }
static inline int64_t padded_n(int64_t n) { return round_up(n, kPanelN); }
static inline int64_t padded_k(int64_t k) { return round_up(k, kPanelK); }
static inline int64_t panel_bytes(int64_t k) { return padded_k(k) * kPanelN; }

// header, int32 colsum[padded_n], then the panels.
static inline int64_t colsum_offset() { return sizeof(PackedHeader); }
static inline int64_t panels_offset(int64_t n) { return colsum_offset() + padded_n(n) * 4; }
static inline int64_t packed_bytes(int64_t n, int64_t k) {
  return panels_offset(n) + padded_n(n) * padded_k(k);
}

// Where the panels hold w[n, k].
static inline int64_t dense_offset(int64_t n, int64_t k, int64_t padded_k) {
  return (n / kPanelN) * kPanelN * padded_k + (k / kGroupK) * kPanelN * kGroupK + (n % kPanelN) * kGroupK +
         k % kGroupK;
}

}  // namespace octavo
