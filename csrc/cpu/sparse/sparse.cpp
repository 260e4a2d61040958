// Products with a packed weight of any layout: straight from a sparse one where there is a kernel for it, else from a strip of
// it expanded to dense panels, which stay in L2 while they are multiplied.
#include "cpu/rows.h"
#include "dispatch.h"
#include "parallel.h"

namespace octavo {
namespace {

constexpr int64_t kFewRows = 16;  // up to here reading a weight takes longer than multiplying by it

// The block's panels [begin, end) as a block of their own.
GemmBlock strip_of(const GemmBlock& g, int64_t begin, int64_t end, const int8_t* panels) {
  const int64_t column = begin * kPanelN;
  GemmBlock strip = g;
  strip.n = g.n - column;
  strip.panels = panels;
  strip.panel_begin = 0;
  strip.panel_end = end - begin;
  Epilogue& e = strip.epilogue;
  e.colsum += column;
  if (e.col_scale) e.col_scale += column;
  if (e.bias) e.bias += column;
  e.out = static_cast<char*>(e.out) + column * size_of(e.out_dtype);
  return strip;
}

bool has_product(const SparseKernels& sparse, const PackedView& w, int64_t rows) {
  if (w.layout == Layout::bitmask) return rows <= sparse.bitmask_rows;
  if (w.layout == Layout::dense || !sparse.gemm_tiles) return false;
  const double tiles = static_cast<double>(padded_n(w.n) * padded_k(w.k) / kLine);
  return rows <= kFewRows || static_cast<double>(w.count) * sparse.tile_cost < tiles;
}

void expand(const SparseKernels& sparse, const PackedView& w, int64_t begin, int64_t end, int8_t* panels) {
  const int64_t bytes = panel_bytes(w.k);
  if (w.layout == Layout::bitmask) {
    for (int64_t p = begin; p < end; p += 2) sparse.expand_pair(w, p / 2, panels + (p - begin) * bytes);
  } else {
    for (int64_t p = begin; p < end; ++p) sparse.expand_tiles(w, p, panels + (p - begin) * bytes);
  }
}

}  // namespace

bool is_multiplied_sparse(const PackedView& w, int64_t rows) {
  return has_product(*kernels().sparse, w, rows);
}

void expand_panels(const PackedView& w, int64_t begin, int64_t end, int8_t* panels) {
  expand(*kernels().sparse, w, begin, end, panels);
}

void gemm_packed(const GemmBlock& block, const PackedView& w) {
  const Kernels& chosen = kernels();  // once: another thread may choose others meanwhile
  const GemmKernels& gemm = *chosen.gemm;
  const SparseKernels& sparse = *chosen.sparse;
  if (w.layout == Layout::dense) {
    GemmBlock dense = block;
    dense.panels = w.weights;
    return gemm.gemm(dense);
  }
  if (has_product(sparse, w, block.m)) {
    return w.layout == Layout::bitmask ? sparse.gemm_bitmask(block, w) : sparse.gemm_tiles(block, w);
  }
  auto* panels = static_cast<int8_t*>(scratch(Slot::panels, kStripPanels * panel_bytes(w.k)));
  for (int64_t p = block.panel_begin; p < block.panel_end; p += kStripPanels) {
    const int64_t end = p + kStripPanels < block.panel_end ? p + kStripPanels : block.panel_end;
    expand(sparse, w, p, end, panels);
    gemm.gemm(strip_of(block, p, end, panels));
  }
}

}  // namespace octavo
