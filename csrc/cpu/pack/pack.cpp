// Packing and unpacking, by blocks of a panel (16 columns x 64 terms, 1 KiB) and four panels at a time, so that each cache line
// and page of the weight is visited once, whichever of its axes is contiguous. A block is 16 x 16 words of four terms: between
// columns and lines lies a transposition of words.
#include <cstring>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "check.h"
#include "dispatch.h"
#include "parallel.h"

namespace octavo {
namespace {

constexpr int64_t kBlockBytes = kPanelN * kPanelK;
constexpr int64_t kGrain = 1 << 18;  // weights worth a thread

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Both ways: the columns of 16 lines, or the lines of 16 columns, whose first bytes lie `stride` apart. Of trip counts that the
// compiler knows, else it takes a word at a time.
void transpose_words(const int8_t* from, int64_t from_stride, int8_t* to, int64_t to_stride) {
  static_assert(kPanelN * kGroupK == kLine && kPanelK == kLine, "a block is as many words wide as high");
  for (int64_t i = 0; i < kPanelN; ++i) {
    int8_t row[kLine];
    for (int64_t j = 0; j < kPanelN; ++j) {
      memcpy(row + j * kGroupK, from + j * from_stride + i * kGroupK, kGroupK);
    }
    memcpy(to + i * to_stride, row, kLine);
  }
}

// w[c * n_stride + i * k_stride] for c < columns, i < terms; zeros elsewhere.
void pack_block(const int8_t* w, int64_t columns, int64_t terms, int64_t n_stride, int64_t k_stride,
                int8_t* lines) {
  const bool whole = columns == kPanelN && terms == kPanelK;
  if (whole && k_stride == 1) return transpose_words(w, n_stride, lines, kLine);
  if (whole && n_stride == 1) {
    for (int64_t first = 0; first < kPanelK; first += kGroupK, lines += kLine) {
      const int8_t* row = w + first * k_stride;
      for (int64_t c = 0; c < kPanelN; ++c) {
        for (int64_t i = 0; i < kGroupK; ++i) lines[c * kGroupK + i] = row[i * k_stride + c];
      }
    }
    return;
  }
  int8_t block[kBlockBytes] = {};
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t i = 0; i < terms; ++i) block[c * kPanelK + i] = w[c * n_stride + i * k_stride];
  }
  transpose_words(block, kPanelK, lines, kLine);
}

// The first `columns` x `terms` of a block, to rows of w that lie k apart.
void unpack_block(const int8_t* lines, int64_t columns, int64_t terms, int8_t* w, int64_t k) {
  if (columns == kPanelN && terms == kPanelK) return transpose_words(lines, kLine, w, k);
  int8_t block[kBlockBytes];
  transpose_words(lines, kLine, block, kPanelK);
  for (int64_t c = 0; c < columns; ++c) memcpy(w + c * k, block + c * kPanelK, static_cast<size_t>(terms));
}

void add_column_sums(const int8_t* lines, int32_t* sums) {
  int16_t parts[kLine] = {};  // 16 terms each
  for (int64_t line = 0; line < kBlockBytes; line += kLine) {
    for (int64_t i = 0; i < kLine; ++i) parts[i] = static_cast<int16_t>(parts[i] + lines[line + i]);
  }
  for (int64_t i = 0; i < kLine; ++i) sums[i / kGroupK] += parts[i];
}

// Where the system leaves the choice, large weights go on huge pages: few rows read a weight at the speed of memory, and pages
// of 4 KiB cost a tenth of that. A hint, to be given before the first write; it may fail.
void advise_huge_pages([[maybe_unused]] void* buffer, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t kHugePage = 2 << 20;
  const int64_t begin = round_up(reinterpret_cast<int64_t>(buffer), kHugePage);
  const int64_t end = (reinterpret_cast<int64_t>(buffer) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), static_cast<size_t>(end - begin), MADV_HUGEPAGE);
#endif
}

// The dense lines of panels [begin, end).
void pack_panels(const WeightArgs& a, int64_t begin, int64_t end, int8_t* panels, int32_t* colsum) {
  for (int64_t first = 0; first < a.k; first += kPanelK) {
    const int64_t terms = smaller(a.k - first, kPanelK);
    for (int64_t p = begin; p < end; ++p) {
      const int64_t column = p * kPanelN, columns = smaller(a.n - column, kPanelN);
      int8_t* lines = panels + (p - begin) * panel_bytes(a.k) + first * kPanelN;
      pack_block(a.w + column * a.n_stride + first * a.k_stride, columns, terms, a.n_stride, a.k_stride,
                 lines);
      add_column_sums(lines, colsum + column);
    }
  }
}

[[noreturn]] void changed(int64_t counted) {
  fail("weight", "to stay as it is while it is packed; counted " + std::to_string(counted), "another count");
}

// 1 in each byte of 8 that is not zero.
uint64_t nonzero(const int8_t* bytes) {
  constexpr uint64_t kLow = 0x7F7F7F7F7F7F7F7F;
  uint64_t word;
  memcpy(&word, bytes, sizeof word);
  return (((word & kLow) + kLow) | word) >> 7 & 0x0101010101010101;
}

