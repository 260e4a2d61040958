// The index maps of the products, as plain functions of host and device, and how a product is cut into blocks.
#pragma once

#include <initializer_list>

#include "layouts.h"
#include "numerics.h"
#include "runtime.h"

namespace octavo {
namespace cuda {

constexpr int kChunk = 16;  // bytes that move at once: of k, which is padded with zeros to whole chunks

constexpr int64_t kMaxN = INT32_MAX - 511;  // the end of any tile is an int

OCTAVO_HD static inline int64_t ceil_div(int64_t v, int64_t by) { return (v + by - 1) / by; }

// ---- gemm_mma: tiles of kTileK bytes of k, 4 chunks in each row ----
constexpr int kTileK = 64;
constexpr int kRowChunks = kTileK / kChunk;

// Where shared memory holds a chunk of a tile. Eight rows' chunks of one column are what ldmatrix reads at once, and two rows
// with their four chunks what eight threads write: either way the eight lie in eight different sixteenths of 128 bytes.
OCTAVO_HD static inline int swizzled(int row, int chunk) {
  return row * kTileK + ((chunk ^ (row >> 1)) & (kRowChunks - 1)) * kChunk;
}

// The row and chunk whose address a lane gives to ldmatrix_x4, so that what it gets are mma's operands: 16 rows of A; or 16
// columns of B, as r[0], r[1] for the first eight and r[2], r[3] for the others.
struct RowChunk {
  int row, chunk;
};
OCTAVO_HD static inline RowChunk ldmatrix_a(int lane) { return {lane % 16, lane / 16}; }
OCTAVO_HD static inline RowChunk ldmatrix_b(int lane) { return {lane % 8 + lane / 16 * 8, lane / 8 % 2}; }

// Element i of a lane's mma result.
OCTAVO_HD static inline int mma_row(int lane, int i) { return lane / 4 + i / 2 * 8; }
OCTAVO_HD static inline int mma_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

// Blocks that run at the same time should share rows of A and of B in L2: tiles are numbered in bands of kBandRows rows of A,
// column by column within a band.
constexpr int kBandRows = 2048;
struct TileIndex {
  int64_t m, n;
};
OCTAVO_HD static inline TileIndex tile_of(int64_t index, int64_t tiles_m, int64_t tiles_n, int tile_m) {
  const int64_t height = kBandRows / tile_m;
  const int64_t band = index / (height * tiles_n), first = band * height, at = index - first * tiles_n;
  const int64_t rows = tiles_m - first < height ? tiles_m - first : height;
  return {first + at % rows, at / rows};
}

// The tiles of gemm_mma, and what their blocks cost. big: 8 warps, one block for each multiprocessor. small: 4 warps, three.
struct TileShape {
  int m, n, blocks;  // blocks: that run on a multiprocessor at the same time
  int step_cost;     // of kTileK, while so many run
};
constexpr TileShape kBigTile = {128, 256, 1, 8}, kSmallTile = {64, 128, 3, 7};

// Two of the small ones are all that the 100 KB of some chips hold.
static inline int blocks_of(const TileShape& tile, int capability) {
  return has_large_shared(capability) || tile.blocks < 2 ? tile.blocks : 2;
}

struct GemmPlan {
  bool big;
  int splits;     // of k
  int64_t steps;  // of kTileK, of each split; the last one may have fewer
};
// The plan with the shortest time: rounds of blocks, each with its steps and kFillSteps more for the pipeline's start and
// the end; and sums of splits are written, read and added, kJoinSteps for each.
constexpr int kFillSteps = 8, kJoinSteps = 3, kMaxSplits = 32;
static inline GemmPlan plan_gemm(int64_t m, int64_t n, int64_t k, int multiprocessors, int capability) {
  const int64_t steps = ceil_div(k, kTileK);
  GemmPlan best = {true, 1, steps};
  int64_t best_cost = INT64_MAX;
  for (const bool big : {true, false}) {
    const TileShape tile = big ? kBigTile : kSmallTile;
    const int64_t tiles = ceil_div(m, tile.m) * ceil_div(n, tile.n),
                  slots = multiprocessors * blocks_of(tile, capability);
    for (int splits = 1; splits == 1 || (splits <= kMaxSplits && tiles * splits <= slots); ++splits) {
      const int64_t share = ceil_div(steps, splits), rounds = ceil_div(tiles * splits, slots);
      const int64_t join = splits > 1 ? kJoinSteps * splits : 0;
      const int64_t cost = rounds * (share + kFillSteps + join) * tile.step_cost;
      if (cost >= best_cost) continue;
      best_cost = cost;
      best = {big, share ? static_cast<int>(ceil_div(steps, share)) : 1, share};
    }
  }
  return best;
}

// ---- gemv: warps of 16 rows of the weight; along k they read lines of 128 bytes ----
constexpr int kGemvWarps = 8, kGemvRows = 16, kGemvMaxM = 16;
constexpr int kFusedRows = 2;  // of x, that a block quantizes for itself
constexpr int kLineBytes = 128;
constexpr int kRing = 4;        // lines that a warp has under way
constexpr int kGemvBlocks = 2;  // that run on a multiprocessor at the same time
constexpr int kLinePad = 64;    // rows of x start half of the banks apart

// Lane l reads chunk l % 4 of each half of a line, of rows l / 4 and l / 4 + 8. Bytes of the line:
OCTAVO_HD static inline int lane_offset(int lane, int half) {
  return half * (kLineBytes / 2) + lane % 4 * kChunk;
}

struct GemvPlan {
  int warps_n;    // warps beside each other in n; the others share k, line by line in turn
  int splits;     // of k between blocks
  int64_t lines;  // of each split; the last one may have fewer
};
// Bytes between rows of x in shared memory.
OCTAVO_HD static inline int64_t gemv_pitch(int64_t lines) { return lines * kLineBytes + kLinePad; }

// Shared memory for x such that kGemvBlocks blocks fit a multiprocessor.
static inline int64_t gemv_shared_limit(int capability) {
  if (capability == 80 || capability == 87) return 64 << 10;
  return has_large_shared(capability) ? 96 << 10 : 32 << 10;
}

// More rows of A: more rows of the weight for a block, so that what blocks read of A stays an eighth of what they read of
// the weight. Then the splits with the shortest time, as plan_gemm; never fewer lines than a ring for each warp.
constexpr int kFillLines = 8, kJoinLines = 8;
static inline GemvPlan plan_gemv(int64_t m, int64_t n, int64_t k, int multiprocessors, int capability) {
  GemvPlan plan = {1, 1, 0};
  while (2 * plan.warps_n < m) plan.warps_n *= 2;
  const int warps_k = kGemvWarps / plan.warps_n;
  const int64_t lines = ceil_div(k, kLineBytes), tiles = ceil_div(n, plan.warps_n * kGemvRows);
  const int64_t most = (gemv_shared_limit(capability) / m - kLinePad) / kLineBytes;  // lines of x that fit
  const int64_t slots = multiprocessors * kGemvBlocks;
  int64_t best_cost = INT64_MAX;
  for (int64_t splits = ceil_div(lines, most) + (lines == 0);; ++splits) {
    const int64_t share = ceil_div(lines, splits);
    if (best_cost < INT64_MAX && (splits > kMaxSplits || share < warps_k * kRing)) break;
    const int64_t rounds = ceil_div(tiles * splits, slots);
    const int64_t join = splits > 1 ? kJoinLines : 0;
    const int64_t cost = rounds * (ceil_div(share, warps_k) + kFillLines) + join;
    if (cost >= best_cost) continue;
    best_cost = cost;
    plan.splits = share ? static_cast<int>(ceil_div(lines, share)) : 1;
    plan.lines = share;
  }
  return plan;
}

}  // namespace cuda
}  // namespace octavo
