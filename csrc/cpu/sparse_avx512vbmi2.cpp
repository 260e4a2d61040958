// Sparse layouts on AVX-512 with VNNI and VBMI2.
//
// bitmask: vpexpandb rebuilds a line in a register, for up to 16 rows. On Intel a line takes 3 cycles of one port, one for its
// mask and two for the expansion, which is what bounds few rows at a density of 0.1; above 0.25 memory does. More rows are
// multiplied by panels expanded once.
// Tiles: 1 row x 256 columns, 2 x 128, 4 x 96, 8 x 32, 12 x 32: at most 24 accumulators, 8 broadcasts, a line.
//
// block: a tile is one operand of vpdpbusd; 16 terms of A, broadcast to its four columns, are the other. Its four 128-bit
// lanes are columns, whose four sums each are added up at the end of a row of tiles.
// Tile: 8 rows x 4 columns, twice: even and odd tiles have accumulators of their own to hide the latency of vpdpbusd. 16
// accumulators, a tile and a broadcast; nine loads feed eight multiply-adds.
#include "vec_avx512.h"

#include "epilogue.inl"
#include "expand.h"
#include "tiles.inl"
#include "unroll.h"

namespace octavo {
namespace {

constexpr int64_t kAhead = 512;  // bytes of each stream that are prefetched; harmless beyond the end
constexpr int64_t kTileRows = kPanelN / kTileColumns;

void expand_pair(const PackedView& w, int64_t pair, int8_t* panels) {
  const int64_t lines = lines_of(w.k);
  const uint64_t* masks = w.masks + pair * 2 * lines;
  const int8_t* kept = w.weights + w.offsets[pair];
  for (int64_t line = 0; line < lines; ++line, masks += 2, panels += kLine) {
    _mm_prefetch(kept + kAhead, _MM_HINT_T0);
    _mm512_storeu_si512(panels, expand_line(masks[0], kept));
    kept += kept_by(masks[0]);
    _mm_prefetch(kept + kAhead, _MM_HINT_T0);
    _mm512_storeu_si512(panels + lines * kLine, expand_line(masks[1], kept));
    kept += kept_by(masks[1]);
  }
}

// Transposes the 4 x 4 lanes of 32 bits: tiles hold columns one after the other, lines and results do not.
inline __m512i transpose(__m512i v) {
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
}

// Stores 128 bits each at p, p + stride, ...
template <int kCount>
inline void store_quarters(void* p, int64_t stride, __m512i v) {
  char* at = static_cast<char*>(p);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm512_castsi512_si128(v));
  if (kCount > 1) _mm_storeu_si128(reinterpret_cast<__m128i*>(at + stride), _mm512_extracti32x4_epi32(v, 1));
  if (kCount > 2)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 2 * stride), _mm512_extracti32x4_epi32(v, 2));
  if (kCount > 3)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 3 * stride), _mm512_extracti32x4_epi32(v, 3));
}

void expand_tiles(const PackedView& w, int64_t p, int8_t* panel) {
  constexpr int64_t kLines = kTileTerms / kGroupK;
  memset(panel, 0, static_cast<size_t>(panel_bytes(w.k)));
  for (int64_t row = 0; row < kTileRows; ++row) {
    const int64_t* range = w.offsets + p * kTileRows + row;
    for (int64_t t = range[0]; t < range[1]; ++t) {
      int8_t* lines = panel + w.index[t] * kLines * kLine + row * kTileColumns * kGroupK;
      store_quarters<kLines>(lines, kLine, transpose(_mm512_loadu_si512(w.weights + t * kLine)));
    }
  }
}

