// Quantizing the samples of a convolution's input: the largest magnitude of each, then its int8 with channels innermost,
// whatever the strides were.
#include <algorithm>

#include "conv.h"
#include "cpu/rows.h"
#include "parallel.h"

namespace octavo {
namespace {

constexpr int64_t kBand = 1 << 15;  // elements worth a task
constexpr int kPlanes = 8;          // channels whose bytes are interleaved at a time: those of a word

struct Step {
  float inv;
  bool bounded;  // all is finite, and rounds to at most 127
};

// Byte j of word i and byte i of word j change places: blocks of 4 x 4 bytes, of 2 x 2, single ones.
void transpose_bytes(uint64_t (&w)[kPlanes]) {
  auto swap = [&](int i, int j, int shift, uint64_t low) {
    const uint64_t t = ((w[i] >> shift) ^ w[j]) & low;
    w[j] ^= t;
    w[i] ^= t << shift;
  };
  for (const int i : {0, 1, 2, 3}) swap(i, i + 4, 32, 0x00000000FFFFFFFFu);
  for (const int i : {0, 1, 4, 5}) swap(i, i + 2, 16, 0x0000FFFF0000FFFFu);
  for (const int i : {0, 2, 4, 6}) swap(i, i + 1, 8, 0x00FF00FF00FF00FFu);
}

class Quantizer {
 public:
  explicit Quantizer(const ConvChunk& chunk) : chunk_(chunk), args_(chunk.args), image_(chunk.image) {
    const int64_t row = std::max<int64_t>(args_.channels * args_.width, 1);
    band_ = std::max<int64_t>(kBand / row, 1);
    used_ = std::clamp<int64_t>(image_.width - args_.pad_left, 0, args_.width);
  }

  void run() {
    find_scales();
    const int64_t bands = bands_of(image_.height);
    auto fill = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) fill_band(i / bands, i % bands * band_);
    };
    parallel_for(chunk_.count * bands, 1, chunk_.threads, fill);
  }

 private:
  int64_t bands_of(int64_t rows) const { return (rows + band_ - 1) / band_; }

