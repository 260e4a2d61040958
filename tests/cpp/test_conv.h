// Convolution: every instruction set and thread count against one scalar thread, for each kind of weight and layout.
#pragma once

#include "harness.h"

namespace {

struct ConvShape {
  int64_t batch, channels, height, width, n, groups, kernel_h, kernel_w, stride, dilation, pad;
};

const ConvShape kConvs[] = {{1, 3, 9, 11, 5, 1, 3, 2, 1, 1, 1},    {2, 17, 7, 7, 33, 1, 1, 1, 1, 1, 0},
                            {3, 8, 6, 5, 16, 2, 2, 3, 2, 2, 2},    {2, 33, 8, 9, 33, 33, 3, 3, 1, 1, 1},
                            {1, 16, 12, 5, 16, 16, 5, 1, 2, 2, 3}, {1, 1, 4, 4, 1, 1, 4, 4, 3, 1, 5},
                            {0, 4, 3, 3, 2, 1, 1, 1, 1, 1, 0},     {2, 70, 13, 14, 70, 1, 3, 3, 2, 1, 0},
                            {5, 7, 20, 33, 9, 1, 1, 1, 3, 1, 0},   {1, 100, 3, 3, 100, 100, 2, 2, 1, 1, 0},
                            {2, 2, 5, 6, 17, 1, 2, 2, 1, 5, 4},    {2, 0, 3, 3, 5, 1, 2, 2, 1, 1, 0},
                            {3, 4, 0, 2, 70, 1, 1, 3, 1, 1, 2},    {2, 5, 0, 0, 5, 5, 3, 3, 2, 1, 3}};

int64_t conv_out(int64_t size, int64_t kernel, const ConvShape& s) {
  return (size + 2 * s.pad - s.dilation * (kernel - 1) - 1) / s.stride + 1;
}

void test_conv_driver() {
  for (const ConvShape& s : kConvs) {
    const int64_t c = s.channels / s.groups, each = s.n / s.groups, k = s.kernel_h * s.kernel_w * c;
    const bool depthwise = s.groups == s.channels && s.groups == s.n;
    Bytes taps = int8s(s.n * k), packed(0);
    if (!depthwise) {
      packed = Bytes(s.groups * packed_parts(Layout::dense, each, k, 0).end);
      for (int64_t group = 0; group < s.groups; ++group) {
        Bytes one = pack({taps.as<int8_t>() + group * each * k, each, k, k, 1});
        memcpy(packed.as<char>() + group * one.size(), one.data(), static_cast<size_t>(one.size()));
      }
    }
    Bytes w_scale = scales(s.n);
    for (int variant = 0; variant < 16; ++variant) {
      const int64_t shift = variant & 1, gap = variant & 2 ? 3 : 0;
      const bool innermost = variant & 4, channels_last = variant & 8;
      const DType dtype = kFloats[variant % 4], out_dtype = kFloats[(variant / 2) % 3];
      ConvArgs args = {};
      args.dtype = dtype;
      args.batch = s.batch;
      args.channels = s.channels;
      args.height = s.height;
      args.width = s.width;
      const int64_t plane = s.height * (s.width + gap), sample = s.channels * plane + gap;
      const int64_t pixel = s.channels + gap;
      const int64_t planes[] = {sample, plane, s.width + gap, 1};
      const int64_t pixels[] = {s.height * s.width * pixel, 1, s.width * pixel, pixel};
      int64_t last = 0;
      for (int i = 0; i < 4; ++i) {
        const int64_t sizes[] = {s.batch, s.channels, s.height, s.width};
        args.x_strides[i] = innermost ? pixels[i] : planes[i];
        last += (sizes[i] - 1) * args.x_strides[i];
      }
      const int64_t extent_x = s.batch * s.channels * s.height * s.width == 0 ? 0 : last + 1;
      Bytes x = floats(dtype, extent_x, kValues[variant % 5], shift);
      Bytes bias = floats(dtype, s.n, Values::normal);
      args.x = x.data();
      args.kernel_h = s.kernel_h;
      args.kernel_w = s.kernel_w;
      args.stride_h = args.stride_w = s.stride;
      args.dilation_h = args.dilation_w = s.dilation;
      args.pad_top = args.pad_left = s.pad;
      args.groups = s.groups;
      args.n = s.n;
      args.weight = depthwise ? taps.data() : packed.data();
      args.packed_nbytes = depthwise ? 0 : packed.size() / s.groups;
      args.w_scale = w_scale.as<float>();
      args.bias = variant & 2 ? bias.data() : nullptr;
      args.bias_dtype = dtype;
      args.activation = kActivations[variant % 5];
      args.out_dtype = out_dtype;
      args.out_height = conv_out(s.height, s.kernel_h, s);
      args.out_width = conv_out(s.width, s.kernel_w, s);
      args.channels_last = channels_last;
      const int64_t elements = s.batch * s.n * args.out_height * args.out_width;
      compare_drivers("conv2d", elements * bytes_of(out_dtype), out_dtype, [&](void* out, int threads) {
        args.out = out;
        conv2d(args, threads);
      });
    }
  }
}

struct ConvWeightShape {
  int64_t n, channels, taps, matrices, bundle;
};

const ConvWeightShape kConvWeights[] = {{0, 3, 9, 1, 1},   {5, 0, 4, 1, 1},    {7, 3, 49, 1, 1},
                                        {70, 21, 9, 1, 1}, {200, 64, 1, 1, 1}, {64, 16, 9, 8, 2},
                                        {40, 5, 6, 4, 5},  {60, 9, 1, 4, 3},   {66, 17, 4, 3, 1}};

// Each weight packed as conv2d takes it, unpacked again, against where it was. Sparse layouts: one matrix, as they differ in size.
void test_conv_weights() {
  for (const ConvWeightShape& s : kConvWeights) {
    const int64_t pitch = s.bundle * s.channels, k = s.taps * pitch, columns = s.n / s.matrices;
    Bytes w = int8s(s.n * s.channels * s.taps), rows(s.n * k, 0, 0);
    for (int64_t column = 0; column < s.n; ++column) {
      const int64_t group = column % columns / (columns / s.bundle);
      for (int64_t c = 0; c < s.channels; ++c) {
        for (int64_t tap = 0; tap < s.taps; ++tap) {
          rows.as<int8_t>()[column * k + tap * pitch + group * s.channels + c] =
              w.as<int8_t>()[(column * s.channels + c) * s.taps + tap];
        }
      }
    }
    for (const Layout layout : {Layout::dense, Layout::bitmask, Layout::block}) {
      if (layout != Layout::dense && s.matrices > 1) continue;
      Bytes packed(0);
      for (int64_t i = 0; i < s.matrices; ++i) {
        Bytes one = pack({rows.as<int8_t>() + i * columns * k, columns, k, k, 1}, layout);
        if (i == 0) packed = Bytes(s.matrices * one.size());
        memcpy(packed.as<char>() + i * one.size(), one.data(), static_cast<size_t>(one.size()));
      }
      const PackedConv weight = {
          packed.data(), packed.size() / s.matrices, s.matrices, s.bundle, s.n, s.channels, s.taps};
      compare_drivers("unpack_conv_weight", w.size(), DType::i32, [&](void* out, int threads) {
        unpack_conv_weight(weight, static_cast<int8_t*>(out), threads);
        expect(memcmp(out, w.data(), static_cast<size_t>(w.size())) == 0, "unpacked", s.n, s.channels,
               s.taps);
      });
    }
  }
}

void test_conv() {
  test_conv_driver();
  test_conv_weights();
}

}  // namespace
