// Packing, and the driver of every product: stage the rows of A as u8 = q + 128, then multiply by panels.
//
// Signed times signed on a u8 x s8 instruction: sum (q + 128) * w = sum q * w + 128 * colsum(w), so the epilogue takes
// (128 + zero_point) * colsum off again (row_offset). uint8 activations are staged as they are.
#include <algorithm>

#include "../check.h"
#include "../layouts.h"
#include "../parallel.h"
#include "rows.h"

namespace octavo {
namespace {

constexpr double kSerialWork = 1 << 24;  // below it a second thread does not pay
constexpr double kReadWork = 64;         // multiply-adds in the time that reading a weight takes
constexpr int64_t kRowAlign = 16;        // GemmBlock: A is readable in whole AMX tiles
constexpr int64_t kBlockRows = 192;      // rows staged at a time: 192 * k bytes, in L2 for k up to 10,000
constexpr int64_t kGrainPanels = 4;      // the widest tile
constexpr int64_t kTallRows = 48;        // rows for each thread from which splitting them pays

// A line of padding where k is a multiple of 128: rows a power of two apart would share few cache sets.
int64_t staged_stride(int64_t k) {
  const int64_t padded = padded_k(k);
  return padded / kPanelK % 2 == 0 ? padded + kPanelK : padded;
}

// Row `row` of int8 or uint8 activations.
void stage_bytes(const LinearArgs& args, int64_t row, int64_t k, uint8_t* out) {
  const auto* a = static_cast<const uint8_t*>(args.a) + row * args.a_row_stride;
  const uint8_t flip = args.a_signed ? 0x80 : 0;
  if (args.a_col_stride == 1) {
    for (int64_t i = 0; i < k; ++i) out[i] = a[i] ^ flip;
  } else {
    for (int64_t i = 0; i < k; ++i) out[i] = a[i * args.a_col_stride] ^ flip;
  }
}

class Product {
 public:
  Product(const LinearArgs& args, int threads) : args_(args), threads_(threads < 1 ? 1 : threads) {
    const bool wide_range = !args.quantize_x && (!args.a_signed || args.a_zero_point);
    const int64_t limit = wide_range ? kMaxKUnsigned : kMaxK;
    if (k_ > limit) fail("k", "at most " + std::to_string(limit) + ", so that int32 sums are exact", k_);
    const double work =
        static_cast<double>(n_) * static_cast<double>(k_ + 1) * (kReadWork + static_cast<double>(args.m));
    if (work < kSerialWork) threads_ = 1;
    widen_bias();
  }

  void run() {
    if (args_.m == 0 || n_ == 0) return;
    if (args_.m >= kTallRows * threads_) {
      run_tall();
    } else {
      run_wide();
    }
  }

 private:
  // Rows are split: each thread stages a block and multiplies it by all panels. Every thread's share is cut alike, so
  // that shares are equal.
  void run_tall() {
    const int64_t tile = kernels().gemm->tile_m;
    const int64_t share = round_up((args_.m + threads_ - 1) / threads_, tile);
    const int64_t blocks = (share + kBlockRows - 1) / kBlockRows;
    const int64_t rows = round_up((share + blocks - 1) / blocks, tile);
    auto body = [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block / blocks * share + block % blocks * rows;
        const int64_t share_end = std::min((block / blocks + 1) * share, args_.m);
        const int64_t count = std::min(rows, share_end - first);
        if (count <= 0) continue;
        auto* a = static_cast<uint8_t*>(scratch(Slot::rows, round_up(count, kRowAlign) * stride_));
        auto* scales = static_cast<float*>(scratch(Slot::row_scales, count * 4));
        auto* offsets = static_cast<int32_t*>(scratch(Slot::row_offsets, count * 4));
        stage(first, count, a, scales, offsets);
        multiply(first, count, a, scales, offsets, 0, panels());
      }
    };
    parallel_for(threads_ * blocks, 1, threads_, body);
  }

  // Few rows: they are staged once, then the panels are split.
  void run_wide() {
    auto* a = static_cast<uint8_t*>(scratch(Slot::shared_rows, round_up(args_.m, kRowAlign) * stride_));
    auto* scales = static_cast<float*>(scratch(Slot::row_scales, args_.m * 4));
    auto* offsets = static_cast<int32_t*>(scratch(Slot::row_offsets, args_.m * 4));
    auto rows = [&](int64_t begin, int64_t end) {
      stage(begin, end - begin, a + begin * stride_, scales + begin, offsets + begin);
    };
    parallel_for(args_.m, (int64_t{1} << 15) / (k_ + 1) + 1, threads_, rows);
    auto columns = [&](int64_t begin, int64_t end) { multiply(0, args_.m, a, scales, offsets, begin, end); };
    parallel_for(panels(), kGrainPanels, threads_, columns);
  }