// Masks and kept bytes of a pair of dense panels. `kept` holds `count` bytes, and not one more may be written. Without a branch
// for each byte: zeros come at random.
void compress_pair(const int8_t* panels, int64_t k, int64_t count, uint64_t* masks, int8_t* kept) {
  int64_t written = 0;
  for (int64_t i = 0; i < 2 * lines_of(k); ++i) {
    const int8_t* line = panels + pair_offset(i, k);
    uint64_t mask = 0;
    for (int b = 0; b < kLine; b += 8) mask |= (nonzero(line + b) * 0x0102040810204080) >> 56 << b;
    int8_t bytes[kLine];
    int64_t found = 0;
    for (int b = 0; b < kLine; ++b) {
      bytes[found] = line[b];
      found += line[b] != 0;
    }
    if (found > count - written) changed(count);
    memcpy(kept + written, bytes, static_cast<size_t>(found));
    written += found;
    masks[i] = mask;
  }
  if (written != count) changed(count);
}

// The tile whose first weight is w[n, k], zeros beyond the end; how many weights of it are not zero.
int64_t pack_tile(const WeightArgs& a, int64_t n, int64_t k, int8_t* tile) {
  const int64_t columns = smaller(a.n - n, kTileColumns), terms = smaller(a.k - k, kTileTerms);
  const int8_t* w = a.w + n * a.n_stride + k * a.k_stride;
  if (columns < kTileColumns || terms < kTileTerms) memset(tile, 0, kLine);
  for (int64_t c = 0; c < columns; ++c, w += a.n_stride) {
    int8_t* column = tile + c * kTileTerms;
    if (terms == kTileTerms && a.k_stride == 1) {
      memcpy(column, w, kTileTerms);
    } else {
      for (int64_t i = 0; i < terms; ++i) column[i] = w[i * a.k_stride];
    }
  }
  uint64_t counts = 0;  // of each byte of eight
  for (int64_t i = 0; i < kLine; i += 8) counts += nonzero(tile + i);
  return static_cast<int64_t>(counts * 0x0101010101010101 >> 56);
}

// Indices and tiles of a row of tiles, and its columns' sums.
void pack_tile_row(const WeightArgs& a, int64_t n, int64_t count, uint16_t* index, int8_t* tiles,
                   int32_t* colsum) {
  int64_t written = 0;
  for (int64_t k = 0; k < a.k; k += kTileTerms) {
    int8_t tile[kLine];
    if (pack_tile(a, n, k, tile) == 0) continue;
    if (written == count) changed(count);
    index[written] = static_cast<uint16_t>(k / kTileTerms);
    memcpy(tiles + written++ * kLine, tile, kLine);
    for (int64_t c = 0; c < kTileColumns; ++c) {
      int16_t sum = 0;
      for (int64_t i = 0; i < kTileTerms; ++i) sum = static_cast<int16_t>(sum + tile[c * kTileTerms + i]);
      colsum[c] += sum;
    }
  }
  if (written != count) changed(count);
}

// `count` columns from `first` on, where a row of tiles begins.
void unpack_tiles(const PackedView& packed, int64_t first, int64_t count, int8_t* columns) {
  const int64_t k = packed.k;
  for (int64_t n = 0; n < count; n += kTileColumns) {
    const int64_t* tiles = packed.offsets + (first + n) / kTileColumns;
    memset(columns + n * k, 0, static_cast<size_t>(smaller(count - n, kTileColumns) * k));
    for (int64_t t = tiles[0]; t < tiles[1]; ++t) {
      const int64_t term = packed.index[t] * kTileTerms, terms = smaller(k - term, kTileTerms);
      const int8_t* from = packed.weights + t * kLine;
      for (int64_t c = n; c < count && c < n + kTileColumns; ++c, from += kTileTerms) {
        if (terms == kTileTerms)
          memcpy(columns + c * k + term, from, kTileTerms);
        else
          memcpy(columns + c * k + term, from, static_cast<size_t>(terms));
      }
    }
  }
}

// Offsets from counts; returns their sum.
int64_t sum_up(const int64_t* counts, int64_t n, int64_t* offsets) {
  int64_t total = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (offsets) offsets[i] = total;
    total += counts[i];
  }
  if (offsets) offsets[n] = total;
  return total;
}

template <class Body>
void for_strips(const WeightArgs& a, int threads, Body body) {
  const int64_t panels = panels_of(a.n), strips = (panels + kStripPanels - 1) / kStripPanels;
  auto range = [&](int64_t begin, int64_t end) {
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t first = strip * kStripPanels, last = first + kStripPanels;
      body(first, last < panels ? last : panels);
    }
  };
  parallel_for(strips, kGrain / (kStripPanels * panel_bytes(a.k) + 1) + 1, threads, range);
}

}  // namespace

