// Quantize, dequantize, count_nonfinite: bound by memory. A span is read once, stays in 32 registers (16 if single elements are
// read) between the search for its range and the rounding, and is written once. With 6 blocks of 128 threads on a
// multiprocessor, 96 KiB are under way. Spans that no block can hold, and tensors with one scale, take two launches: the
// range by atomics into the workspace, then the rounding.
#include <cmath>
#include <type_traits>

#include "octavo_cuda.h"
#include "rows.cuh"

namespace octavo {
namespace cuda {
namespace {

enum class Step { whole, range, round };

__device__ __forceinline__ bool is_finite(float v) { return fabsf(v) < INFINITY; }

// A thread's units of a piece of the row at x; 0 where there is nothing, and where the mask of the piece, if any, is false.
template <class T, bool kPacked>
__device__ __forceinline__ void load_units(Unit<T, kPacked> (&units)[Unit<T, kPacked>::kPerThread],
                                           const T* x, int64_t col_stride, const bool* mask,
                                           const Piece& piece) {
  using U = Unit<T, kPacked>;
  OCTAVO_UNROLL
  for (int i = 0; i < U::kPerThread; ++i) {
    const int offset = offset_of<U>(i);
    const bool valid = offset < piece.length;
    if constexpr (kPacked) {
      units[i] = load_packed(x + piece.begin + offset, valid);
    } else {
      units[i] = valid && (!mask || mask[offset]) ? U{x[(piece.begin + offset) * col_stride]} : U{};
    }
  }
}

// The range [-x, y] of finite elements and 0, as magnitude keys: their order is that of integers.
template <class Unit>
__device__ __forceinline__ uint2 range_of(const Unit (&units)[Unit::kPerThread]) {
  float lo = 0.0f, hi = 0.0f;
  OCTAVO_UNROLL
  for (int i = 0; i < Unit::kPerThread; ++i) {
    OCTAVO_UNROLL
    for (int j = 0; j < Unit::kWidth; ++j) {
      const float v = to_float(units[i].v[j]);
      const float finite = is_finite(v) ? v : 0.0f;
      lo = fminf(lo, finite);
      hi = fmaxf(hi, finite);
    }
  }
  return make_uint2(magnitude_key(lo), magnitude_key(hi));
}

__device__ __forceinline__ Affine affine_of(uint2 range, bool symmetric) {
  if (symmetric) return symmetric_affine(float_of(range.x > range.y ? range.x : range.y));
  return asymmetric_affine(-float_of(range.x), float_of(range.y));
}

// floor(v + u): the seed and the element's row-major index draw u. Of a flat span, Inf alone is not 0.
__device__ __forceinline__ float stochastic_round(float x, const Affine& affine, uint64_t seed,
                                                  int64_t index) {
  if (affine.flat && is_finite(x)) return 0.0f;
  return floorf(x * affine.inv + uniform_of(philox_word(seed, static_cast<uint64_t>(index))));
}

// Packed: without a mask, without stochastic rounding.
template <class T, bool kPacked>
__global__ void __launch_bounds__(kMaxTeam)
    quantize_spans(QuantizeArgs args, Teams teams, Step step, uint2* ranges) {
  using U = Unit<T, kPacked>;
  const Piece piece = piece_of(teams);
  const int64_t scale_index = args.per_tensor ? 0 : piece.span;
  const T* x = static_cast<const T*>(args.x.data) + piece.row * args.x.row_stride;
  const int64_t index = piece.row * args.x.cols + piece.begin;  // row-major

  U units[U::kPerThread];
  load_units(units, x, args.x.col_stride, args.mask ? args.mask + index : nullptr, piece);

  uint2 range = make_uint2(0, 0);
  if (step != Step::round) {  // of a range that is shared, all teams of the block have the same
    range =
        max_of(range_of(units), static_cast<int>(step == Step::whole ? blockDim.x : blockDim.x * blockDim.y));
  }
  if (step == Step::range) {
    if (threadIdx.x == 0 && threadIdx.y == 0) {
      atomicMax(&ranges[scale_index].x, range.x);
      atomicMax(&ranges[scale_index].y, range.y);
    }
    return;
  }

  Affine affine;
  if (args.given) {
    const float scale = args.scale[scale_index];
    affine = {scale, 1.0f / scale, args.zero_point ? args.zero_point[scale_index] : 0, false};
  } else {
    affine = affine_of(step == Step::round ? ranges[scale_index] : range, args.zero_point == nullptr);
    const bool first = piece.exists && piece.part == 0 && piece.span == scale_index;
    if (first && threadIdx.x == 0) {
      args.scale[scale_index] = affine.scale;
      if (args.zero_point) args.zero_point[scale_index] = affine.zero_point;
    }
  }

  const int zero = affine.zero_point, q_max = 127 - zero, q_min = (args.zero_point ? -128 : -127) - zero;
  int8_t* data = args.data + piece.row * args.data_row_stride + piece.begin;
  OCTAVO_UNROLL
  for (int i = 0; i < U::kPerThread; ++i) {
    const int offset = offset_of<U>(i);
    if (offset >= piece.length) continue;
    if constexpr (kPacked) keep_packed(units[i]);
    int q[U::kWidth];
    OCTAVO_UNROLL
    for (int j = 0; j < U::kWidth; ++j) {
      const float v = to_float(units[i].v[j]);
      const bool stochastic = !kPacked && args.stochastic;
      const float rounded =
          stochastic ? stochastic_round(v, affine, args.seed, index + offset) : v * affine.inv;
      q[j] = round_clamped(rounded, q_min, q_max) + zero;
    }
    if constexpr (kPacked) {
      store_low_bytes(data + offset, q);
    } else {
      data[offset] = static_cast<int8_t>(q[0]);
    }
  }
}

template <class T, bool kPacked>
__global__ void __launch_bounds__(kPartTeam) dequantize_spans(DequantizeArgs args, Teams teams) {
  using U = Unit<T, kPacked>;
  const Piece piece = piece_of(teams);
  const int8_t* data = args.data + piece.row * args.row_stride;
  Bytes<U::kWidth> q[U::kPerThread] = {};
  OCTAVO_UNROLL
  for (int i = 0; i < U::kPerThread; ++i) {
    const int offset = offset_of<U>(i);
    if (offset >= piece.length) continue;
    if constexpr (kPacked) {
      q[i] = *reinterpret_cast<const Bytes<U::kWidth>*>(data + piece.begin + offset);
    } else {
      q[i].word[0] = static_cast<uint8_t>(data[(piece.begin + offset) * args.col_stride]);
    }
  }
  const int64_t scale_index = args.per_tensor ? 0 : piece.span;
  const float scale = args.scale[scale_index];
  const int32_t zero = args.zero_point ? args.zero_point[scale_index] : 0;
  T* out = static_cast<T*>(args.out) + piece.row * args.out_row_stride + piece.begin;
  OCTAVO_UNROLL
  for (int i = 0; i < U::kPerThread; ++i) {
    const int offset = offset_of<U>(i);
    if (offset >= piece.length) continue;
    U unit;
    OCTAVO_UNROLL
    for (int j = 0; j < U::kWidth; ++j) {
      unit.v[j] = from_float<T>(static_cast<float>(q[i].get(j) - zero) * scale);
    }
    if constexpr (kPacked) {
      store_packed(out + offset, unit);
    } else {
      out[offset] = unit.v[0];
    }
  }
}

// How many elements are not finite, and ~index of the first of them: the largest, so that 0 is none.
struct Found {
  unsigned long long count, first;
};

template <class T, bool kPacked>
__global__ void __launch_bounds__(kPartTeam) count_spans(FloatRows x, Teams teams, Found* found) {
  using U = Unit<T, kPacked>;
  const Piece piece = piece_of(teams);
  const T* row = static_cast<const T*>(x.data) + piece.row * x.row_stride;
  U units[U::kPerThread];
  load_units(units, row, x.col_stride, nullptr, piece);
  Found mine = {0, 0};
  OCTAVO_UNROLL
  for (int i = 0; i < U::kPerThread; ++i) {
    OCTAVO_UNROLL
    for (int j = 0; j < U::kWidth; ++j) {
      if (is_finite(to_float(units[i].v[j]))) continue;  // so is what does not exist
      const int64_t index = piece.row * x.cols + piece.begin + offset_of<U>(i) + j;
      if (mine.count++ == 0) mine.first = ~static_cast<unsigned long long>(index);
    }
  }
  if (mine.count == 0) return;
  atomicAdd(&found->count, mine.count);
  atomicMax(&found->first, mine.first);
}

// Whether rows of floats can be read 16 bytes at a time, whole groups at least. float64 has no use for that: single elements
// of a warp are as wide as the memory's accesses.
bool can_pack(const void* p, DType dtype, int64_t rows, int64_t row_stride, int64_t col_stride,
              int64_t group_size) {
  const int64_t size = dtype == DType::f32 ? 4 : 2;
  return dtype != DType::f64 && col_stride == 1 && group_size * size % 16 == 0 &&
         is_aligned(p, rows, row_stride * size, 16);
}
// Rows of the bytes that belong to the floats of a unit.
bool can_pack_bytes(const int8_t* q, DType dtype, int64_t rows, int64_t row_stride, int64_t col_stride) {
  return col_stride == 1 && is_aligned(q, rows, row_stride, dtype == DType::f32 ? 4 : 8);
}

// f(T(), whether it is packed): both choices are made on the host.
template <class F>
void with_unit(DType dtype, bool packed, F f) {
  with_dtype(dtype, [&](auto element) {
    if constexpr (sizeof element <= 4) {
      if (packed) return f(element, std::true_type());
    }
    f(element, std::false_type());
  });
}

bool is_contiguous(int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride) {
  return rows * cols == 0 || (col_stride == 1 && (rows == 1 || row_stride == cols));
}

}  // namespace

void quantize(const Context& c, const QuantizeArgs& given_args) {
  QuantizeArgs args = given_args;
  FloatRows& x = args.x;
  if (args.per_tensor) {
    args.groups = 1;
    args.group_size = x.cols;
  }
  if (is_contiguous(x.rows, x.cols, x.row_stride, x.col_stride) &&
      is_contiguous(x.rows, x.cols, args.data_row_stride, 1)) {
    flatten(args.per_tensor, &x.rows, &args.groups, &args.group_size);
    x.row_stride = args.data_row_stride = x.cols = args.group_size;
  }
  const int64_t scales = args.per_tensor ? 1 : x.rows * args.groups;
  if (scales == 0) return;
  const bool packed = !args.mask && !args.stochastic &&
                      can_pack(x.data, x.dtype, x.rows, x.row_stride, x.col_stride, args.group_size) &&
                      can_pack_bytes(args.data, x.dtype, x.rows, args.data_row_stride, 1);
  with_unit(x.dtype, packed, [&](auto element, auto is_packed) {
    using T = decltype(element);
    constexpr bool kPacked = decltype(is_packed)::value;
    const Teams teams = make_teams<Unit<T, kPacked>>(x.rows, args.groups, args.group_size,
                                                     args.per_tensor ? kPartTeam : kMaxTeam);
    const auto run = [&](Step step, uint2* ranges) {
      launch<quantize_spans<T, kPacked>>(c, "quantize", teams.grid(), teams.block(), 0, args, teams, step,
                                         ranges);
    };
    if (args.given) return run(Step::round, nullptr);
    if (teams.pieces == scales) return run(Step::whole, nullptr);
    uint2* ranges = c.workspace<uint2>(scales);
    zero(c, ranges, scales * static_cast<int64_t>(sizeof(uint2)));
    run(Step::range, ranges);
    run(Step::round, ranges);
  });
}

void dequantize(const Context& c, const DequantizeArgs& given_args) {
  DequantizeArgs args = given_args;
  const int64_t cols = args.groups * args.group_size;
  if (args.rows * cols == 0) return;
  if (args.per_tensor) {
    args.groups = 1;
    args.group_size = cols;
  }
  if (is_contiguous(args.rows, cols, args.row_stride, args.col_stride) &&
      is_contiguous(args.rows, cols, args.out_row_stride, 1)) {
    flatten(args.per_tensor, &args.rows, &args.groups, &args.group_size);
    args.row_stride = args.out_row_stride = args.group_size;
  }
  const bool packed =
      can_pack(args.out, args.out_dtype, args.rows, args.out_row_stride, 1, args.group_size) &&
      can_pack_bytes(args.data, args.out_dtype, args.rows, args.row_stride, args.col_stride);
  with_unit(args.out_dtype, packed, [&](auto element, auto is_packed) {
    using T = decltype(element);
    constexpr bool kPacked = decltype(is_packed)::value;
    const Teams teams = make_teams<Unit<T, kPacked>>(args.rows, args.groups, args.group_size, kPartTeam);
    launch<dequantize_spans<T, kPacked>>(c, "dequantize", teams.grid(), teams.block(), 0, args, teams);
  });
}

NonFinite count_nonfinite(const Context& c, const FloatRows& given_x) {
  FloatRows x = given_x;
  if (x.rows * x.cols == 0) return {0, -1};
  if (is_contiguous(x.rows, x.cols, x.row_stride, x.col_stride)) {
    x.cols *= x.rows;
    x.rows = 1;
  }
  Found* found = c.workspace<Found>(1);
  zero(c, found, sizeof(Found));
  const bool packed = can_pack(x.data, x.dtype, x.rows, x.row_stride, x.col_stride, x.cols);
  with_unit(x.dtype, packed, [&](auto element, auto is_packed) {
    using T = decltype(element);
    constexpr bool kPacked = decltype(is_packed)::value;
    const Teams teams = make_teams<Unit<T, kPacked>>(x.rows, 1, x.cols, kPartTeam);
    launch<count_spans<T, kPacked>>(c, "count_nonfinite", teams.grid(), teams.block(), 0, x, teams, found);
  });
  Found result;
  read_back(c, &result, found, sizeof result);
  return {static_cast<int64_t>(result.count), static_cast<int64_t>(result.count ? ~result.first : ~0ull)};
}

}  // namespace cuda
}  // namespace octavo
