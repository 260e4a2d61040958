// Sparse layouts in plain C++: expanded to dense panels, for any dense product. Runs everywhere; the other files are held
// against it.
#include <cstring>

#include "octavo.h"

namespace octavo {
namespace {

void expand_pair(const PackedView& w, int64_t pair, int8_t* panels) {
  const uint64_t* masks = masks_of(w, pair);
  const int8_t* kept = kept_of(w, pair);
  memset(panels, 0, static_cast<size_t>(2 * panel_bytes(w.k)));
  for (int64_t i = 0; i < 2 * lines_of(w.k); ++i) {
    int8_t* line = panels + pair_offset(i, w.k);
    for (uint64_t mask = masks[i]; mask; mask &= mask - 1) line[__builtin_ctzll(mask)] = *kept++;
  }
}

// Four columns of a panel are 16 bytes of each of its lines; four lines hold the 16 terms of a tile.
void expand_tiles(const PackedView& w, int64_t p, int8_t* panel) {
  constexpr int64_t kLines = kTileTerms / kGroupK, kTileRows = kPanelN / kTileColumns;
  memset(panel, 0, static_cast<size_t>(panel_bytes(w.k)));
  for (int64_t row = 0; row < kTileRows; ++row) {
    const int64_t* range = w.offsets + p * kTileRows + row;
    for (int64_t t = range[0]; t < range[1]; ++t) {
      const int8_t* tile = w.weights + t * kLine;
      int8_t* lines = panel + w.index[t] * kLines * kLine + row * kTileColumns * kGroupK;
      for (int64_t c = 0; c < kTileColumns; ++c) {
        for (int64_t line = 0; line < kLines; ++line, tile += kGroupK) {
          memcpy(lines + line * kLine + c * kGroupK, tile, kGroupK);
        }
      }
    }
  }
}

}  // namespace

const SparseKernels sparse_on::scalar = {expand_pair, expand_tiles, 0, nullptr, 0.0, nullptr, 0.0, 0.0};

}  // namespace octavo
