// What happens to the int32 sums of a product on their way out, for every kernel: the steps of cpu/epilogue.inl on
// kColumns adjacent columns of a thread.
//   acc -= (offset + row_zero_point[m]) * colsum[n]   (modulo 2^32: the true value always fits)
//   y = activation((float(acc) * col_scale[n]) * row_scale[m] + bias[n]), rounded once to out_dtype
// out_dtype and activation are the same for a whole launch: branches on them cost less than a kernel for each.
#pragma once

#include "cpu/vec/unroll.h"
#include "elements.cuh"
#include "octavo.h"
#include "vec_device.cuh"

#include "cpu/vec/activation.inl"

namespace octavo {
namespace cuda {

struct Epilogue {
  const int32_t* colsum;          // not read where offset is 0 and there are no zero points
  int32_t offset;                 // what the stored A lacks: -128 where it holds uint8 values - 128
  const int32_t* row_zero_point;  // or nullptr
  const float* row_scale;         // or nullptr: 1
  const float* col_scale;         // not read if out_dtype is i32
  const void* bias;               // or nullptr
  DType bias_dtype;
  Activation activation;
  void* out;
  DType out_dtype;
  int64_t out_row_stride;  // elements
};

// Element i of a contiguous array, as float32.
static __device__ __forceinline__ float element(const void* x, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::f16: return to_float(static_cast<const f16*>(x)[i]);
    case DType::bf16: return to_float(static_cast<const bf16*>(x)[i]);
    case DType::f64: return to_float(static_cast<const double*>(x)[i]);
    default: return static_cast<const float*>(x)[i];
  }
}

template <Activation kActivation, int kColumns>
__device__ __forceinline__ void activate_each(float (&y)[kColumns]) {
  OCTAVO_UNROLL
  for (int i = 0; i < kColumns; ++i) y[i] = octavo::activate<kActivation>(y[i]);
}

template <int kColumns>
__device__ __forceinline__ void activate(Activation activation, float (&y)[kColumns]) {
  switch (activation) {
    case Activation::relu: return activate_each<Activation::relu>(y);
    case Activation::gelu: return activate_each<Activation::gelu>(y);
    case Activation::gelu_tanh: return activate_each<Activation::gelu_tanh>(y);
    case Activation::silu: return activate_each<Activation::silu>(y);
    default: return;
  }
}

// kColumns columns from `column` on, those below n: what belongs to them is loaded once for all rows.
template <int kColumns>
class Columns {
 public:
  __device__ __forceinline__ Columns(const Epilogue& e, int column, int n)
      : e_(e), column_(column), count_(n - column < kColumns ? n - column : kColumns) {
    OCTAVO_UNROLL
    for (int i = 0; i < kColumns; ++i) {
      const int at = column + (i < count_ ? i : 0);
      if (count_ <= 0) continue;
      if (is_compensated()) colsum_[i] = static_cast<uint32_t>(e.colsum[at]);
      if (e.out_dtype == DType::i32) continue;
      scale_[i] = e.col_scale[at];
      if (e.bias) bias_[i] = element(e.bias, e.bias_dtype, at);
    }
  }

  // Finishes the sums of a row.
  __device__ __forceinline__ void finish(int64_t row, const int32_t (&sums)[kColumns]) const {
    if (count_ <= 0) return;
    uint32_t acc[kColumns];
    const uint32_t missing = static_cast<uint32_t>(e_.offset) +
                             static_cast<uint32_t>(e_.row_zero_point ? e_.row_zero_point[row] : 0);
    OCTAVO_UNROLL
    for (int i = 0; i < kColumns; ++i) {
      acc[i] = static_cast<uint32_t>(sums[i]);
      if (is_compensated()) acc[i] -= missing * colsum_[i];
    }
    if (e_.out_dtype == DType::i32) return store(row, acc);
    const float row_scale = e_.row_scale ? e_.row_scale[row] : 1.0f;
    float y[kColumns];
    OCTAVO_UNROLL
    for (int i = 0; i < kColumns; ++i) {
      y[i] = __fmul_rn(__fmul_rn(__int2float_rn(static_cast<int32_t>(acc[i])), scale_[i]), row_scale);
      if (e_.bias) y[i] = __fadd_rn(y[i], bias_[i]);  // adding 0 would turn -0.0 into 0.0
    }
    activate(e_.activation, y);
    switch (e_.out_dtype) {
      case DType::f16: return round_and_store<f16>(row, y);
      case DType::bf16: return round_and_store<bf16>(row, y);
      default: return store(row, y);
    }
  }

 private:
  __device__ __forceinline__ bool is_compensated() const { return e_.offset != 0 || e_.row_zero_point; }

  template <class T>
  __device__ __forceinline__ void round_and_store(int64_t row, const float (&y)[kColumns]) const {
    T rounded[kColumns];
    OCTAVO_UNROLL
    for (int i = 0; i < kColumns; ++i) rounded[i] = from_float<T>(y[i]);
    store(row, rounded);
  }

  template <class T>
  __device__ __forceinline__ void store(int64_t row, const T (&v)[kColumns]) const {
    struct alignas(sizeof(T) * kColumns) All {
      T v[kColumns];
    };
    T* out = static_cast<T*>(e_.out) + row * e_.out_row_stride + column_;
    constexpr int64_t kBytes = sizeof(All);
    const int64_t row_bytes = e_.out_row_stride * static_cast<int64_t>(sizeof(T));
    if (count_ == kColumns && (reinterpret_cast<int64_t>(e_.out) | row_bytes) % kBytes == 0) {
      All all;
      OCTAVO_UNROLL
      for (int i = 0; i < kColumns; ++i) all.v[i] = v[i];
      *reinterpret_cast<All*>(out) = all;
      return;
    }
    OCTAVO_UNROLL
    for (int i = 0; i < kColumns; ++i) {
      if (i < count_) out[i] = v[i];
    }
  }

  const Epilogue& e_;
  int column_, count_;
  uint32_t colsum_[kColumns];
  float scale_[kColumns], bias_[kColumns];
};

}  // namespace cuda
}  // namespace octavo
