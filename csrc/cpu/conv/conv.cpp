// 2-D convolution: a few samples at a time, so that what was quantized is still in the cache when it is multiplied.
#include "conv.h"

#include <algorithm>

#include "check.h"
#include "cpu/rows.h"
#include "parallel.h"

namespace octavo {
namespace {

constexpr int64_t kChunk = 1 << 19;      // elements of x, or bytes of the image, for each thread
constexpr double kSerialWork = 1 << 22;  // multiply-adds; below it a second thread does not pay
constexpr int64_t kTilePad = 16;

// Two by two, as halves of a Double: the vectors of an instruction set would not be faster. The planes need no alignment.
template <class Word, class Double>
void transpose(const void* rows, int64_t pitch, int64_t count, int64_t columns, void* planes, int64_t plane) {
  constexpr int kBits = 8 * sizeof(Word);
  const auto* in = static_cast<const Word*>(rows);
  auto* out = static_cast<Word*>(planes);
  for (int64_t c = 0; c < columns; c += 2, in += 2, out += 2 * plane) {
    int64_t r = 0;
    for (; c + 1 < columns && r + 1 < count; r += 2) {
      Double a, b;
      memcpy(&a, in + r * pitch, sizeof a);
      memcpy(&b, in + (r + 1) * pitch, sizeof b);
      const Double low = static_cast<Word>(a) | b << kBits, high = a >> kBits | b >> kBits << kBits;
      memcpy(out + r, &low, sizeof low);
      memcpy(out + plane + r, &high, sizeof high);
    }
    for (; r < count; ++r) {
      memcpy(out + r, in + r * pitch, sizeof(Word));
      if (c + 1 < columns) memcpy(out + plane + r, in + r * pitch + 1, sizeof(Word));
    }
  }
}

const float* widened_bias(const ConvArgs& args) {
  if (!args.bias || args.bias_dtype == DType::f32) return static_cast<const float*>(args.bias);
  auto* wide = static_cast<float*>(scratch(Slot::bias, args.n * 4));
  for (int64_t i = 0; i < args.n; ++i) wide[i] = element(args.bias, args.bias_dtype, i);
  return wide;
}

}  // namespace

Epilogue pixel_epilogue(const ConvChunk& chunk, int64_t pixel, int64_t rows, int64_t channel,
                        int64_t channels) {
  const ConvArgs& args = chunk.args;
  const int64_t pixels = args.out_height * args.out_width, size = size_of(args.out_dtype);
  Epilogue e = {};
  auto* scales = static_cast<float*>(scratch(Slot::row_scales, rows * 4));
  for (int64_t i = 0; i < rows;) {
    const int64_t sample = (pixel + i) / pixels, end = std::min((sample + 1) * pixels - pixel, rows);
    for (; i < end; ++i) scales[i] = chunk.image.scales[sample];
  }
  e.row_scale = scales;
  e.col_scale = args.w_scale + channel;
  e.bias = chunk.bias ? chunk.bias + channel : nullptr;
  e.activation = args.activation;
  e.out_dtype = args.out_dtype;
  if (args.channels_last) {
    const int64_t row = chunk.first * pixels + pixel;
    e.out = static_cast<char*>(args.out) + (row * args.n + channel) * size;
    e.out_row_stride = args.n;
  } else {
    e.out_row_stride = channels + kTilePad;  // rows a power of two apart would share few cache sets
    e.out = scratch(Slot::out_tile, rows * e.out_row_stride * size);
  }
  return e;
}

void store_planes(const ConvChunk& chunk, const Epilogue& e, int64_t pixel, int64_t rows, int64_t channel,
                  int64_t first, int64_t last) {
  const ConvArgs& args = chunk.args;
  if (args.channels_last) return;
  const int64_t pixels = args.out_height * args.out_width, size = size_of(args.out_dtype);
  for (int64_t row = 0; row < rows;) {
    const int64_t sample = (pixel + row) / pixels, at = (pixel + row) % pixels;
    const int64_t count = std::min(rows - row, pixels - at);
    const char* in = static_cast<const char*>(e.out) + (row * e.out_row_stride + first) * size;
    char* out = static_cast<char*>(args.out) +
                (((chunk.first + sample) * args.n + channel + first) * pixels + at) * size;
    const auto turn = size == 4 ? transpose<uint32_t, uint64_t> : transpose<uint16_t, uint32_t>;
    turn(in, e.out_row_stride, count, last - first, out, pixels);
    row += count;
  }
}

void conv2d(const ConvArgs& args, int threads) {
  const int64_t k = args.kernel_h * args.kernel_w * (args.channels / args.groups);
  if (k > kMaxK) fail("k", "at most " + std::to_string(kMaxK) + ", so that int32 sums are exact", k);
  const int64_t pixels = args.out_height * args.out_width;
  if (args.batch * pixels * args.n == 0) return;
  const DefaultFloatEnvironment environment;
  const double work = static_cast<double>(args.batch * pixels) * static_cast<double>(args.n * (k + 1));
  if (work < kSerialWork || threads < 1) threads = 1;
  const bool depthwise = args.packed_nbytes == 0;
  ConvImage image = {};
  image.height = (args.out_height - 1) * args.stride_h + (args.kernel_h - 1) * args.dilation_h + 1;
  image.width = (args.out_width - 1) * args.stride_w + (args.kernel_w - 1) * args.dilation_w + 1;
  image.channels = args.channels;
  image.flip = depthwise ? 0 : 0x80;
  // A wide padding can make the image much larger than x.
  const int64_t elements = std::max(args.channels * args.height * args.width, image.sample_bytes());
  const int64_t step = std::clamp<int64_t>(kChunk * threads / (elements + 1), 1, args.batch);
  const int64_t image_bytes = step * image.sample_bytes();
  const int64_t beyond = kRowAlign * image.channels + padded_k(k);  // what a block of rows may read
  image.data = static_cast<uint8_t*>(scratch(Slot::image, image_bytes + beyond));
  memset(image.data + image_bytes, 0, static_cast<size_t>(beyond));
  image.scales = static_cast<float*>(scratch(Slot::image_scales, step * 4));
  const float* bias = widened_bias(args);
  for (int64_t first = 0; first < args.batch; first += step) {
    const ConvChunk chunk = {args, first, std::min(step, args.batch - first), image, bias, threads};
    quantize_samples(chunk);
    depthwise ? convolve_channels(chunk) : multiply_windows(chunk);
  }
}

}  // namespace octavo
