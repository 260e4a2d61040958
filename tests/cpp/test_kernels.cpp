// Every kernel of every instruction set against the scalar table, and every driver against one scalar thread, in buffers
// of exactly the size that the contract names: built with ASan and UBSan, a byte read or written outside ends the run.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "../../csrc/parallel.h"
#include "harness.h"
#include "test_conv.h"
#include "test_float_rows.h"
#include "test_norm.h"
#include "test_prune.h"
#include "test_sparse.h"

namespace {

// ---- scalars -----------------------------------------------------------------------------------------------------

void test_conversions() {
  for (uint32_t h = 0; h < 65536; ++h) {
    const auto bits = static_cast<uint16_t>(h);
    const bool nan16 = (h & 0x7FFFu) > 0x7C00u, nan_bf16 = (h & 0x7FFFu) > 0x7F80u;
    if (!nan16) expect(float_to_f16(f16_to_float(bits)) == bits, "f16 there and back", h);
    if (!nan_bf16) expect(float_to_bf16(bf16_to_float(bits)) == bits, "bf16 there and back", h);
    if (nan16) expect(f16_to_float(bits) != f16_to_float(bits), "f16 NaN", h);
    if (nan_bf16) expect(bf16_to_float(bits) != bf16_to_float(bits), "bf16 NaN", h);
    // Between two neighbours: the half goes to the even one, one f32 step beside it to the nearer.
    if ((h & 0x7FFFu) < 0x7BFFu) {
      const float low = f16_to_float(bits), high = f16_to_float(static_cast<uint16_t>(h + 1));
      const float half = 0.5f * (low + high);
      const auto even = static_cast<uint16_t>(h + (h & 1u));
      expect(float_to_f16(half) == even, "f16 tie", h);
      expect(float_to_f16(std::nextafterf(half, low)) == bits, "f16 below a tie", h);
      expect(float_to_f16(std::nextafterf(half, high)) == h + 1, "f16 above a tie", h);
    }
  }
  expect(float_to_f16(65519.99f) == 0x7BFFu && float_to_f16(65520.0f) == 0x7C00u, "f16 overflow");
  expect(float_to_bf16(3.4e38f) == 0x7F80u, "bf16 overflow");
  for (int i = 0; i < 100000; ++i) {
    const float v = float_of(random_bits());
    if (v != v) continue;
    expect(round_even(v) == std::nearbyintf(v), "round_even", v);
  }
}

void test_philox() {
  // Random123, kat_vectors: counter 0, key 0.
  const uint32_t expected[] = {0x6627E8D5u, 0xE169C58Du, 0xBC57AC4Cu, 0x9B00DBD8u};
  for (uint64_t i = 0; i < 4; ++i) expect(philox_word(0, i) == expected[i], "Philox word", i);
}

// ---- kernels -----------------------------------------------------------------------------------------------------

void test_quantize_kernels() {
  const Kernels& scalar = all_kernels().front();
  for (const Kernels* k : available()) {
    for (const DType dtype : kFloats) {
      for (const int64_t n : kSizes) {
        for (const Values values : kValues) {
          const int64_t shift = random_below(2);
          Bytes x = floats(dtype, n, values, shift), mask = bools(n);
          const uint32_t top = scalar.quantize->max_bits(x.data(), dtype, n);
          expect(k->quantize->max_bits(x.data(), dtype, n) == top, "max_bits", k->isa, dtype, n);
          if (top > 0 && top < kInfKey) {  // the bounded form against the general one
            const Affine affine = symmetric_affine(float_of(top));
            Bytes q_expected(n), q_actual(n, shift);
            scalar.quantize->quantize(x.data(), dtype, nullptr, n, affine.inv, 0.0f, -127.0f, 0x80,
                                      q_expected.as<int8_t>());
            k->quantize->quantize_bounded(x.data(), dtype, n, affine.inv, 0x80, q_actual.as<int8_t>());
            expect(q_actual == q_expected, "quantize_bounded", k->isa, dtype, n);
          }
          for (const bool* m : {static_cast<bool*>(nullptr), mask.as<bool>()}) {
            Range expected = {0, 0}, actual = {0, 0};
            scalar.quantize->range(x.data(), dtype, m, n, &expected);
            k->quantize->range(x.data(), dtype, m, n, &actual);
            expect(actual.lo == expected.lo && actual.hi == expected.hi, "range", k->isa, dtype, n);
            for (const float inv : {1.0f, 42.42f, 1e-30f, 3e38f, 0x1p-149f}) {
              Bytes q_expected(n), q_actual(n, shift);
              const float zero = static_cast<float>(random_below(256) - 128);
              const uint8_t flip = random_bits() & 1 ? 0x80 : 0;
              const float q_min = flip ? -127.0f : -128.0f;
              scalar.quantize->quantize(x.data(), dtype, m, n, inv, zero, q_min, flip,
                                        q_expected.as<int8_t>());
              k->quantize->quantize(x.data(), dtype, m, n, inv, zero, q_min, flip, q_actual.as<int8_t>());
              expect(q_actual == q_expected, "quantize", k->isa, dtype, n, inv);
            }
          }
        }
        Bytes q = int8s(n);
        for (const float scale : {1.0f, 0.1f, 1e-44f, 3e36f, 2.6e-10f, INFINITY, NAN}) {
          const auto zero = static_cast<int32_t>(random_below(256) - 128);
          Bytes expected(n * bytes_of(dtype)), actual(n * bytes_of(dtype), 1);
          scalar.quantize->dequantize(q.as<int8_t>(), n, zero, scale, expected.data(), dtype);
          k->quantize->dequantize(q.as<int8_t>(), n, zero, scale, actual.data(), dtype);
          canonize(expected, dtype);
          canonize(actual, dtype);
          expect(actual == expected, "dequantize", k->isa, dtype, n, scale);
        }
      }
    }
  }
}

const Shape kShapes[] = {{1, 1, 1},    {1, 64, 64},  {2, 65, 3},  {3, 17, 5},    {4, 63, 63},   {5, 66, 65},
                         {6, 64, 4},   {7, 130, 9},  {8, 1, 200}, {11, 15, 127}, {12, 16, 128}, {13, 70, 129},
                         {15, 33, 8},  {16, 64, 64}, {17, 64, 1}, {18, 5, 61},   {31, 129, 66}, {33, 48, 257},
                         {2, 3, 2050}, {1, 300, 0},  {64, 20, 72}};

void test_gemm_kernels() {
  const Kernels& scalar = all_kernels().front();
  const DType kOuts[] = {DType::f32, DType::f16, DType::bf16, DType::i32};
  for (const Shape& s : kShapes) {
    const int64_t lda = padded_k(s.k) + kPanelK * random_below(2);
    Bytes a(round_up(s.m, 16) * lda);  // what lies beyond k meets weights of 0: any bytes will do
    for (int64_t i = 0; i < a.size(); ++i) a.as<uint8_t>()[i] = static_cast<uint8_t>(random_bits());
    Bytes w = int8s(s.n * s.k);
    Bytes packed = pack({w.as<int8_t>(), s.n, s.k, s.k, 1});
    const int64_t begin = packed_parts(Layout::dense, s.n, s.k, 0).weights;
    Bytes colsum(padded_n(s.n) * 4), panels(packed.size() - begin);
    memcpy(colsum.data(), packed.as<char>() + colsum_offset(), static_cast<size_t>(colsum.size()));
    memcpy(panels.data(), packed.as<char>() + begin, static_cast<size_t>(panels.size()));
    Bytes zero(s.m * 4), row_scale = scales(s.m), col_scale = scales(s.n);
    for (int64_t i = 0; i < s.m; ++i) zero.as<int32_t>()[i] = static_cast<int32_t>(random_below(128));
    Bytes bias = floats(DType::f32, s.n, random_bits() & 1 ? Values::normal : Values::special);

    for (const DType out_dtype : kOuts) {
      for (const Activation activation : kActivations) {
        if (out_dtype == DType::i32 && activation != Activation::none) continue;
        const int32_t offset = random_bits() & 1 ? 128 : 0;
        const int32_t* zero_point = random_bits() & 1 ? zero.as<int32_t>() : nullptr;
        const int64_t stride = s.n + random_below(3);
        const int64_t out_bytes = ((s.m - 1) * stride + s.n) * bytes_of(out_dtype);
        auto run = [&](const Kernels& k, Bytes& out, int64_t panel_begin, int64_t panel_end) {
          Epilogue e = {colsum.as<int32_t>(), offset,     zero_point, nullptr, nullptr, nullptr,
                        activation,           out.data(), out_dtype,  stride};
          if (out_dtype != DType::i32) {
            e.row_scale = row_scale.as<float>();
            e.col_scale = col_scale.as<float>();
            e.bias = s.m % 2 ? nullptr : bias.as<float>();
          }
          k.gemm->gemm({a.as<uint8_t>(), lda, s.m, s.n, s.k, panels.as<int8_t>(), panel_begin, panel_end, e});
        };
        Bytes expected(out_bytes);
        const int64_t count = padded_n(s.n) / kPanelN;
        run(scalar, expected, 0, count);
        if (out_dtype == DType::i32) {  // the scalar kernel itself against the definition
          for (int64_t row = 0; row < s.m; ++row) {
            for (int64_t column = 0; column < s.n; ++column) {
              int64_t sum = 0;
              for (int64_t i = 0; i < s.k; ++i) {
                sum += (a.as<uint8_t>()[row * lda + i] - offset - (zero_point ? zero_point[row] : 0)) *
                       w.as<int8_t>()[column * s.k + i];
              }
              expect(expected.as<int32_t>()[row * stride + column] == sum, "scalar gemm", row, column);
            }
          }
        }
        canonize(expected, out_dtype);
        for (const Kernels* k : available()) {
          Bytes actual(out_bytes), whole(out_bytes);
          for (int64_t p = count; p-- > 0;) run(*k, actual, p, p + 1);  // each panel writes its columns only
          run(*k, whole, 0, count);
          canonize(actual, out_dtype);
          canonize(whole, out_dtype);
          expect(actual == expected, "gemm by panels", k->isa, s.m, s.n, s.k, out_dtype, activation);
          expect(whole == expected, "gemm", k->isa, s.m, s.n, s.k, out_dtype, activation);
        }
      }
    }
  }
}

// With sums of 0 the bias is the pre-activation, and any float can be one.
void test_activations() {
  const int64_t n = 20000;
  Bytes w(n, 0, 0), packed = pack({w.as<int8_t>(), n, 1, 1, 1}), x = floats(DType::f32, 1, Values::normal),
                    w_scale = scales(n);
  for (const Activation activation : kActivations) {
    Bytes bias = floats(DType::f32, n, Values::bits);
    for (int64_t i = 0; i < n / 2; ++i) bias.as<float>()[i] = static_cast<float>(i - n / 4) * 5e-3f;
    compare_drivers("activation", n * 4, DType::f32, [&](void* out, int threads) {
      const LinearTarget target = {
          n, packed.data(), w_scale.as<float>(), bias.data(), DType::f32, activation, out, DType::f32, n};
      LinearArgs args = {};
      args.x = {x.data(), DType::f32, 1, 1, 1, 1};
      args.quantize_x = true;
      args.m = 1;
      args.k = 1;
      args.targets = &target;
      args.count = 1;
      linear(args, threads);
    });
  }
}

// ---- drivers -----------------------------------------------------------------------------------------------------

void test_quantize_driver() {
  const Shape shapes[] = {{0, 3, 4},  {3, 0, 4},  {1, 1, 1},    {3, 2, 7},
                          {5, 1, 65}, {2, 3, 33}, {40, 5, 400}, {1, 1, 70001}};
  for (const Shape& s : shapes) {  // rows, groups, group_size
    const int64_t cols = s.n * s.k;
    const bool large = s.m * cols > 40000;
    for (int variant = 0; variant < 32; variant += large ? 5 : 1) {
      const bool per_tensor = variant & 1, asymmetric = variant & 2, stochastic = variant & 4;
      const bool strided = variant & 8, masked = variant & 16;
      const DType dtype = kFloats[random_below(4)];
      const int64_t col_stride = strided ? 2 : 1, row_stride = col_stride * cols + (strided ? 3 : 0);
      const int64_t data_stride = cols + (strided ? 1 : 0);
      Bytes x =
          floats(dtype, extent(s.m, cols, row_stride, col_stride), kValues[random_below(5)], random_below(2));
      Bytes mask = bools(s.m * cols);
      const int64_t parameters = per_tensor ? 1 : s.m * s.n;
      const int64_t data_bytes = s.m && cols ? (s.m - 1) * data_stride + cols : 0;
      // scale, zero_point and data in one comparison; each is written through a buffer of its own
      compare_drivers("quantize", data_bytes + parameters * 8, DType::i32, [&](void* out, int threads) {
        Bytes data(data_bytes, 1), scale(parameters * 4), zero(parameters * 4);
        quantize({{x.data(), dtype, s.m, cols, row_stride, col_stride},
                  s.n,
                  s.k,
                  masked ? mask.as<bool>() : nullptr,
                  data.as<int8_t>(),
                  data_stride,
                  scale.as<float>(),
                  asymmetric ? zero.as<int32_t>() : nullptr,
                  per_tensor,
                  false,
                  stochastic,
                  7},
                 threads);
        auto* p = static_cast<char*>(out);
        memcpy(p, data.data(), static_cast<size_t>(data.size()));
        memcpy(p + data.size(), scale.data(), static_cast<size_t>(scale.size()));
        memcpy(p + data.size() + scale.size(), zero.data(), static_cast<size_t>(zero.size()));
      });
      Bytes q = int8s(extent(s.m, cols, row_stride, col_stride)), scale = scales(parameters);
      const int64_t out_count = s.m && cols ? (s.m - 1) * data_stride + cols : 0;
      compare_drivers("dequantize", out_count * bytes_of(dtype), dtype, [&](void* out, int threads) {
        dequantize({q.as<int8_t>(), s.m, s.n, s.k, row_stride, col_stride, scale.as<float>(), nullptr,
                    per_tensor, out, dtype, data_stride},
                   threads);
      });
      compare_drivers("count_nonfinite", 16, DType::i32, [&](void* out, int threads) {
        const NonFinite found =
            count_nonfinite({x.data(), dtype, s.m, cols, row_stride, col_stride}, threads);
        memcpy(out, &found.count, 8);
        memcpy(static_cast<char*>(out) + 8, &found.first, 8);
      });
    }
  }
}

void test_prune_drivers() {
  for (const int64_t n : {1, 17, 1000, 140000}) {
    for (const Values values : kValues) {
      if (n > 1000 && values != Values::ties && values != Values::bits) continue;
      Bytes first = floats(kFloats[random_below(4)], 0, values);
      const DType dtype = kFloats[random_below(4)];
      Bytes w = floats(dtype, n, values), last = floats(DType::f16, 100, values);
      const int64_t total = n + 100;
      for (const int64_t k : {int64_t{1}, total / 3 + 1, total / 2, total - 1, total}) {
        if (k < 1) continue;
        compare_drivers("select and mask", total + 12, DType::i32, [&](void* out, int threads) {
          Bytes masks[] = {Bytes(0), Bytes(n), Bytes(100)};
          const Segment segments[] = {{first.data(), DType::f32, 0, masks[0].as<bool>(), nullptr},
                                      {w.data(), dtype, n, masks[1].as<bool>(), nullptr},
                                      {last.data(), DType::f16, 100, masks[2].as<bool>(), nullptr}};
          const Selection selection = magnitude_select(segments, 3, k, threads);
          prune(segments, 3, selection, threads);
          auto* p = static_cast<char*>(out);
          memcpy(p, masks[1].data(), static_cast<size_t>(n));
          memcpy(p + n, masks[2].data(), 100);
          memcpy(p + total, &selection.key, 4);
          memcpy(p + total + 4, &selection.keep_equal_from, 8);
          int64_t kept = 0;
          for (int64_t i = 0; i < total; ++i) kept += p[i];
          expect(kept == total - k, "kept", kept, total - k);
        });
      }
      compare_drivers("max_key", 4, DType::f32, [&](void* out, int threads) {
        const Segment segment = {w.data(), dtype, n, nullptr, nullptr};
        const uint32_t top = max_key(&segment, 1, threads);
        memcpy(out, &top, 4);
      });
      compare_drivers("bits", (n + 7) / 8 + n, DType::i32, [&](void* out, int threads) {
        Bytes mask = bools(n);
        auto* bits = static_cast<uint8_t*>(out);
        auto* unpacked = reinterpret_cast<bool*>(bits + (n + 7) / 8);
        pack_mask(mask.as<bool>(), 1, n, bits, threads);
        unpack_mask(bits, 1, n, unpacked, threads);
        expect(memcmp(unpacked, mask.data(), static_cast<size_t>(n)) == 0, "bits", n);
        memset(out, 0, static_cast<size_t>((n + 7) / 8 + n));
      });
      for (const int m : {2, 4, 7, 32}) {
        const int64_t groups = n / m;
        compare_drivers("n:m", groups * m, DType::i32, [&](void* out, int threads) {
          prune_nm(w.data(), dtype, groups, m / 2, m, static_cast<bool*>(out), nullptr, threads);
        });
      }
    }
  }
  const Shape units[] = {
      {1, 1, 1}, {4, 16, 3}, {1, 300, 7}, {200, 1, 9}, {3, 5, 40}};  // rows, columns, units each way
  for (const Shape& u : units) {
    const DType dtype = kFloats[random_below(4)];
    const int64_t rows = u.m * u.k, cols = u.n * u.k;
    Bytes w = floats(dtype, rows * cols, Values::normal);
    compare_drivers("unit_scores", u.k * u.k * 8, DType::f64, [&](void* out, int threads) {
      Bytes scores(u.k * u.k * 8);
      unit_scores(w.data(), dtype, rows, cols, u.m, u.n, scores.as<double>(), threads);
      memcpy(out, scores.data(), static_cast<size_t>(scores.size()));
    });
    Bytes keep = bools(u.k * u.k);
    compare_drivers("prune_units", w.size() + rows * cols, dtype, [&](void* out, int threads) {
      auto* mask = static_cast<bool*>(out) + w.size();
      prune_units({rows, cols, u.m, u.n}, keep.as<bool>(), w.data(), dtype, mask, out, threads);
    });
  }
}

void test_linear_driver() {
  const Shape shapes[] = {{0, 5, 7},      {3, 0, 7},     {3, 5, 0},      {1, 1, 1},
                          {1, 300, 1000}, {5, 65, 63},   {16, 64, 64},   {17, 70, 9},
                          {50, 130, 65},  {61, 100, 70}, {401, 30, 400}, {33, 700, 200}};
  for (const Shape& s : shapes) {
    const bool large = s.m * s.n * s.k > 1000000;  // enough for several threads
    for (int variant = 0; variant < 12; variant += large ? 5 : 1) {
      const DType dtype = kFloats[variant % 4];
      const DType out_dtype = variant % 3 == 0 ? DType::f32 : variant % 3 == 1 ? DType::bf16 : DType::f16;
      const Activation activation = kActivations[variant % 5];
      const int64_t col_stride = variant % 5 == 4 ? 2 : 1, row_stride = s.k * col_stride + variant % 2;
      const int64_t stride = s.n + variant % 3;
      Bytes x = floats(dtype, extent(s.m, s.k, row_stride, col_stride), kValues[variant % 5], variant % 2);
      Bytes a = int8s(extent(s.m, s.k, row_stride, col_stride));
      const int64_t n_stride = variant % 2 ? s.k + 1 : 1, k_stride = variant % 2 ? 1 : s.n;
      Bytes w = int8s(extent(s.n, s.k, n_stride, k_stride));
      Bytes w_scale = scales(s.n), a_scale = scales(s.m),
            bias = floats(kFloats[variant / 3], s.n, Values::normal);
      Bytes zero(s.m * 4);
      for (int64_t i = 0; i < s.m; ++i) zero.as<int32_t>()[i] = static_cast<int32_t>(random_below(128));

      Bytes packed = pack({w.as<int8_t>(), s.n, s.k, n_stride, k_stride});
      const int64_t out_count = s.m && s.n ? (s.m - 1) * stride + s.n : 0;
      LinearArgs args = {};
      args.x = {x.data(), dtype, s.m, s.k, row_stride, col_stride};
      args.a = a.data();
      args.a_signed = variant % 2 == 0;
      args.a_row_stride = row_stride;
      args.a_col_stride = col_stride;
      args.m = s.m;
      args.k = s.k;
      args.count = 1;
      LinearTarget target = {};
      target.n = s.n;
      target.packed = packed.data();
      target.out_row_stride = stride;
      LinearTarget scaled = target;
      scaled.w_scale = w_scale.as<float>();
      scaled.bias = variant % 4 ? bias.data() : nullptr;
      scaled.bias_dtype = kFloats[variant / 3];
      scaled.activation = activation;
      scaled.out_dtype = out_dtype;
      auto run = [&](LinearArgs product, LinearTarget to, void* out, int threads) {
        to.out = out;
        product.targets = &to;
        linear(product, threads);
      };
      LinearArgs quantizing = args, with_parameters = args;
      quantizing.quantize_x = true;
      with_parameters.a_scale = a_scale.as<float>();
      with_parameters.a_zero_point = variant % 3 ? zero.as<int32_t>() : nullptr;
      compare_drivers("int8_linear", out_count * bytes_of(out_dtype), out_dtype,
                      [&](void* out, int threads) { run(quantizing, scaled, out, threads); });
      compare_drivers("scaled_int_mm", out_count * bytes_of(out_dtype), out_dtype,
                      [&](void* out, int threads) { run(with_parameters, scaled, out, threads); });
      target.out_dtype = DType::i32;
      compare_drivers("int_mm", out_count * 4, DType::i32,
                      [&](void* out, int threads) { run(args, target, out, threads); });
    }
  }
}

// Weights that share one A, of several widths, biases, activations and outputs: the same as one call for each.
void test_shared_input() {
  const Shape shapes[] = {{0, 5, 7},    {3, 0, 7},    {1, 1, 1},    {5, 65, 63},     {17, 70, 9},
                          {50, 130, 0}, {61, 33, 70}, {401, 9, 65}, {130, 200, 400}, {7, 700, 300}};
  for (const Shape& s : shapes) {
    const int64_t widths[] = {s.n, 1, s.n + 63, 0, 64};
    constexpr int kCount = 5;
    for (int variant = 0; variant < 4; ++variant) {
      const bool quantize_x = variant != 3;
      const DType dtype = kFloats[variant];
      Bytes x = floats(dtype, s.m * s.k, kValues[variant], 1), a = int8s(s.m * s.k);
      std::vector<Bytes> packed, w_scales, biases;
      LinearTarget targets[kCount] = {};
      int64_t bytes = 0, offsets[kCount];
      for (int i = 0; i < kCount; ++i) {
        const int64_t n = widths[i];
        Bytes w = int8s(n * s.k);
        packed.push_back(pack({w.as<int8_t>(), n, s.k, s.k, 1}, kLayouts[(i + variant) % 3]));
        w_scales.push_back(scales(n));
        LinearTarget& target = targets[i];
        target.bias_dtype = kFloats[(i + variant) % 4];
        biases.push_back(floats(target.bias_dtype, n, Values::normal));
        target.n = n;
        target.packed = packed.back().data();
        target.w_scale = w_scales.back().as<float>();
        target.bias = i == variant ? nullptr : biases.back().data();
        target.activation = kActivations[(i + variant) % 5];
        target.out_dtype = variant % 2 ? DType::f16 : DType::f32;
        target.out_row_stride = n + i % 2;
        offsets[i] = bytes;
        bytes += s.m * target.out_row_stride * bytes_of(target.out_dtype);
      }
      LinearArgs args = {};
      args.quantize_x = quantize_x;
      args.x = {x.data(), dtype, s.m, s.k, s.k, 1};
      args.a = a.data();
      args.a_signed = true;
      args.a_row_stride = s.k;
      args.a_col_stride = 1;
      args.m = s.m;
      args.k = s.k;
      auto run = [&](void* out, int count, int threads) {  // `count` weights at a time
        for (int i = 0; i < kCount; ++i) targets[i].out = static_cast<char*>(out) + offsets[i];
        args.count = count;
        for (int i = 0; i < kCount; i += count) {
          args.targets = targets + i;
          linear(args, threads);
        }
      };
      Bytes apart(bytes);
      run(apart.data(), 1, 1);
      canonize(apart, targets[0].out_dtype);
      compare_drivers("shared input", bytes, targets[0].out_dtype, [&](void* out, int threads) {
        Bytes together(bytes, 1);
        run(together.data(), kCount, threads);
        memcpy(out, together.data(), static_cast<size_t>(bytes));
        canonize(together, targets[0].out_dtype);
        expect(together == apart, "shared input as one call for each", s.m, s.n, s.k, variant, threads);
      });
    }
  }
}

// ---- threads -----------------------------------------------------------------------------------------------------

void test_parallel_for() {
  for (const int64_t n : {0, 1, 2, 7, 100, 1001}) {
    for (const int64_t grain : {0, 1, 3, 1000, 5000}) {
      for (const int threads : {1, 2, 3, 8}) {
        std::vector<int> seen(static_cast<size_t>(n), 0);
        auto mark = [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
        };
        parallel_for(n, grain, threads, mark);
        bool once = true;
        for (const int count : seen) once &= count == 1;
        expect(once, "parallel_for visits each once", n, grain, threads);
      }
    }
  }
  std::vector<int> seen(600, 0);
  auto outer = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      auto inner = [&](int64_t b, int64_t e) {
        for (int64_t j = b; j < e; ++j) ++seen[static_cast<size_t>(i * 100 + j)];
      };
      parallel_for(100, 1, 3, inner);
    }
  };
  parallel_for(6, 1, 3, outer);
  bool once = true;
  for (const int count : seen) once &= count == 1;
  expect(once, "nested parallel_for visits each once");
}

}  // namespace

