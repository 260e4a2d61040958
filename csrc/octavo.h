// The contract of octavo's kernels and of the drivers that split work between threads: raw pointers and counts in, no
// Python, no framework. Kernels allocate nothing; what is needed beside the operands is kept for each thread (scratch.h).
// What each kernel computes, to the bit, is written down in docs/numerics.md.
#pragma once

#include <cstdint>

#include "layouts.h"

namespace octavo {

// The codes are shared with python/octavo/runtime/arrays.py.
enum class DType : int { f32 = 0, f16 = 1, bf16 = 2, f64 = 3, i32 = 4 };
enum class Activation : int { none = 0, relu = 1, gelu = 2, gelu_tanh = 3, silu = 4 };

// ---------------------------------------------------------------------------------------------------------------------
// Kernels: one table per instruction set. All arrays are contiguous. Data arrays need no
// alignment; int32 and float parameters (scales, zero points, sums) have their natural one.
// ---------------------------------------------------------------------------------------------------------------------

// The finite elements' smallest and largest value, both starting at 0.
struct Range {
  float lo, hi;
};

struct QuantizeKernels {
  // The largest magnitude of x[0, n) as float32 bits; kInfKey or more if anything is not finite.
  uint32_t (*max_bits)(const void* x, DType dtype, int64_t n);
  // Widens r until it holds the finite elements of x[0, n). Where there is a mask and it is false, x counts as 0.
  void (*range)(const void* x, DType dtype, const bool* mask, int64_t n, Range* r);
  // q = clamp(rint(x * inv) + zero_point, q_min, 127) xor flip; NaN counts as 0. flip = 0x80 stores q + 128 as uint8.
  void (*quantize)(const void* x, DType dtype, const bool* mask, int64_t n, float inv, float zero_point,
                   float q_min, uint8_t flip, int8_t* q);
  // The same without a zero point, where every x is finite and rounds to at most 127.
  void (*quantize_bounded)(const void* x, DType dtype, int64_t n, float inv, uint8_t flip, int8_t* q);
  // out = float(q - zero_point) * scale, rounded once to dtype.
  void (*dequantize)(const int8_t* q, int64_t n, int32_t zero_point, float scale, void* out, DType dtype);
};

constexpr int kMaxGroup = 32;  // m of n:m

// How many keys lie below lo, at lo, at hi and strictly between the two.
struct KeyCounts {
  int64_t below, at_lo, at_hi, inside;
};

// key = magnitude_key, numerics.h. Element i is kept if key(w[i]) > key, or >= key if keep_equal.
struct PruneKernels {
  // mask[i] = whether it is kept; pruned[i] = w[i] if it is, else 0. Either may be nullptr; pruned may be w.
  void (*prune)(const void* w, DType dtype, int64_t n, uint32_t key, bool keep_equal, bool* mask,
                void* pruned);
  // Writes the mask; returns the largest key that is kept, 0 if none is.
  uint32_t (*prune_max)(const void* w, DType dtype, int64_t n, uint32_t key, bool keep_equal, bool* mask);
  // q = rint(w * inv) of what is kept, 0 elsewhere; all that is kept is finite and rounds to at most 127.
  void (*quantize_kept)(const void* w, DType dtype, int64_t n, uint32_t key, bool keep_equal, float inv,
                        int8_t* q);
  int64_t (*count_equal)(const void* w, DType dtype, int64_t n, uint32_t key);
  // Writes the keys strictly between lo and hi one after the other, in any order; `inside` has room for n + 16. n < 2^31.
  KeyCounts (*bracket)(const void* w, DType dtype, int64_t n, int32_t lo, int32_t hi, int32_t* inside);
  // The n largest of each m <= kMaxGroup are kept; mask and pruned as for prune.
  void (*prune_nm)(const void* w, DType dtype, int64_t groups, int n, int m, bool* mask, void* pruned);
  // A row of units: sums[unit][(index + i) mod 8] += |w[unit][i]|, i < unit_cols.
  void (*add_units)(const void* w, DType dtype, int64_t units, int64_t unit_cols, int64_t index,
                    double* sums);
  // sums[i] += |w[i]|, i < n. The next row, `stride` elements further on, is prefetched.
  void (*add_columns)(const void* w, DType dtype, int64_t n, int64_t stride, double* sums);
  void (*apply_mask)(const void* w, DType dtype, const bool* mask, int64_t n, void* out);  // out may be w
};

// A row of norm_quantize; the meaning is that of NormArgs.
struct NormRow {
  const void* x;
  DType dtype;
  const void* residual;
  void* sum;
  const float *weight, *bias;
  float eps;
  bool centered;
  int64_t cols;
  void* normed;
};

struct NormKernels {
  // Writes sum, normed, and y [cols]: the row, normalized. Returns the largest magnitude of y as QuantizeKernels::max_bits.
  uint32_t (*normalize)(const NormRow& row, float* y);
};

// What happens to the int32 accumulators of a product. Rows count from the block's first row.
//   acc[m, n] -= (offset + row_zero_point[m]) * colsum[n]   (int32, modulo 2^32: the true value always fits)
//   y = activation((float(acc) * col_scale[n]) * row_scale[m] + bias[n]), rounded once to out_dtype
// out_dtype i32 stores acc and reads no scale.
struct Epilogue {
  const int32_t* colsum;          // padded to whole panels
  int32_t offset;                 // 128 where A holds q + 128
  const int32_t* row_zero_point;  // or nullptr
  const float* row_scale;
  const float* col_scale;
  const float* bias;  // or nullptr
  Activation activation;
  void* out;
  DType out_dtype;
  int64_t out_row_stride;  // elements
};

constexpr int64_t kRowAlign = 16;  // rows of an AMX tile

// rows [0, m) of A times panels [panel_begin, panel_end) of a packed weight (layouts.h).
struct GemmBlock {
  const uint8_t* a;  // a[row * lda + k]; readable up to a multiple of kRowAlign rows and of kPanelK columns
  int64_t lda;
  int64_t m, n, k;  // the true sizes: n columns and k terms of the whole weight
  const int8_t* panels;
  int64_t panel_begin, panel_end;
  Epilogue epilogue;
};

struct GemmKernels {
  int tile_m;  // the row tile: blocks that are a multiple of it waste nothing
  void (*gemm)(const GemmBlock& block);
  // Runs `iterations` of the register-only inner product; returns the multiply-adds done. For bench/common.py.
  int64_t (*peak)(int64_t iterations);
  int64_t few_rows = 0;  // for at most so many rows, gemm calls that of few_rows_isa, which is faster
  const char* few_rows_isa = "";
};

// Products with the sparse layouts. Whatever has no product of its own here is expanded to dense panels first, a few at a
// time, and multiplied by GemmKernels.
struct SparseKernels {
  // The two dense panels of a pair of a bitmask layout.
  void (*expand_pair)(const PackedView& w, int64_t pair, int8_t* panels);
  // The dense panel `p` of a block layout.
  void (*expand_tiles)(const PackedView& w, int64_t p, int8_t* panel);
  // The product with a bitmask layout, for at most bitmask_rows rows; 0: there is no such kernel. block.panel_begin is even,
  // and block.panels is not read.
  int64_t bitmask_rows;
  void (*gemm_bitmask)(const GemmBlock& block, const PackedView& w);
  // The product with a block layout, or nullptr. A tile takes tile_cost times as long here as in the dense product.
  double tile_cost;
  void (*gemm_tiles)(const GemmBlock& block, const PackedView& w);
  // A bitmask layout is faster than dense, for any number of rows, if at most this share of its weights is kept; a block
  // layout, if at most this share of its tiles is. 0: never.
  double bitmask_pays, block_pays;
};

constexpr int64_t kRowSlack = 32;  // floats: a pair of the longest vectors

// A row of output pixels of a depthwise convolution; its columns are channels. What it reads is readable kRowSlack floats
// beyond its end.
struct DepthwiseRow {
  const float* const* taps;  // where the first pixel's channels lie under each of the `count` weights
  const float* weights;      // [count][channels]; it and the taps hold integers
  int64_t count, channels;
  int64_t pixels, step;  // elements from one pixel's channels to the next one's
  Epilogue epilogue;
};

constexpr int64_t kMaxTaps = 1024;  // 128 * 128 * kMaxTaps fits the 24 bits of a float: its sums are exact

struct DepthwiseKernels {
  void (*convolve)(const DepthwiseRow& row);
};

// rows [0, m) of float x times a strip of up to kStripPanels panels of an int8 weight, which is never written out as floats.
// For each output, every step one float32 operation, terms and groups ascending:
//   total = 0; for each group: s = 0; for each term: s = s + x * float(w); total = total + s * scale
//   y = activation(total + bias), rounded once to out_dtype
struct WeightOnlyStrip {
  const float* x;  // x[row * ldx + k]
  int64_t ldx, m;
  int64_t k;            // a multiple of kGroupK; x and the weights are 0 beyond the true terms
  bool exact_products;  // no x * float(w) is rounded
  int64_t group_size;   // terms of a group: a multiple of kGroupK, or k
  const int8_t* panels;
  int64_t panel_bytes;
  int columns;         // that are stored
  const float* scale;  // [groups][kStripColumns]
  const float* bias;   // [columns], or nullptr
  Activation activation;
  void* out;
  DType out_dtype;
  int64_t out_row_stride;  // elements
};

struct WeightOnlyKernels {
  void (*widen)(const void* x, DType dtype, int64_t n, float* out);
  void (*multiply)(const WeightOnlyStrip& strip);
};

// A row of an int8 table, in a bag.
struct BagRow {
  const int8_t* q;
  float scale, weight;
};

// Row after row; every step is one float32 operation, v = float(q[i]) * scale.
struct EmbeddingKernels {
  // total[i] = total[i] + v * weight
  void (*add)(const BagRow* rows, int64_t count, int64_t n, float* total);
  // total[i] = v > total[i] ? v : total[i]
  void (*max)(const BagRow* rows, int64_t count, int64_t n, float* total);
  // out[i] = x[i] / divisor, rounded once to dtype
  void (*divide)(const float* x, int64_t n, float divisor, void* out, DType dtype);
};

// The tables that the kernels' files define: quantize_on::scalar, quantize_on::avx2, ...
#define FAMILY(family, Kernels, files) \
  namespace family##_on {              \
    using Table = Kernels;             \
    files                              \
  }
