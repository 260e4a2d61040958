// A row of a depthwise convolution over the vector words of the vec_*.h included before. Channels are lanes, and the taps are
// walked for a tile of pixels at a time, whose sums stay in registers while a weight is read once for all of them. Sums of
// products of small integers are exact in float32 (kMaxTaps), where a fused multiply-add is one instruction everywhere.
// Tile: 4 pixels x 2 vectors = 8 accumulators, 2 weights: 10 of 16 registers, and 8 chains to hide the latency.
#include "cpu/gemm/epilogue.inl"
#include "cpu/vec/unroll.h"
#include "octavo.h"

namespace octavo {
namespace {

constexpr int kTilePixels = 4;

template <int kPixels, int kVectors>
void run_tile(const DepthwiseRow& d, int64_t pixel, int64_t channel) {
  F32 acc[kPixels][kVectors];
  OCTAVO_UNROLL
  for (auto& pixel_sums : acc) {
    OCTAVO_UNROLL
    for (auto& v : pixel_sums) v = set1(0.0f);
  }
  const float* w = d.weights + channel;
  for (int64_t tap = 0; tap < d.count; ++tap, w += d.channels) {
    const float* x = d.taps[tap] + pixel * d.step + channel;
    OCTAVO_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const F32 weight = load(w + v * kLanes);
      OCTAVO_UNROLL
      for (int p = 0; p < kPixels; ++p) {
        acc[p][v] = fma(load(x + p * d.step + v * kLanes), weight, acc[p][v]);
      }
    }
  }
  constexpr int kColumns = kVectors * kLanes;
  alignas(64) int32_t sums[kPixels * kColumns];
  OCTAVO_UNROLL
  for (int p = 0; p < kPixels; ++p) {
    OCTAVO_UNROLL
    for (int v = 0; v < kVectors; ++v) store(sums + p * kColumns + v * kLanes, to_i32(acc[p][v]));
  }
  finish_tile<kColumns, kColumns>(d.epilogue, d.channels, pixel, kPixels, channel, sums);
}

template <int kPixels>
void run_pixels(const DepthwiseRow& d, int64_t pixel) {
  int64_t channel = 0;
  for (; channel + kLanes < d.channels; channel += 2 * kLanes) run_tile<kPixels, 2>(d, pixel, channel);
  for (; channel < d.channels; channel += kLanes) run_tile<kPixels, 1>(d, pixel, channel);
}

void convolve(const DepthwiseRow& d) {
  int64_t pixel = 0;
  for (; pixel + kTilePixels <= d.pixels; pixel += kTilePixels) run_pixels<kTilePixels>(d, pixel);
  for (; pixel < d.pixels; ++pixel) run_pixels<1>(d, pixel);
}

}  // namespace
}  // namespace octavo
