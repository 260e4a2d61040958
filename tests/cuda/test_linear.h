// Packing and products against the CPU's drivers, equal to the bit; the index maps and plans of tiles.h as plain functions.
#pragma once

#include <set>

#include "../../csrc/cuda/tiles.h"
#include "harness.h"

namespace octavo {
namespace test {

// ---- tiles.h ----
inline void test_swizzle(Harness& t) {
  std::set<int> places;
  for (int row = 0; row < 256; ++row) {
    for (int chunk = 0; chunk < cuda::kRowChunks; ++chunk) places.insert(cuda::swizzled(row, chunk));
  }
  t.check(places.size() == 256 * cuda::kRowChunks && *places.rbegin() == 256 * cuda::kTileK - cuda::kChunk,
          "the swizzle is a bijection");
  const auto sixteenths = [](const std::vector<cuda::RowChunk>& eight) {
    std::set<int> met;
    for (const cuda::RowChunk& at : eight) met.insert(cuda::swizzled(at.row, at.chunk) / 16 % 8);
    return met.size();
  };
  for (int first = 0; first < 256; first += 8) {
    for (int chunk = 0; chunk < cuda::kRowChunks; ++chunk) {
      std::vector<cuda::RowChunk> eight;
      for (int i = 0; i < 8; ++i) eight.push_back({first + i, chunk});
      t.check(sixteenths(eight) == 8, "ldmatrix meets all banks");
    }
  }
  for (int thread = 0; thread < 256; thread += 8) {
    std::vector<cuda::RowChunk> eight;
    for (int i = thread; i < thread + 8; ++i) eight.push_back({i / cuda::kRowChunks, i % cuda::kRowChunks});
    t.check(sixteenths(eight) == 8, "cp.async meets all banks");
  }
  for (int row = 0; row < 16; ++row) {
    for (int chunk = 0; chunk < 2; ++chunk) {
      t.check((cuda::swizzled(row, chunk) ^ 32) == cuda::swizzled(row, chunk + 2), "a step flips a bit");
      t.check(cuda::swizzled(row, chunk) + 16 * cuda::kTileK == cuda::swizzled(row + 16, chunk),
              "16 rows are an offset");
    }
  }
}

inline void test_fragments(Harness& t) {
  for (int g = 0; g < 8;
       ++g) {  // lane 8 * i + g brings row g of matrix i: element i of lanes 4 * g to 4 * g + 3
    for (int i = 0; i < 4; ++i) {
      const cuda::RowChunk a = cuda::ldmatrix_a(8 * i + g), b = cuda::ldmatrix_b(8 * i + g);
      t.check(a.row == g + i % 2 * 8 && a.chunk == i / 2, "ldmatrix_a is mma's a");
      t.check(b.row == g + i / 2 * 8 && b.chunk == i % 2, "ldmatrix_b is mma's b, twice");
    }
  }
  std::set<std::pair<int, int>> places;
  std::set<int> offsets;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) places.insert({cuda::mma_row(lane, i), cuda::mma_column(lane, i)});
    for (int half = 0; half < 2; ++half) offsets.insert(cuda::lane_offset(lane, half));
  }
  t.check(places.size() == 128 && *places.rbegin() == std::make_pair(15, 7), "mma's result is a bijection");
  t.check(offsets.size() == 8 && *offsets.rbegin() == 112, "four lanes read a line");
}

inline void test_tile_order(Harness& t) {
  for (int64_t tiles_m : {1, 2, 15, 16, 17, 40}) {
    for (int64_t tiles_n : {1, 3, 16}) {
      std::set<std::pair<int64_t, int64_t>> tiles;
      for (int64_t i = 0; i < tiles_m * tiles_n; ++i) {
        const cuda::TileIndex at = cuda::tile_of(i, tiles_m, tiles_n, cuda::kBigTile.m);
        tiles.insert({at.m, at.n});
      }
      t.check(static_cast<int64_t>(tiles.size()) == tiles_m * tiles_n &&
                  tiles.rbegin()->first == tiles_m - 1 && tiles.rbegin()->second <= tiles_n - 1,
              "the order of tiles is a bijection");
    }
  }
}

