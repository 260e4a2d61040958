// Products on AMX-INT8, of panels that are dense or become so on the way. One tdpbusd multiplies 16 rows x 64 terms of u8 by 64
// terms x 16 columns of s8 in 16 cycles; a packed panel holds such weight tiles as they are, one after the other.
// Tile: 32 x 32 = four accumulator tiles, two of A, two of B: all eight. Each loaded tile is used twice.
// Rows beyond m are computed from the padding of A and thrown away.
#include "cpu/gemm/epilogue.inl"
#include "cpu/gemm/tiles.inl"

namespace octavo {
namespace {

constexpr int kTile = 16;  // rows of a tile; columns of int32
constexpr int kTileM = 2 * kTile;
constexpr int kTileN = 2 * kTile;
constexpr int64_t kWeightStride = kPanelN * kGroupK;
constexpr int64_t kWeightTile = kTile * kWeightStride;
constexpr int kFewPanels = 4;
constexpr int64_t kFewAhead = 8;  // tiles; beyond the end that is harmless
constexpr int64_t kSmallM = 4;    // up to here AVX-512 has eight panels under way at once

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

}  // namespace
}  // namespace octavo