#define ON(isa) extern const Table isa;
#include "families.inc"

// ---------------------------------------------------------------------------------------------------------------------
// Drivers: take strides, choose the kernels (dispatch.h), split the work over threads. Strides count elements.
// ---------------------------------------------------------------------------------------------------------------------

// A 2-D view of float elements, any strides.
struct FloatRows {
  const void* data;
  DType dtype;
  int64_t rows, cols;
  int64_t row_stride, col_stride;
};

// Quantizes x [rows, groups * group_size] with one scale per (row, group), or one for all if per_tensor.
struct QuantizeArgs {
  FloatRows x;
  int64_t groups, group_size;
  const bool* mask;  // contiguous, like x, or nullptr: x reads as 0 where it is false
  int8_t* data;
  int64_t data_row_stride;
  float* scale;         // read if given, else written
  int32_t* zero_point;  // nullptr: symmetric
  bool per_tensor, given, stochastic;
  uint64_t seed;
};
void quantize(const QuantizeArgs& args, int threads);

struct DequantizeArgs {
  const int8_t* data;
  int64_t rows, groups, group_size;
  int64_t row_stride, col_stride;
  const float* scale;
  const int32_t* zero_point;  // or nullptr
  bool per_tensor;
  void* out;
  DType out_dtype;
  int64_t out_row_stride;
};
void dequantize(const DequantizeArgs& args, int threads);

