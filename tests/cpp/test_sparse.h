// Sparse layouts: packing and unpacking, each kernel against the dense panels, and products against those of a dense weight.
#pragma once

#include <atomic>
#include <stdexcept>
#include <thread>

#include "harness.h"

namespace {

const Layout kLayouts[] = {Layout::dense, Layout::bitmask, Layout::block};

// Weights with zeros by class: all, most, half, none of them, and whole tiles, rows or panels.
enum class Zeros { all, most, half, none, tiles, rows, panels };
const Zeros kZeros[] = {Zeros::all,   Zeros::most, Zeros::half,  Zeros::none,
                        Zeros::tiles, Zeros::rows, Zeros::panels};

Bytes sparse_weight(int64_t n, int64_t k, int64_t n_stride, int64_t k_stride, Zeros zeros) {
  Bytes w(extent(n, k, n_stride, k_stride));
  const uint32_t seed = random_bits();
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      const int64_t unit = zeros == Zeros::tiles    ? i / 4 * 8192 + j / 16
                           : zeros == Zeros::rows   ? i
                           : zeros == Zeros::panels ? i / 16
                                                    : -1;
      const uint32_t drawn = unit < 0 ? random_bits() : (seed ^ static_cast<uint32_t>(unit)) * 2654435761u;
      const uint32_t one_in = zeros == Zeros::most ? 20 : 2;
      bool kept = (drawn >> 8) % one_in == 0;
      if (zeros == Zeros::all || zeros == Zeros::none) kept = zeros == Zeros::none;
      const auto value = static_cast<int8_t>(random_bits());
      w.as<int8_t>()[i * n_stride + j * k_stride] = kept ? static_cast<int8_t>(value ? value : -128) : 0;
    }
  }
  return w;
}

const Shape kWeights[] = {{0, 0, 5},    {0, 5, 0},     {0, 1, 1},      {0, 16, 64},  {0, 17, 65},
                          {0, 33, 16},  {0, 48, 130},  {0, 66, 63},    {0, 97, 200}, {0, 129, 31},
                          {0, 3, 2050}, {0, 1030, 70}, {0, 2100, 130}, {0, 64, 256}};

void test_packing() {
  for (const Shape& s : kWeights) {
    for (const Zeros zeros : kZeros) {
      if (s.n > 1000 && zeros != Zeros::half) continue;
      const bool by_columns = random_bits() & 1;
      const int64_t n_stride = by_columns ? 1 : s.k + 1, k_stride = by_columns ? s.n + 1 : 1;
      Bytes w = sparse_weight(s.n, s.k, n_stride, k_stride, zeros);
      const WeightArgs args = {w.as<int8_t>(), s.n, s.k, n_stride, k_stride};
      for (const Layout layout : kLayouts) {
        Bytes packed = pack(args, layout);
        compare_drivers("pack_weight", packed.size(), DType::i32, [&](void* out, int threads) {
          Bytes again = pack(args, layout, threads);  // packed buffers are aligned, unlike the outs here
          expect(again == packed, "packed on threads", layout, s.n, s.k);
          memcpy(out, again.data(), static_cast<size_t>(again.size()));
        });
        compare_drivers("unpack_weight", s.n * s.k, DType::i32, [&](void* out, int threads) {
          auto* unpacked = static_cast<int8_t*>(out);
          unpack_weight(packed.data(), unpacked, threads);
          bool same = true;
          for (int64_t i = 0; i < s.n; ++i) {
            for (int64_t j = 0; j < s.k; ++j) {
              same &= unpacked[i * s.k + j] == args.w[i * n_stride + j * k_stride];
            }
          }
          expect(same, "unpack_weight gives back what was packed", layout, s.n, s.k, zeros);
        });
      }
    }
  }
  // A weight that changes after it was counted: refused, and not a byte is written beyond the buffer.
  Bytes w = sparse_weight(70, 200, 200, 1, Zeros::half);
  for (const Layout layout : {Layout::bitmask, Layout::block}) {
    Bytes packed = pack({w.as<int8_t>(), 70, 200, 200, 1}, layout);
    const PackedView view(packed.data());
    const int64_t units = layout == Layout::bitmask ? pairs_of(70) : tile_rows_of(70);
    for (const int64_t wrong : {-1, 1}) {
      std::vector<int64_t> counts;
      for (int64_t i = 0; i < units; ++i) counts.push_back(view.offsets[i + 1] - view.offsets[i]);
      counts[1] += wrong;
      Bytes other(packed_parts(layout, 70, 200, view.count + wrong).end);
      bool refused = false;
      try {
        pack_weight({w.as<int8_t>(), 70, 200, 200, 1}, layout, counts.data(), other.data(), 1);
      } catch (const std::invalid_argument&) {
        refused = true;
      }
      expect(refused, "a changed weight is refused", layout, wrong);
    }
  }
}

