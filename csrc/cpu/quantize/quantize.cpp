// Quantize and dequantize: scales for every (row, group), and how threads share the work.
#include <mutex>

#include "cpu/rows.h"
#include "parallel.h"

namespace octavo {
namespace {

constexpr int64_t kGrain = 1 << 15;     // elements worth a thread
constexpr int64_t kLongSpan = 1 << 18;  // elements worth splitting between threads

// A rectangle of x that has one scale.
struct Span {
  int64_t row_begin, row_end, col_begin, col_end;
  int64_t elements() const { return (row_end - row_begin) * (col_end - col_begin); }
};

float stochastic_round(float v, float u) {
  const float sum = v + u;
  const float nearest = round_even(sum);
  return nearest > sum ? nearest - 1.0f : nearest;  // floor
}

void quantize_piece(const QuantizeArgs& args, const Affine& affine, int64_t row, int64_t begin, int64_t end) {
  const bool symmetric = args.zero_point == nullptr;
  const float zero = static_cast<float>(affine.zero_point), q_min = symmetric ? -127.0f : -128.0f;
  int8_t* q = args.data + row * args.data_row_stride;
  for_pieces(args.x, row, begin, end, [&](const void* p, DType dtype, int64_t first, int64_t count) {
    const int64_t index = row * args.x.cols + first;
    const bool* mask = args.mask ? args.mask + index : nullptr;
    if (!args.stochastic) {
      return kernels().quantize->quantize(p, dtype, mask, count, affine.inv, zero, q_min, 0, q + first);
    }
    for (int64_t i = 0; i < count; ++i) {
      const float x = mask && !mask[i] ? 0.0f : element(p, dtype, i);
      const bool rounds = magnitude_key(x) <= kInfKey && !(affine.flat && magnitude_key(x) < kInfKey);
      const float u = uniform_of(philox_word(args.seed, static_cast<uint64_t>(index + i)));
      const float r = (rounds ? stochastic_round(x * affine.inv, u) : 0.0f) + zero;
      q[first + i] = static_cast<int8_t>(r > 127.0f ? 127.0f : (r < q_min ? q_min : r));
    }
  });
}

// Runs body(row, col_begin, col_end) over the span, in pieces worth a thread.
template <class Body>
void for_span(const Span& span, int threads, Body body) {
  const int64_t cols = span.col_end - span.col_begin;
  const int64_t pieces = cols > kGrain ? (cols + kGrain - 1) / kGrain : 1;
  const int64_t grain = cols > kGrain ? 1 : kGrain / (cols > 0 ? cols : 1);
  auto units = [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = span.col_begin + unit % pieces * kGrain;
      const int64_t last = unit % pieces == pieces - 1 ? span.col_end : first + kGrain;
      body(span.row_begin + unit / pieces, first, last);
    }
  };
  parallel_for((span.row_end - span.row_begin) * pieces, grain, threads, units);
}

Affine given_affine(const QuantizeArgs& args, int64_t index) {
  return {args.scale[index], 1.0f / args.scale[index], args.zero_point ? args.zero_point[index] : 0, false};
}

Affine fitted_affine(const QuantizeArgs& args, const Range& range, int64_t index) {
  const Affine affine = args.zero_point ? asymmetric_affine(range.lo, range.hi) : symmetric_affine(range);
  args.scale[index] = affine.scale;
  if (args.zero_point) args.zero_point[index] = affine.zero_point;
  return affine;
}

// One span by all threads: the range first, then everything is independent.
void quantize_shared(const QuantizeArgs& args, const Span& span, int64_t index, int threads) {
  const DefaultFloatEnvironment environment;
  Range range = {0.0f, 0.0f};
  if (!args.given) {
    std::mutex mutex;
    for_span(span, threads, [&](int64_t row, int64_t begin, int64_t end) {
      Range part = {0.0f, 0.0f};
      widen_range(args.x, args.mask, row, begin, end, &part);
      const std::lock_guard<std::mutex> lock(mutex);
      if (part.lo < range.lo) range.lo = part.lo;
      if (part.hi > range.hi) range.hi = part.hi;
    });
  }
  const Affine affine = args.given ? given_affine(args, index) : fitted_affine(args, range, index);
  for_span(span, threads,
           [&](int64_t row, int64_t begin, int64_t end) { quantize_piece(args, affine, row, begin, end); });
}

}  // namespace

