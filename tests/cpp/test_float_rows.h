// Weight-only products and embeddings: every instruction set and thread count against one scalar thread.
#pragma once

#include "harness.h"

namespace {

void test_weight_only() {
  const struct {
    int64_t m, n, k, groups;
  } shapes[] = {{0, 5, 8, 1},    {3, 0, 8, 1},   {3, 5, 0, 1},     {1, 1, 1, 1},
                {1, 70, 66, 1},  {2, 64, 64, 4}, {7, 17, 12, 3},   {9, 65, 5, 1},
                {70, 33, 40, 2}, {17, 16, 7, 1}, {5, 200, 256, 8}, {31, 129, 24, 6}};
  for (const auto& s : shapes) {
    for (int variant = 0; variant < 12; ++variant) {
      const DType dtype = kFloats[variant % 4], out_dtype = kFloats[variant % 3];
      const int64_t col_stride = variant % 5 == 4 ? 2 : 1, row_stride = s.k * col_stride + variant % 2;
      const int64_t stride = s.n + variant % 3;
      Bytes x = floats(dtype, extent(s.m, s.k, row_stride, col_stride), kValues[variant % 5], variant % 2);
      Bytes w = int8s(s.n * s.k), scale = scales(s.n * s.groups), bias = floats(dtype, s.n, Values::normal);
      Bytes packed = pack({w.as<int8_t>(), s.n, s.k, s.k, 1}, static_cast<Layout>(variant % 3));
      const int64_t out_count = s.m && s.n ? (s.m - 1) * stride + s.n : 0;
      compare_drivers("weight_only", out_count * bytes_of(out_dtype), out_dtype, [&](void* out, int threads) {
        const LinearTarget target = {s.n,     packed.data(),
                                     nullptr, variant % 4 ? bias.data() : nullptr,
                                     dtype,   kActivations[variant % 5],
                                     out,     out_dtype,
                                     stride};
        weight_only_linear(
            {{x.data(), dtype, s.m, s.k, row_stride, col_stride}, target, scale.as<float>(), s.groups},
            threads);
      });
    }
  }
}

Bytes integers(const std::vector<int64_t>& values, bool wide) {
  Bytes out(static_cast<int64_t>(values.size()) * (wide ? 8 : 4));
  for (size_t i = 0; i < values.size(); ++i) {
    if (wide)
      out.as<int64_t>()[i] = values[i];
    else
      out.as<int32_t>()[i] = static_cast<int32_t>(values[i]);
  }
  return out;
}

void test_embeddings() {
  const int64_t entries = 300;
  for (const int64_t dim : {0, 1, 3, 8, 16, 31, 33, 128, 130, 1000}) {
    Bytes data = int8s(entries * dim), scale = scales(entries);
    const EmbeddingTable table = {data.as<int8_t>(), scale.as<float>(), entries, dim};
    for (const int64_t count : {0, 1, 40, 777}) {
      std::vector<int64_t> rows;
      for (int64_t i = 0; i < count; ++i) rows.push_back(random_below(entries));
      for (int variant = 0; variant < 12; ++variant) {
        const bool wide = variant & 1;
        const DType out_dtype = kFloats[variant / 3];
        Bytes where = integers(rows, wide);
        const Integers indices = {where.data(), wide, count};
        compare_drivers("embedding", count * dim * bytes_of(out_dtype), out_dtype,
                        [&](void* out, int threads) { embedding(table, indices, out, out_dtype, threads); });

        std::vector<int64_t> ends;  // some bags are empty, and so may the last indices be left over
        for (int64_t end = 0; end < count; end += random_below(3) * random_below(20)) ends.push_back(end);
        Bytes weights = floats(DType::f32, count, Values::normal);
        const auto bags = static_cast<int64_t>(ends.size());
        const bool padded = variant & 2 && count;
        compare_drivers(
            "embedding_bag", bags * dim * bytes_of(out_dtype), out_dtype, [&](void* out, int threads) {
              embedding_bag({table, indices, ends.data(), bags, variant & 4 ? weights.as<float>() : nullptr,
                             padded ? rows[0] : -1, static_cast<BagMode>(variant % 3), out, out_dtype},
                            threads);
            });
      }
    }
  }
}

void test_first_outside() {
  const EmbeddingTable table = {nullptr, nullptr, 10, 1};
  const int64_t count = 400000;  // several chunks
  for (const bool wide : {false, true}) {
    for (const int64_t at : {int64_t{-1}, int64_t{0}, count / 2, count - 1}) {
      std::vector<int64_t> rows(static_cast<size_t>(count), 9);
      if (at >= 0) rows[static_cast<size_t>(at)] = wide ? -1 : 10;
      if (at >= 0) rows.back() = 10;  // the first one counts
      Bytes where = integers(rows, wide);
      for (const int threads : kThreads) {
        const int64_t found = first_outside(table, {where.data(), wide, count}, threads);
        expect(found == at, "first_outside", wide, at, found, threads);
      }
    }
  }
}

}  // namespace
