// RMSNorm and LayerNorm, quantized: rows by threads, and the strides.
#include "cpu/rows.h"
#include "parallel.h"

namespace octavo {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements worth a thread

// Bits, since the sum with a residual is rounded to x's own dtype.
template <class Word>
void gather(const char* x, int64_t stride, int64_t n, char* out) {
  constexpr int64_t kSize = sizeof(Word);
  for (int64_t i = 0; i < n; ++i) memcpy(out + i * kSize, x + i * stride * kSize, sizeof(Word));
}

// The row itself, or a copy in `gathered` of one whose columns are not adjacent.
const char* contiguous_row(const FloatRows& x, int64_t row, char* gathered) {
  const int64_t size = size_of(x.dtype);
  const char* first = static_cast<const char*>(x.data) + row * x.row_stride * size;
  if (x.col_stride == 1) return first;
  switch (size) {
    case 8: gather<uint64_t>(first, x.col_stride, x.cols, gathered); break;
    case 4: gather<uint32_t>(first, x.col_stride, x.cols, gathered); break;
    default: gather<uint16_t>(first, x.col_stride, x.cols, gathered);
  }
  return gathered;
}

// Quantizes the row y, of which `top` are the max_bits.
void quantize_row(const NormArgs& args, int64_t row, const float* y, uint32_t top, bool streaming) {
  const int64_t cols = args.x.cols;
  const FloatRows view = {y, DType::f32, 1, cols, cols, 1};
  int8_t* data = args.data + row * cols;
  if (!args.zero_point) {
    args.scale[row] = quantize_symmetric(view, 0, 0, cols, top, 0, data, streaming);
    return;
  }
  const Affine affine = quantize_asymmetric(view, 0, 0, cols, 0, data);
  args.scale[row] = affine.scale;
  args.zero_point[row] = affine.zero_point;
}

}  // namespace

void norm_quantize(const NormArgs& args, int threads) {
  const FloatRows& x = args.x;
  const int64_t cols = x.cols, bytes = cols * size_of(x.dtype);
  const bool streaming = x.rows * cols >= kStreamBytes;
  const bool stream_sum = streaming && args.sum != args.residual;
  auto body = [&](int64_t begin, int64_t end) {
    auto* y = static_cast<float*>(scratch(Slot::rows, cols * 4 + 3 * bytes));
    char *gathered = reinterpret_cast<char*>(y + cols), *summed = gathered + bytes, *rounded = summed + bytes;
    for (int64_t row = begin; row < end; ++row) {
      const char* residual = static_cast<const char*>(args.residual);
      char* sum = static_cast<char*>(args.sum);
      if (residual) {
        residual += row * bytes;
        sum += row * bytes;
      }
      char* normed = static_cast<char*>(args.normed);
      if (normed) normed += row * bytes;
      const NormRow each = {contiguous_row(x, row, gathered),
                            x.dtype,
                            residual,
                            stream_sum ? summed : sum,
                            args.weight,
                            args.bias,
                            args.eps,
                            args.centered,
                            cols,
                            normed && streaming ? rounded : normed};
      const uint32_t top = kernels().norm->normalize(each, y);
      if (stream_sum) stream_copy(sum, summed, bytes);
      if (normed && streaming) stream_copy(normed, rounded, bytes);
      quantize_row(args, row, y, top, streaming);
    }
    if (streaming) stream_fence();
  };
  parallel_for(x.rows, kGrain / (cols + 1) + 1, threads, body);
}

}  // namespace octavo
