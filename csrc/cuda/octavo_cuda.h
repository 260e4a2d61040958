// The contract of the CUDA backend: the drivers of octavo.h for arrays on a device. What they compute is what the CPU's
// compute, to the bit (docs/numerics.md). Pointers are device pointers; arguments have the meaning that octavo.h gives them.
// Everything runs in order on the context's stream and returns at once, and can be captured in a CUDA graph whose memory the
// allocator keeps, except where "waits" is said. A failing CUDA call throws std::runtime_error with the kernel's name. Float
// arrays are aligned to their elements and nothing more; rows of a strided view may begin anywhere.
#pragma once

#include "octavo.h"
#include "runtime.h"

namespace octavo {
namespace cuda {

// ---- quantize.cu, norm.cu ----
void quantize(const Context& c, const QuantizeArgs& args);
void dequantize(const Context& c, const DequantizeArgs& args);
NonFinite count_nonfinite(const Context& c, const FloatRows& x);  // waits
void norm_quantize(const Context& c, const NormArgs& args);       // without zero_point and normed

// ---- select.cu ----
// The drivers of octavo.h, whose results stay on the device: what comes next on the stream reads them there.
void magnitude_select(const Context& c, const Segment* segments, int64_t count, int64_t k,
                      Selection* selection);
// keep |w| > ratio * max |w|, one float32 product, over the finite elements of all segments.
void ratio_select(const Context& c, const Segment* segments, int64_t count, float ratio,
                  Selection* selection);
// Of units with these scores: all but the k smallest stay, NaN last, ties lowest index first.
void unit_select(const Context& c, const double* scores, int64_t count, int64_t k, bool* keep);
// keep = !(score <= limit), where limit is `limit`, or with is_ratio `limit` * the largest finite score (at least 0).
void unit_threshold(const Context& c, const double* scores, int64_t count, double limit, bool is_ratio,
                    bool* keep);

// ---- prune.cu, patterns.cu ----
// A selection that the host knows, or one that is on the device.
struct SelectionArg {
  Selection value;
  const Selection* device;  // read instead if it is not nullptr
};
void prune(const Context& c, const Segment* segments, int64_t count, const SelectionArg& selection);
struct PruneQuantizeArgs {
  const void* w;
  DType dtype;
  int64_t rows, cols;
  SelectionArg selection;
  bool* mask;
  int8_t* data;
  float* scale;
};
void prune_quantize(const Context& c, const PruneQuantizeArgs& args);
void prune_nm(const Context& c, const void* w, DType dtype, int64_t groups, int n, int m, bool* mask,
              void* pruned);
void unit_scores(const Context& c, const void* w, DType dtype, int64_t rows, int64_t cols, int64_t unit_rows,
                 int64_t unit_cols, double* scores);
void prune_units(const Context& c, const UnitGrid& grid, const bool* keep, const void* w, DType dtype,
                 bool* mask, void* pruned);
void pack_mask(const Context& c, const bool* mask, int64_t rows, int64_t cols, uint8_t* bits);
void unpack_mask(const Context& c, const uint8_t* bits, int64_t rows, int64_t cols, bool* mask);

// ---- linear.cu: gemm_mma.cu and gemv.cu behind one door ----
// Packs into cuda_packed_parts(n, k).end bytes (layouts.h), aligned to 128.
void pack_weight(const Context& c, const WeightArgs& args, void* buffer);
void unpack_weight(const Context& c, const void* buffer, int64_t n, int64_t k,
                   int8_t* w);  // contiguous [n, k]

struct LinearTarget {
  int64_t n;
  const int8_t* rows;     // row n of the weight begins at rows + n * pitch; both are divisible by 16,
  int64_t pitch;          // and pitch is at least k rounded up to 16, with zeros from k on
  const int32_t* colsum;  // [n]; may be nullptr where A is signed and has no zero points
  const float* w_scale;   // [n]; not read if out_dtype is i32
  const void* bias;       // [n], or nullptr
  DType bias_dtype;
  Activation activation;
  void* out;  // [m, n]
  DType out_dtype;
  int64_t out_row_stride;
};
// LinearArgs of octavo.h with these targets.
struct LinearArgs {
  bool quantize_x, asymmetric_x;
  FloatRows x;
  const void* a;
  bool a_signed;
  int64_t a_row_stride, a_col_stride;
  const float* a_scale;
  const int32_t* a_zero_point;
  int64_t m, k;
  const LinearTarget* targets;
  int64_t count;
};
void linear(const Context& c, const LinearArgs& args);

}  // namespace cuda
}  // namespace octavo