inline void test_plans(Harness& t) {
  const auto covers = [](int64_t share, int64_t splits, int64_t total) {
    return splits >= 1 && share * splits >= total && (splits == 1 || share * (splits - 1) < total);
  };
  for (int round = 0; round < 300; ++round) {
    const int64_t m = t.below(600) + 1, n = t.below(3000) + 1, k = t.below(t.coin() ? kMaxK : 3000) + 1;
    const int multiprocessors = t.pick<int>({1, 3, 108, 132});
    const cuda::GemmPlan gemm = cuda::plan_gemm(m, n, k, multiprocessors, 90);
    t.check(covers(gemm.steps, gemm.splits, cuda::ceil_div(k, cuda::kTileK)), "splits of gemm");
    for (int capability : {80, 86, 89, 90, 100, 120}) {
      const int64_t rows = m % cuda::kGemvMaxM + 1;
      const cuda::GemvPlan gemv = cuda::plan_gemv(rows, n, k, multiprocessors, capability);
      t.check(covers(gemv.lines, gemv.splits, cuda::ceil_div(k, cuda::kLineBytes)), "splits of gemv");
      t.check(rows * cuda::gemv_pitch(gemv.lines) <= cuda::gemv_shared_limit(capability), "x of gemv fits");
      t.check(cuda::kGemvWarps % gemv.warps_n == 0, "warps of gemv");
    }
  }
  const cuda::GemvPlan decode = cuda::plan_gemv(1, 4096, 4096, 132, 90);
  t.check(decode.warps_n == 1 && decode.splits == 1, "one row: all weights of a block are under way at once");
  t.check(cuda::plan_gemm(4096, 4096, 4096, 132, 90).big, "large products take large tiles");
  t.check(!cuda::plan_gemm(32, 768, 768, 132, 90).big, "small ones small tiles");
  t.check(cuda::plan_gemm(128, 8192, 21760, 132, 90).splits > 1, "few tiles are split along k");
}

// ---- packing ----
// [n, k] weights somewhere in memory, with some stride.
struct Weight {
  Buffer<int8_t> memory;
  WeightArgs args;
  Weight(Harness& t, int64_t n, int64_t k)
      : memory(n * k + 2 * (n + k) + 3, t.below(3)), args{memory.get(), n, k, k, 1} {
    for (int64_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<int8_t>(t.below(256) - 128);
    const int64_t kind = t.below(4);
    if (kind == 1) args.n_stride = k + 2;
    if (kind == 2) args.n_stride = 1, args.k_stride = n;
    if (kind == 3) args.n_stride = 1, args.k_stride = n + 1;
  }
  int8_t at(int64_t n, int64_t k) const { return args.w[n * args.n_stride + k * args.k_stride]; }
};

inline void test_pack_weight(Harness& t) {
  for (int64_t n : {0, 1, 15, 16, 17, 65, 130}) {
    for (int64_t k : {0, 1, 15, 16, 63, 64, 65, 200}) {
      const Weight w(t, n, k);
      const std::string what = "pack " + std::to_string(n) + " x " + std::to_string(k);
      const PackedParts parts = cuda_packed_parts(n, k);
      Buffer<char> packed(parts.end);
      cuda::pack_weight(t.context, w.args, packed.get());
      Buffer<char> wanted(parts.end);
      memset(wanted.get(), 0, static_cast<size_t>(parts.end));
      PackedHeader header = {};
      header.magic = PackedHeader::kMagic;
      header.version = PackedHeader::kVersion;
      header.isa = PackedHeader::kCudaIsa;
      header.n = n;
      header.k = k;
      memcpy(wanted.get(), &header, sizeof header);
      auto* sums = reinterpret_cast<int32_t*>(wanted.get() + colsum_offset());
      for (int64_t i = 0; i < n * k; ++i) {
        sums[i / k] += w.at(i / k, i % k);
        wanted[parts.weights + i / k * padded_k(k) + i % k] = w.at(i / k, i % k);
      }
      t.check_equal(packed.get(), wanted.get(), parts.end, what);
      Buffer<int8_t> unpacked(n * k), plain(n * k);
      cuda::unpack_weight(t.context, packed.get(), n, k, unpacked.get());
      for (int64_t i = 0; i < n * k; ++i) plain[i] = w.at(i / k, i % k);
      t.check_equal(unpacked.get(), plain.get(), n * k, "un" + what);
    }
  }
}

// ---- products ----
struct LinearCase {
  int64_t m, k;
  std::vector<int64_t> n;
  std::string name() const {
    std::string s = "linear " + std::to_string(m) + " x " + std::to_string(k);
    for (int64_t columns : n) s += " x " + std::to_string(columns);
    return s;
  }
};

// A target's weights and parameters; its packed weight for each of the two.
struct Target {
  Weight weight;
  Buffer<char> cpu_packed, cuda_packed, bias;
  Buffer<float> scale;
  LinearTarget cpu;
  cuda::LinearTarget cuda;
  Buffer<char> cpu_out, cuda_out;

