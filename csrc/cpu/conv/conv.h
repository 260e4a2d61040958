// The steps of a convolution: samples are quantized into an image, whose windows are multiplied.
#pragma once

#include "octavo.h"

namespace octavo {

// Quantized samples with channels innermost, in a frame of zeros: no window ever asks where the border is.
struct ConvImage {
  int64_t height, width, channels;  // with the frame, and only as far as windows reach
  uint8_t flip;                     // 0x80: stores q + 128
  uint8_t* data;  // [samples][height][width][channels], readable beyond the end: conv2d says how far
  float* scales;  // [samples]

  int64_t row_bytes() const { return width * channels; }
  int64_t sample_bytes() const { return height * row_bytes(); }
};

// Samples [first, first + count) of the batch.
struct ConvChunk {
  const ConvArgs& args;
  int64_t first, count;
  ConvImage image;
  const float* bias;  // [n], or nullptr
  int threads;
};

void quantize_samples(const ConvChunk& chunk);   // fills the image
void multiply_windows(const ConvChunk& chunk);   // by packed weights
void convolve_channels(const ConvChunk& chunk);  // by the taps of a depthwise weight

// An epilogue for `rows` output pixels in a row, counted over the chunk, and output channels from `channel` on. It writes
// where they belong if pixels are rows in out; else to a tile, from which store_planes takes them.
Epilogue pixel_epilogue(const ConvChunk& chunk, int64_t pixel, int64_t rows, int64_t channel,
                        int64_t channels);
void store_planes(const ConvChunk& chunk, const Epilogue& e, int64_t pixel, int64_t rows, int64_t channel,
                  int64_t first, int64_t last);

}  // namespace octavo
