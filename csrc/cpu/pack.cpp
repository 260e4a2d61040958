// Packing, by tiles of a panel (16 columns x 64 terms, 1 KiB) and four panels at a time, so that each cache line and page
// of the weight is visited once, whichever of its axes is contiguous.
#include <cstring>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "../check.h"
#include "../layouts.h"
#include "../octavo.h"
#include "../parallel.h"

namespace octavo {
namespace {

constexpr int64_t kTileBytes = kPanelN * kPanelK;
constexpr int64_t kLine = kPanelN * kGroupK;  // of a tile: a group of terms for every column
constexpr int64_t kStripPanels = 4;

// w[c * n_stride + i * k_stride] for c < columns, i < terms; zeros elsewhere.
void pack_tile(const int8_t* w, int64_t columns, int64_t terms, int64_t n_stride, int64_t k_stride,
               int8_t* tile) {
  if (columns < kPanelN || terms < kPanelK) memset(tile, 0, kTileBytes);
  int64_t packed = 0;  // terms
  if (k_stride == 1) {
    for (; packed + kGroupK <= terms; packed += kGroupK, tile += kLine) {
      for (int64_t c = 0; c < columns; ++c) memcpy(tile + c * kGroupK, w + c * n_stride + packed, kGroupK);
    }
  } else if (n_stride == 1 && columns == kPanelN) {
    for (; packed + kGroupK <= terms; packed += kGroupK, tile += kLine) {
      const int8_t* row = w + packed * k_stride;
      for (int64_t c = 0; c < kPanelN; ++c) {
        for (int64_t i = 0; i < kGroupK; ++i) tile[c * kGroupK + i] = row[i * k_stride + c];
      }
    }
  }
  for (; packed < terms; packed += kGroupK, tile += kLine) {
    for (int64_t i = packed; i < terms && i < packed + kGroupK; ++i) {
      for (int64_t c = 0; c < columns; ++c) tile[c * kGroupK + i % kGroupK] = w[c * n_stride + i * k_stride];
    }
  }
}

void add_column_sums(const int8_t* tile, int32_t* sums) {
  int16_t parts[kLine] = {};  // 16 terms each
  for (int64_t line = 0; line < kTileBytes; line += kLine) {
    for (int64_t i = 0; i < kLine; ++i) parts[i] = static_cast<int16_t>(parts[i] + tile[line + i]);
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

}  // namespace

void pack_weight(const int8_t* w, int64_t n, int64_t k, int64_t n_stride, int64_t k_stride, void* buffer,
                 int threads) {
  check(k <= kMaxK, "k", "at most 131071, so that int32 sums are exact", k);
  PackedHeader header = {};
  header.magic = PackedHeader::kMagic;
  header.version = PackedHeader::kVersion;
  header.layout = PackedHeader::kDense;
  header.isa = PackedHeader::kAnyIsa;
  header.n = n;
  header.k = k;
  advise_huge_pages(buffer, packed_bytes(n, k));
  memcpy(buffer, &header, sizeof header);
  auto* colsum = reinterpret_cast<int32_t*>(static_cast<char*>(buffer) + colsum_offset());
  auto* panels = static_cast<int8_t*>(buffer) + panels_offset(n);
  const int64_t count = padded_n(n) / kPanelN;
  memset(colsum, 0, static_cast<size_t>(padded_n(n)) * sizeof *colsum);
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t strip = begin * kStripPanels; strip < end * kStripPanels && strip < count;
         strip += kStripPanels) {
      for (int64_t first = 0; first < k; first += kPanelK) {
        const int64_t terms = k - first < kPanelK ? k - first : kPanelK;
        for (int64_t p = strip; p < strip + kStripPanels && p < count; ++p) {
          const int64_t column = p * kPanelN, columns = n - column < kPanelN ? n - column : kPanelN;
          int8_t* tile = panels + p * panel_bytes(k) + first * kPanelN;
          pack_tile(w + column * n_stride + first * k_stride, columns, terms, n_stride, k_stride, tile);
          add_column_sums(tile, colsum + column);
        }
      }
    }
  };
  const int64_t strips = (count + kStripPanels - 1) / kStripPanels;
  parallel_for(strips, (int64_t{1} << 18) / (kStripPanels * panel_bytes(k) + 1) + 1, threads, body);
}

void unpack_weight(const void* buffer, int64_t n, int64_t k, int8_t* w, int threads) {
  const int8_t* panels = static_cast<const int8_t*>(buffer) + panels_offset(n);
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t i = 0; i < k; ++i) w[row * k + i] = panels[dense_offset(row, i, padded_k(k))];
    }
  };
  parallel_for(n, (int64_t{1} << 16) / (k + 1) + 1, threads, body);
}

}  // namespace octavo