// rows of random A, of a weight and what finishes their product.
struct Case {
  Case(const Shape& shape, Zeros zeros)
      : s(shape),
        lda(padded_k(s.k) + kPanelK * random_below(2)),
        // What lies beyond k meets weights of 0: any bytes will do.
        a(s.m ? (round_up(s.m, 16) - 1) * lda + padded_k(s.k) : 0),
        w(sparse_weight(s.n, s.k, s.k, 1, zeros)),
        dense(pack(args())),
        row_scale(scales(s.m)),
        col_scale(scales(s.n)),
        bias(floats(DType::f32, s.n, Values::normal)),
        zero(s.m * 4) {
    for (int64_t i = 0; i < a.size(); ++i) a.as<uint8_t>()[i] = static_cast<uint8_t>(random_bits());
    for (int64_t i = 0; i < s.m; ++i) zero.as<int32_t>()[i] = static_cast<int32_t>(random_below(128));
  }
  WeightArgs args() { return {w.as<int8_t>(), s.n, s.k, s.k, 1}; }
  int64_t out_bytes() const { return s.m && s.n ? ((s.m - 1) * (s.n + 2) + s.n) * 4 : 0; }

  // A product without the panels; `colsum` ends where the padded columns do.
  GemmBlock block(const int32_t* colsum, DType out_dtype, Bytes& out) {
    const bool scaled = out_dtype == DType::f32;
    const Epilogue e = {colsum,
                        128,
                        zero.as<int32_t>(),
                        scaled ? row_scale.as<float>() : nullptr,
                        scaled ? col_scale.as<float>() : nullptr,
                        scaled ? bias.as<float>() : nullptr,
                        scaled ? Activation::relu : Activation::none,
                        out.data(),
                        out_dtype,
                        s.n + 2};
    return {a.as<uint8_t>(), lda, s.m, s.n, s.k, nullptr, 0, panels_of(s.n), e};
  }

  Shape s;
  int64_t lda;
  Bytes a, w, dense, row_scale, col_scale, bias, zero;
};

void test_sparse_kernels() {
  const Kernels& scalar = all_kernels().front();
  const Shape shapes[] = {{1, 1, 1},     {1, 17, 65},   {1, 290, 130}, {2, 33, 3},    {2, 150, 64},
                          {3, 48, 64},   {4, 65, 17},   {4, 170, 100}, {5, 97, 128},  {7, 66, 63},
                          {8, 48, 200},  {9, 33, 64},   {12, 65, 70},  {13, 17, 129}, {16, 80, 65},
                          {17, 112, 64}, {20, 49, 200}, {33, 97, 66},  {40, 33, 16},  {48, 145, 31},
                          {3, 5, 2050},  {70, 230, 64}, {1, 300, 0},   {20, 50, 0}};
  for (const Shape& s : shapes) {
    for (const Zeros zeros : kZeros) {
      Case c(s, zeros);
      const PackedView dense(c.dense.data());
      const int64_t bytes = panel_bytes(s.k), panels = panels_of(s.n);
      Bytes bitmask = pack(c.args(), Layout::bitmask), block = pack(c.args(), Layout::block);
      const PackedView masks(bitmask.data()), tiles(block.data());
      for (const Kernels* k : available()) {
        for (int64_t p = 0; p < panels; ++p) {
          const int64_t both = p + 1 < panels ? 2 * bytes : bytes;
          if (p % 2 == 0) {
            Bytes pair(2 * bytes);
            k->sparse->expand_pair(masks, p / 2, pair.as<int8_t>());
            expect(memcmp(pair.data(), dense.weights + p * bytes, static_cast<size_t>(both)) == 0,
                   "expand_pair", k->isa, s.n, s.k, zeros, p);
          }
          Bytes panel(bytes);
          k->sparse->expand_tiles(tiles, p, panel.as<int8_t>());
          expect(memcmp(panel.data(), dense.weights + p * bytes, static_cast<size_t>(bytes)) == 0,
                 "expand_tiles", k->isa, s.n, s.k, zeros, p);
        }
      }
      for (const DType out_dtype : {DType::i32, DType::f32}) {
        Bytes expected(c.out_bytes());
        GemmBlock whole = c.block(dense.colsum, out_dtype, expected);
        whole.panels = dense.weights;
        scalar.gemm->gemm(whole);
        for (const Kernels* k : available()) {
          set_isa(k->isa);
          // The pieces begin at even panels and write their own columns only; the last may be odd.
          for (const int64_t step : {int64_t{2}, int64_t{4}, int64_t{6}, panels + panels % 2}) {
            auto check = [&](const char* name, const PackedView& w, auto product) {
              Bytes actual(c.out_bytes());
              GemmBlock piece = c.block(w.colsum, out_dtype, actual);
              for (int64_t p = (panels - 1) / step * step; p >= 0; p -= step) {
                piece.panel_begin = p;
                piece.panel_end = p + step < panels ? p + step : panels;
                product(piece, w);
              }
              expect(actual == expected, name, k->isa, s.m, s.n, s.k, zeros, out_dtype, step);
            };
            if (s.m <= k->sparse->bitmask_rows) check("gemm_bitmask", masks, k->sparse->gemm_bitmask);
            if (k->sparse->gemm_tiles) check("gemm_tiles", tiles, k->sparse->gemm_tiles);
            for (const PackedView& w : {dense, masks, tiles}) check("gemm_packed", w, gemm_packed);
          }
        }
        set_isa("");
      }
    }
  }
}