void quantize(const QuantizeArgs& args, int threads) {
  const FloatRows& x = args.x;
  if (args.per_tensor) return quantize_shared(args, {0, x.rows, 0, x.cols}, 0, threads);
  const int64_t spans = x.rows * args.groups;
  if (spans < threads && args.group_size >= kLongSpan) {
    for (int64_t i = 0; i < spans; ++i) {
      const int64_t row = i / args.groups, first = i % args.groups * args.group_size;
      quantize_shared(args, {row, row + 1, first, first + args.group_size}, i, threads);
    }
    return;
  }
  const bool plain = !args.given && !args.zero_point && !args.mask && !args.stochastic;
  const bool streaming = x.rows * x.cols >= kStreamBytes;
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / args.groups, first = i % args.groups * args.group_size,
                    last = first + args.group_size;
      if (plain) {
        args.scale[i] = quantize_symmetric(x, row, first, last, 0,
                                           args.data + row * args.data_row_stride + first, streaming);
        continue;
      }
      Range range = {0.0f, 0.0f};
      if (!args.given) widen_range(x, args.mask, row, first, last, &range);
      const Affine affine = args.given ? given_affine(args, i) : fitted_affine(args, range, i);
      quantize_piece(args, affine, row, first, last);
    }
    if (plain && streaming) stream_fence();
  };
  parallel_for(spans, kGrain / (args.group_size + 1) + 1, threads, body);
}

void dequantize(const DequantizeArgs& args, int threads) {
  const int64_t cols = args.groups * args.group_size, size = size_of(args.out_dtype);
  for_span({0, args.rows, 0, cols}, threads, [&](int64_t row, int64_t begin, int64_t end) {
    constexpr int64_t kPiece = 512;
    int8_t piece[kPiece];
    const int8_t* q = args.data + row * args.row_stride;
    char* out = static_cast<char*>(args.out) + row * args.out_row_stride * size;
    for (int64_t i = begin; i < end;) {
      const int64_t group = args.per_tensor ? 0 : i / args.group_size;
      int64_t last = args.per_tensor ? end : (group + 1) * args.group_size;
      if (last > end) last = end;
      const int8_t* source = q + i;
      if (args.col_stride != 1) {
        if (last - i > kPiece) last = i + kPiece;
        for (int64_t j = i; j < last; ++j) piece[j - i] = q[j * args.col_stride];
        source = piece;
      }
      const int64_t index = args.per_tensor ? 0 : row * args.groups + group;
      const int32_t zero = args.zero_point ? args.zero_point[index] : 0;
      kernels().quantize->dequantize(source, last - i, zero, args.scale[index], out + i * size,
                                     args.out_dtype);
      i = last;
    }
  });
}

NonFinite count_nonfinite(const FloatRows& x, int threads) {
  NonFinite result = {0, -1};
  std::mutex mutex;
  for_span({0, x.rows, 0, x.cols}, threads, [&](int64_t row, int64_t begin, int64_t end) {
    NonFinite part = {0, -1};
    for_pieces(x, row, begin, end, [&](const void* p, DType dtype, int64_t first, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        if (magnitude_key(element(p, dtype, i)) < kInfKey) continue;
        if (part.count++ == 0) part.first = row * x.cols + first + i;
      }
    });
    if (part.count == 0) return;
    const std::lock_guard<std::mutex> lock(mutex);
    result.count += part.count;
    if (result.first < 0 || part.first < result.first) result.first = part.first;
  });
  return result;
}

}  // namespace octavo
