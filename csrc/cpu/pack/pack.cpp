// Packing, by blocks of a panel (16 columns x 64 terms, 1 KiB) and four panels at a time, so that each cache line and page
// of the weight is visited once, whichever of its axes is contiguous.
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

// w[c * n_stride + i * k_stride] for c < columns, i < terms; zeros elsewhere.
void pack_block(const int8_t* w, int64_t columns, int64_t terms, int64_t n_stride, int64_t k_stride,
                int8_t* lines) {
  if (columns < kPanelN || terms < kPanelK) memset(lines, 0, kBlockBytes);
  int64_t packed = 0;  // terms
  if (k_stride == 1) {
    for (; packed + kGroupK <= terms; packed += kGroupK, lines += kLine) {
      for (int64_t c = 0; c < columns; ++c) memcpy(lines + c * kGroupK, w + c * n_stride + packed, kGroupK);
    }
  } else if (n_stride == 1 && columns == kPanelN) {
    for (; packed + kGroupK <= terms; packed += kGroupK, lines += kLine) {
      const int8_t* row = w + packed * k_stride;
      for (int64_t c = 0; c < kPanelN; ++c) {
        for (int64_t i = 0; i < kGroupK; ++i) lines[c * kGroupK + i] = row[i * k_stride + c];
      }
    }
  }
  for (; packed < terms; packed += kGroupK, lines += kLine) {
    for (int64_t i = packed; i < terms && i < packed + kGroupK; ++i) {
      for (int64_t c = 0; c < columns; ++c) lines[c * kGroupK + i % kGroupK] = w[c * n_stride + i * k_stride];
    }
  }
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

int8_t at(const WeightArgs& a, int64_t n, int64_t k) { return a.w[n * a.n_stride + k * a.k_stride]; }

// The dense lines of panels [begin, end).
void pack_panels(const WeightArgs& a, int64_t begin, int64_t end, int8_t* panels, int32_t* colsum) {
  for (int64_t first = 0; first < a.k; first += kPanelK) {
    const int64_t terms = a.k - first < kPanelK ? a.k - first : kPanelK;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t column = p * kPanelN, columns = a.n - column < kPanelN ? a.n - column : kPanelN;
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

// Masks and kept bytes of a pair of dense panels. `kept` holds `count` bytes, and not one more may be written.
void compress_pair(const int8_t* panels, int64_t k, int64_t count, uint64_t* masks, int8_t* kept) {
  int64_t written = 0;
  for (int64_t i = 0; i < 2 * lines_of(k); ++i) {
    const int8_t* line = panels + pair_offset(i, k);
    uint64_t mask = 0;
    for (int b = 0; b < kLine; ++b) {
      if (line[b] == 0) continue;
      if (written == count) changed(count);
      mask |= uint64_t{1} << b;
      kept[written++] = line[b];
    }
    masks[i] = mask;
  }
  if (written != count) changed(count);
}

// The tile whose first weight is w[n, k], zeros beyond the end; whether it has any weight but zeros.
bool pack_tile(const WeightArgs& a, int64_t n, int64_t k, int8_t* tile) {
  memset(tile, 0, kLine);
  const int64_t columns = a.n - n < kTileColumns ? a.n - n : kTileColumns;
  const int64_t terms = a.k - k < kTileTerms ? a.k - k : kTileTerms;
  int any = 0;
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t i = 0; i < terms; ++i) any |= tile[c * kTileTerms + i] = at(a, n + c, k + i);
  }
  return any != 0;
}

// Indices and tiles of a row of tiles, and its columns' sums.
void pack_tile_row(const WeightArgs& a, int64_t n, int64_t count, uint16_t* index, int8_t* tiles,
                   int32_t* colsum) {
  int64_t written = 0;
  for (int64_t k = 0; k < a.k; k += kTileTerms) {
    int8_t tile[kLine];
    if (!pack_tile(a, n, k, tile)) continue;
    if (written == count) changed(count);
    index[written] = static_cast<uint16_t>(k / kTileTerms);
    memcpy(tiles + written++ * kLine, tile, kLine);
    for (int64_t i = 0; i < kLine; ++i) colsum[i / kTileTerms] += tile[i];
  }
  if (written != count) changed(count);
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
    for (int64_t n = begin * kPanelN; n < end * kPanelN && n < a.n; n += kTileColumns) {
      for (int64_t k = 0; k < a.k; k += kTileTerms) {
        int8_t tile[kLine];
        if (!pack_tile(a, n, k, tile)) continue;
        ++tiles[n / kTileColumns];
        int count = 0;
        for (const int8_t v : tile) count += v != 0;
        kept[n / kPanelN / 2] += count;
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

void unpack_weight(const void* buffer, int8_t* w, int threads) {
  const PackedView packed(buffer);
  const int64_t k = packed.k;
  for_strips({nullptr, packed.n, k, 0, 0}, threads, [&](int64_t begin, int64_t end) {
    const int8_t* panels = packed.weights + begin * panel_bytes(k);
    if (packed.layout != Layout::dense) {
      auto* expanded = static_cast<int8_t*>(scratch(Slot::panels, kStripPanels * panel_bytes(k)));
      expand_panels(packed, begin, end, expanded);
      panels = expanded;
    }
    const int64_t first = begin * kPanelN;
    for (int64_t n = first; n < packed.n && n < end * kPanelN; ++n) {
      for (int64_t i = 0; i < k; ++i) w[n * k + i] = panels[dense_offset(n - first, i, padded_k(k))];
    }
  });
}

}  // namespace octavo