// kRows rows from `row` on by kPairs pairs of panels from `pair` on. Rows of A beyond m are padding, and not stored.
template <int kRows, int kPairs>
inline void multiply_pairs(const GemmBlock& g, const PackedView& w, int64_t row, int64_t pair) {
  constexpr int kPanels = 2 * kPairs, kColumns = kPanels * kPanelN;
  const int64_t lines = lines_of(g.k), end = (g.panel_end + 1) / 2;
  __m512i acc[kRows][kPanels];
  OCTAVO_UNROLL
  for (auto& of_row : acc) {
    OCTAVO_UNROLL
    for (auto& v : of_row) v = _mm512_setzero_si512();
  }
  // Beyond the last pair the last one is read again; those sums are not stored.
  const uint64_t* masks[kPairs];
  const int8_t* kept[kPairs];
  for (int i = 0; i < kPairs; ++i) {
    const int64_t p = pair + i < end ? pair + i : end - 1;
    masks[i] = w.masks + p * 2 * lines;
    kept[i] = w.weights + w.offsets[p];
  }
  const uint8_t* a = g.a + row * g.lda;
  auto terms_of = [&](int r) {
    int32_t four;
    memcpy(&four, a + r * g.lda, sizeof four);
    return _mm512_set1_epi32(four);
  };
  for (int64_t line = 0; line < lines; ++line, a += kGroupK) {
    if (line % 4 == 0) {
      OCTAVO_UNROLL
      for (int i = 0; i < kPairs; ++i)
        _mm_prefetch(reinterpret_cast<const char*>(masks[i] + 2 * line) + kAhead, _MM_HINT_T0);
    }
    constexpr int kHeld = kRows <= 8 ? kRows : 0;  // more rows would not leave registers enough
    __m512i held[kHeld + 1];
    OCTAVO_UNROLL
    for (int r = 0; r < kHeld; ++r) held[r] = terms_of(r);
    OCTAVO_UNROLL
    for (int i = 0; i < kPanels; ++i) {
      const uint64_t mask = masks[i / 2][2 * line + i % 2];
      const __m512i weights = expand_line(mask, kept[i / 2]);
      _mm_prefetch(kept[i / 2] + kAhead, _MM_HINT_T0);
      kept[i / 2] += kept_by(mask);
      OCTAVO_UNROLL
      for (int r = 0; r < kRows; ++r) {
        acc[r][i] = _mm512_dpbusd_epi32(acc[r][i], kHeld ? held[r] : terms_of(r), weights);
        settle(acc[r][i]);
      }
    }
  }
  alignas(64) int32_t sums[kRows * kColumns];
  OCTAVO_UNROLL
  for (int r = 0; r < kRows; ++r) {
    OCTAVO_UNROLL
    for (int i = 0; i < kPanels; ++i) store(sums + r * kColumns + i * kPanelN, acc[r][i]);
  }
  const int rows = g.m - row < kRows ? static_cast<int>(g.m - row) : kRows;
  finish_tile<kColumns, kColumns>(g.epilogue, column_end(g), row, rows, pair * 2 * kPanelN, sums);
}

// Pairs stay in L2 while the rows go by.
template <int kRows, int kPairs>
void pairs_by_rows(const GemmBlock& g, const PackedView& w) {
  for (int64_t pair = g.panel_begin / 2; 2 * pair < g.panel_end; pair += kPairs) {
    for (int64_t row = 0; row < g.m; row += kRows) multiply_pairs<kRows, kPairs>(g, w, row, pair);
  }
}

// For few rows the weights' way from memory counts: the more pairs are read at once, the more lines are under way.
void gemm_bitmask(const GemmBlock& g, const PackedView& w) {
  if (g.m <= 1) return pairs_by_rows<1, 8>(g, w);
  if (g.m <= 2) return pairs_by_rows<2, 4>(g, w);
  if (g.m <= 4) return pairs_by_rows<4, 3>(g, w);
  if (g.m <= 8 || g.m > 12) return pairs_by_rows<8, 1>(g, w);
  return pairs_by_rows<12, 1>(g, w);
}

