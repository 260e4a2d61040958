// What happens to a tile of int32 accumulators on its way out, over the vector words of the vec_*.h included before. What
// belongs to columns is loaded once for all rows; dtype and activation are decided outside the loop.
#include "../layouts.h"
#include "activation.inl"

namespace octavo {
namespace {

inline void store_lanes(int32_t* p, I32 v, int lanes) {
  if (lanes == kLanes) {
    store(p, v);
  } else {
    store_n(p, v, lanes);
  }
}

template <class T>
inline void store_lanes(T* p, F32 v, int lanes) {
  if (lanes == kLanes) {
    store(p, v);
  } else {
    store_n(p, v, lanes);
  }
}

inline F32 load_lanes(const float* p, int lanes) { return lanes == kLanes ? load(p) : load_n(p, lanes); }

// Rows [row, row + rows) of the columns [column, column + lanes); their sums lie at acc[r * stride].
struct Strip {
  int64_t row;
  int rows;
  int64_t column;
  int lanes;
  const int32_t* acc;
  int64_t stride;
};

inline I32 exact_sum(const Epilogue& e, const Strip& s, int r, I32 colsum) {
  return sub(load(s.acc + r * s.stride), mul(set1(e.row_offset[s.row + r]), colsum));
}

inline void finish_sums(const Epilogue& e, const Strip& s) {
  const I32 colsum = load(e.colsum + s.column);
  for (int r = 0; r < s.rows; ++r) {
    int32_t* out = static_cast<int32_t*>(e.out) + (s.row + r) * e.out_row_stride + s.column;
    store_lanes(out, exact_sum(e, s, r, colsum), s.lanes);
  }
}

template <class T, Activation kActivation>
void finish_strip(const Epilogue& e, const Strip& s) {
  const I32 colsum = load(e.colsum + s.column);
  const F32 col_scale = load_lanes(e.col_scale + s.column, s.lanes);
  const F32 bias = e.bias ? load_lanes(e.bias + s.column, s.lanes) : set1(0.0f);
  const bool has_bias = e.bias != nullptr;  // adding 0 would turn -0.0 into 0.0
  for (int r = 0; r < s.rows; ++r) {
    F32 y = mul(mul(to_f32(exact_sum(e, s, r, colsum)), col_scale), set1(e.row_scale[s.row + r]));
    if (has_bias) y = add(y, bias);
    T* out = static_cast<T*>(e.out) + (s.row + r) * e.out_row_stride + s.column;
    store_lanes(out, activate<kActivation>(y), s.lanes);
  }
}

template <class T>
void finish_as(const Epilogue& e, const Strip& s) {
  switch (e.activation) {
    case Activation::relu: return finish_strip<T, Activation::relu>(e, s);
    case Activation::gelu: return finish_strip<T, Activation::gelu>(e, s);
    case Activation::gelu_tanh: return finish_strip<T, Activation::gelu_tanh>(e, s);
    case Activation::silu: return finish_strip<T, Activation::silu>(e, s);
    default: return finish_strip<T, Activation::none>(e, s);
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
  for (int c = 0; c < kColumns && column + c < end; c += kLanes) {
    const int64_t left = end - column - c;
    const Strip strip = {row,     rows,   column + c, left < kLanes ? static_cast<int>(left) : kLanes,
                         acc + c, kStride};
    switch (e.out_dtype) {
      case DType::i32: finish_sums(e, strip); break;
      case DType::f16: finish_as<f16>(e, strip); break;
      case DType::bf16: finish_as<bf16>(e, strip); break;
      default: finish_as<float>(e, strip); break;
    }
  }
}

}  // namespace
}  // namespace octavo