// A product that began with one instruction set's kernels is not left without those of the next.
void test_isa_changes() {
  Case c({1, 16, 16}, Zeros::half);
  Bytes bitmask = pack(c.args(), Layout::bitmask), block = pack(c.args(), Layout::block);
  const PackedView dense(c.dense.data()), views[] = {PackedView(bitmask.data()), PackedView(block.data())};
  Bytes expected(c.out_bytes());
  gemm_packed(c.block(dense.colsum, DType::i32, expected), dense);
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop) {
      for (const Kernels* k : available()) {
        if (!k->enable) set_isa(k->isa);  // the others take long to choose
      }
    }
  });
  int wrong = 0;
  for (int i = 0; i < 100000; ++i) {
    Bytes actual(c.out_bytes());
    gemm_packed(c.block(dense.colsum, DType::i32, actual), views[i % 2]);
    wrong += !(actual == expected);
  }
  stop = true;
  other.join();
  set_isa("");
  expect(wrong == 0, "products while instruction sets change", wrong);
}

// Through the driver: rows or columns split over threads, and expanded strips or none.
void test_sparse_products() {
  const Shape shapes[] = {{0, 40, 7},      {3, 0, 7},       {3, 40, 0},      {1, 1200, 400},
                          {4, 1000, 330},  {12, 530, 600},  {16, 1000, 200}, {40, 820, 260},
                          {130, 433, 300}, {520, 290, 130}, {600, 17, 70},   {33, 113, 2050}};
  for (const Shape& s : shapes) {
    for (const Zeros zeros : {Zeros::half, Zeros::most, Zeros::tiles}) {
      Bytes x = floats(DType::f32, s.m * s.k, Values::normal), w_scale = scales(s.n);
      Bytes w = sparse_weight(s.n, s.k, s.k, 1, zeros);
      Bytes packed[] = {pack({w.as<int8_t>(), s.n, s.k, s.k, 1}),
                        pack({w.as<int8_t>(), s.n, s.k, s.k, 1}, Layout::bitmask),
                        pack({w.as<int8_t>(), s.n, s.k, s.k, 1}, Layout::block)};
      auto run = [&](Bytes& weight, void* out, int threads) {
        LinearTarget target = {};
        target.n = s.n;
        target.packed = weight.data();
        target.w_scale = w_scale.as<float>();
        target.out = out;
        target.out_dtype = DType::f32;
        target.out_row_stride = s.n;
        LinearArgs args = {};
        args.quantize_x = true;
        args.x = {x.data(), DType::f32, s.m, s.k, s.k, 1};
        args.m = s.m;
        args.k = s.k;
        args.targets = &target;
        args.count = 1;
        linear(args, threads);
      };
      Bytes expected(s.m * s.n * 4);
      run(packed[0], expected.data(), 1);
      for (const Layout layout : {Layout::bitmask, Layout::block}) {
        compare_drivers("sparse product", s.m * s.n * 4, DType::f32, [&](void* out, int threads) {
          Bytes actual(s.m * s.n * 4, 1);
          run(packed[static_cast<int>(layout)], actual.data(), threads);
          expect(actual == expected, "sparse as dense", kernels().isa, layout, s.m, s.n, s.k, zeros, threads);
          memcpy(out, actual.data(), static_cast<size_t>(actual.size()));
        });
      }
    }
  }
}

}  // namespace
