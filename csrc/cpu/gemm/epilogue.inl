// What happens to a tile of int32 accumulators on its way out, over the vector words of the vec_*.h included before. What
// belongs to columns is loaded once for all rows; dtype and activation are decided outside the loop.
#include "cpu/vec/activation.inl"
#include "cpu/vec/unroll.h"
#include "cpu/vec/vectors.h"
#include "layouts.h"

namespace octavo {
namespace {

// Two whole vectors; vec_avx512.h has a shorter way for bf16.
template <class T>
inline void store_pair(T* p, F32 a, F32 b) {
  store(p, a);
  store(p + kLanes, b);
}

// Rows [row, row + rows) of kVectors vectors of columns from `column` on; their sums lie at acc[r * stride]. Only a single
// vector may have fewer than kLanes columns.
struct Strip {
  int64_t row;
  int rows;
  int64_t column;
  int lanes;
  const int32_t* acc;
  int64_t stride;
};

// colsum, and offset * colsum, of a strip's columns.
template <int kVectors>
struct Compensation {
  I32 colsum[kVectors], common[kVectors];
  const int32_t* zero_point;

  Compensation(const Epilogue& e, const Strip& s)
      : zero_point(e.row_zero_point ? e.row_zero_point + s.row : nullptr) {
    OCTAVO_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      colsum[v] = load(e.colsum + s.column + v * kLanes);
      common[v] = mul(set1(e.offset), colsum[v]);
    }
  }
  I32 exact_sum(const int32_t* acc, int r, int v) const {
    const I32 sum = sub(load(acc + v * kLanes), common[v]);
    return zero_point ? sub(sum, mul(set1(zero_point[r]), colsum[v])) : sum;
  }
};

template <int kVectors>
void finish_sums(const Epilogue& e, const Strip& s) {
  const Compensation<kVectors> c(e, s);
  const int64_t out_stride = e.out_row_stride;
  int32_t* out = static_cast<int32_t*>(e.out) + s.row * out_stride + s.column;
  const int32_t* acc = s.acc;
  for (int r = 0; r < s.rows; ++r, out += out_stride, acc += s.stride) {
    OCTAVO_UNROLL
    for (int v = 0; v < kVectors; ++v) store_lanes(out + v * kLanes, c.exact_sum(acc, r, v), s.lanes);
  }
}

template <int kVectors, class T, Activation kActivation>
void finish_strip(const Epilogue& e, const Strip& s) {
  const Compensation<kVectors> c(e, s);
  const bool has_bias = e.bias != nullptr;  // adding 0 would turn -0.0 into 0.0
  F32 scale[kVectors], bias[kVectors];
  OCTAVO_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    scale[v] = load_lanes(e.col_scale + s.column + v * kLanes, s.lanes);
    bias[v] = has_bias ? load_lanes(e.bias + s.column + v * kLanes, s.lanes) : set1(0.0f);
  }
  const int64_t out_stride = e.out_row_stride;
  T* out = static_cast<T*>(e.out) + s.row * out_stride + s.column;
  const float* row_scale = e.row_scale + s.row;
  const int32_t* acc = s.acc;
  for (int r = 0; r < s.rows; ++r, out += out_stride, acc += s.stride) {
    F32 y[kVectors];
    OCTAVO_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      y[v] = mul(mul(to_f32(c.exact_sum(acc, r, v)), scale[v]), set1(row_scale[r]));
      if (has_bias) y[v] = add(y[v], bias[v]);
      y[v] = activate<kActivation>(y[v]);
    }
    if constexpr (kVectors == 2) {
      store_pair(out, y[0], y[1]);
    } else {
      store_lanes(out, y[0], s.lanes);
    }
  }
}

template <int kVectors, class T>
void finish_as(const Epilogue& e, const Strip& s) {
  switch (e.activation) {
    case Activation::relu: return finish_strip<kVectors, T, Activation::relu>(e, s);
    case Activation::gelu: return finish_strip<kVectors, T, Activation::gelu>(e, s);
    case Activation::gelu_tanh: return finish_strip<kVectors, T, Activation::gelu_tanh>(e, s);
    case Activation::silu: return finish_strip<kVectors, T, Activation::silu>(e, s);
    default: return finish_strip<kVectors, T, Activation::none>(e, s);
  }
}

template <int kVectors>
void finish_columns(const Epilogue& e, const Strip& s) {
  switch (e.out_dtype) {
    case DType::i32: return finish_sums<kVectors>(e, s);
    case DType::f16: return finish_as<kVectors, f16>(e, s);
    case DType::bf16: return finish_as<kVectors, bf16>(e, s);
    default: return finish_as<kVectors, float>(e, s);
  }
}

// The first column that a block must not write.
inline int64_t column_end(const GemmBlock& g) {
  const int64_t end = g.panel_end * kPanelN;
  return end < g.n ? end : g.n;
}

// Finishes rows x columns of a tile whose sums lie at acc[r * kStride + c]; columns from `end` on are left out.
template <int kColumns, int kStride>
void finish_tile(const Epilogue& e, int64_t end, int64_t row, int rows, int64_t column, const int32_t* acc) {
  constexpr int kPair = 2 * kLanes;
  if (end > column + kColumns) end = column + kColumns;
  Strip strip = {row, rows, column, kLanes, acc, kStride};
  for (; strip.column + kPair <= end; strip.column += kPair, strip.acc += kPair) finish_columns<2>(e, strip);
  for (; strip.column < end; strip.column += kLanes, strip.acc += kLanes) {
    if (end - strip.column < kLanes) strip.lanes = static_cast<int>(end - strip.column);
    finish_columns<1>(e, strip);
  }
}

}  // namespace
}  // namespace octavo
