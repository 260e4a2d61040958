// norm_quantize of cuda/norm.cu against its definition, written down as plainly as it is in docs/numerics.md, and then
// quantized by the CPU's driver.
#pragma once

#include "test_quantize.h"

namespace octavo {
namespace test {

inline float element_of(const void* p, DType dtype, int64_t i) {
  const char* at = static_cast<const char*>(p) + i * Harness::size_of(dtype);
  float f;
  double d;
  uint16_t h;
  switch (dtype) {
    case DType::f32: memcpy(&f, at, 4); return f;
    case DType::f64: memcpy(&d, at, 8); return static_cast<float>(d);
    case DType::f16: memcpy(&h, at, 2); return f16_to_float(h);
    default: memcpy(&h, at, 2); return bf16_to_float(h);
  }
}

// 1024 lane sums, then ten times the sums of adjacent pairs.
inline float lane_sum(const std::vector<float>& v) {
  std::vector<float> s(1024, 0.0f);
  for (size_t i = 0; i < v.size(); ++i) s[i % 1024] = s[i % 1024] + v[i];
  for (size_t width = 512; width > 0; width /= 2) {
    for (size_t j = 0; j < width; ++j) s[j] = s[2 * j] + s[2 * j + 1];
  }
  return s[0];
}

inline float mean_of_squares(const std::vector<float>& v) {
  std::vector<float> squares;
  for (const float x : v) squares.push_back(x * x);
  return lane_sum(squares) / static_cast<float>(v.size());
}

// y of one row; writes the row's sum.
inline std::vector<float> normalized(const NormArgs& args, int64_t row, char* sum) {
  const int64_t cols = args.x.cols, size = Harness::size_of(args.x.dtype);
  std::vector<float> h;
  for (int64_t i = 0; i < cols; ++i) {
    float v = element_of(args.x.data, args.x.dtype, row * args.x.row_stride + i * args.x.col_stride);
    if (args.residual) {
      char* at = sum + (row * cols + i) * size;
      Harness::put(at, args.x.dtype, v + element_of(args.residual, args.x.dtype, row * cols + i));
      v = element_of(at, args.x.dtype, 0);
    }
    h.push_back(v);
  }
  if (args.centered) {
    const float mean = lane_sum(h) / static_cast<float>(cols);
    for (float& v : h) v = v - mean;
  }
  const float r = 1.0f / std::sqrt(mean_of_squares(h) + args.eps);
  for (int64_t i = 0; i < cols; ++i) {
    float y = h[static_cast<size_t>(i)] * r;
    if (args.weight) y = y * args.weight[i];
    if (args.bias) y = y + args.bias[i];
    h[static_cast<size_t>(i)] = y;
  }
  return h;
}

inline void check_norm(Harness& t, DType dtype, int64_t rows, int64_t cols) {
  const int64_t size = Harness::size_of(dtype), count = rows * cols;
  const bool nonfinite = t.below(4) == 0;
  const View view = random_view(t, dtype, rows, cols, nonfinite);
  make_degenerate(t, view);
  const Buffer<char> residual = t.floats(dtype, count, nonfinite, t.below(3) * 4);
  const Buffer<char> kept_residual(count * size);
  memcpy(kept_residual.get(), residual.get(), static_cast<size_t>(count * size));
  const Buffer<char> weight = t.floats(DType::f32, cols, nonfinite, t.below(2) * 4);
  const Buffer<char> bias = t.floats(DType::f32, cols, nonfinite, t.below(2) * 4);
  const int64_t skipped = t.below(3) * 4;
  Buffer<char> sum(count * size, skipped * size), wanted_sum(count * size);
  Buffer<int8_t> data(count, skipped), wanted(count);
  Buffer<float> scale(rows), wanted_scale(rows);

  NormArgs args = {};
  args.x = view.x;
  args.eps = t.coin() ? 1e-6f : 0.0f;
  args.centered = t.coin();
  if (t.coin()) args.weight = reinterpret_cast<const float*>(weight.get());
  if (t.coin()) args.bias = reinterpret_cast<const float*>(bias.get());
  const bool adds = t.coin(), in_place = t.coin();
  if (adds) args.residual = kept_residual.get();
  for (int64_t row = 0; row < rows; ++row) {
    const std::vector<float> y = normalized(args, row, wanted_sum.get());
    QuantizeArgs q = {};
    q.x = {y.data(), DType::f32, 1, cols, cols, 1};
    q.groups = 1;
    q.group_size = cols;
    q.data = wanted.get() + row * cols;
    q.data_row_stride = cols;
    q.scale = wanted_scale.get() + row;
    quantize(q, 1);
  }
  char* sum_at = in_place ? residual.get() : sum.get();
  if (adds) {
    args.residual = residual.get();
    args.sum = sum_at;
  }
  args.data = data.get();
  args.scale = scale.get();
  cuda::norm_quantize(t.context, args);
  t.done();

  const std::string what = "norm " + name_of(dtype) + " " + std::to_string(rows) + " x " +
                           std::to_string(cols) + " strides " + std::to_string(args.x.row_stride) + " " +
                           std::to_string(args.x.col_stride) + (args.centered ? " centered" : "") +
                           (args.weight ? " weight" : "") + (args.bias ? " bias" : "") +
                           (adds ? in_place ? " residual in place" : " residual" : "");
  t.check_equal(scale.get(), wanted_scale.get(), rows, what + ": scale");
  t.check_equal(data.get(), wanted.get(), count, what);
  for (int64_t i = 0; adds && i < count; ++i) {
    const float got = element_of(sum_at, dtype, i), expected = element_of(wanted_sum.get(), dtype, i);
    const bool both_nan = std::isnan(got) && std::isnan(expected);  // whose bits no two machines agree on
    if (both_nan || !memcmp(sum_at + i * size, wanted_sum.get() + i * size, static_cast<size_t>(size)))
      continue;
    return t.check(false, what + ": sum at " + std::to_string(i));
  }
}

inline void test_norm(Harness& t) {
  for (const DType dtype : kFloatTypes) {
    for (const int64_t cols : kCols) {
      const int64_t rows = cols < 3000 ? t.below(5) : 1 + t.below(2);
      for (int i = 0; i < 3; ++i) check_norm(t, dtype, rows, cols);
    }
  }
}

}  // namespace test
}  // namespace octavo