  int64_t panels() const { return padded_n(n_) / kPanelN; }

  void stage(int64_t first, int64_t count, uint8_t* a, float* scales, int32_t* offsets) const {
    for (int64_t i = 0; i < count; ++i) {
      uint8_t* row = a + i * stride_;
      scales[i] = 1.0f;
      offsets[i] = 128;
      if (args_.quantize_x) {
        scales[i] = quantize_symmetric(args_.x, first + i, 0, k_, 0x80, reinterpret_cast<int8_t*>(row));
      } else {
        stage_bytes(args_, first + i, k_, row);
        if (args_.a_scale) scales[i] = args_.a_scale[first + i];
        offsets[i] = (args_.a_signed ? 128 : 0) + (args_.a_zero_point ? args_.a_zero_point[first + i] : 0);
      }
      // The weights are 0 beyond k, but what meets them should not depend on earlier calls.
      memset(row + k_, 0, static_cast<size_t>(padded_k(k_) - k_));
    }
  }

  void multiply(int64_t first, int64_t count, const uint8_t* a, const float* scales, const int32_t* offsets,
                int64_t panel_begin, int64_t panel_end) const {
    const char* packed = static_cast<const char*>(args_.packed);
    Epilogue e;
    e.colsum = reinterpret_cast<const int32_t*>(packed + colsum_offset());
    e.row_offset = offsets;
    e.row_scale = scales;
    e.col_scale = args_.w_scale;
    e.bias = bias_;
    e.activation = args_.activation;
    e.out = static_cast<char*>(args_.out) + first * args_.out_row_stride * size_of(args_.out_dtype);
    e.out_dtype = args_.out_dtype;
    e.out_row_stride = args_.out_row_stride;
    const auto* weights = reinterpret_cast<const int8_t*>(packed + panels_offset(n_));
    kernels().gemm->gemm({a, stride_, count, n_, k_, weights, panel_begin, panel_end, e});
  }

  void widen_bias() {
    bias_ = static_cast<const float*>(args_.bias);
    if (!args_.bias || args_.bias_dtype == DType::f32) return;
    auto* wide = static_cast<float*>(scratch(Slot::bias, n_ * 4));
    for (int64_t i = 0; i < n_; ++i) wide[i] = element(args_.bias, args_.bias_dtype, i);
    bias_ = wide;
  }

  const LinearArgs& args_;
  int threads_;
  const int64_t n_ = args_.n, k_ = args_.k, stride_ = staged_stride(k_);
  const float* bias_ = nullptr;
};

}  // namespace

void linear(const LinearArgs& args, int threads) {
  const DefaultFloatEnvironment environment;
  Product(args, threads).run();
}

void pack_weight(const int8_t* w, int64_t n, int64_t k, int64_t n_stride, int64_t k_stride, void* buffer,
                 int threads) {
  check(k <= kMaxK, "k", "at most 131071, so that int32 sums are exact", k);
  PackedHeader header = {};
  header.magic = PackedHeader::kMagic;
  header.version = PackedHeader::kVersion;
  header.layout = PackedHeader::kDense;
  header.isa = PackedHeader::kAnyIsa;
  header.n = n;
  header.k = k;
  memcpy(buffer, &header, sizeof header);
  auto* colsum = reinterpret_cast<int32_t*>(static_cast<char*>(buffer) + colsum_offset());
  auto* panels = static_cast<int8_t*>(buffer) + panels_offset(n);
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      int8_t* panel = panels + p * panel_bytes(k);
      memset(panel, 0, static_cast<size_t>(panel_bytes(k)));
      for (int64_t c = 0; c < kPanelN; ++c) {
        const int64_t column = p * kPanelN + c;
        int32_t sum = 0;
        if (column < n) {
          const int8_t* source = w + column * n_stride;
          int8_t* target = panel + c * kGroupK;
          for (int64_t i = 0; i < k; ++i) {
            const int8_t v = source[i * k_stride];
            target[i / kGroupK * (kPanelN * kGroupK) + i % kGroupK] = v;
            sum += v;
          }
        }
        colsum[column] = sum;
      }
    }
  };
  parallel_for(padded_n(n) / kPanelN, (int64_t{1} << 18) / (panel_bytes(k) + 1) + 1, threads, body);
}

void unpack_weight(const void* buffer, int64_t n, int64_t k, int8_t* w, int threads) {
  const int8_t* panels = static_cast<const int8_t*>(buffer) + panels_offset(n);
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t i = 0; i < k; ++i) w[row * k + i] = panels[dense_offset(row, i, padded_k(k))];
    }
  };
  parallel_for(n, (int64_t{1} << 16) / (k + 1) + 1, threads, body);
}

}  // namespace octavo