// Runs the tests that are named, or all.
int main(int argc, char** argv) {
  const struct {
    const char* name;
    void (*run)();
  } tests[] = {
      {"conversions", test_conversions},
      {"philox", test_philox},
      {"parallel_for", test_parallel_for},
      {"quantize kernels", test_quantize_kernels},
      {"prune kernels", test_prune_kernels},
      {"pattern kernels", test_pattern_kernels},
      {"norm kernels", test_norm_kernels},
      {"gemm kernels", test_gemm_kernels},
      {"activations", test_activations},
      {"quantize driver", test_quantize_driver},
      {"norm driver", test_norm_driver},
      {"conv", test_conv},
      {"prune drivers", test_prune_drivers},
      {"linear driver", test_linear_driver},
      {"weight-only", test_weight_only},
      {"embeddings", test_embeddings},
      {"first outside", test_first_outside},
      {"shared input", test_shared_input},
      {"packing", test_packing},
      {"sparse kernels", test_sparse_kernels},
      {"sparse products", test_sparse_products},
      {"isa changes", test_isa_changes},
  };
  printf("available:");
  for (const Kernels* k : available()) printf(" %s", k->isa);
  printf("; chosen: %s\n", kernels().isa);
  for (const auto& test : tests) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) wanted |= strcmp(argv[i], test.name) == 0;
    if (!wanted) continue;
    const int64_t before = passed, failed_before = failed;
    test.run();
    printf("%-18s %8lld passed, %lld failed\n", test.name, static_cast<long long>(passed - before),
           static_cast<long long>(failed - failed_before));
    fflush(stdout);
  }
  printf("%lld passed, %lld failed\n", static_cast<long long>(passed), static_cast<long long>(failed));
  return failed ? 1 : 0;
}
