// The driver of every product: stage the rows of A as u8 = q + 128, then multiply by the panels of each weight.
//
// Signed times signed on a u8 x s8 instruction: sum (q + 128) * w = sum q * w + 128 * colsum(w), so the epilogue takes
// (128 + zero_point) * colsum off again. uint8 activations are staged as they are.
#include <algorithm>

#include "check.h"
#include "cpu/rows.h"
#include "layouts.h"
#include "parallel.h"

namespace octavo {
namespace {

constexpr double kSerialWork = 1 << 24;  // below it a second thread does not pay
constexpr double kReadWork = 64;         // multiply-adds in the time that reading a weight takes
constexpr int64_t kBlockRows = 192;      // rows staged at a time: 192 * k bytes, in L2 for k up to 10,000
constexpr int64_t kTallRows = 48;        // rows for each thread from which splitting them pays
constexpr int64_t kExpandRows = 512;     // the same where each share of rows would expand the weights anew

// Row `row` of int8 or uint8 activations.
void stage_bytes(const LinearArgs& args, int64_t row, int64_t k, uint8_t* out) {
  const auto* a = static_cast<const uint8_t*>(args.a) + row * args.a_row_stride;
  const uint8_t flip = args.a_signed ? 0x80 : 0;
  int64_t i = 0;
  if (args.a_col_stride == 1) {
    const uint64_t flips = flip * uint64_t{0x0101010101010101};
    for (; i + 8 <= k; i += 8) {
      uint64_t eight;
      memcpy(&eight, a + i, sizeof eight);
      eight ^= flips;
      memcpy(out + i, &eight, sizeof eight);
    }
  }
  for (; i < k; ++i) out[i] = a[i * args.a_col_stride] ^ flip;
}

class Product {
 public:
  Product(const LinearArgs& args, int threads) : args_(args), threads_(threads < 1 ? 1 : threads) {
    const bool wide_range = args.quantize_x ? args.asymmetric_x : !args.a_signed || args.a_zero_point;
    const int64_t limit = wide_range ? kMaxKUnsigned : kMaxK;
    if (k_ > limit) fail("k", "at most " + std::to_string(limit) + ", so that int32 sums are exact", k_);
    int64_t n = 0;
    bool wide_bias = false;
    for (const LinearTarget& target : targets()) {
      n += target.n;
      strips_ += strips_of(target.n);
      wide_bias |= is_widened(target);
      const PackedView packed(target.packed);
      expands_ |= packed.layout != Layout::dense && !is_multiplied_sparse(packed, args_.m);
    }
    const double work =
        static_cast<double>(n) * static_cast<double>(k_ + 1) * (kReadWork + static_cast<double>(args.m));
    if (work < kSerialWork) threads_ = 1;
    if (wide_bias) widen_biases();
  }

  void run() {
    if (args_.m == 0 || strips_ == 0) return;
    const bool once = expands_ && strips_ >= threads_;  // there is work enough without splitting rows
    const int64_t wide_below = once ? kExpandRows : kTallRows * std::min<int64_t>(threads_, strips_);
    if (args_.m >= wide_below) {
      run_tall();
    } else {
      run_wide();
    }
  }

 private:
  struct Targets {
    const LinearTarget* first;
    int64_t count;
    const LinearTarget* begin() const { return first; }
    const LinearTarget* end() const { return first + count; }
  };
  Targets targets() const { return {args_.targets, args_.count}; }

  // Rows [first, first + count) of A, as u8.
  struct Staged {
    int64_t first, count;
    uint8_t* a;
    float* scales;
    int32_t* zero_points;  // nullptr: none
  };

