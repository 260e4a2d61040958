// Sparse layouts on AMX-INT8 (cpu/gemm/amx.inl): what a bitmask layout keeps is expanded beside the products of the step before.
// Everything else is AVX-512's.
#include "cpu/vec/vec_avx512.h"

#include "cpu/gemm/amx.inl"
#include "expand.h"
#include "scratch.h"

namespace octavo {
namespace {

constexpr int64_t kKeptAhead = 512;  // bytes; beyond the end that is harmless

// Spans of a bitmask layout: the next one is expanded while this one is multiplied, on a port that AMX leaves idle.
class BitmaskSpans {
 public:
  static constexpr int64_t kPanels =
      kFewPanels;  // of a span; few, since the first is expanded before its products

  BitmaskSpans(const GemmBlock& g, const PackedView& w) : g_(g), w_(w) {
    const int64_t bytes = kPanels * panel_bytes(g.k);
    buffers_[0] = static_cast<int8_t*>(scratch(Slot::panels, 2 * bytes));
    buffers_[1] = buffers_[0] + bytes;
    begin(g.panel_begin);
  }

  const int8_t* open(int64_t, int64_t last, int64_t steps) {
    while (left_ > 0) expand_two();  // what was not expanded in passing
    const int8_t* panels = buffers_[current_];
    current_ ^= 1;
    begin(last);
    each_step_ = (left_ + steps - 1) / steps;
    return panels;
  }
  void step() {
    for (int64_t i = 0; i < each_step_ && left_ > 0; ++i) expand_two();
  }

 private:
  void begin(int64_t first) {
    const int64_t last = first + kPanels < g_.panel_end ? first + kPanels : g_.panel_end;
    const int64_t pairs = last > first ? (last - first + 1) / 2 : 0;
    lines_ = lines_of(g_.k);
    left_ = pairs * lines_;
    if (pairs == 0) return;
    masks_ = masks_of(w_, first / 2);
    kept_ = kept_of(w_, first / 2);
    out_ = buffers_[current_];
    line_ = 0;
  }
  // A line of each panel of a pair.
  void expand_two() {
    _mm_prefetch(kept_ + kKeptAhead, _MM_HINT_T0);
    _mm512_store_si512(out_, expand_line(masks_[0], kept_));
    kept_ += kept_by(masks_[0]);
    _mm512_store_si512(out_ + lines_ * kLine, expand_line(masks_[1], kept_));
    kept_ += kept_by(masks_[1]);
    masks_ += 2;
    out_ += kLine;
    --left_;
    if (++line_ < lines_) return;
    line_ = 0;
    out_ += lines_ * kLine;  // over the pair's second panel
  }

  const GemmBlock& g_;
  const PackedView& w_;
  int8_t* buffers_[2];
  int current_ = 0;
  const uint64_t* masks_ = nullptr;
  const int8_t* kept_ = nullptr;
  int8_t* out_ = nullptr;
  int64_t line_ = 0, lines_ = 0, left_ = 0, each_step_ = 0;
};

// The same of a bitmask layout: the tiles of a step are expanded in the step before, to L1.
class BitmaskPanels {
 public:
  BitmaskPanels(const GemmBlock& g, const PackedView& w, int64_t p) : steps_(padded_k(g.k) / kPanelK) {
    for (int i = 0; i < kFewPanels / 2; ++i) {
      const int64_t pair = p + 2 * i < g.panel_end ? p / 2 + i : p / 2;
      masks_[i] = masks_of(w, pair);
      kept_[i] = kept_of(w, pair);
    }
    step(-1);
  }
  const int8_t* tile(int i, int64_t step) const { return tiles_[step & 1][i]; }
  void step(int64_t step) {
    if (step + 1 == steps_) return;
    auto& out = tiles_[(step + 1) & 1];
    for (int64_t line = 0; line < kTile; ++line) {
      OCTAVO_UNROLL
      for (int i = 0; i < kFewPanels; ++i) {
        const uint64_t mask = masks_[i / 2][i % 2];
        _mm512_store_si512(out[i] + line * kLine, expand_line(mask, kept_[i / 2]));
        _mm_prefetch(kept_[i / 2] + kKeptAhead, _MM_HINT_T0);
        kept_[i / 2] += kept_by(mask);
      }
      OCTAVO_UNROLL
      for (auto& masks : masks_) masks += 2;
    }
  }

 private:
  alignas(64) int8_t tiles_[2][kFewPanels][kWeightTile];
  const uint64_t* masks_[kFewPanels / 2];
  const int8_t* kept_[kFewPanels / 2];
  int64_t steps_;
};

void gemm_bitmask(const GemmBlock& g, const PackedView& w) {
  if (g.m <= kSmallM) return sparse_on::avx512vbmi2.gemm_bitmask(g, w);
  const TileScope scope;
  if (g.m > kTile) {
    BitmaskSpans spans(g, w);
    return many_rows(g, BitmaskSpans::kPanels, spans);
  }
  for (int64_t p = g.panel_begin; p < g.panel_end; p += kFewPanels) {
    BitmaskPanels four(g, w, p);
    few_rows(g, 0, static_cast<int>(g.m), p * kPanelN, four);
  }
}

void expand_pair(const PackedView& w, int64_t pair, int8_t* panels) {
  sparse_on::avx512vbmi2.expand_pair(w, pair, panels);
}
void expand_tiles(const PackedView& w, int64_t p, int8_t* panel) {
  sparse_on::avx512vbmi2.expand_tiles(w, p, panel);
}
void gemm_tiles(const GemmBlock& g, const PackedView& w) { sparse_on::avx512vbmi2.gemm_tiles(g, w); }

}  // namespace

const SparseKernels sparse_on::amx = {expand_pair, expand_tiles, INT64_MAX, gemm_bitmask,
                                      6.0,         gemm_tiles,   0.6,       0.15};

}  // namespace octavo
