// What the two Python modules share: pointers arrive as integers, dtypes and activations as codes, and what belongs together as
// a record. The modules are twins: a function or record of one name takes the same arguments in both. `where` comes last: the
// number of threads, or on a device what Where of cuda.h is.
//
// octavo.ops has validated the arguments; here only what would be undefined behaviour is checked, the GIL released, the kernel
// called. python/octavo/_core.pyi and _cuda.pyi are the contract.
#pragma once

#include "check.h"
#include "named.h"
#include "octavo.h"

namespace octavo {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

static inline DType float_dtype_of(int code) {
  check(code >= 0 && code <= 3, "dtype", "a float code from 0 to 3", code);
  return static_cast<DType>(code);
}

static inline DType out_dtype_of(int code) {
  check(code >= 0 && code <= 4 && code != 3, "out_dtype", "a code of 0, 1, 2 or 4", code);
  return static_cast<DType>(code);
}

static inline Activation activation_of(int code) {
  check(code >= 0 && code <= 4, "activation", "a code from 0 to 4", code);
  return static_cast<Activation>(code);
}

// A 2-D view of int8 or uint8 elements, any strides.
struct IntRows {
  const void* data;
  bool is_signed;
  int64_t rows, cols;
  int64_t row_stride, col_stride;
};

// The scales of quantized rows: one for each of `groups` groups of a row, or one for all rows.
struct Scales {
  float* scale;
  int32_t* zero_point;  // nullptr: symmetric
  int64_t groups, group_size;
  bool per_tensor;
};

// The records of both modules.
static inline void define_records(py::module_& m) {
  define_record<FloatRows>(
      m, "FloatRows", {"address", "dtype", "rows", "cols", "row_stride", "col_stride"},
      [](Address address, int dtype, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride) {
        return FloatRows{at<const void>(address), float_dtype_of(dtype), rows, cols, row_stride, col_stride};
      });
  define_record<IntRows>(m, "IntRows", {"address", "signed", "rows", "cols", "row_stride", "col_stride"},
                         [](Address address, bool is_signed, int64_t rows, int64_t cols, int64_t row_stride,
                            int64_t col_stride) {
                           return IntRows{
                               at<const void>(address), is_signed, rows, cols, row_stride, col_stride};
                         });
  define_record<Scales>(
      m, "Scales", {"address", "zero_point", "groups", "group_size", "per_tensor"},
      [](Address address, Address zero_point, int64_t groups, int64_t group_size, bool per_tensor) {
        return Scales{at<float>(address), at<int32_t>(zero_point), groups, group_size, per_tensor};
      });
  define_record<Segment>(m, "Segment", {"address", "dtype", "n", "mask", "pruned"},
                         [](Address address, int dtype, int64_t n, Address mask, Address pruned) {
                           return Segment{at<const void>(address), float_dtype_of(dtype), n, at<bool>(mask),
                                          at<void>(pruned)};
                         });
  define_record<UnitGrid>(m, "UnitGrid", {"rows", "cols", "unit_rows", "unit_cols"},
                          [](int64_t rows, int64_t cols, int64_t unit_rows, int64_t unit_cols) {
                            check(unit_rows >= 1 && unit_cols >= 1, "unit", "at least one row and column",
                                  unit_rows < 1 ? unit_rows : unit_cols);
                            return UnitGrid{rows, cols, unit_rows, unit_cols};
                          });
}

static inline QuantizeArgs quantize_args(const FloatRows& x, const Scales& scales, Address mask, Address data,
                                         int64_t data_row_stride, bool given, bool stochastic,
                                         uint64_t seed) {
  check(scales.groups * scales.group_size == x.cols, "scales", "groups that are as long as a row",
        scales.groups * scales.group_size);
  return {x,
          scales.groups,
          scales.group_size,
          at<const bool>(mask),
          at<int8_t>(data),
          data_row_stride,
          scales.scale,
          scales.zero_point,
          scales.per_tensor,
          given,
          stochastic,
          seed};
}

static inline DequantizeArgs dequantize_args(const IntRows& data, const Scales& scales, Address out,
                                             int out_dtype, int64_t out_row_stride) {
  check(data.is_signed, "data", "int8", 0);
  check(scales.groups * scales.group_size == data.cols, "scales", "groups that are as long as a row",
        scales.groups * scales.group_size);
  return {static_cast<const int8_t*>(data.data),
          data.rows,
          scales.groups,
          scales.group_size,
          data.row_stride,
          data.col_stride,
          scales.scale,
          scales.zero_point,
          scales.per_tensor,
          at<void>(out),
          float_dtype_of(out_dtype),
          out_row_stride};
}

static inline NormArgs norm_args(const FloatRows& x, Address residual, Address sum, Address weight,
                                 Address bias, float eps, bool centered, Address data, Address scale,
                                 Address zero_point, Address normed) {
  check(!residual || sum || x.rows * x.cols == 0, "sum", "an address beside a residual", 0);
  return {x,
          at<const void>(residual),
          at<void>(sum),
          at<const float>(weight),
          at<const float>(bias),
          eps,
          centered,
          at<int8_t>(data),
          at<float>(scale),
          at<int32_t>(zero_point),
          at<void>(normed)};
}

static inline WeightArgs weight_args(const IntRows& w) {
  check(w.is_signed, "w", "int8", 0);
  return {static_cast<const int8_t*>(w.data), w.rows, w.cols, w.row_stride, w.col_stride};
}

static inline int64_t count_of(const std::vector<Segment>& segments) {
  return static_cast<int64_t>(segments.size());
}

// magnitude_select's k, which must be one of the elements'.
static inline void check_k(const std::vector<Segment>& segments, int64_t k) {
  int64_t total = 0;
  for (const Segment& s : segments) total += s.n;
  if (k < 1 || k > total) fail("k", "between 1 and " + std::to_string(total), k);
}

static inline void check_written(const Segment& s) {
  check(s.mask || s.pruned || s.n == 0, "mask", "an address, or one for the pruned values", 0);
}

// prune_quantize walks rows one after the other.
static inline void check_contiguous(const FloatRows& w) {
  check(w.col_stride == 1 && w.row_stride == w.cols, "w", "contiguous rows", w.row_stride);
}

static inline void check_group(int n, int group) {
  check(group >= 1 && group <= kMaxGroup, "m", "between 1 and 32", group);
  check(n >= 0 && n <= group, "n", "between 0 and m", n);
}

static inline void check_grid(const Segment& s, const UnitGrid& grid) {
  check(grid.rows * grid.cols == s.n, "grid", "as many elements as the segment has", grid.rows * grid.cols);
}

}  // namespace octavo
