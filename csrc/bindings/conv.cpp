#include <algorithm>
#include <iterator>

#include "families.h"

namespace octavo {
namespace {

struct Image {
  const void* data;
  DType dtype;
  int64_t batch, channels, height, width;
  int64_t strides[4];
};

// How a kernel moves over an image.
struct Window {
  int64_t stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
};

// The weight of a convolution, as ConvArgs has it.
struct ConvWeight {
  const void* data;
  int64_t n, channels, kernel_h, kernel_w, groups, packed_nbytes;
};

}  // namespace

void bind_conv(py::module_& m) {
  m.attr("MAX_TAPS") = kMaxTaps;
  define_record<Image>(
      m, "Image",
      {"address", "dtype", "batch", "channels", "height", "width", "batch_stride", "channel_stride",
       "row_stride", "col_stride"},
      [](Address address, int dtype, int64_t batch, int64_t channels, int64_t height, int64_t width,
         int64_t batch_stride, int64_t channel_stride, int64_t row_stride, int64_t col_stride) {
        return Image{at<const void>(address),
                     float_dtype_of(dtype),
                     batch,
                     channels,
                     height,
                     width,
                     {batch_stride, channel_stride, row_stride, col_stride}};
      });
  define_record<Window>(
      m, "Window", {"stride_h", "stride_w", "dilation_h", "dilation_w", "pad_top", "pad_left"},
      [](int64_t stride_h, int64_t stride_w, int64_t dilation_h, int64_t dilation_w, int64_t pad_top,
         int64_t pad_left) { return Window{stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left}; });
  define_record<ConvWeight>(
      m, "ConvWeight", {"address", "nbytes", "n", "channels", "kernel_h", "kernel_w", "groups"},
      [](Address address, int64_t nbytes, int64_t n, int64_t channels, int64_t kernel_h, int64_t kernel_w,
         int64_t groups) {
        check(groups >= 1, "groups", "at least 1", groups);
        const int64_t taps = kernel_h * kernel_w;
        int64_t packed_nbytes = 0;
        if (channels != groups || n != groups || taps > kMaxTaps) {
          packed_nbytes = nbytes / groups;
          for (int64_t group = 0; group < groups; ++group) {
            checked_weight(address + group * packed_nbytes, packed_nbytes, n / groups,
                           taps * (channels / groups));
          }
        } else {
          check(nbytes == taps * n, "weight", "a byte for each tap and channel", nbytes);
        }
        return ConvWeight{at<const void>(address), n, channels, kernel_h, kernel_w, groups, packed_nbytes};
      });
  define(m, "unpack_conv_weight", {"weight", "bundle", "w", "where"},
         [](const ConvWeight& weight, int64_t bundle, Address w, int threads) {
           const int64_t channels = weight.channels / weight.groups, n = weight.n / weight.groups;
           check(weight.packed_nbytes > 0, "weight", "a packed one", weight.packed_nbytes);
           check(bundle >= 1 && channels % bundle == 0 && n % bundle == 0, "bundle",
                 "groups that divide a matrix", bundle);
           const PackedConv packed = {weight.data,
                                      weight.packed_nbytes,
                                      weight.groups,
                                      bundle,
                                      weight.n,
                                      channels / bundle,
                                      weight.kernel_h * weight.kernel_w};
           const py::gil_scoped_release release;
           unpack_conv_weight(packed, at<int8_t>(w), threads);
         });
  define(m, "int8_conv2d",
         {"x", "weight", "window", "scale", "bias", "bias_dtype", "activation", "out", "out_dtype",
          "out_height", "out_width", "channels_last", "where"},
         [](const Image& x, const ConvWeight& weight, const Window& window, Address scale, Address bias,
            int bias_dtype, int activation, Address out, int out_dtype, int64_t out_height, int64_t out_width,
            bool channels_last, int threads) {
           check(weight.channels == x.channels, "channels", "the weight's", x.channels);
           ConvArgs args = {};
           args.x = x.data;
           args.dtype = x.dtype;
           args.batch = x.batch;
           args.channels = x.channels;
           args.height = x.height;
           args.width = x.width;
           std::copy(std::begin(x.strides), std::end(x.strides), args.x_strides);
           args.kernel_h = weight.kernel_h;
           args.kernel_w = weight.kernel_w;
           args.stride_h = window.stride_h;
           args.stride_w = window.stride_w;
           args.dilation_h = window.dilation_h;
           args.dilation_w = window.dilation_w;
           args.pad_top = window.pad_top;
           args.pad_left = window.pad_left;
           args.groups = weight.groups;
           args.n = weight.n;
           args.weight = weight.data;
           args.packed_nbytes = weight.packed_nbytes;
           args.w_scale = at<const float>(scale);
           args.bias = at<const void>(bias);
           args.bias_dtype = float_dtype_of(bias_dtype);
           args.activation = activation_of(activation);
           args.out = at<void>(out);
           args.out_dtype = out_dtype_of(out_dtype);
           args.out_height = out_height;
           args.out_width = out_width;
           args.channels_last = channels_last;
           const py::gil_scoped_release release;
           conv2d(args, threads);
         });
}

}  // namespace octavo
