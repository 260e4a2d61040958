// Masks by magnitude: of a list of tensors at a selection or a threshold.
#include <atomic>

#include "chunks.h"
#include "cpu/stream.h"

namespace octavo {
namespace {

// Calls body(first, count, keep_equal) on pieces of n elements, the first of which has this index in the whole list.
template <class Body>
void for_kept(int64_t n, int64_t index, const Selection& selection, int64_t piece, Body body) {
  const int64_t left = selection.keep_equal_from - index;  // of which the equal ones go
  for (int64_t i = 0; i < n;) {
    const int64_t end = i < left && left < n ? left : n;
    const int64_t count = end - i < piece ? end - i : piece;
    body(i, count, i >= left);
    i += count;
  }
}

int64_t bytes_written(const Segment* segments, int64_t count) {
  int64_t bytes = 0;
  for (const Segment* s = segments; s < segments + count; ++s)
    bytes += s->n * ((s->mask ? 1 : 0) + (s->pruned ? size_of(s->dtype) : 0));
  return bytes;
}

}  // namespace

uint32_t max_key(const Segment* segments, int64_t count, int threads) {
  std::atomic<uint32_t> result{0};  // magnitudes order as their bits
  for_chunks(cut(segments, count), threads, [&](int64_t, const Chunk& chunk) {
    Range r = {0.0f, 0.0f};
    kernels().quantize->range(chunk.w(), chunk.segment->dtype, nullptr, chunk.count, &r);
    const uint32_t low = magnitude_key(r.lo), high = magnitude_key(r.hi), key = low > high ? low : high;
    uint32_t seen = result.load();
    while (key > seen && !result.compare_exchange_weak(seen, key)) {
    }
  });
  return result.load();
}

void prune(const Segment* segments, int64_t count, Selection selection, int threads) {
  const bool large = bytes_written(segments, count) >= kStreamBytes;
  for_chunks(cut(segments, count), threads, [&](int64_t, const Chunk& chunk) {
    const Segment& s = *chunk.segment;
    const int64_t size = size_of(s.dtype);
    const auto* w = static_cast<const char*>(chunk.w());
    bool* mask = s.mask ? s.mask + chunk.begin : nullptr;
    char* pruned = s.pruned ? static_cast<char*>(s.pruned) + chunk.begin * size : nullptr;
    const PruneKernels& kernel = *kernels().prune;
    const bool stream_mask = large && mask, stream_pruned = large && pruned && s.pruned != s.w;
    const bool streams = stream_mask || stream_pruned;
    for_kept(chunk.count, chunk.index, selection, streams ? kStreamPiece : kChunk,
             [&](int64_t i, int64_t n, bool keep_equal) {
               alignas(kStreamLine) bool mask_piece[kStreamPiece];
               alignas(kStreamLine) char pruned_piece[kStreamPiece * 8];
               kernel.prune(w + i * size, s.dtype, n, selection.key, keep_equal,
                            stream_mask ? mask_piece
                            : mask      ? mask + i
                                        : nullptr,
                            stream_pruned ? pruned_piece
                            : pruned      ? pruned + i * size
                                          : nullptr);
               if (stream_mask) stream_copy(mask + i, mask_piece, n);
               if (stream_pruned) stream_copy(pruned + i * size, pruned_piece, n * size);
             });
    if (streams) stream_fence();
  });
}

void prune_quantize(const PruneQuantizeArgs& args, int threads) {
  const int64_t cols = args.cols, size = size_of(args.dtype);
  const bool streaming = args.rows * cols >= kStreamBytes;
  const PruneKernels& kernel = *kernels().prune;
  const auto row_of = [&](int64_t row) {
    const char* w = static_cast<const char*>(args.w) + row * cols * size;
    bool* mask = args.mask + row * cols;
    int8_t* data = args.data + row * cols;
    uint32_t top = 0;
    for_kept(cols, row * cols, args.selection, kStreamPiece, [&](int64_t i, int64_t n, bool keep_equal) {
      alignas(kStreamLine) bool piece[kStreamPiece];
      const uint32_t bits = kernel.prune_max(w + i * size, args.dtype, n, args.selection.key, keep_equal,
                                             streaming ? piece : mask + i);
      top = bits > top ? bits : top;
      if (streaming) stream_copy(mask + i, piece, n);
    });
    if (top >= kInfKey) {  // something that is kept is not finite
      Range range = {0.0f, 0.0f};
      kernels().quantize->range(w, args.dtype, mask, cols, &range);
      const Affine affine = symmetric_affine(range);
      kernels().quantize->quantize(w, args.dtype, mask, cols, affine.inv, 0.0f, -127.0f, 0, data);
      return affine.scale;
    }
    const Affine affine = symmetric_affine(float_of(top));
    for_kept(cols, row * cols, args.selection, kStreamPiece, [&](int64_t i, int64_t n, bool keep_equal) {
      alignas(kStreamLine) int8_t piece[kStreamPiece];
      kernel.quantize_kept(w + i * size, args.dtype, n, args.selection.key, keep_equal, affine.inv,
                           streaming ? piece : data + i);
      if (streaming) stream_copy(data + i, piece, n);
    });
    return affine.scale;
  };
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) args.scale[row] = row_of(row);
    if (streaming) stream_fence();
  };
  parallel_for(args.rows, kChunk / (cols + 1) + 1, threads, body);
}

}  // namespace octavo