  void find_scales() {
    const int64_t bands = bands_of(args_.height);
    auto* tops = static_cast<uint32_t*>(scratch(Slot::sample_tops, chunk_.count * bands * 4));
    steps_ =
        static_cast<Step*>(scratch(Slot::sample_steps, chunk_.count * static_cast<int64_t>(sizeof(Step))));
    auto find = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        uint32_t top = 0;
        const int64_t y = i % bands * band_;
        for_pieces_of(i / bands, y, y + band_, [&](const void* p, DType dtype, int64_t n) {
          top = std::max(top, kernels().quantize->max_bits(p, dtype, n));
        });
        tops[i] = top;
      }
    };
    parallel_for(chunk_.count * bands, 1, chunk_.threads, find);
    for (int64_t i = 0; i < chunk_.count; ++i) {
      uint32_t top = 0;
      for (int64_t band = 0; band < bands; ++band) top = std::max(top, tops[i * bands + band]);
      const bool finite = top < kInfKey;
      Range range = {0.0f, finite ? float_of(top) : 0.0f};
      if (!finite) {
        for_pieces_of(i, 0, args_.height, [&](const void* p, DType dtype, int64_t n) {
          kernels().quantize->range(p, dtype, nullptr, n, &range);
        });
      }
      const Affine affine = symmetric_affine(range);
      image_.scales[i] = affine.scale;
      steps_[i] = {affine.inv, finite};
    }
  }

  bool pixels_are_rows() const { return args_.x_strides[1] == 1 || args_.channels == 1; }

  // Calls body(view, y) for rows [begin, end) of a sample and their first `width` columns. A view's rows are channels, or
  // pixels where a pixel's channels are adjacent; it has as many columns as lie at one distance from each other.
  template <class Body>
  void for_views(int64_t sample, int64_t begin, int64_t end, int64_t width, Body body) const {
    const int64_t *strides = args_.x_strides, c = args_.channels, size = size_of(args_.dtype);
    const char* base = static_cast<const char*>(args_.x) + (chunk_.first + sample) * strides[0] * size;
    end = std::min(end, args_.height);
    if (begin >= end || width == 0 || c == 0) return;
    const bool whole_rows = !pixels_are_rows() && width == args_.width && strides[2] == width * strides[3];
    for (int64_t y = begin; y < end; y += whole_rows ? end - begin : 1) {
      FloatRows view = {base + y * strides[2] * size, args_.dtype, c, width, strides[1], strides[3]};
      if (whole_rows) view.cols = (end - begin) * width;
      if (pixels_are_rows()) {
        const bool joined = c == 1 || strides[3] == c;
        view.rows = joined ? 1 : width;
        view.cols = joined ? width * c : c;
        view.row_stride = strides[3];
        view.col_stride = c == 1 ? strides[3] : 1;
      }
      body(view, y);
    }
  }

  // body(pointer, dtype, count) for all elements of these rows.
  template <class Body>
  void for_pieces_of(int64_t sample, int64_t begin, int64_t end, Body body) const {
    for_views(sample, begin, end, args_.width, [&](const FloatRows& view, int64_t) {
      for (int64_t row = 0; row < view.rows; ++row) {
        for_pieces(view, row, 0, view.cols,
                   [&](const void* p, DType dtype, int64_t, int64_t n) { body(p, dtype, n); });
      }
    });
  }

  void quantize_row(const FloatRows& view, int64_t row, const Step& step, int8_t* q) const {
    const QuantizeKernels& kernel = *kernels().quantize;
    for_pieces(view, row, 0, view.cols, [&](const void* p, DType dtype, int64_t at, int64_t n) {
      if (step.bounded) return kernel.quantize_bounded(p, dtype, n, step.inv, image_.flip, q + at);
      kernel.quantize(p, dtype, nullptr, n, step.inv, 0.0f, -127.0f, image_.flip, q + at);
    });
  }

  uint8_t* pixel(int64_t sample, int64_t y, int64_t x) const {
    return image_.data + sample * image_.sample_bytes() + y * image_.row_bytes() + x * image_.channels;
  }

  // Rows [begin, begin + band_) of the image of a sample.
  void fill_band(int64_t sample, int64_t begin) const {
    const int64_t end = std::min(begin + band_, image_.height), c = image_.channels;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = row - args_.pad_top;
      const int64_t used = y >= 0 && y < args_.height ? used_ : 0;
      const int64_t left = std::min(used ? args_.pad_left : image_.width, image_.width), right = left + used;
      memset(pixel(sample, row, 0), image_.flip, static_cast<size_t>(left * c));
      memset(pixel(sample, row, right), image_.flip, static_cast<size_t>((image_.width - right) * c));
    }
    const int64_t first_y = std::max<int64_t>(begin - args_.pad_top, 0), end_y = end - args_.pad_top;
    for_views(sample, first_y, end_y, used_, [&](const FloatRows& view, int64_t y) {
      uint8_t* out = pixel(sample, y + args_.pad_top, args_.pad_left);
      if (!pixels_are_rows()) return interleave(view, steps_[sample], out);
      for (int64_t row = 0; row < view.rows; ++row)
        quantize_row(view, row, steps_[sample], reinterpret_cast<int8_t*>(out) + row * view.cols);
    });
  }

  // Rows of channels become pixels: eight planes are quantized, then their bytes interleaved.
  void interleave(const FloatRows& view, const Step& step, uint8_t* out) const {
    const int64_t c = image_.channels, pitch = round_up(view.cols, kPlanes);
    const int64_t frame = (image_.width - used_) * c;  // between the rows of x
    auto* planes = static_cast<int8_t*>(scratch(Slot::planes, kPlanes * pitch));
    for (int64_t first = 0; first < c; first += kPlanes) {
      const int64_t lanes = std::min<int64_t>(c - first, kPlanes);
      for (int64_t i = 0; i < lanes; ++i) quantize_row(view, first + i, step, planes + i * pitch);
      uint8_t* target = out + first;
      int64_t x = 0;
      for (int64_t at = 0; at < view.cols; at += kPlanes) {
        uint64_t words[kPlanes] = {};
        for (int64_t i = 0; i < lanes; ++i) memcpy(words + i, planes + i * pitch + at, kPlanes);
        transpose_bytes(words);
        const int64_t count = std::min<int64_t>(view.cols - at, kPlanes);
        for (int64_t i = 0; i < count; ++i) {
          if (lanes == kPlanes) {
            memcpy(target, words + i, kPlanes);
          } else {
            for (int64_t lane = 0; lane < lanes; ++lane)
              target[lane] = static_cast<uint8_t>(words[i] >> 8 * lane);
          }
          target += c;
          if (++x == used_) x = 0, target += frame;
        }
      }
    }
  }

  const ConvChunk& chunk_;
  const ConvArgs& args_;
  const ConvImage& image_;
  int64_t band_;  // rows of a task
  int64_t used_;  // columns of x that windows reach
  Step* steps_ = nullptr;
};

}  // namespace

void quantize_samples(const ConvChunk& chunk) { Quantizer(chunk).run(); }

}  // namespace octavo
