// The product on AMX-INT8. One tdpbusd multiplies 16 rows x 64 terms of u8 by 64 terms x 16 columns of s8 in 16 cycles; a
// packed panel holds such weight tiles as they are, one after the other.
// Tile: 32 x 32 = four accumulator tiles, two of A, two of B: all eight. Each loaded tile is used twice.
// Rows beyond m are computed from the padding of A and thrown away.
#include "cpu/vec/vec_avx512.h"

#include "cpu/sparse/expand.h"
#include "epilogue.inl"
#include "scratch.h"
#include "tiles.inl"

namespace octavo {
namespace {

constexpr int kTile = 16;  // rows of a tile; columns of int32
constexpr int kTileM = 2 * kTile;
constexpr int kTileN = 2 * kTile;
constexpr int64_t kWeightStride = kPanelN * kGroupK;
constexpr int64_t kWeightTile = kTile * kWeightStride;
constexpr int kPrefetchLines = 6;  // for each step
constexpr int kFewPanels = 4;
constexpr int64_t kFewAhead = 8;     // tiles; beyond the end that is harmless
constexpr int64_t kKeptAhead = 512;  // bytes, likewise
constexpr int64_t kSmallM = 4;       // up to here AVX-512 has eight panels under way at once

struct TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "the operand of ldtilecfg");

// GCC 12's intrinsics tell the compiler of 8 of the 64 bytes that they touch; this tells it of all.
inline void touch(void* memory) { asm volatile("" : : "r"(memory) : "memory"); }

// Configures eight full tiles, and puts back what was there: another library's idea of the configuration stays true.
class TileScope {
 public:
  TileScope() {
    touch(&before_);
    _tile_storeconfig(&before_);
    touch(&before_);
    TileConfig config = {};
    config.palette = 1;
    for (int t = 0; t < 8; ++t) {
      config.row_bytes[t] = 64;
      config.rows[t] = kTile;
    }
    touch(&config);
    _tile_loadconfig(&config);
  }
  ~TileScope() {
    if (before_.palette == 0) {
      _tile_release();
    } else {
      touch(&before_);
      _tile_loadconfig(&before_);
    }
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  TileConfig before_;
};

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

// Two panels of weights. Tiles 0 1 / 2 3 accumulate, 4 5 are rows of A, 6 7 columns of B.
template <class Spans>
inline void multiply(const uint8_t* a, int64_t lda, const int8_t* low, const int8_t* high, int64_t steps,
                     Spans& spans, int32_t (*out)[kTileN]) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step, a += kPanelK, low += kWeightTile, high += kWeightTile) {
    _tile_loadd(6, low, kWeightStride);
    _tile_loadd(4, a, lda);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, high, kWeightStride);
    _tile_dpbusd(1, 4, 7);
    _tile_loadd(5, a + kTile * lda, lda);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
    spans.step();
  }
  _tile_stored(0, out[0], sizeof out[0]);
  _tile_stored(1, out[0] + kTile, sizeof out[0]);
  _tile_stored(2, out[kTile], sizeof out[0]);
  _tile_stored(3, out[kTile] + kTile, sizeof out[0]);
}

// Four dense panels for few rows. Beyond the last panel the last one is read again; those sums are not stored.
class DensePanels {
 public:
  DensePanels(const int8_t* panels, int64_t end, int64_t p, int64_t k) : steps_(padded_k(k) / kPanelK) {
    for (int i = 0; i < kFewPanels; ++i)
      panel_[i] = panels + (p + i < end ? p + i : end - 1) * panel_bytes(k);
    to_next_ = (kFewPanels - 1) * panel_bytes(k);
  }
  const int8_t* tile(int i, int64_t step) const { return panel_[i] + step * kWeightTile; }
  void step(int64_t step) const {
    const int64_t ahead = step + kFewAhead < steps_ ? 0 : to_next_;
    for (const int8_t* panel : panel_) {
      const int8_t* tile = panel + (step + kFewAhead) * kWeightTile + ahead;
      for (int line = 0; line < kTile; ++line) _mm_prefetch(tile + line * kWeightStride, _MM_HINT_T0);
    }
  }

