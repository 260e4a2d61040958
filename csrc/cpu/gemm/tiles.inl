// The order in which a block is cut into tiles. Panels are taken in spans that stay in L2 while the rows go by: a tile's rows
// of A stay in L1, and the output is written along its rows, which the processor's prefetchers follow. Down its columns,
// each store would wait for its line, and for K below 1,000 that takes longer than the products.
#include "layouts.h"
#include "octavo.h"

namespace octavo {
namespace {

constexpr int64_t kSpanBytes = 256 << 10;

// Panels of a span: whole tiles, at least one.
template <int kTilePanels>
inline int64_t span_of_panels(int64_t k) {
  const int64_t tiles = kSpanBytes / (kTilePanels * panel_bytes(k) + 1);  // k may be 0
  return kTilePanels * (tiles > 1 ? tiles : 1);
}

template <class Tile, int kRows>
inline void tiles_of_rows(const GemmBlock& g, int64_t row, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; p += Tile::kPanels) Tile::template run<kRows>(g, row, p);
}

// Tile::run<kRows>(g, row, panel) for all rows and panels, kRows = 6 and once what is left.
template <class Tile>
void for_tiles_of_6_rows(const GemmBlock& g) {
  const int64_t span = span_of_panels<Tile::kPanels>(g.k);
  for (int64_t first = g.panel_begin; first < g.panel_end; first += span) {
    const int64_t last = first + span < g.panel_end ? first + span : g.panel_end;
    int64_t row = 0;
    for (; row + 6 <= g.m; row += 6) tiles_of_rows<Tile, 6>(g, row, first, last);
    switch (g.m - row) {
      case 1: tiles_of_rows<Tile, 1>(g, row, first, last); break;
      case 2: tiles_of_rows<Tile, 2>(g, row, first, last); break;
      case 3: tiles_of_rows<Tile, 3>(g, row, first, last); break;
      case 4: tiles_of_rows<Tile, 4>(g, row, first, last); break;
      case 5: tiles_of_rows<Tile, 5>(g, row, first, last); break;
      default: break;
    }
  }
}

}  // namespace
}  // namespace octavo
