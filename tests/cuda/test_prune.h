// prune.cu and patterns.cu against the CPU's drivers.
#pragma once

#include "test_select.h"

namespace octavo {
namespace test {

// Where a mask and pruned values go, or one of them, or the values in place; any alignment.
struct Outputs {
  Buffer<char> w, mask, pruned;
  bool has_mask, has_pruned, in_place;

  Outputs(Harness& t, const Buffer<char>& source, DType dtype)
      : w(source.size(), t.below(5) * Harness::size_of(dtype)),
        mask(source.size() / Harness::size_of(dtype), t.coin() ? 0 : t.below(9)),
        pruned(source.size(), t.coin() ? 0 : t.below(9) * Harness::size_of(dtype)),
        has_mask(t.below(3) != 0),
        has_pruned(!has_mask || t.coin()),
        in_place(t.coin()) {
    memcpy(w.get(), source.get(), static_cast<size_t>(source.size()));
  }
  bool* mask_at() const { return has_mask ? reinterpret_cast<bool*>(mask.get()) : nullptr; }
  void* pruned_at() const { return !has_pruned ? nullptr : in_place ? w.get() : pruned.get(); }
};

// Two of them with the same parts, one for the CPU and one for the device.
struct OutputPair {
  Outputs wanted, got;
  OutputPair(Harness& t, const Buffer<char>& source, DType dtype)
      : wanted(t, source, dtype), got(t, source, dtype) {
    got.has_mask = wanted.has_mask;
    got.has_pruned = wanted.has_pruned;
  }
  void check(Harness& t, const std::string& what) const {
    if (wanted.has_mask) t.check_equal(got.mask.get(), wanted.mask.get(), got.mask.size(), what + ", mask");
    if (wanted.has_pruned) {
      t.check_equal(static_cast<const char*>(got.pruned_at()), static_cast<const char*>(wanted.pruned_at()),
                    got.pruned.size(), what + ", pruned");
    }
  }
};

inline Selection random_selection(Harness& t, const Segment* segments, int64_t count, int64_t total) {
  if (t.below(4) == 0) return {0, 0};  // everything stays
  if (t.below(4) == 0 || total == 0) return {bits_of(std::fabs(t.normal())), kNoneEqual};
  return magnitude_select(segments, count, 1 + t.below(total), 1);
}

// The same selection, handed over by the host or found on the device.
inline cuda::SelectionArg argument(Harness& t, const Selection& selection) {
  if (t.coin()) return {selection, nullptr};
  return {{kNanKey, kNoneEqual}, &selection};
}

inline void test_prune_lists(Harness& t) {
  const std::vector<int64_t> sizes = {0, 1, 7, 31, 32, 33, 1000, 5000, 70000};
  for (int round = 0; round < 40; ++round) {
    const bool long_list = round % 20 == 0;
    const DType only = t.pick(kFloatTypes);
    const bool mixed = t.coin();
    std::vector<OutputPair> outputs;
    std::vector<Segment> wanted, got;
    int64_t total = 0;
    for (int64_t i = long_list ? 200 : 1 + t.below(4); i > 0; --i) {
      const DType dtype = mixed ? t.pick(kFloatTypes) : only;
      const int64_t n = long_list    ? t.below(200)
                        : round < 27 ? sizes[static_cast<size_t>(round) / 3]
                                     : t.below(40000);
      outputs.emplace_back(t, values(t, dtype, n, t.pick(kAllValues)), dtype);
      const OutputPair& o = outputs.back();
      wanted.push_back({o.wanted.w.get(), dtype, n, o.wanted.mask_at(), o.wanted.pruned_at()});
      got.push_back({o.got.w.get(), dtype, n, o.got.mask_at(), o.got.pruned_at()});
      total += n;
    }
    const auto count = static_cast<int64_t>(wanted.size());
    const Selection selection = random_selection(t, wanted.data(), count, total);
    prune(wanted.data(), count, selection, 1);
    cuda::prune(t.context, got.data(), count, argument(t, selection));
    t.done();
    for (const OutputPair& o : outputs) o.check(t, "prune of " + std::to_string(count));
  }
}

inline void test_prune_quantize(Harness& t) {
  struct Shape {
    int64_t rows, cols;
  };
  for (const DType dtype : kFloatTypes) {
    for (const Shape& shape : std::vector<Shape>{{0, 5},
                                                 {3, 0},
                                                 {1, 1},
                                                 {5, 7},
                                                 {9, 32},
                                                 {5, 33},
                                                 {6, 1024},
                                                 {3, 1032},
                                                 {3, 5000},
                                                 {1, 70000},
                                                 {2, t.below(9000)},
                                                 {7, 8 * t.below(200)}}) {
      const int64_t n = shape.rows * shape.cols, offset = t.coin() ? 0 : t.below(9);
      const Buffer<char> source = values(t, dtype, n, t.pick(kAllValues));
      const Buffer<char> w(source.size(), offset * Harness::size_of(dtype));
      memcpy(w.get(), source.get(), static_cast<size_t>(w.size()));
      const Segment segment = {w.get(), dtype, n, nullptr, nullptr};
      const Selection selection = random_selection(t, &segment, 1, n);
      Buffer<bool> mask(n), got_mask(n, offset);
      Buffer<int8_t> data(n), got_data(n, offset);
      Buffer<float> scale(shape.rows), got_scale(shape.rows);
      prune_quantize({w.get(), dtype, shape.rows, shape.cols, selection, mask.get(), data.get(), scale.get()},
                     1);
      cuda::prune_quantize(t.context, {w.get(), dtype, shape.rows, shape.cols, argument(t, selection),
                                       got_mask.get(), got_data.get(), got_scale.get()});
      t.done();
      const std::string what =
          "prune_quantize " + std::to_string(shape.rows) + " x " + std::to_string(shape.cols);
      t.check_equal(got_mask.get(), mask.get(), n, what + ", mask");
      t.check_equal(got_data.get(), data.get(), n, what + ", data");
      t.check_equal(got_scale.get(), scale.get(), shape.rows, what + ", scale");
    }
  }
}

inline void test_prune_nm(Harness& t) {
  for (const DType dtype : kFloatTypes) {
    for (const int m : {2, 3, 4, 4, 8, 8, 16, 16, 31, 32}) {
      const int64_t groups = t.pick(std::vector<int64_t>{0, 1, 2, 7, 33, 1000 / m, 9000 / m});
      const int n = 1 + static_cast<int>(t.below(m - 1));
      const OutputPair o(t, values(t, dtype, groups * m, t.pick(kAllValues)), dtype);
      prune_nm(o.wanted.w.get(), dtype, groups, n, m, o.wanted.mask_at(), o.wanted.pruned_at(), 1);
      cuda::prune_nm(t.context, o.got.w.get(), dtype, groups, n, m, o.got.mask_at(), o.got.pruned_at());
      o.check(t, "prune_nm " + std::to_string(n) + ":" + std::to_string(m));
    }
  }
}

inline void test_prune_units(Harness& t) {
  struct Shape {
    int64_t bands, across, unit_rows, unit_cols;
  };
  for (const DType dtype : kFloatTypes) {
    const std::vector<Shape> shapes = {{0, 3, 2, 2},
                                       {5, 1, 1, 1},
                                       {9, 1, 1, 1000},
                                       {3, 1, 1, 5001},
                                       {1, 70, 300, 1},
                                       {1, 1, 999, 1},
                                       {3, 5, 4, 16},
                                       {40, 3, 1, 3},
                                       {2, 33, 7, 2},
                                       {3, 4, 3, 1 + t.below(40)},
                                       {2, 3, 1 + t.below(20), 7},
                                       {1, 40, 2, 8}};
    for (const Shape& shape : shapes) {
      const int64_t rows = shape.bands * shape.unit_rows, cols = shape.across * shape.unit_cols;
      const int64_t n = rows * cols, units = shape.bands * shape.across;
      const std::string what =
          "units of " + std::to_string(shape.unit_rows) + " x " + std::to_string(shape.unit_cols);
      const OutputPair o(t, values(t, dtype, n, t.pick(kAllValues)), dtype);
      Buffer<double> wanted(units), got(units);
      unit_scores(o.wanted.w.get(), dtype, rows, cols, shape.unit_rows, shape.unit_cols, wanted.get(), 1);
      cuda::unit_scores(t.context, o.got.w.get(), dtype, rows, cols, shape.unit_rows, shape.unit_cols,
                        got.get());
      for (int64_t i = 0; i < units; ++i) {
        const bool both_nan = std::isnan(wanted[i]) && std::isnan(got[i]);
        t.check(both_nan || !memcmp(&got[i], &wanted[i], sizeof(double)),
                what + ", score " + std::to_string(i));
      }
      Buffer<bool> keep(units);
      for (int64_t i = 0; i < units; ++i) keep[i] = t.coin();
      const UnitGrid grid = {rows, cols, shape.unit_rows, shape.unit_cols};
      prune_units(grid, keep.get(), o.wanted.w.get(), dtype, o.wanted.mask_at(), o.wanted.pruned_at(), 1);
      cuda::prune_units(t.context, grid, keep.get(), o.got.w.get(), dtype, o.got.mask_at(),
                        o.got.pruned_at());
      o.check(t, what);
    }
  }
}

inline void test_mask_bits(Harness& t) {
  for (const int64_t rows : {0, 1, 3}) {
    for (const int64_t cols : {0, 1, 7, 8, 31, 32, 33, 64, 1000, 5000}) {
      const int64_t n = rows * cols, bytes = rows * ((cols + 7) / 8);
      Buffer<bool> mask(n, t.below(9)), got_mask(n, t.below(9));
      for (int64_t i = 0; i < n; ++i) mask[i] = t.coin();
      Buffer<uint8_t> bits(bytes), got_bits(bytes);
      pack_mask(mask.get(), rows, cols, bits.get(), 1);
      cuda::pack_mask(t.context, mask.get(), rows, cols, got_bits.get());
      t.check_equal(got_bits.get(), bits.get(), bytes, "pack_mask " + std::to_string(cols));
      for (int64_t i = 0; i < bytes; ++i)
        bits[i] = static_cast<uint8_t>(t.below(256));  // what pads a row is not read
      unpack_mask(bits.get(), rows, cols, mask.get(), 1);
      cuda::unpack_mask(t.context, bits.get(), rows, cols, got_mask.get());
      t.check_equal(got_mask.get(), mask.get(), n, "unpack_mask " + std::to_string(cols));
    }
  }
}

inline void test_prune(Harness& t) {
  test_prune_lists(t);
  test_prune_quantize(t);
  test_prune_nm(t);
  test_prune_units(t);
  test_mask_bits(t);
}

}  // namespace test
}  // namespace octavo
