// How a block is cut into tiles. A tile is a template of its rows, since only sums in arrays of a known size become registers;
// kTileM, its rows where there are enough, is the kernel's own constant.
#include "layouts.h"
#include "octavo.h"

namespace octavo {
namespace {

template <int kRows>
struct Rows {
  static constexpr int value = kRows;
};

// body(Rows<n>()) for the n in [1, kMost] that `rows` is; nothing for 0.
template <int kMost, class Body>
inline void with_rows(int64_t rows, const Body& body) {
  if constexpr (kMost > 0) {
    if (rows == kMost) return body(Rows<kMost>());
    with_rows<kMost - 1>(rows, body);
  }
}

// body(Rows<n>(), row) for m rows: n = kTileM, and once what is left.
template <int kTileM, class Index, class Body>
inline void for_row_tiles(Index m, const Body& body) {
  Index row = 0;
  for (; row + kTileM <= m; row += kTileM) body(Rows<kTileM>(), row);
  with_rows<kTileM - 1>(m - row, [&](auto rows) { body(rows, row); });
}

constexpr int64_t kSpanBytes = 256 << 10;

// Panels of a span: whole tiles, at least one.
template <int kTilePanels>
inline int64_t span_of_panels(int64_t k) {
  const int64_t tiles = kSpanBytes / (kTilePanels * panel_bytes(k) + 1);  // k may be 0
  return kTilePanels * (tiles > 1 ? tiles : 1);
}

// tile(Rows<n>(), row, panel) for all rows and panels. Panels are taken in spans that stay in L2 while the rows go by: a tile's
// rows of A stay in L1, and the output is written along its rows, which the processor's prefetchers follow. Down its columns,
// each store would wait for its line, and for K below 1,000 that takes longer than the products.
template <int kTileM, int kTilePanels, class Tile>
inline void for_tiles(const GemmBlock& g, const Tile& tile) {
  const int64_t span = span_of_panels<kTilePanels>(g.k);
  for (int64_t first = g.panel_begin; first < g.panel_end; first += span) {
    const int64_t last = first + span < g.panel_end ? first + span : g.panel_end;
    for_row_tiles<kTileM>(g.m, [&](auto rows, int64_t row) {
      for (int64_t p = first; p < last; p += kTilePanels) tile(rows, row, p);
    });
  }
}

}  // namespace
}  // namespace octavo