void count_weight(const WeightArgs& a, int64_t* kept, int64_t* tiles, int threads) {
  memset(kept, 0, static_cast<size_t>(pairs_of(a.n)) * sizeof *kept);
  memset(tiles, 0, static_cast<size_t>(tile_rows_of(a.n)) * sizeof *tiles);
  for_strips(a, threads, [&](int64_t begin, int64_t end) {
    const int64_t columns = smaller(a.n, end * kPanelN);
    for (int64_t first = 0; first < a.k; first += kPanelK) {
      for (int64_t n = begin * kPanelN; n < columns; n += kTileColumns) {
        for (int64_t k = first; k < a.k && k < first + kPanelK; k += kTileTerms) {
          int8_t tile[kLine];
          const int64_t count = pack_tile(a, n, k, tile);
          kept[n / kPanelN / 2] += count;
          tiles[n / kTileColumns] += count != 0;
        }
      }
    }
  });
}

void pack_weight(const WeightArgs& a, Layout layout, const int64_t* counts, void* buffer, int threads) {
  check(a.k <= kMaxK, "k", "at most 131071, so that int32 sums are exact", a.k);
  PackedHeader header = {};
  header.magic = PackedHeader::kMagic;
  header.version = PackedHeader::kVersion;
  header.layout = layout;
  header.isa = PackedHeader::kAnyIsa;
  header.n = a.n;
  header.k = a.k;
  if (layout == Layout::bitmask) header.count = sum_up(counts, pairs_of(a.n), nullptr);
  if (layout == Layout::block) header.count = sum_up(counts, tile_rows_of(a.n), nullptr);
  const PackedParts parts = packed_parts(layout, a.n, a.k, header.count);
  advise_huge_pages(buffer, parts.end);
  memcpy(buffer, &header, sizeof header);
  char* const bytes = static_cast<char*>(buffer);
  auto* colsum = reinterpret_cast<int32_t*>(bytes + colsum_offset());
  auto* offsets = reinterpret_cast<int64_t*>(bytes + parts.offsets);
  auto* weights = reinterpret_cast<int8_t*>(bytes + parts.weights);
  memset(colsum, 0, static_cast<size_t>(padded_n(a.n)) * sizeof *colsum);
  if (layout == Layout::dense) {
    for_strips(a, threads, [&](int64_t begin, int64_t end) {
      pack_panels(a, begin, end, weights + begin * panel_bytes(a.k), colsum);
    });
    return;
  }
  memset(bytes + parts.offsets, 0, static_cast<size_t>(parts.index - parts.offsets));
  if (layout == Layout::bitmask) {
    auto* masks = reinterpret_cast<uint64_t*>(bytes + parts.index);
    sum_up(counts, pairs_of(a.n), offsets);
    memset(weights + header.count, 0, static_cast<size_t>(parts.end - parts.weights - header.count));
    for_strips(a, threads, [&](int64_t begin, int64_t end) {
      auto* panels = static_cast<int8_t*>(scratch(Slot::panels, 2 * panel_bytes(a.k)));
      for (int64_t p = begin; p < end; p += 2) {
        if (p + 1 == end) memset(panels + panel_bytes(a.k), 0, static_cast<size_t>(panel_bytes(a.k)));
        pack_panels(a, p, p + 1 < end ? p + 2 : end, panels, colsum);
        const int64_t pair = p / 2;
        compress_pair(panels, a.k, counts[pair], masks + pair * 2 * lines_of(a.k), weights + offsets[pair]);
      }
    });
  } else {
    auto* index = reinterpret_cast<uint16_t*>(bytes + parts.index);
    sum_up(counts, tile_rows_of(a.n), offsets);
    memset(index + header.count, 0, static_cast<size_t>(parts.weights - parts.index - header.count * 2));
    for_strips(a, threads, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin * kPanelN; n < end * kPanelN && n < a.n; n += kTileColumns) {
        const int64_t row = n / kTileColumns, first = offsets[row];
        pack_tile_row(a, n, counts[row], index + first, weights + first * kLine, colsum + n);
      }
    });
  }
}

void unpack_panels(const PackedView& packed, int64_t begin, int64_t end, int8_t* columns) {
  const int64_t k = packed.k, first = begin * kPanelN, count = smaller(packed.n, end * kPanelN) - first;
  if (packed.layout == Layout::block) return unpack_tiles(packed, first, count, columns);
  const int8_t* panel = packed.weights + begin * panel_bytes(k);
  if (packed.layout == Layout::bitmask) {
    auto* expanded = static_cast<int8_t*>(scratch(Slot::panels, kStripPanels * panel_bytes(k)));
    expand_panels(packed, begin, end, expanded);
    panel = expanded;
  }
  for (int64_t c = 0; c < count; c += kPanelN, panel += panel_bytes(k)) {
    for (int64_t i = 0; i < k; i += kPanelK) {
      unpack_block(panel + i * kPanelN, smaller(count - c, kPanelN), smaller(k - i, kPanelK),
                   columns + c * k + i, k);
    }
  }
}

void unpack_weight(const void* buffer, int8_t* w, int threads) {
  const PackedView packed(buffer);
  if (packed.k == 0) return;  // w may be nullptr
  for_strips({nullptr, packed.n, packed.k, 0, 0}, threads, [&](int64_t begin, int64_t end) {
    unpack_panels(packed, begin, end, w + begin * kPanelN * packed.k);
  });
}

}  // namespace octavo
