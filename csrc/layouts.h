// Packed weights, as index maps. One buffer serves every CPU instruction set.
//
// dense    panels of 16 columns, four terms of k beside each other. 64 bytes are a line: one VPDPBUSD operand, the next line
//          its successor in k; 16 lines are one AMX tile.
// bitmask  the same lines without their zeros: a 64-bit mask for each, bit i for byte i, and the kept bytes in order. Two
//          panels are a pair, whose lines take turns, so that few streams are read for many columns.
// block    tiles of 4 columns x 16 terms, one column after the other; those with zeros only are left out.
//
// All begin with the header and int32 colsum[padded_n]. Then follow
// dense    int8 panels
// bitmask  int64 offsets[pairs + 1] of each pair's first kept byte, uint64 masks[pairs][lines][2], int8 kept[count], 64 zeros
// block    int64 offsets[tile rows + 1] of each tile row's first tile, uint16 index[count] = k / 16, int8 tiles[count][4][16]
// and every part is padded with zeros to 64 bytes.
//
// CUDA kernels read dense weights row by row: the header (isa 1), int32 colsum[padded_n], zeros up to a multiple of 256 bytes
// and 256 more, then int8 rows[padded_n][padded_k]. No such buffer is as long as the CPU's of the same shape.
#pragma once

#include <cstdint>
#include <cstring>

namespace octavo {

constexpr int64_t kPanelN = 16;
constexpr int64_t kPanelK = 64;  // k is padded with zeros to whole AMX tiles
constexpr int64_t kGroupK = 4;

constexpr int64_t kMaxK = 131071;         // 128 * 128 * K fits int32
constexpr int64_t kMaxKUnsigned = 65793;  // 255 * 128 * K fits int32: uint8 activations, or zero points

constexpr int64_t kStripPanels = 4;  // what work is split into
static_assert(kStripPanels % 2 == 0, "strips are whole pairs of the bitmask layout");

constexpr int64_t kStripColumns = kStripPanels * kPanelN;

constexpr int64_t kTileColumns = 4;  // of the block layout
constexpr int64_t kTileTerms = 16;
constexpr int64_t kLine = 64;  // bytes of a line, and of a tile

enum class Layout : uint32_t { dense = 0, bitmask = 1, block = 2 };

struct PackedHeader {
  static constexpr uint32_t kMagic = 0x5654434Fu;  // "OCTV"
  static constexpr uint32_t kVersion = 1;
  static constexpr uint32_t kAnyIsa = 0;  // of the CPU's
  static constexpr uint32_t kCudaIsa = 1;
  uint32_t magic, version;
  Layout layout;
  uint32_t isa;
  int64_t n, k;
  int64_t count;  // kept bytes, or tiles; 0 if dense
  int64_t reserved[3];
};
static_assert(sizeof(PackedHeader) == 64, "panels stay aligned to cache lines");

static inline int64_t round_up(int64_t v, int64_t to) { return (v + to - 1) / to * to; }
static inline int64_t padded_n(int64_t n) { return round_up(n, kPanelN); }
static inline int64_t padded_k(int64_t k) { return round_up(k, kPanelK); }
static inline int64_t panel_bytes(int64_t k) { return padded_k(k) * kPanelN; }

static inline int64_t panels_of(int64_t n) { return padded_n(n) / kPanelN; }
static inline int64_t strips_of(int64_t n) { return (n + kStripColumns - 1) / kStripColumns; }
static inline int64_t pairs_of(int64_t n) { return (panels_of(n) + 1) / 2; }
static inline int64_t lines_of(int64_t k) { return padded_k(k) / kGroupK; }  // of a panel
static inline int64_t tile_rows_of(int64_t n) { return padded_n(n) / kTileColumns; }

// Where the parts of a packed weight begin, in bytes. `index`: masks, or indices of tiles.
struct PackedParts {
  int64_t offsets, index, weights, end;
};
static inline int64_t colsum_offset() { return sizeof(PackedHeader); }
static inline PackedParts packed_parts(Layout layout, int64_t n, int64_t k, int64_t count) {
  PackedParts parts;
  parts.offsets = parts.index = parts.weights = colsum_offset() + padded_n(n) * 4;
  switch (layout) {
    case Layout::bitmask:
      parts.index += round_up((pairs_of(n) + 1) * 8, kLine);
      parts.weights = parts.index + pairs_of(n) * lines_of(k) * 16;
      parts.end = parts.weights + round_up(count, kLine) + kLine;  // a kept byte is read with the 63 after it
      break;
    case Layout::block:
      parts.index += round_up((tile_rows_of(n) + 1) * 8, kLine);
      parts.weights = parts.index + round_up(count * 2, kLine);
      parts.end = parts.weights + count * kLine;
      break;
    default: parts.end = parts.weights + padded_n(n) * padded_k(k);
  }
  return parts;
}

// The same for CUDA's rows, which begin at a multiple of 256 bytes.
static inline PackedParts cuda_packed_parts(int64_t n, int64_t k) {
  PackedParts parts;
  parts.offsets = parts.index = parts.weights = round_up(colsum_offset() + padded_n(n) * 4, 256) + 256;
  parts.end = parts.weights + padded_n(n) * padded_k(k);
  return parts;
}

// A packed weight, taken apart.
struct PackedView {
  Layout layout;
  int64_t n, k, count;
  const int32_t* colsum;
  const int64_t* offsets;
  const uint64_t* masks;  // bitmask
  const uint16_t* index;  // block
  const int8_t* weights;  // panels, kept bytes or tiles

  explicit PackedView(const void* buffer) {
    PackedHeader header;
    memcpy(&header, buffer, sizeof header);
    layout = header.layout;
    n = header.n;
    k = header.k;
    count = header.count;
    const PackedParts parts = packed_parts(layout, n, k, count);
    const char* bytes = static_cast<const char*>(buffer);
    colsum = reinterpret_cast<const int32_t*>(bytes + colsum_offset());
    offsets = reinterpret_cast<const int64_t*>(bytes + parts.offsets);
    masks = reinterpret_cast<const uint64_t*>(bytes + parts.index);
    index = reinterpret_cast<const uint16_t*>(bytes + parts.index);
    weights = reinterpret_cast<const int8_t*>(bytes + parts.weights);
  }
};

// A pair of panels of a bitmask layout: its masks and its kept bytes, and where two dense panels hold line i of them.
static inline const uint64_t* masks_of(const PackedView& w, int64_t pair) {
  return w.masks + pair * 2 * lines_of(w.k);
}
static inline const int8_t* kept_of(const PackedView& w, int64_t pair) { return w.weights + w.offsets[pair]; }
static inline int64_t pair_offset(int64_t i, int64_t k) { return (i % 2 * lines_of(k) + i / 2) * kLine; }

// Where dense panels hold w[n, k].
static inline int64_t dense_offset(int64_t n, int64_t k, int64_t padded_k) {
  return (n / kPanelN) * kPanelN * padded_k + (k / kGroupK) * kPanelN * kGroupK + (n % kPanelN) * kGroupK +
         k % kGroupK;
}

}  // namespace octavo
