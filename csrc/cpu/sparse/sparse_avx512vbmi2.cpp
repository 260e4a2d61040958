// Sparse layouts on AVX-512 with VNNI and VBMI2.
//
// bitmask: vpexpandb rebuilds a line in a register, for up to 16 rows. On Intel a line takes 3 cycles of one port, one for its
// mask and two for the expansion, which is what bounds few rows at a density of 0.1; above 0.25 memory does. More rows are
// multiplied by panels expanded once.
// Tiles: 1 row x 256 columns, 2 x 128, 4 x 96, 8 x 32, 12 x 32: at most 24 accumulators, 8 broadcasts, a line.
//
// block: 16 terms of four rows of A are one operand of vpdpbusd, 16 terms of a column of a tile, four times, the other. The
// four sums of each row are added up at the end of a row of tiles.
// Tile: 16 rows x 4 columns = 16 accumulators, 4 broadcasts, 1 vector of A; 8 loads feed 16 multiply-adds. A is rearranged for
// that, [k / 16][row][16], and comes from L1 and L2.
#include "cpu/vec/vec_avx512.h"

#include "cpu/gemm/epilogue.inl"
#include "cpu/vec/unroll.h"
#include "expand.h"
#include "scratch.h"

namespace octavo {
namespace {

constexpr int64_t kUnderWay =
    4096;  // bytes of all streams together that are prefetched; harmless beyond the end
constexpr int64_t kTileRows = kPanelN / kTileColumns;

void expand_pair(const PackedView& w, int64_t pair, int8_t* panels) {
  const int64_t lines = lines_of(w.k);
  const uint64_t* masks = masks_of(w, pair);
  const int8_t* kept = kept_of(w, pair);
  for (int64_t line = 0; line < lines; ++line, masks += 2, panels += kLine) {
    _mm_prefetch(kept + kUnderWay, _MM_HINT_T0);
    _mm512_storeu_si512(panels, expand_line(masks[0], kept));
    kept += kept_by(masks[0]);
    _mm_prefetch(kept + kUnderWay, _MM_HINT_T0);
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
  constexpr int64_t kAhead = kUnderWay / kPairs;
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
    masks[i] = masks_of(w, p);
    kept[i] = kept_of(w, p);
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

// [row][column] of four rows and columns, from the partial sums of each column: a row in each 128 bits.
inline __m512i add_partial_sums(const __m512i (&column)[kTileColumns]) {
  const __m512i low =
      add(_mm512_unpacklo_epi32(column[0], column[1]), _mm512_unpackhi_epi32(column[0], column[1]));
  const __m512i high =
      add(_mm512_unpacklo_epi32(column[2], column[3]), _mm512_unpackhi_epi32(column[2], column[3]));
  return add(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
}

// Rows of A as a tile meets them: 16 terms of kRows rows beside each other, [k / 16][row][16].
template <int kRows>
void group_rows(const GemmBlock& g, int64_t row, uint8_t* grouped) {
  for (int64_t r = 0; r < kRows; ++r) {
    const uint8_t* a = g.a + (row + r) * g.lda;
    for (int64_t k = 0; k < g.k; k += kTileTerms)
      memcpy(grouped + k * kRows + r * kTileTerms, a + k, kTileTerms);
  }
}

// kGroups groups of four rows by one row of tiles.
template <int kGroups>
inline void multiply_tiles(const uint8_t* grouped, const uint16_t* index, const int8_t* tiles, int64_t count,
                           __m512i (&sums)[kGroups]) {
  __m512i acc[kGroups][kTileColumns];
  OCTAVO_UNROLL
  for (auto& group : acc) {
    OCTAVO_UNROLL
    for (auto& v : group) v = _mm512_setzero_si512();
  }
  for (int64_t t = 0; t < count; ++t, tiles += kLine) {
    const uint8_t* rows = grouped + index[t] * kGroups * kLine;
    _mm_prefetch(tiles + kUnderWay, _MM_HINT_T0);
    __m512i weights[kTileColumns];
    OCTAVO_UNROLL
    for (int c = 0; c < kTileColumns; ++c) {
      const auto* terms = reinterpret_cast<const __m128i*>(tiles + c * kTileTerms);
      weights[c] = _mm512_broadcast_i32x4(_mm_loadu_si128(terms));
    }
    OCTAVO_UNROLL
    for (int i = 0; i < kGroups; ++i) {
      const __m512i four_rows = _mm512_load_si512(rows + i * kLine);
      OCTAVO_UNROLL
      for (int c = 0; c < kTileColumns; ++c) {
        acc[i][c] = _mm512_dpbusd_epi32(acc[i][c], four_rows, weights[c]);
        settle(acc[i][c]);
      }
    }
  }
  OCTAVO_UNROLL
  for (int i = 0; i < kGroups; ++i) sums[i] = add_partial_sums(acc[i]);
}

template <int kGroups>
void tile_panels(const GemmBlock& g, const PackedView& w, int64_t row, int64_t begin, int64_t end) {
  constexpr int kRows = 4 * kGroups;
  auto* grouped = static_cast<uint8_t*>(scratch(Slot::grouped_rows, kRows * padded_k(g.k)));
  group_rows<kRows>(g, row, grouped);
  const int rows = static_cast<int>(g.m - row < kRows ? g.m - row : kRows);
  for (int64_t p = begin; p < end; ++p) {
    __m512i of_tiles[kTileRows][kGroups];
    for (int64_t i = 0; i < kTileRows; ++i) {
      const int64_t *range = w.offsets + p * kTileRows + i, first = range[0];
      multiply_tiles<kGroups>(grouped, w.index + first, w.weights + first * kLine, range[1] - first,
                              of_tiles[i]);
    }
    alignas(64) int32_t sums[kRows * kPanelN];
    for (int i = 0; i < kGroups; ++i) {
      const __m512i a = of_tiles[0][i], b = of_tiles[1][i], c = of_tiles[2][i], d = of_tiles[3][i];
      const __m512i low_ab = _mm512_shuffle_i32x4(a, b, 0x44), high_ab = _mm512_shuffle_i32x4(a, b, 0xEE);
      const __m512i low_cd = _mm512_shuffle_i32x4(c, d, 0x44), high_cd = _mm512_shuffle_i32x4(c, d, 0xEE);
      int32_t* four = sums + i * 4 * kPanelN;
      store(four, _mm512_shuffle_i32x4(low_ab, low_cd, 0x88));
      store(four + kPanelN, _mm512_shuffle_i32x4(low_ab, low_cd, 0xDD));
      store(four + 2 * kPanelN, _mm512_shuffle_i32x4(high_ab, high_cd, 0x88));
      store(four + 3 * kPanelN, _mm512_shuffle_i32x4(high_ab, high_cd, 0xDD));
    }
    finish_tile<kPanelN, kPanelN>(g.epilogue, column_end(g), row, rows, p * kPanelN, sums);
  }
}

void gemm_tiles(const GemmBlock& g, const PackedView& w) {
  int64_t row = 0;
  for (; g.m - row > 8; row += 16) tile_panels<4>(g, w, row, g.panel_begin, g.panel_end);
  if (g.m - row > 4) return tile_panels<2>(g, w, row, g.panel_begin, g.panel_end);
  if (g.m - row > 0) tile_panels<1>(g, w, row, g.panel_begin, g.panel_end);
}

}  // namespace

const SparseKernels sparse_on::avx512vbmi2 = {expand_pair, expand_tiles, 16,   gemm_bitmask,
                                              1.2,         gemm_tiles,   0.55, 0.5};

}  // namespace octavo
