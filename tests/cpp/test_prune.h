// Kernels of pruning: each instruction set against the scalar ones.
#pragma once

#include <algorithm>
#include <vector>

#include "harness.h"

namespace {

void test_prune_kernels() {
  const Kernels& scalar = all_kernels().front();
  for (const Kernels* k : available()) {
    for (const DType dtype : kFloats) {
      for (const int64_t n : kSizes) {
        for (const Values values : kValues) {
          Bytes w = floats(dtype, n, values, random_below(2));
          for (const uint32_t key : {0u, 1u, bits_of(0.5f), bits_of(1.0f), kInfKey, kNanKey}) {
            expect(k->prune->count_equal(w.data(), dtype, n, key) ==
                       scalar.prune->count_equal(w.data(), dtype, n, key),
                   "count_equal", k->isa, dtype, n, key);
            for (const bool keep_equal : {false, true}) {
              Bytes mask(n), expected(n * bytes_of(dtype)), only_mask(n, 1), only_pruned(expected.size(), 1);
              scalar.prune->prune(w.data(), dtype, n, key, keep_equal, mask.as<bool>(), expected.data());
              k->prune->prune(w.data(), dtype, n, key, keep_equal, only_mask.as<bool>(), nullptr);
              k->prune->prune(w.data(), dtype, n, key, keep_equal, nullptr, only_pruned.data());
              expect(only_mask == mask, "mask", k->isa, dtype, n, key);
              expect(only_pruned == expected, "pruned", k->isa, dtype, n, key);
              Bytes in_place(expected.size(), 1), its_mask(n, 1), max_mask(n, 1);
              memcpy(in_place.data(), w.data(), static_cast<size_t>(w.size()));
              k->prune->prune(in_place.data(), dtype, n, key, keep_equal, its_mask.as<bool>(),
                              in_place.data());
              expect(in_place == expected && its_mask == mask, "in place", k->isa, dtype, n, key);
              const uint32_t top =
                  k->prune->prune_max(w.data(), dtype, n, key, keep_equal, max_mask.as<bool>());
              Bytes scalar_mask(n);
              const uint32_t expected_top =
                  scalar.prune->prune_max(w.data(), dtype, n, key, keep_equal, scalar_mask.as<bool>());
              expect(top == expected_top && max_mask == mask, "prune_max", k->isa, dtype, n, key);
              Bytes applied(expected.size(), 1);
              k->prune->apply_mask(w.data(), dtype, mask.as<bool>(), n, applied.data());
              expect(applied == expected, "apply_mask", k->isa, dtype, n, key);
            }
            for (const uint32_t hi : {key, key + 1, key + 0x400000u, kNanKey + 1}) {
              const auto lo = static_cast<int32_t>(key) - static_cast<int32_t>(random_below(2));
              Bytes expected((n + 16) * 4), actual((n + 16) * 4);
              const KeyCounts wanted = scalar.prune->bracket(w.data(), dtype, n, lo, static_cast<int32_t>(hi),
                                                             expected.as<int32_t>());
              const KeyCounts found =
                  k->prune->bracket(w.data(), dtype, n, lo, static_cast<int32_t>(hi), actual.as<int32_t>());
              expect(memcmp(&found, &wanted, sizeof found) == 0, "bracket counts", k->isa, dtype, n, lo, hi);
              // in any order; copied, since these buffers may be unaligned
              std::vector<int32_t> keys(static_cast<size_t>(found.inside)), wanted_keys(keys.size());
              if (found.inside == wanted.inside && found.inside > 0) {
                memcpy(keys.data(), actual.data(), keys.size() * 4);
                memcpy(wanted_keys.data(), expected.data(), keys.size() * 4);
              }
              std::sort(keys.begin(), keys.end());
              std::sort(wanted_keys.begin(), wanted_keys.end());
              expect(keys == wanted_keys, "bracket keys", k->isa, dtype, n, lo, hi);
            }
          }
        }
      }
    }
  }
}

void test_pattern_kernels() {
  const Kernels& scalar = all_kernels().front();
  for (const Kernels* k : available()) {
    for (const DType dtype : kFloats) {
      for (const Values values : kValues) {
        for (int m = 2; m <= kMaxGroup; ++m) {
          const int64_t groups = random_below(40), n = groups * m;
          const int kept = 1 + static_cast<int>(random_below(m - 1));
          Bytes w = floats(dtype, n, values, random_below(2));
          Bytes mask(n), expected(w.size()), actual_mask(n, 1), actual(w.size(), 1);
          scalar.prune->prune_nm(w.data(), dtype, groups, kept, m, mask.as<bool>(), expected.data());
          k->prune->prune_nm(w.data(), dtype, groups, kept, m, actual_mask.as<bool>(), nullptr);
          k->prune->prune_nm(w.data(), dtype, groups, kept, m, nullptr, actual.data());
          expect(actual_mask == mask && actual == expected, "n:m", k->isa, dtype, kept, m, groups);
        }
        for (const int64_t cols : kSizes) {
          const int64_t units = random_below(5), index = random_below(8);
          Bytes w = floats(dtype, units * cols, values, random_below(2));
          Bytes expected(units * 64, 0, 0), actual(units * 64, 0, 0);
          scalar.prune->add_units(w.data(), dtype, units, cols, index, expected.as<double>());
          k->prune->add_units(w.data(), dtype, units, cols, index, actual.as<double>());
          canonize(expected, DType::f64);
          canonize(actual, DType::f64);
          expect(actual == expected, "add_units", k->isa, dtype, units, cols, index);
          Bytes row = floats(dtype, cols, values, random_below(2));
          Bytes sums(cols * 8, 0, 0), others(cols * 8, 0, 0);
          scalar.prune->add_columns(row.data(), dtype, cols, cols, sums.as<double>());
          k->prune->add_columns(row.data(), dtype, cols, cols, others.as<double>());
          canonize(sums, DType::f64);
          canonize(others, DType::f64);
          expect(others == sums, "add_columns", k->isa, dtype, cols);
        }
      }
    }
  }
}

}  // namespace
