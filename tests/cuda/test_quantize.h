// quantize, dequantize and count_nonfinite of cuda/quantize.cu against the CPU's drivers.
#pragma once

#include <sys/mman.h>

#include <algorithm>

#include "harness.h"

namespace octavo {
namespace test {

// Every length at which something changes: units of 4 and 8, teams of 4 to 512 threads, parts.
inline const std::vector<int64_t> kCols = {0,   1,   7,   8,    15,   16,   17,   31,   64,   100,  127,
                                           128, 129, 768, 1023, 1024, 1025, 2048, 4096, 5000, 8192, 20000};

inline std::string name_of(DType dtype) {
  const char* names[] = {"f32", "f16", "bf16", "f64"};
  return names[static_cast<int>(dtype)];
}

// A view of random floats in a layout drawn at random, and the memory that it needs, not an element more.
struct View {
  Buffer<char> memory;
  FloatRows x;
};
inline View random_view(Harness& t, DType dtype, int64_t rows, int64_t cols, bool nonfinite) {
  int64_t row_stride = cols, col_stride = 1, skipped = 0;
  switch (t.below(8)) {
    case 0: skipped = t.below(9); break;
    case 1: row_stride = cols + t.below(20); break;
    case 2: row_stride = cols * (col_stride = 2 + t.below(2)); break;
    case 3: col_stride = rows, row_stride = 1; break;
    case 4: row_stride = -cols - 8 * t.below(2); break;
    case 5: col_stride = -1, row_stride = -cols; break;
    case 6: (t.coin() ? row_stride : col_stride) = 0; break;
    default: break;
  }
  const int64_t row_end = row_stride * std::max<int64_t>(rows - 1, 0);
  const int64_t col_end = col_stride * std::max<int64_t>(cols - 1, 0);
  const int64_t first = std::min<int64_t>(row_end, 0) + std::min<int64_t>(col_end, 0);
  const int64_t last = std::max<int64_t>(row_end, 0) + std::max<int64_t>(col_end, 0);
  const int64_t count = rows * cols > 0 ? last - first + 1 : 0;
  View view = {t.floats(dtype, count, nonfinite, skipped),
               {nullptr, dtype, rows, cols, row_stride, col_stride}};
  view.x.data = view.memory.get() - first * Harness::size_of(dtype);
  return view;
}

// Now and then nothing in the view can be scaled, or the range of its values is too large for a float.
inline void make_degenerate(Harness& t, const View& view) {
  const int64_t kind = t.below(16), size = Harness::size_of(view.x.dtype);
  for (int64_t i = 0; i < view.memory.size() / size; ++i) {
    char* p = view.memory.get() + i * size;
    if (kind == 0) Harness::put(p, view.x.dtype, t.coin() ? 0.0f : -0.0f);
    if (kind == 1) Harness::put(p, view.x.dtype, float_of(static_cast<uint32_t>(t.below(200)) << 16));
    if (kind == 2) Harness::put(p, view.x.dtype, t.coin() ? NAN : t.coin() ? INFINITY : -INFINITY);
    if (kind == 3) Harness::put(p, view.x.dtype, (t.coin() ? 1.0f : -1.0f) * 0x1.8p127f);
  }
}

inline void check_quantize(Harness& t, DType dtype, int64_t rows, int64_t groups, int64_t group_size) {
  const int64_t cols = groups * group_size;
  const View view = random_view(t, dtype, rows, cols, t.coin());
  make_degenerate(t, view);
  QuantizeArgs args = {};
  args.x = view.x;
  args.groups = groups;
  args.group_size = group_size;
  args.per_tensor = groups == 1 && t.below(3) == 0;
  args.given = t.below(4) == 0;
  args.stochastic = t.below(4) == 0;
  args.seed = static_cast<uint64_t>(t.below(int64_t{1} << 60));
  args.data_row_stride = cols + (t.coin() ? 0 : t.below(17));
  const bool asymmetric = t.coin();

  Buffer<bool> mask(rows * cols, t.below(3));
  for (int64_t i = 0; i < rows * cols; ++i) mask[i] = t.coin();
  if (t.below(4) == 0) args.mask = mask.get();

  const int64_t scales = args.per_tensor ? 1 : rows * groups;
  Buffer<float> scale(scales), wanted_scale(scales);
  Buffer<int32_t> zero(scales), wanted_zero(scales);
  for (int64_t i = 0; i < scales; ++i) {
    scale[i] = wanted_scale[i] = args.given ? std::abs(t.normal()) + 0x1p-10f : NAN;
    zero[i] = wanted_zero[i] = static_cast<int32_t>(t.below(256)) - 128;
  }
  const int64_t bytes = rows * cols > 0 ? args.data_row_stride * (rows - 1) + cols : 0,
                skipped = t.below(3) * 4;
  Buffer<int8_t> data(bytes, skipped), wanted(bytes, skipped);

  args.scale = wanted_scale.get();
  args.zero_point = asymmetric ? wanted_zero.get() : nullptr;
  args.data = wanted.get();
  quantize(args, 1);
  args.scale = scale.get();
  args.zero_point = asymmetric ? zero.get() : nullptr;
  args.data = data.get();
  cuda::quantize(t.context, args);
  t.done();

  const std::string what = "quantize " + name_of(dtype) + " " + std::to_string(rows) + " x " +
                           std::to_string(groups) + " x " + std::to_string(group_size) + " strides " +
                           std::to_string(view.x.row_stride) + " " + std::to_string(view.x.col_stride) +
                           (args.per_tensor ? " tensor" : "") + (args.given ? " given" : "") +
                           (args.stochastic ? " stochastic" : "") + (args.mask ? " masked" : "") +
                           (asymmetric ? " asymmetric" : "");
  t.check_equal(scale.get(), wanted_scale.get(), scales, what + ": scale");
  t.check_equal(zero.get(), wanted_zero.get(), scales, what + ": zero_point");
  t.check_equal(data.get(), wanted.get(), bytes, what);
}

inline void check_dequantize(Harness& t, DType dtype, int64_t rows, int64_t groups, int64_t group_size) {
  const int64_t cols = groups * group_size, size = Harness::size_of(dtype);
  DequantizeArgs args = {};
  args.rows = rows;
  args.groups = groups;
  args.group_size = group_size;
  args.per_tensor = t.below(3) == 0;
  args.col_stride = t.below(3) ? 1 : t.below(3) - 1;
  args.row_stride = (args.col_stride ? std::abs(args.col_stride) : 1) * cols + (t.coin() ? 0 : t.below(9));
  const int64_t bytes = rows * cols > 0 ? args.row_stride * (rows - 1) + cols : 0;
  Buffer<int8_t> data(bytes, t.below(3) * 4);
  for (int64_t i = 0; i < bytes; ++i) data[i] = static_cast<int8_t>(t.below(256) - 128);
  args.data = data.get() + (args.col_stride < 0 && bytes ? cols - 1 : 0);
  const int64_t scales = args.per_tensor ? 1 : rows * groups;
  Buffer<float> scale(scales);
  Buffer<int32_t> zero(scales);
  for (int64_t i = 0; i < scales; ++i) {
    scale[i] = std::abs(t.normal()) * (t.coin() ? 1.0f : 0x1p-120f);
    zero[i] = static_cast<int32_t>(t.below(256)) - 128;
  }
  args.scale = scale.get();
  args.zero_point = t.coin() ? zero.get() : nullptr;
  args.out_dtype = dtype;
  args.out_row_stride = cols + (t.coin() ? 0 : t.below(9));
  const int64_t out_bytes = rows * cols > 0 ? (args.out_row_stride * (rows - 1) + cols) * size : 0;
  const int64_t skipped = t.below(2) * size;
  Buffer<char> out(out_bytes, skipped), wanted(out_bytes, skipped);
  args.out = wanted.get();
  dequantize(args, 1);
  args.out = out.get();
  cuda::dequantize(t.context, args);
  t.done();
  t.check_equal(out.get(), wanted.get(), out_bytes,
                "dequantize " + name_of(dtype) + " " + std::to_string(rows) + " x " + std::to_string(groups) +
                    " x " + std::to_string(group_size) + " col_stride " + std::to_string(args.col_stride));
}

inline void check_count(Harness& t, DType dtype, int64_t rows, int64_t cols) {
  const View view = random_view(t, dtype, rows, cols, t.coin());
  const NonFinite wanted = count_nonfinite(view.x, 1), got = cuda::count_nonfinite(t.context, view.x);
  t.done();
  t.check(got.count == wanted.count && got.first == wanted.first,
          "count_nonfinite " + name_of(dtype) + " " + std::to_string(rows) + " x " + std::to_string(cols) +
              ": " + std::to_string(got.count) + " from " + std::to_string(got.first) + ", expected " +
              std::to_string(wanted.count) + " from " + std::to_string(wanted.first));
}

// Rows that lie 2^31 elements apart: memory that is only there where it is touched.
inline void test_far_rows(Harness& t) {
  constexpr int64_t kRows = 2, kFarCols = 40, kStride = (int64_t{1} << 31) + 16;
  const auto reserve = [](int64_t bytes) {
    return mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  };
  constexpr int64_t kXBytes = 2 * (kStride + kFarCols), kDataBytes = kStride + kFarCols;
  void* x = reserve(kXBytes);
  void* data = reserve(kDataBytes);
  Buffer<int8_t> wanted(kRows * kFarCols);
  Buffer<float> scale(kRows), wanted_scale(kRows);
  const Buffer<char> values = t.floats(DType::bf16, kRows * kFarCols, true);
  for (int64_t row = 0; row < kRows; ++row) {
    memcpy(static_cast<char*>(x) + 2 * row * kStride, values.get() + 2 * row * kFarCols, 2 * kFarCols);
  }
  QuantizeArgs args = {};
  args.groups = 1;
  args.group_size = kFarCols;
  args.x = {values.get(), DType::bf16, kRows, kFarCols, kFarCols, 1};
  args.data = wanted.get();
  args.data_row_stride = kFarCols;
  args.scale = wanted_scale.get();
  quantize(args, 1);
  args.x = {x, DType::bf16, kRows, kFarCols, kStride, 1};
  args.data = static_cast<int8_t*>(data);
  args.data_row_stride = kStride;
  args.scale = scale.get();
  cuda::quantize(t.context, args);
  t.done();
  t.check_equal(scale.get(), wanted_scale.get(), kRows, "far rows: scale");
  for (int64_t row = 0; row < kRows; ++row) {
    t.check_equal(args.data + row * kStride, wanted.get() + row * kFarCols, kFarCols, "far rows");
  }
  munmap(x, static_cast<size_t>(kXBytes));
  munmap(data, static_cast<size_t>(kDataBytes));
}

inline void test_quantize(Harness& t) {
  for (const DType dtype : kFloatTypes) {
    for (const int64_t cols : kCols) {
      const int64_t rows = cols < 1000 ? t.below(20) : 1 + t.below(3);
      for (int i = 0; i < 3; ++i) check_quantize(t, dtype, rows, 1, cols);
      check_dequantize(t, dtype, rows, 1, cols);
      check_count(t, dtype, rows, cols);
    }
    for (const int64_t group_size : {1, 8, 32, 33, 128, 256}) {
      check_quantize(t, dtype, 1 + t.below(5), 1 + t.below(9), group_size);
      check_dequantize(t, dtype, 1 + t.below(5), 1 + t.below(9), group_size);
    }
    check_quantize(t, dtype, 2, 1, 33000 + 8 * t.below(100));  // longer than what a block holds, of any type
  }
  test_far_rows(t);
}

}  // namespace test
}  // namespace octavo
