// The product on AMX-INT8: amx.inl on dense panels.
#include "cpu/vec/vec_avx512.h"

#include "amx.inl"

namespace octavo {
namespace {

constexpr int kPrefetchLines = 6;  // for each step

// Spans of dense panels. What does not cost a product its time is done beside it, in every step: here, the next span is
// prefetched.
class DenseSpans {
 public:
  explicit DenseSpans(const GemmBlock& g) : g_(g) {}

  // The panels [first, last), of which the products take `steps` steps.
  const int8_t* open(int64_t first, int64_t last, int64_t) {
    const int64_t bytes = panel_bytes(g_.k);
    next_ = g_.panels + last * bytes;
    next_end_ = next_ + (last - first) * bytes;  // beyond the end that is harmless
    return g_.panels + first * bytes;
  }
  void step() {
    if (next_ >= next_end_) return;
    for (int line = 0; line < kPrefetchLines; ++line, next_ += kLine) _mm_prefetch(next_, _MM_HINT_T1);
  }

 private:
  const GemmBlock& g_;
  const int8_t *next_ = nullptr, *next_end_ = nullptr;
};

void gemm(const GemmBlock& g) {
  if (g.m <= kSmallM) return gemm_on::avx512vnni.gemm(g);
  const TileScope scope;
  if (g.m > kTile) {
    DenseSpans spans(g);
    return many_rows(g, span_of_panels<kFewPanels>(g.k), spans);
  }
  for (int64_t p = g.panel_begin; p < g.panel_end; p += kFewPanels) {
    DensePanels four(g.panels, g.panel_end, p, g.k);
    few_rows(g, 0, static_cast<int>(g.m), p * kPanelN, four);
  }
}

int64_t peak(int64_t iterations) {
  const TileScope scope;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(6);
  for (int64_t i = 0; i < iterations; ++i) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 6);
    _tile_dpbusd(2, 4, 6);
    _tile_dpbusd(3, 4, 6);
  }
  return iterations * 4 * kTile * kTile * kPanelK;
}

}  // namespace

const GemmKernels gemm_on::amx = {kTileM, gemm, peak, kSmallM, "avx512vnni"};

}  // namespace octavo
