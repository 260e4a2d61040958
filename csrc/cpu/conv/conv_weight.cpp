// Unpacking the weight of a convolution: strips of its packed matrices as rows, whose channels are innermost, and then each row
// transposed to have its taps innermost, while it is in the cache.
#include <algorithm>
#include <cstring>

#include "cpu/rows.h"
#include "parallel.h"

namespace octavo {
namespace {

constexpr int64_t kGrain = 1 << 16;  // weights worth a thread

// Eight bytes a load: stores alone are then what it takes.
void spread(const int8_t* from, int64_t count, int8_t* to, int64_t step) {
  if (step == 1) {
    memcpy(to, from, static_cast<size_t>(count));
    return;
  }
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t eight;
    memcpy(&eight, from + i, sizeof eight);
    for (int64_t j = 0; j < 8; ++j) to[(i + j) * step] = static_cast<int8_t>(eight >> 8 * j);
  }
  for (; i < count; ++i) to[i * step] = from[i];
}

}  // namespace

void unpack_conv_weight(const PackedConv& packed, int8_t* w, int threads) {
  const int64_t channels = packed.channels, taps = packed.taps, pitch = packed.bundle * channels;
  const int64_t columns = packed.n / packed.matrices, k = taps * pitch, strips = strips_of(columns);
  if (columns == 0 || k == 0) return;
  const int64_t each = columns / packed.bundle;  // columns of a group
  auto unpack = [&](int64_t begin, int64_t end) {
    auto* rows = static_cast<int8_t*>(scratch(Slot::rows, std::min(columns, kStripColumns) * k));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t matrix = i / strips, first = i % strips * kStripColumns;
      const PackedView view(static_cast<const char*>(packed.weight) + matrix * packed.packed_nbytes);
      const int64_t last = std::min(first + kStripColumns, columns);
      unpack_panels(view, first / kPanelN, panels_of(last), rows);
      for (int64_t column = first; column < last; ++column) {
        const int8_t* from = rows + (column - first) * k + column / each * channels;
        int8_t* to = w + (matrix * columns + column) * channels * taps;
        for (int64_t tap = 0; tap < taps; ++tap) spread(from + tap * pitch, channels, to + tap, taps);
      }
    }
  };
  parallel_for(packed.matrices * strips, kGrain / (std::min(columns, kStripColumns) * k) + 1, threads,
               unpack);
}

}  // namespace octavo