  Target(Harness& t, int64_t m, int64_t n, int64_t k, bool finite)
      : weight(t, n, k),
        cpu_packed(packed_parts(Layout::dense, n, k, 0).end),
        cuda_packed(cuda_packed_parts(n, k).end),
        bias(0),
        scale(n),
        cpu_out(0),
        cuda_out(0) {
    const bool bare = t.below(3) == 0;  // the weight as torch has it: rows of k, not one byte more
    pack_weight(weight.args, Layout::dense, nullptr, cpu_packed.get(), 1);
    cuda::pack_weight(t.context, weight.args, cuda_packed.get());
    for (int64_t i = 0; i < n; ++i) scale[i] = std::fabs(t.normal()) * 0.01f;
    const DType bias_dtype = t.pick<DType>({DType::f32, DType::f16, DType::bf16, DType::f64});
    bias = t.floats(bias_dtype, n, false, t.below(3));
    cpu.n = n;
    cpu.packed = cpu_packed.get();
    cpu.w_scale = scale.get();
    cpu.bias = t.coin() ? bias.get() : nullptr;
    cpu.bias_dtype = bias_dtype;
    cpu.activation = t.pick<Activation>(
        {Activation::none, Activation::relu, Activation::gelu, Activation::gelu_tanh, Activation::silu});
    cpu.out_dtype = t.pick<DType>({DType::f32, DType::f16, DType::bf16, DType::i32});
    if (cpu.out_dtype == DType::i32) cpu.activation = Activation::none, cpu.bias = nullptr;
    cpu.out_row_stride = n + (t.coin() ? 0 : t.below(9));
    const int64_t size = Harness::size_of(cpu.out_dtype), offset = t.coin() ? 0 : t.below(4) * size;
    cpu_out = Buffer<char>(m * cpu.out_row_stride * size, offset);
    cuda_out = Buffer<char>(m * cpu.out_row_stride * size, offset);
    cpu.out = cpu_out.get();

    const char* const bytes = cuda_packed.get();
    const PackedParts parts = cuda_packed_parts(n, k);
    cuda.n = n;
    cuda.rows = reinterpret_cast<const int8_t*>(bytes + parts.weights);
    cuda.pitch = padded_k(k);
    cuda.colsum = reinterpret_cast<const int32_t*>(bytes + colsum_offset());
    cuda.w_scale = cpu.out_dtype == DType::i32 ? nullptr : scale.get();
    cuda.bias = cpu.bias;
    cuda.bias_dtype = cpu.bias_dtype;
    cuda.activation = cpu.activation;
    cuda.out = cuda_out.get();
    cuda.out_dtype = cpu.out_dtype;
    cuda.out_row_stride = cpu.out_row_stride;
    if (finite && bare) {
      bare_rows(n, k);
      cuda.colsum = nullptr;
    }
  }