struct NonFinite {
  int64_t count, first;  // first: the row-major index, -1 if there is none
};
NonFinite count_nonfinite(const FloatRows& x, int threads);

// A row of x, plus one of the residual if there is one, is normalized and then quantized with its own scale. h = x, or x +
// residual rounded once to x's dtype; with the sums of docs/numerics.md, all in float32,
//   y = (h * r) * weight [+ bias], r = 1 / sqrt(mean(h^2) + eps); centered: h - mean(h) in place of h (LayerNorm)
struct NormArgs {
  FloatRows x;
  const void* residual;  // [rows, cols] of x's dtype, contiguous, or nullptr
  void* sum;             // where h goes, contiguous like it; may be residual; nullptr without one
  const float* weight;   // [cols], or nullptr
  const float* bias;     // [cols], or nullptr
  float eps;
  bool centered;
  int8_t* data;         // contiguous [rows, cols]
  float* scale;         // [rows]
  int32_t* zero_point;  // [rows]; nullptr: symmetric
  void* normed;         // where y goes, rounded once to x's dtype, contiguous [rows, cols]; or nullptr
};
void norm_quantize(const NormArgs& args, int threads);

// A contiguous tensor of a list that is treated as one (global pruning).
struct Segment {
  const void* w;
  DType dtype;
  int64_t n;
  bool* mask;    // what is written: the mask, the pruned values, either of them nullptr;
  void* pruned;  // pruned may be w
};
// Kept are the elements with a larger key, and of those with this key the ones whose index in the whole list is
// keep_equal_from or more.
struct Selection {
  uint32_t key;
  int64_t keep_equal_from;
};
constexpr int64_t kNoneEqual = int64_t{1} << 62;  // as keep_equal_from: elements with this key all go
// Keeps all but the k smallest, 1 <= k <= the number of elements; ties go lowest index first. Extra memory: 5 % of the
// tensors, or 256 KiB where that is more.
Selection magnitude_select(const Segment* segments, int64_t count, int64_t k, int threads);
// The largest key of the finite elements; 0 if there are none.
uint32_t max_key(const Segment* segments, int64_t count, int threads);
void prune(const Segment* segments, int64_t count, Selection selection, int threads);
// prune and then quantize, symmetric and per row, of one tensor [rows, cols]: one pass over memory.
struct PruneQuantizeArgs {
  const void* w;
  DType dtype;
  int64_t rows, cols;
  Selection selection;
  bool* mask;
  int8_t* data;
  float* scale;
};
void prune_quantize(const PruneQuantizeArgs& args, int threads);
// The n largest of each m stay. Here and below, mask and pruned may be nullptr, and pruned may be w.
void prune_nm(const void* w, DType dtype, int64_t groups, int n, int m, bool* mask, void* pruned,
              int threads);