 private:
  const int8_t* panel_[kFewPanels];
  int64_t steps_, to_next_;
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

// Up to 16 rows by four panels: for so few rows the weights' way from memory counts, and four streams are faster than two.
template <class Panels>
void few_rows(const GemmBlock& g, int64_t row, int rows, int64_t column, Panels& b) {
  constexpr int kColumns = kFewPanels * kPanelN;
  alignas(64) int32_t out[kTile][kColumns];
  const int64_t steps = padded_k(g.k) / kPanelK;
  const uint8_t* a = g.a + row * g.lda;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step, a += kPanelK) {
    _tile_loadd(4, a, g.lda);
    _tile_loadd(5, b.tile(0, step), kWeightStride);
    _tile_dpbusd(0, 4, 5);
    _tile_loadd(6, b.tile(1, step), kWeightStride);
    _tile_dpbusd(1, 4, 6);
    _tile_loadd(7, b.tile(2, step), kWeightStride);
    _tile_dpbusd(2, 4, 7);
    _tile_loadd(5, b.tile(3, step), kWeightStride);
    _tile_dpbusd(3, 4, 5);
    b.step(step);
  }
  _tile_stored(0, out[0], sizeof out[0]);
  _tile_stored(1, out[0] + kTile, sizeof out[0]);
  _tile_stored(2, out[0] + 2 * kTile, sizeof out[0]);
  _tile_stored(3, out[0] + 3 * kTile, sizeof out[0]);
  finish_tile<kColumns, kColumns>(g.epilogue, column_end(g), row, rows, column, out[0]);
}

template <class Spans>
void many_rows(const GemmBlock& g, int64_t span, Spans& spans) {
  alignas(64) int32_t out[kTileM][kTileN];
  const int64_t bytes = panel_bytes(g.k), steps = padded_k(g.k) / kPanelK;
  for (int64_t first = g.panel_begin; first < g.panel_end; first += span) {
    const int64_t last = first + span < g.panel_end ? first + span : g.panel_end;
    const int64_t products = (g.m + kTileM - 1 - kTile) / kTileM * ((last - first + 1) / 2);
    const int8_t* panels = spans.open(first, last, products * steps + 1);
    for (int64_t row = 0; row < g.m; row += kTileM) {
      const int rows = static_cast<int>(g.m - row < kTileM ? g.m - row : kTileM);
      if (rows <= kTile) {
        for (int64_t p = first; p < last; p += kFewPanels) {
          DensePanels four(panels, last - first, p - first, g.k);
          few_rows(g, row, rows, p * kPanelN, four);
        }
        continue;
      }
      for (int64_t p = first; p < last; p += 2) {
        // After an odd last panel it is read twice; the second sums are not stored.
        const int8_t* low = panels + (p - first) * bytes;
        const int8_t* high = p + 1 < last ? low + bytes : low;
        multiply(g.a + row * g.lda, g.lda, low, high, steps, spans, out);
        finish_tile<kTileN, kTileN>(g.epilogue, column_end(g), row, rows, p * kPanelN, out[0]);
      }
    }
  }
}

void gemm(const GemmBlock& g) {
  if (g.m <= kSmallM) return kGemmAvx512Vnni.gemm(g);
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

void gemm_bitmask(const GemmBlock& g, const PackedView& w) {
  if (g.m <= kSmallM) return kSparseAvx512Vbmi2.gemm_bitmask(g, w);
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
  kSparseAvx512Vbmi2.expand_pair(w, pair, panels);
}
void expand_tiles(const PackedView& w, int64_t p, int8_t* panel) {
  kSparseAvx512Vbmi2.expand_tiles(w, p, panel);
}
void gemm_tiles(const GemmBlock& g, const PackedView& w) { kSparseAvx512Vbmi2.gemm_tiles(g, w); }

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

extern const GemmKernels kGemmAmx = {kTileM, gemm, peak, kSmallM, "avx512vnni"};
extern const SparseKernels kSparseAmx = {expand_pair, expand_tiles, INT64_MAX, gemm_bitmask,
                                         6.0,         gemm_tiles,   0.6,       0.15};

}  // namespace octavo
