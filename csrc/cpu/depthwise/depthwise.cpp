// Depthwise convolution: each thread walks down output rows, and keeps the rows under the window as floats in a ring.
#include "cpu/conv/conv.h"
#include "cpu/rows.h"
#include "parallel.h"

namespace octavo {
namespace {

constexpr int64_t kRowGrain = 1 << 18;  // multiply-adds worth filling the ring anew

void widen(const int8_t* q, int64_t n, float* out) {
  kernels().quantize->dequantize(q, n, 0, 1.0f, out, DType::f32);
}

}  // namespace

void convolve_channels(const ConvChunk& chunk) {
  const ConvArgs& args = chunk.args;
  const ConvImage& image = chunk.image;
  const int64_t c = image.channels, count = args.kernel_h * args.kernel_w, line = image.row_bytes();
  auto* weights = static_cast<float*>(scratch(Slot::taps, (count * c + 2 * kRowSlack + c) * 4));
  auto* colsum = reinterpret_cast<int32_t*>(weights + count * c + kRowSlack);
  widen(static_cast<const int8_t*>(args.weight), count * c, weights);
  memset(colsum, 0, static_cast<size_t>((c + kRowSlack) * 4));  // nothing to take off
  const int64_t reach = (args.kernel_h - 1) * args.dilation_h + 1;
  const int64_t ring_floats = round_up(reach * line + kRowSlack, kRowSlack);
  auto body = [&](int64_t begin, int64_t end) {
    auto* ring = static_cast<float*>(
        scratch(Slot::rows, ring_floats * 4 + count * static_cast<int64_t>(sizeof(float*))));
    auto** taps = reinterpret_cast<const float**>(ring + ring_floats);
    int64_t next = 0;  // the first row of the sample that is not in the ring yet
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sample = i / args.out_height, first = i % args.out_height * args.stride_h;
      const uint8_t* rows = image.data + sample * image.sample_bytes();
      if (i == begin || first == 0 || next < first) next = first;
      for (; next < first + reach; ++next)
        widen(reinterpret_cast<const int8_t*>(rows + next * line), line, ring + next % reach * line);
      for (int64_t tap = 0; tap < count; ++tap) {
        const int64_t y = first + tap / args.kernel_w * args.dilation_h;
        taps[tap] = ring + y % reach * line + tap % args.kernel_w * args.dilation_w * c;
      }
      Epilogue e = pixel_epilogue(chunk, i * args.out_width, args.out_width, 0, c);
      e.colsum = colsum;
      kernels().depthwise->convolve({taps, weights, count, c, args.out_width, args.stride_w * c, e});
      store_planes(chunk, e, i * args.out_width, args.out_width, 0, 0, c);
    }
  };
  const int64_t work = args.out_width * c * count;
  parallel_for(chunk.count * args.out_height, kRowGrain / (work + 1) + 1, chunk.threads, body);
}

}  // namespace octavo
