// Sparse layouts for processors without vpexpandb: expanded to dense panels, eight bytes at a time by BMI2's pdep.
#include <immintrin.h>

#include <cstring>

#include "octavo.h"

namespace octavo {
namespace {

// pdep spreads the mask's bits to the lowest bits of bytes; times 255 they are whole bytes, to which it deposits kept ones. Up
// to seven bytes are read beyond the last kept one, which the layout's padding allows.
void expand_pair(const PackedView& w, int64_t pair, int8_t* panels) {
  const uint64_t* masks = masks_of(w, pair);
  const int8_t* kept = kept_of(w, pair);
  for (int64_t i = 0; i < 2 * lines_of(w.k); ++i) {
    int8_t* line = panels + pair_offset(i, w.k);
    uint64_t mask = masks[i];
    for (int64_t b = 0; b < kLine; b += 8, mask >>= 8) {
      const uint64_t bytes = _pdep_u64(mask & 0xFF, 0x0101010101010101) * 255;
      uint64_t eight;
      memcpy(&eight, kept, sizeof eight);
      eight = _pdep_u64(eight, bytes);
      memcpy(line + b, &eight, sizeof eight);
      kept += __builtin_popcountll(mask & 0xFF);
    }
  }
}

void expand_tiles(const PackedView& w, int64_t p, int8_t* panel) {
  sparse_on::scalar.expand_tiles(w, p, panel);
}

}  // namespace

const SparseKernels sparse_on::avx2 = {expand_pair, expand_tiles, 0, nullptr, 0.0, nullptr, 0.0, 0.0};

}  // namespace octavo
