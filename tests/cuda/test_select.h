// select.cu against the CPU's drivers, and units against the rules of numerics.md sorted out plainly.
#pragma once

#include <algorithm>
#include <numeric>

#include "harness.h"

namespace octavo {
namespace test {

// A list of tensors and what belongs to it.
struct Tensors {
  std::vector<Buffer<char>> w;
  std::vector<Segment> segments;
  int64_t total = 0;

  void add(Buffer<char> buffer, DType dtype) {
    const int64_t n = buffer.size() / Harness::size_of(dtype);
    segments.push_back({buffer.get(), dtype, n, nullptr, nullptr});
    w.push_back(std::move(buffer));
    total += n;
  }
  int64_t count() const { return static_cast<int64_t>(segments.size()); }
};

// What a tensor can hold: anything, few distinct magnitudes, one magnitude, zeros for the most part.
enum class Values { any, nonfinite, few, one, sparse };

inline Buffer<char> values(Harness& t, DType dtype, int64_t n, Values kind) {
  Buffer<char> buffer = t.floats(dtype, n, kind == Values::nonfinite, t.below(9));
  const int64_t size = Harness::size_of(dtype);
  for (int64_t i = 0; i < n; ++i) {
    char* p = buffer.get() + i * size;
    const float sign = t.coin() ? 1.0f : -1.0f;
    if (kind == Values::few) Harness::put(p, dtype, sign * static_cast<float>(t.below(4)));
    if (kind == Values::one) Harness::put(p, dtype, sign * 0.75f);
    if (kind == Values::sparse && t.below(10)) Harness::put(p, dtype, sign * 0.0f);
  }
  return buffer;
}

inline const std::vector<Values> kAllValues = {Values::any, Values::nonfinite, Values::few, Values::one,
                                               Values::sparse};

inline void check_magnitude_select(Harness& t, const Tensors& list, int64_t k, const std::string& what) {
  const Selection wanted = magnitude_select(list.segments.data(), list.count(), k, 1);
  Buffer<Selection> got(1);
  cuda::magnitude_select(t.context, list.segments.data(), list.count(), k, got.get());
  t.done();
  t.check(got[0].key == wanted.key && got[0].keep_equal_from == wanted.keep_equal_from,
          what + ": k " + std::to_string(k) + " of " + std::to_string(list.total));
}

inline void check_ratio_select(Harness& t, const Tensors& list, float ratio) {
  const float largest = float_of(max_key(list.segments.data(), list.count(), 1));
  Buffer<Selection> got(1);
  cuda::ratio_select(t.context, list.segments.data(), list.count(), ratio, got.get());
  t.done();
  t.check(got[0].key == bits_of(ratio * largest) && got[0].keep_equal_from == kNoneEqual, "ratio_select");
}

inline void check_list(Harness& t, const Tensors& list, const std::string& what) {
  check_ratio_select(t, list, t.pick(std::vector<float>{0.0f, 1e-39f, 0.3f, 1.0f, 3e38f}));
  if (list.total == 0) return;
  check_magnitude_select(t, list, (list.total + 1) / 2, what);
  const std::vector<int64_t> others = {1, list.total, 1 + t.below(list.total)};
  check_magnitude_select(t, list, t.pick(others), what);
}

// Sorted: NaN last, equal scores by their index; the first k go.
inline std::vector<char> kept_units(const Buffer<double>& scores, int64_t k) {
  std::vector<int64_t> order(static_cast<size_t>(scores.size()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return std::isnan(scores[a]) ? false : std::isnan(scores[b]) || scores[a] < scores[b];
  });
  std::vector<char> keep(order.size(), 1);
  for (int64_t i = 0; i < k; ++i) keep[static_cast<size_t>(order[static_cast<size_t>(i)])] = 0;
  return keep;
}

inline Buffer<double> random_scores(Harness& t, int64_t n, bool finite) {
  Buffer<double> scores(n);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t kind = t.below(8);
    double v = std::fabs(static_cast<double>(t.normal())) * std::exp2(static_cast<double>(t.below(40) - 20));
    if (kind == 0) v = static_cast<double>(t.below(3));
    if (kind == 1) v = static_cast<double>(t.below(1000)) * 5e-324;
    if (!finite && kind == 2) v = t.coin() ? INFINITY : std::nan("");
    scores[i] = v;
  }
  return scores;
}

inline void test_units(Harness& t) {
  for (const int64_t n : {int64_t{0}, t.below(40), t.below(5000), int64_t{40000}}) {
    for (const bool finite : {false, true}) {
      const Buffer<double> scores = random_scores(t, n, finite);
      Buffer<bool> keep(n);
      for (const int64_t k : {int64_t{0}, t.below(n + 1)}) {
        const std::vector<char> wanted = kept_units(scores, k);
        cuda::unit_select(t.context, scores.get(), n, k, keep.get());
        t.done();
        t.check_equal(reinterpret_cast<const char*>(keep.get()), wanted.data(), n,
                      "unit_select: k " + std::to_string(k) + " of " + std::to_string(n));
      }
      double top = 0.0;
      for (int64_t i = 0; i < n; ++i) {
        if (std::isfinite(scores[i])) top = std::max(top, scores[i]);
      }
      for (const double limit : {-1.0, 0.0, 0.25, 1.0, 3e300, static_cast<double>(INFINITY)}) {
        for (const bool is_ratio : {false, true}) {
          if (is_ratio && !(limit >= 0 && limit < INFINITY)) continue;
          std::vector<char> wanted(static_cast<size_t>(n));
          for (int64_t i = 0; i < n; ++i)
            wanted[static_cast<size_t>(i)] = !(scores[i] <= (is_ratio ? limit * top : limit));
          cuda::unit_threshold(t.context, scores.get(), n, limit, is_ratio, keep.get());
          t.done();
          t.check_equal(reinterpret_cast<const char*>(keep.get()), wanted.data(), n,
                        "unit_threshold " + std::to_string(limit) + (is_ratio ? " ratio" : ""));
        }
      }
    }
  }
}

inline void test_select(Harness& t) {
  for (const int capability : {80, 89}) {  // of which the second has less shared memory
    t.context.capability = capability;
    for (const DType dtype : kFloatTypes) {
      for (const int64_t n : {t.below(40), t.below(5000), int64_t{70000}}) {
        const Values kind = t.pick(kAllValues);
        Tensors list;
        list.add(values(t, dtype, n, kind), dtype);
        check_list(t, list, "magnitude_select, dtype " + std::to_string(static_cast<int>(dtype)));
      }
      Tensors list;
      for (const int64_t n : {3000, 0, 33000}) list.add(values(t, dtype, n, t.pick(kAllValues)), dtype);
      check_list(t, list, "magnitude_select of three");
    }
    for (const int64_t segments : {2, 95, 96, 250}) {
      Tensors list;
      for (int64_t i = 0; i < segments; ++i) {
        const DType dtype = t.pick(kFloatTypes);
        list.add(values(t, dtype, t.below(40000 / segments), t.pick(kAllValues)), dtype);
      }
      check_list(t, list, "magnitude_select of " + std::to_string(segments));
    }
  }
  t.context.capability = 80;
  check_list(t, Tensors(), "an empty list");
  test_units(t);
}

}  // namespace test
}  // namespace octavo