// The sums of four rows, [column][row] in its lanes, from their four partial sums each.
inline __m512i add_partial_sums(__m512i r0, __m512i r1, __m512i r2, __m512i r3) {
  const __m512i low = add(_mm512_unpacklo_epi32(r0, r1), _mm512_unpackhi_epi32(r0, r1));
  const __m512i high = add(_mm512_unpacklo_epi32(r2, r3), _mm512_unpackhi_epi32(r2, r3));
  return add(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
}

// kRows rows by one row of tiles, of which kSets are under way at once; sums[kRows][kPanelN].
template <int kRows, int kSets>
inline void multiply_tiles(const uint8_t* a, int64_t lda, const uint16_t* index, const int8_t* tiles,
                           int64_t count, int32_t* sums) {
  __m512i acc[kSets][kRows];
  OCTAVO_UNROLL
  for (auto& set : acc) {
    OCTAVO_UNROLL
    for (auto& v : set) v = _mm512_setzero_si512();
  }
  auto multiply = [&](int64_t t, __m512i(&set)[kRows]) {
    const int8_t* tile = tiles + t * kLine;
    _mm_prefetch(tile + 16 * kLine, _MM_HINT_T0);
    const __m512i weights = _mm512_loadu_si512(tile);
    const uint8_t* terms = a + index[t] * kTileTerms;
    OCTAVO_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(terms + r * lda));
      set[r] = _mm512_dpbusd_epi32(set[r], _mm512_broadcast_i32x4(sixteen), weights);
      settle(set[r]);
    }
  };
  int64_t t = 0;
  for (; t + kSets <= count; t += kSets) {
    OCTAVO_UNROLL
    for (int s = 0; s < kSets; ++s) multiply(t + s, acc[s]);
  }
  for (; t < count; ++t) multiply(t, acc[0]);
  OCTAVO_UNROLL
  for (int s = 1; s < kSets; ++s) {
    OCTAVO_UNROLL
    for (int r = 0; r < kRows; ++r) acc[0][r] = add(acc[0][r], acc[s][r]);
  }
  constexpr int kFour = kRows < 4 ? kRows : 4;
  OCTAVO_UNROLL
  for (int r = 0; r < kRows; r += kFour) {
    const __m512i* rows = acc[0] + r;
    const __m512i four = add_partial_sums(rows[0], rows[1 % kFour], rows[2 % kFour], rows[3 % kFour]);
    store_quarters<kFour>(sums + r * kPanelN, kPanelN * sizeof *sums, transpose(four));
  }
}

template <int kRows, int kSets>
void tile_panels(const GemmBlock& g, const PackedView& w, int64_t row, int64_t begin, int64_t end) {
  const int rows = static_cast<int>(g.m - row < kRows ? g.m - row : kRows);
  for (int64_t p = begin; p < end; ++p) {
    alignas(64) int32_t sums[kRows * kPanelN];
    for (int64_t i = 0; i < kTileRows; ++i) {
      const int64_t *range = w.offsets + p * kTileRows + i, first = range[0];
      multiply_tiles<kRows, kSets>(g.a + row * g.lda, g.lda, w.index + first, w.weights + first * kLine,
                                   range[1] - first, sums + i * kTileColumns);
    }
    finish_tile<kPanelN, kPanelN>(g.epilogue, column_end(g), row, rows, p * kPanelN, sums);
  }
}

void gemm_tiles(const GemmBlock& g, const PackedView& w) {
  const int64_t panel = w.count * kLine / panels_of(w.n) + 1;  // bytes, on average
  const int64_t span = kSpanBytes / panel + 1;
  for (int64_t first = g.panel_begin; first < g.panel_end; first += span) {
    const int64_t last = first + span < g.panel_end ? first + span : g.panel_end;
    for (int64_t row = 0; row < g.m; row += 8) {
      switch (g.m - row) {
        case 1: tile_panels<1, 4>(g, w, row, first, last); break;
        case 2: tile_panels<2, 4>(g, w, row, first, last); break;
        case 3:
        case 4: tile_panels<4, 2>(g, w, row, first, last); break;
        default: tile_panels<8, 2>(g, w, row, first, last); break;
      }
    }
  }
}

}  // namespace

extern const SparseKernels kSparseAvx512Vbmi2 = {expand_pair, expand_tiles, 16,  gemm_bitmask,
                                                 1.3,         gemm_tiles,   0.8, 0.7};

}  // namespace octavo
