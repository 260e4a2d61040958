// RMSNorm and LayerNorm: each instruction set against the scalar one, and in place against apart.
#pragma once

#include "harness.h"

namespace {

const int64_t kNormWidths[] = {0, 1, 3, 17, 63, 64, 65, 130, 1000, 1023, 1024, 1025, 1100, 2049, 5000};

void test_norm_kernels() {
  const Kernels& scalar = all_kernels().front();
  for (const int64_t cols : kNormWidths) {
    for (const DType dtype : kFloats) {
      for (const Values values : kValues) {
        Bytes x = floats(dtype, cols, values, random_below(2));
        Bytes weight = floats(DType::f32, cols, Values::normal),
              bias = floats(DType::f32, cols, Values::normal);
        for (const bool centered : {false, true}) {
          const NormRow row = {x.data(),         dtype, nullptr,  nullptr, weight.as<float>(),
                               bias.as<float>(), 1e-6f, centered, cols,    nullptr};
          Bytes expected(cols * 4);
          scalar.norm->normalize(row, expected.as<float>());
          const uint32_t top = scalar.quantize->max_bits(expected.data(), DType::f32, cols);
          canonize(expected, DType::f32);
          for (const Kernels* k : available()) {
            Bytes y(cols * 4);
            const uint32_t found = k->norm->normalize(row, y.as<float>());
            canonize(y, DType::f32);
            expect(y == expected, "normalize", k->isa, dtype, cols);
            expect(found == top || (found >= kInfKey && top >= kInfKey), "its top", k->isa, dtype, cols,
                   found, top);
          }
        }
      }
    }
  }
}

void test_norm_driver() {
  for (const int64_t cols : kNormWidths) {
    for (int variant = 0; variant < 64; ++variant) {
      const bool added = variant & 1, centered = variant & 2, strided = variant & 4;
      const bool weighted = variant & 8, biased = variant & 16, asymmetric = variant & 32;
      const DType dtype = kFloats[(variant + cols) % 4];
      const int64_t rows = random_below(5), shift = random_below(2), bytes = rows * cols * bytes_of(dtype);
      const int64_t col_stride = strided ? 2 : 1, row_stride = col_stride * cols + (strided ? 3 : 0);
      const Values values = kValues[random_below(5)];
      Bytes x = floats(dtype, extent(rows, cols, row_stride, col_stride), values, shift);
      Bytes residual = floats(dtype, rows * cols, values, shift);
      Bytes weight = floats(DType::f32, cols, Values::normal),
            bias = floats(DType::f32, cols, Values::normal);
      auto run = [&](void* sum, void* data, const void* with, void* normed, int threads) {
        Bytes scale(rows * 4), zero_point(rows * 4);
        norm_quantize({{x.data(), dtype, rows, cols, row_stride, col_stride},
                       with,
                       sum,
                       weighted ? weight.as<float>() : nullptr,
                       biased ? bias.as<float>() : nullptr,
                       1e-6f,
                       centered,
                       static_cast<int8_t*>(data),
                       scale.as<float>(),
                       asymmetric ? zero_point.as<int32_t>() : nullptr,
                       normed},
                      threads);
        char* end = static_cast<char*>(data) + rows * cols;
        memcpy(end, scale.data(), static_cast<size_t>(scale.size()));
        memcpy(end + rows * 4, zero_point.data(), static_cast<size_t>(zero_point.size()));
      };
      const int64_t quantized = rows * cols + rows * 8;
      compare_drivers("norm_quantize", quantized, DType::i32, [&](void* out, int threads) {
        Bytes sum(bytes, shift), data(quantized, 1);
        run(added ? sum.data() : nullptr, data.data(), added ? residual.data() : nullptr, nullptr, threads);
        memcpy(out, data.data(), static_cast<size_t>(quantized));
      });
      compare_drivers("norm_quantize normed", bytes, dtype, [&](void* out, int threads) {
        Bytes sum(bytes, shift), data(quantized);
        run(added ? sum.data() : nullptr, data.data(), added ? residual.data() : nullptr, out, threads);
      });
      if (!added) continue;
      compare_drivers("norm_quantize sum", bytes, dtype, [&](void* out, int threads) {
        Bytes sum(bytes, shift), data(quantized), in_place_data(quantized);
        memcpy(out, residual.data(), static_cast<size_t>(bytes));
        run(out, in_place_data.data(), out, nullptr, threads);
        run(sum.data(), data.data(), residual.data(), nullptr, threads);
        expect(data == in_place_data, "norm_quantize in place", dtype, cols, threads);
        expect(memcmp(out, sum.data(), static_cast<size_t>(bytes)) == 0, "sum in place", dtype, cols,
               threads);
      });
    }
  }
}

}  // namespace
