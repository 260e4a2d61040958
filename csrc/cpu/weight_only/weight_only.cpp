// The driver of float x times an int8 weight: stage rows of x as floats, then give the strips of the weight to threads. A
// strip's scales are laid out group by group beside it; a sparse strip is expanded to int8 panels, which stay in L2.
#include <algorithm>
#include <atomic>

#include "cpu/rows.h"
#include "layouts.h"
#include "parallel.h"

namespace octavo {
namespace {

constexpr int64_t kGrain = 1 << 17;       // multiply-adds worth a thread
constexpr int64_t kBlockRows = 64;        // rows staged at a time: the weight is read anew for each block
constexpr int64_t kStageGrain = 1 << 15;  // elements worth a thread

// A float16's 11 or a bfloat16's 8 bits times an int8's 8 fit float32's 24, if the product does not overflow: x below 2^120,
// as a magnitude's bits.
constexpr uint32_t kLargestExact = (127u + 120u) << 23;

class WeightOnly {
 public:
  explicit WeightOnly(const WeightOnlyArgs& args) : args_(args), weight_(args.target.packed) {
    const LinearTarget& t = args.target;
    bias_ = static_cast<const float*>(t.bias);
    if (t.bias && t.bias_dtype != DType::f32) {
      auto* wide = static_cast<float*>(scratch(Slot::bias, t.n * 4));
      kernels().weight_only->widen(t.bias, t.bias_dtype, t.n, wide);
      bias_ = wide;
    }
  }

  void run(int threads) {
    const int64_t m = args_.x.rows, strips = strips_of(args_.target.n);
    for (first_ = 0; first_ < m && strips; first_ += kBlockRows) {
      count_ = std::min(kBlockRows, m - first_);
      exact_products_ = args_.x.dtype == DType::f16 || args_.x.dtype == DType::bf16;
      rows_ = static_cast<float*>(scratch(Slot::rows, count_ * k_ * 4));
      auto stage = [&](int64_t begin, int64_t end) { stage_rows(begin, end); };
      parallel_for(count_, kStageGrain / (k_ + 1) + 1, threads, stage);
      auto multiply = [&](int64_t begin, int64_t end) {
        for (int64_t strip = begin; strip < end; ++strip) multiply_strip(strip);
      };
      parallel_for(strips, kGrain / (kStripColumns * (k_ + 1) * count_) + 1, threads, multiply);
    }
  }

 private:
  void stage_rows(int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = rows_ + i * k_;
      for_pieces(args_.x, first_ + i, 0, args_.x.cols,
                 [&](const void* p, DType dtype, int64_t at, int64_t n) {
                   kernels().weight_only->widen(p, dtype, n, row + at);
                   if (kernels().quantize->max_bits(p, dtype, n) >= kLargestExact) exact_products_ = false;
                 });
      for (int64_t k = args_.x.cols; k < k_; ++k) row[k] = 0.0f;
    }
  }

  void multiply_strip(int64_t strip) const {
    const LinearTarget& t = args_.target;
    const int64_t column = strip * kStripColumns, panel = strip * kStripPanels;
    const int64_t columns = std::min(kStripColumns, t.n - column);
    WeightOnlyStrip s;
    s.x = rows_;
    s.ldx = s.k = k_;
    s.m = count_;
    s.exact_products = exact_products_;
    s.group_size = k_ / args_.groups;
    s.panel_bytes = panel_bytes(weight_.k);
    s.panels = weight_.weights + panel * s.panel_bytes;
    if (weight_.layout != Layout::dense) {
      auto* expanded = static_cast<int8_t*>(scratch(Slot::panels, kStripPanels * s.panel_bytes));
      expand_panels(weight_, panel, std::min(panel + kStripPanels, panels_of(t.n)), expanded);
      s.panels = expanded;
    }
    s.columns = static_cast<int>(columns);
    s.scale = group_scales(column, columns);
    s.bias = bias_ ? bias_ + column : nullptr;
    s.activation = t.activation;
    s.out = static_cast<char*>(t.out) + (first_ * t.out_row_stride + column) * size_of(t.out_dtype);
    s.out_dtype = t.out_dtype;
    s.out_row_stride = t.out_row_stride;
    kernels().weight_only->multiply(s);
  }

  // [groups][kStripColumns] of these columns' scales, zeros beyond the last column.
  const float* group_scales(int64_t column, int64_t columns) const {
    const int64_t groups = args_.groups;
    auto* scales = static_cast<float*>(scratch(Slot::row_scales, groups * kStripColumns * 4));
    for (int64_t c = 0; c < kStripColumns; ++c) {
      const float* row = args_.scale + (column + c) * groups;
      for (int64_t g = 0; g < groups; ++g) scales[g * kStripColumns + c] = c < columns ? row[g] : 0.0f;
    }
    return scales;
  }

  const WeightOnlyArgs& args_;
  const PackedView weight_;
  const int64_t k_ = round_up(args_.x.cols, kGroupK);  // of a staged row
  const float* bias_;
  int64_t first_ = 0, count_ = 0;  // the block's rows
  float* rows_ = nullptr;
  std::atomic<bool> exact_products_{false};
};

}  // namespace

void weight_only_linear(const WeightOnlyArgs& args, int threads) {
  const DefaultFloatEnvironment environment;
  WeightOnly(args).run(threads);
}

}  // namespace octavo