  // Rows are split: each thread stages a block and multiplies it by all weights. Every thread's share is cut alike, so
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
        const Staged staged = staging(first, count);
        stage(staged, 0, count);
        multiply(staged, 0, strips_);
      }
    };
    parallel_for(threads_ * blocks, 1, threads_, body);
  }

  // Few rows: they are staged once, then the strips of all weights are split.
  void run_wide() {
    const Staged staged = staging(0, args_.m);
    auto rows = [&](int64_t begin, int64_t end) { stage(staged, begin, end); };
    parallel_for(args_.m, (int64_t{1} << 15) / (k_ + 1) + 1, threads_, rows);
    auto strips = [&](int64_t begin, int64_t end) { multiply(staged, begin, end); };
    parallel_for(strips_, 1, threads_, strips);
  }

  Staged staging(int64_t first, int64_t count) const {
    auto* scales = static_cast<float*>(scratch(Slot::row_scales, count * 8));
    int32_t* zero_points = nullptr;
    if (args_.asymmetric_x || args_.a_zero_point) zero_points = reinterpret_cast<int32_t*>(scales + count);
    return {first, count, static_cast<uint8_t*>(scratch(Slot::rows, round_up(count, kRowAlign) * stride_)),
            scales, zero_points};
  }

  void stage(const Staged& staged, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      uint8_t* row = staged.a + i * stride_;
      const int64_t source = staged.first + i;
      staged.scales[i] = 1.0f;
      if (args_.asymmetric_x) {
        const Affine affine =
            quantize_asymmetric(args_.x, source, 0, k_, 0x80, reinterpret_cast<int8_t*>(row));
        staged.scales[i] = affine.scale;
        staged.zero_points[i] = affine.zero_point;
      } else if (args_.quantize_x) {
        staged.scales[i] = quantize_symmetric(args_.x, source, 0, k_, 0x80, reinterpret_cast<int8_t*>(row));
      } else {
        stage_bytes(args_, source, k_, row);
        if (args_.a_scale) staged.scales[i] = args_.a_scale[source];
        if (args_.a_zero_point) staged.zero_points[i] = args_.a_zero_point[source];
      }
      // The weights are 0 beyond k, but what meets them should not depend on earlier calls.
      memset(row + k_, 0, static_cast<size_t>(padded_k(k_) - k_));
    }
  }

  // Strips are numbered on from one weight to the next.
  void multiply(const Staged& staged, int64_t begin, int64_t end) const {
    int64_t first = 0;  // the target's first strip
    for (const LinearTarget& target : targets()) {
      const int64_t panel_begin = std::max<int64_t>(begin - first, 0) * kStripPanels;
      const int64_t panel_end = std::min((end - first) * kStripPanels, padded_n(target.n) / kPanelN);
      if (panel_begin < panel_end) {
        const PackedView packed(target.packed);
        Epilogue e;
        e.colsum = packed.colsum;
        e.offset = args_.quantize_x || args_.a_signed ? 128 : 0;
        e.row_zero_point = staged.zero_points;
        e.row_scale = staged.scales;
        e.col_scale = target.w_scale;
        e.bias = is_widened(target) ? wide_bias(first) : static_cast<const float*>(target.bias);
        e.activation = target.activation;
        e.out =
            static_cast<char*>(target.out) + staged.first * target.out_row_stride * size_of(target.out_dtype);
        e.out_dtype = target.out_dtype;
        e.out_row_stride = target.out_row_stride;
        gemm_packed({staged.a, stride_, staged.count, target.n, k_, nullptr, panel_begin, panel_end, e},
                    packed);
      }
      first += strips_of(target.n);
    }
  }

  static bool is_widened(const LinearTarget& target) {
    return target.bias && target.bias_dtype != DType::f32;
  }

  // Where the widened bias lies of the target that starts with this strip.
  float* wide_bias(int64_t strip) const { return wide_biases_ + strip * kStripColumns; }

  void widen_biases() {
    wide_biases_ = static_cast<float*>(scratch(Slot::bias, strips_ * kStripColumns * 4));
    int64_t first = 0;
    for (const LinearTarget& target : targets()) {
      if (is_widened(target)) {
        float* wide = wide_bias(first);
        for (int64_t i = 0; i < target.n; ++i) wide[i] = element(target.bias, target.bias_dtype, i);
      }
      first += strips_of(target.n);
    }
  }

  const LinearArgs& args_;
  int threads_;
  const int64_t k_ = args_.k, stride_ = staged_stride(k_);
  int64_t strips_ = 0;
  bool expands_ = false;
  float* wide_biases_ = nullptr;
};

}  // namespace

void linear(const LinearArgs& args, int threads) {
  const DefaultFloatEnvironment environment;
  Product(args, threads).run();
}

}  // namespace octavo