 private:
  Buffer<char> bare_{0};
  void bare_rows(int64_t n, int64_t k) {
    cuda.pitch = round_up(k, 16);
    bare_ = Buffer<char>(n * cuda.pitch);
    memset(bare_.get(), 0, static_cast<size_t>(n * cuda.pitch));
    for (int64_t i = 0; i < n * k; ++i)
      bare_[i / k * cuda.pitch + i % k] = static_cast<char>(weight.at(i / k, i % k));
    cuda.rows = reinterpret_cast<const int8_t*>(bare_.get());
  }
};

inline void check_linear(Harness& t, const LinearCase& shape) {
  const int64_t m = shape.m, k = shape.k;
  LinearArgs args = {};
  args.m = m;
  args.k = k;
  args.quantize_x = t.coin();
  args.asymmetric_x = args.quantize_x && k <= kMaxKUnsigned && t.coin();
  args.a_signed = t.coin() || k > kMaxKUnsigned;
  const bool tight = t.below(3) == 0, transposed = !tight && t.below(3) == 0;
  const int64_t col_stride = transposed ? m : 1, row_stride = transposed ? 1 : (tight ? k : k + t.below(40));
  const int64_t elements = m * row_stride + k * col_stride;
  const DType dtype = t.pick<DType>({DType::f32, DType::f16, DType::bf16, DType::f64});
  Buffer<char> x(0);
  Buffer<int8_t> a(0);
  Buffer<float> a_scale(m);
  Buffer<int32_t> zero_point(m);
  if (args.quantize_x) {
    x = t.floats(dtype, elements, t.coin(), t.below(3));
    args.x = {x.get(), dtype, m, k, row_stride, col_stride};
  } else {
    a = Buffer<int8_t>(elements, t.coin() ? 0 : t.below(17));
    for (int64_t i = 0; i < elements; ++i) a[i] = static_cast<int8_t>(t.below(256) - 128);
    for (int64_t i = 0; i < m; ++i) {
      a_scale[i] = std::fabs(t.normal());
      zero_point[i] = static_cast<int32_t>(t.below(256) - (args.a_signed ? 128 : 0));
    }
    args.a = a.get();
    args.a_row_stride = row_stride;
    args.a_col_stride = col_stride;
    args.a_scale = t.below(4) ? a_scale.get() : nullptr;
    args.a_zero_point = t.coin() && k <= kMaxKUnsigned ? zero_point.get() : nullptr;
  }
  const bool exact = args.quantize_x ? !args.asymmetric_x : args.a_signed && !args.a_zero_point;
  std::vector<std::unique_ptr<Target>> targets;
  std::vector<LinearTarget> cpu;
  std::vector<cuda::LinearTarget> cuda_targets;
  for (int64_t n : shape.n) {
    targets.push_back(std::make_unique<Target>(t, m, n, k, exact));
    cpu.push_back(targets.back()->cpu);
    cuda_targets.push_back(targets.back()->cuda);
  }
  args.targets = cpu.data();
  args.count = static_cast<int64_t>(cpu.size());
  linear(args, 1);
  cuda::linear(t.context,
               {args.quantize_x, args.asymmetric_x, args.x, args.a, args.a_signed, args.a_row_stride,
                args.a_col_stride, args.a_scale, args.a_zero_point, m, k, cuda_targets.data(), args.count});
  for (const auto& target : targets) {
    t.check_equal(target->cuda_out.get(), target->cpu_out.get(), target->cpu_out.size(),
                  shape.name() +
                      (args.asymmetric_x ? " float with zero points"
                       : args.quantize_x ? " float"
                       : args.a_signed   ? " int8"
                                         : " uint8") +
                      ", n " + std::to_string(target->cpu.n) + ", out dtype " +
                      std::to_string(static_cast<int>(target->cpu.out_dtype)));
  }
  t.done();
}

inline void test_linear(Harness& t) {
  test_swizzle(t);
  test_fragments(t);
  test_tile_order(t);
  test_plans(t);
  test_pack_weight(t);

  const cuda::Context context = t.context;
  const std::vector<int64_t> depths = {0, 1, 15, 16, 17, 63, 64, 65, 100, 128, 129, 300, 1040};
  const std::vector<int64_t> widths = {0, 1, 7, 16, 17, 31, 64, 100, 129, 260};
  const auto any_context = [&] {
    t.context.multiprocessors = t.pick<int>({1, 3, 132});
    t.context.capability = t.pick<int>({80, 89, 90});
  };
  for (int64_t m = 0; m <= 33; ++m) {
    for (int round = 0; round < 3; ++round) {
      any_context();
      check_linear(t, {m, t.pick(depths), {t.pick(widths)}});
    }
  }
  for (int round = 0; round < 16; ++round) {  // float x is quantized in gemv
    any_context();
    check_linear(t, {1 + t.below(2), t.pick(depths), {t.pick(widths)}});
  }
  for (int64_t m : {1, 2, 5, 20, 70}) {
    any_context();
    check_linear(t, {m, t.pick(depths), {t.pick(widths), 0, t.pick(widths), t.pick(widths)}});
  }
  for (int64_t m : {1, 3, 9, 16}) {  // x in several slices
    t.context.multiprocessors = 3;
    t.context.capability = 89;
    check_linear(t, {m, 20000 / m * 2 + t.below(50), {t.below(40) + 1}});
  }
  for (int64_t m : {65, 100, 257}) {
    any_context();
    check_linear(t, {m, t.pick(depths), {t.pick(widths)}});
  }
  const auto check_gemm = [&](const LinearCase& shape, int multiprocessors, bool big, bool split) {
    t.context.multiprocessors = multiprocessors;
    t.context.capability = 90;
    const cuda::GemmPlan plan =
        cuda::plan_gemm(shape.m, shape.n[0], shape.k, multiprocessors, t.context.capability);
    t.check(plan.big == big && (plan.splits > 1) == split, shape.name() + ": the plan that is meant");
    check_linear(t, shape);
  };
  check_gemm({250, 100, {500}}, 1, true, false);
  check_gemm({121, 1290, {251}}, 2, true, true);
  check_gemm({130, 65, {300}}, 1, false, false);
  check_gemm({40, 1040, {200}}, 132, false, true);
  t.context = context;

  check_linear(t, {1, kMaxK, {3}});
  LinearArgs deep = {};
  deep.m = 1;
  deep.k = kMaxKUnsigned + 1;
  const auto run = [&] {
    cuda::linear(t.context, {deep.quantize_x, deep.asymmetric_x, deep.x, nullptr, deep.a_signed, 1, 1,
                             nullptr, nullptr, 1, deep.k, nullptr, 0});
  };
  t.check_throws(run, "uint8 A too deep");
  deep.quantize_x = deep.asymmetric_x = true;
  t.check_throws(run, "float A too deep for zero points");
  deep.quantize_x = deep.asymmetric_x = false;
  deep.k = kMaxK + 1;
  deep.a_signed = true;
  t.check_throws(run, "int8 A too deep");
}

}  // namespace test
}  // namespace octavo
