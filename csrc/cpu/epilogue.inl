// What happens to int32 accumulators on their way out, over the vector words of the vec_*.h included before.
#include "activation.inl"

namespace octavo {
namespace {

template <class T>
inline void store_columns(void* row, int64_t column, F32 y, int lanes) {
  T* p = static_cast<T*>(row) + column;
  if (lanes == kLanes) {
    store(p, y);
  } else {
    store_n(p, y, lanes);
  }
}

// Finishes the columns [column, column + lanes) of one row; lanes <= kLanes.
inline void finish(const Epilogue& e, int64_t row, int64_t column, int lanes, I32 acc) {
  acc = sub(acc, mul(set1(e.row_offset[row]), load(e.colsum + column)));
  if (e.out_dtype == DType::i32)
    return store_n(static_cast<int32_t*>(e.out) + row * e.out_row_stride + column, acc, lanes);
  const bool whole = lanes == kLanes;
  const F32 col_scale = whole ? load(e.col_scale + column) : load_n(e.col_scale + column, lanes);
  F32 y = mul(mul(to_f32(acc), col_scale), set1(e.row_scale[row]));
  if (e.bias) y = add(y, whole ? load(e.bias + column) : load_n(e.bias + column, lanes));
  y = activate(e.activation, y);
  switch (e.out_dtype) {
    case DType::f16:
      return store_columns<f16>(static_cast<f16*>(e.out) + row * e.out_row_stride, column, y, lanes);
    case DType::bf16:
      return store_columns<bf16>(static_cast<bf16*>(e.out) + row * e.out_row_stride, column, y, lanes);
    default:
      return store_columns<float>(static_cast<float*>(e.out) + row * e.out_row_stride, column, y, lanes);
  }
}

// The lanes of [column, column + kLanes) that exist.
inline int lanes_left(int64_t n, int64_t column) {
  const int64_t left = n - column;
  return left >= kLanes ? kLanes : static_cast<int>(left > 0 ? left : 0);
}

}  // namespace
}  // namespace octavo