void unit_scores(const void* w, DType dtype, int64_t rows, int64_t cols, int64_t unit_rows, int64_t unit_cols,
                 double* scores, int threads);
// A matrix of whole units, each kept or not: keep [rows / unit_rows, cols / unit_cols].
struct UnitGrid {
  int64_t rows, cols, unit_rows, unit_cols;
};
void prune_units(const UnitGrid& grid, const bool* keep, const void* w, DType dtype, bool* mask, void* pruned,
                 int threads);
// bits [rows, ceil(cols / 8)]: element i of a row is bit i % 8 of byte i / 8.
void pack_mask(const bool* mask, int64_t rows, int64_t cols, uint8_t* bits, int threads);
void unpack_mask(const uint8_t* bits, int64_t rows, int64_t cols, bool* mask, int threads);

// A weight to be packed, any strides.
struct WeightArgs {
  const int8_t* w;
  int64_t n, k, n_stride, k_stride;
};
// What the sparse layouts would keep: bytes of each pair of panels, tiles of each row of tiles.
void count_weight(const WeightArgs& args, int64_t* kept, int64_t* tiles, int threads);
// Packs into packed_parts(...).end bytes, aligned to 8; best to 64. counts: those of count_weight for the layout.
void pack_weight(const WeightArgs& args, Layout layout, const int64_t* counts, void* buffer, int threads);
void unpack_weight(const void* buffer, int8_t* w, int threads);  // contiguous [n, k]
// The columns of panels [begin, end) of any layout, at most kStripPanels, as contiguous [columns, k]; begin is even.
void unpack_panels(const PackedView& packed, int64_t begin, int64_t end, int8_t* columns);

// Whether a product of so many rows reads this sparse layout as it is, without expanding it to dense panels.
bool is_multiplied_sparse(const PackedView& w, int64_t rows);
// The dense panels [begin, end) of a sparse layout; begin is even, and `panels` has room for an even number.
void expand_panels(const PackedView& w, int64_t begin, int64_t end, int8_t* panels);
// The product with panels [block.panel_begin, block.panel_end) of a weight of any layout. panel_begin is even, and
// block.panels is not read.
void gemm_packed(const GemmBlock& block, const PackedView& w);

