// Masks of patterns: n:m groups, and the scores and expansion of rows, columns and blocks.
#include <vector>

#include "check.h"
#include "cpu/rows.h"
#include "cpu/stream.h"
#include "parallel.h"

namespace octavo {
namespace {

constexpr int64_t kGrain = 1 << 16;  // elements worth a thread
constexpr int kSums = 8;             // of a unit's score

double combined(const double* s, int64_t stride) {
  const auto at = [&](int i) { return s[i * stride]; };
  return ((at(0) + at(4)) + (at(2) + at(6))) + ((at(1) + at(5)) + (at(3) + at(7)));
}

// Units one column wide: sums[index mod 8][column] keeps the walk along the rows.
void column_scores(const void* w, DType dtype, int64_t rows, int64_t cols, int64_t unit_rows, double* scores,
                   int threads) {
  constexpr int64_t kColumns = 1024;
  const int64_t blocks = (cols + kColumns - 1) / kColumns, size = size_of(dtype);
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t band = item / blocks, first = item % blocks * kColumns;
      const int64_t width = cols - first < kColumns ? cols - first : kColumns;
      alignas(kStreamLine) double sums[kSums * kColumns] = {};
      for (int64_t r = 0; r < unit_rows; ++r) {
        const char* row = static_cast<const char*>(w) + ((band * unit_rows + r) * cols + first) * size;
        kernels().prune->add_columns(row, dtype, width, cols, sums + r % kSums * kColumns);
      }
      for (int64_t i = 0; i < width; ++i) scores[band * cols + first + i] = combined(sums + i, kColumns);
    }
  };
  parallel_for(rows / unit_rows * blocks, kGrain / (unit_rows * kColumns) + 1, threads, body);
}

}  // namespace

void unit_scores(const void* w, DType dtype, int64_t rows, int64_t cols, int64_t unit_rows, int64_t unit_cols,
                 double* scores, int threads) {
  if (unit_cols == 1) return column_scores(w, dtype, rows, cols, unit_rows, scores, threads);
  constexpr int64_t kUnits = 64;  // of a band at a time
  const int64_t across = cols / unit_cols, size = size_of(dtype);
  const int64_t units = unit_cols >= 1024 ? 1 : kUnits, blocks = (across + units - 1) / units;
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t band = item / blocks, first = item % blocks * units;
      const int64_t count = across - first < units ? across - first : units;
      alignas(kStreamLine) double sums[kSums * kUnits] = {};
      for (int64_t r = 0; r < unit_rows; ++r) {
        const int64_t start = (band * unit_rows + r) * cols + first * unit_cols;
        kernels().prune->add_units(static_cast<const char*>(w) + start * size, dtype, count, unit_cols,
                                   r * unit_cols % kSums, sums);
      }
      for (int64_t i = 0; i < count; ++i) scores[band * across + first + i] = combined(sums + i * kSums, 1);
    }
  };
  parallel_for(rows / unit_rows * blocks, kGrain / (unit_rows * unit_cols * units) + 1, threads, body);
}

void prune_units(const UnitGrid& grid, const bool* keep, const void* w, DType dtype, bool* mask, void* pruned,
                 int threads) {
  const int64_t cols = grid.cols, across = cols / grid.unit_cols, size = size_of(dtype),
                row_size = cols * size;
  const bool stream_mask = mask && grid.rows * cols >= kStreamBytes;
  const bool stream_pruned = pruned && pruned != w && grid.rows * row_size >= kStreamBytes;
  auto body = [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> kept(static_cast<size_t>(cols));  // a row of the mask
    const auto* row_mask = reinterpret_cast<const bool*>(kept.data());
    int64_t band = -1;
    for (int64_t row = begin; row < end; ++row) {
      if (row / grid.unit_rows != band) {
        band = row / grid.unit_rows;
        for (int64_t unit = 0; unit < across; ++unit) {
          memset(kept.data() + unit * grid.unit_cols, keep[band * across + unit],
                 static_cast<size_t>(grid.unit_cols));
        }
      }
      if (mask) (stream_mask ? stream_copy : copy)(mask + row * cols, kept.data(), cols);
      if (!pruned) continue;
      const char* source = static_cast<const char*>(w) + row * row_size;
      char* target = static_cast<char*>(pruned) + row * row_size;
      if (!stream_pruned) {
        kernels().prune->apply_mask(source, dtype, row_mask, cols, target);
        continue;
      }
      for (int64_t i = 0; i < cols; i += kStreamPiece) {
        alignas(kStreamLine) char piece[kStreamPiece * 8];
        const int64_t count = cols - i < kStreamPiece ? cols - i : kStreamPiece;
        kernels().prune->apply_mask(source + i * size, dtype, row_mask + i, count, piece);
        stream_copy(target + i * size, piece, count * size);
      }
    }
    stream_fence();
  };
  parallel_for(grid.rows, kGrain / (cols + 1) + 1, threads, body);
}

void prune_nm(const void* w, DType dtype, int64_t groups, int n, int m, bool* mask, void* pruned,
              int threads) {
  check(m >= 1 && m <= kMaxGroup, "m", "between 1 and 32", m);
  const int64_t size = size_of(dtype), per_piece = kStreamPiece / m;
  const bool stream_mask = mask && groups * m >= kStreamBytes;
  const bool stream_pruned = pruned && pruned != w && groups * m * size >= kStreamBytes;
  auto body = [&](int64_t begin, int64_t end) {
    const bool streams = stream_mask || stream_pruned;
    const int64_t step = streams ? per_piece : end - begin;
    for (int64_t group = begin; group < end; group += step) {
      alignas(kStreamLine) bool mask_piece[kStreamPiece];
      alignas(kStreamLine) char pruned_piece[kStreamPiece * 8];
      const int64_t count = end - group < step ? end - group : step, first = group * m;
      bool* mask_at = mask ? mask + first : nullptr;
      char* pruned_at = pruned ? static_cast<char*>(pruned) + first * size : nullptr;
      kernels().prune->prune_nm(static_cast<const char*>(w) + first * size, dtype, count, n, m,
                                stream_mask ? mask_piece : mask_at, stream_pruned ? pruned_piece : pruned_at);
      if (stream_mask) stream_copy(mask_at, mask_piece, count * m);
      if (stream_pruned) stream_copy(pruned_at, pruned_piece, count * m * size);
    }
    if (streams) stream_fence();
  };
  parallel_for(groups, kGrain / m + 1, threads, body);
}

}  // namespace octavo