// One weight of a product, and where its result goes.
struct LinearTarget {
  int64_t n;           // that of the packed weight's header
  const void* packed;  // [n, k]
  const float* w_scale;
  const void* bias;  // [n], or nullptr
  DType bias_dtype;
  Activation activation;
  void* out;  // [m, n]
  DType out_dtype;
  int64_t out_row_stride;
};

// A [m, k] times each weight of a list: A is read and staged once for all of them. A is float x, quantized per row on the
// fly (asymmetric_x: with a zero point), or int8 / uint8 a.
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
void linear(const LinearArgs& args, int threads);

// A 2-D convolution of float x [batch, channels, height, width], any strides, quantized with one scale per sample. x is padded
// with zeros: pad_top rows above, pad_left columns at the left, and below and at the right as many as the output's size needs.
struct ConvArgs {
  const void* x;
  DType dtype;
  int64_t batch, channels, height, width;
  int64_t x_strides[4];
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
  int64_t groups, n;  // n: output channels of all groups
  // A packed weight [n / groups, kernel_h * kernel_w * (channels / groups)] for each group, channels innermost, each of
  // packed_nbytes; or, where channels = groups = n, int8 taps [kernel_h * kernel_w, n], and packed_nbytes is 0.
  const void* weight;
  int64_t packed_nbytes;
  const float* w_scale;  // [n]
  const void* bias;      // [n], or nullptr
  DType bias_dtype;
  Activation activation;
  void* out;
  DType out_dtype;
  int64_t out_height, out_width;
  bool channels_last;  // out is [batch, out_height, out_width, n], else [batch, n, out_height, out_width]
};
void conv2d(const ConvArgs& args, int threads);

// The packed weight of a convolution, each of whose matrices [n / matrices, taps * bundle * channels] holds a bundle of groups as
// blocks in zeros; channels: those of a group.
struct PackedConv {
  const void* weight;
  int64_t packed_nbytes, matrices, bundle;
  int64_t n, channels, taps;
};
void unpack_conv_weight(const PackedConv& packed, int8_t* w, int threads);  // contiguous [n, channels, taps]

// Float x [m, k] times a packed weight as it is: nothing is quantized. scale [n, groups]; k is a multiple of groups, and of
// groups * kGroupK if there are several. target.w_scale is not read.
struct WeightOnlyArgs {
  FloatRows x;
  LinearTarget target;
  const float* scale;
  int64_t groups;
};
void weight_only_linear(const WeightOnlyArgs& args, int threads);

// An int8 table [entries, dim] with one scale per row, and where to look.
struct EmbeddingTable {
  const int8_t* data;  // contiguous
  const float* scale;
  int64_t entries, dim;
};
// int32 or int64, contiguous.
struct Integers {
  const void* data;
  bool wide;
  int64_t count;
};
// The position of the first index outside [0, entries), or -1 if there is none. Both functions below read the table without
// checking: they may be called only after -1.
int64_t first_outside(const EmbeddingTable& table, const Integers& indices, int threads);
void embedding(const EmbeddingTable& table, const Integers& indices, void* out, DType out_dtype, int threads);

enum class BagMode : int { sum = 0, mean = 1, max = 2 };
struct EmbeddingBagArgs {
  EmbeddingTable table;
  Integers indices;
  const int64_t* ends;  // [bags]: where a bag's indices end and the next one's begin, ascending
  int64_t bags;
  const float* weights;  // like indices, or nullptr
  int64_t padding;       // rows with this index are left out; -1: none
  BagMode mode;
  void* out;  // contiguous [bags, dim]
  DType out_dtype;
};
void embedding_bag(const EmbeddingBagArgs& args, int threads);

// The machine's limits, for the benchmarks.
double probe_peak(double milliseconds, int threads);  // 1e9 operations per second, two per multiply-add
uint64_t probe_read(const void* buffer, int64_t bytes, int threads);
void probe_copy(const void* source, void* target, int64_t bytes, int threads);

}  // namespace octavo
