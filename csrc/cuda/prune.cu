// Masks by magnitude, of a list of tensors or of one that is quantized by rows in the same pass. Memory bounds both: 16 bytes
// of w at a time, all results of a pack in one store each.
#include "octavo_cuda.h"
#include "segments.cuh"

namespace octavo {
namespace cuda {
namespace {

__device__ __forceinline__ Selection chosen(const SelectionArg& selection) {
  return selection.device ? *selection.device : selection.value;
}

// A selection, seen from an array that begins at `index` of the whole list.
struct Rule {
  uint32_t key;
  int64_t keep_equal_from;
  __device__ __forceinline__ Rule(const Selection& selection, int64_t index)
      : key(selection.key), keep_equal_from(selection.keep_equal_from - index) {}
};

// The same, seen from a pack of kCount elements that begins at `index` of the array.
template <int kCount>
struct PackRule {
  uint32_t key;
  int keep_equal_from;
  __device__ __forceinline__ PackRule(const Rule& rule, int64_t index) : key(rule.key) {
    const int64_t from = rule.keep_equal_from - index;
    keep_equal_from = static_cast<int>(from < 0 ? 0 : (from < kCount ? from : kCount));
  }
  __device__ __forceinline__ bool keeps(uint32_t other, int i) const {
    return other >= key + static_cast<uint32_t>(i < keep_equal_from);  // an "or" would be a branch
  }
};

// ---- prune: a block for every kTile elements of the list -------------------------------------------------------------

constexpr int kPruneThreads = 256;
constexpr int kTile = 1 << 14;

template <class T>
__device__ __forceinline__ void prune_array(const T* w, int n, const Rule& rule, bool* mask, T* pruned) {
  constexpr int kCount = Pack<T>::kCount, kAtOnce = 4;
  const int t = static_cast<int>(threadIdx.x);
  const int head = unaligned_head(w) < n ? unaligned_head(w) : n;
  const bool aligned =
      (!mask || is_aligned(mask + head, kCount)) && (!pruned || is_aligned(pruned + head, 16));
  const int packs = aligned ? (n - head) / kCount : 0;
  for (int first = t; first < packs; first += kAtOnce * kPruneThreads) {
    Pack<T> held[kAtOnce];  // all are read before any is written: pruned may be w
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int p = first + u * kPruneThreads;
      if (p < packs) held[u] = load_pack(w + head + p * kCount);
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int p = first + u * kPruneThreads, at = head + p * kCount;
      if (p >= packs) break;
      const PackRule<kCount> pack_rule(rule, at);
      PackedBytes<kCount> kept_bytes = 0;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const bool kept = pack_rule.keeps(magnitude_key(to_float(held[u].v[i])), i);
        kept_bytes |= static_cast<PackedBytes<kCount>>(static_cast<PackedBytes<kCount>>(kept) << (8 * i));
        if (!kept) held[u].v[i] = T();
      }
      if (mask) __stcs(reinterpret_cast<PackedBytes<kCount>*>(mask + at), kept_bytes);
      if (pruned) store_pack(pruned + at, held[u]);
    }
  }
  for (int i = t; i < n - packs * kCount; i += kPruneThreads) {
    const int at = i < head ? i : i + packs * kCount;
    const T v = w[at];
    const bool kept = PackRule<1>(rule, at).keeps(magnitude_key(to_float(v)), 0);
    if (mask) mask[at] = kept;
    if (pruned) pruned[at] = kept ? v : T();
  }
}

// The segments of type T: one kernel for all types would need twice the registers.
template <class T>
__global__ void __launch_bounds__(kPruneThreads)
    prune_tiles(SegmentList list, DType dtype, SelectionArg selection) {
  const Selection s = chosen(selection);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t end = begin + kTile < list.total ? begin + kTile : list.total;
  for_segments(list, begin, end, [&](const DeviceSegment& segment, int64_t first, int64_t last) {
    if (segment.dtype != dtype) return;
    prune_array(static_cast<const T*>(segment.w) + first, static_cast<int>(last - first),
                Rule(s, segment.first + first), segment.mask ? segment.mask + first : nullptr,
                segment.pruned ? static_cast<T*>(segment.pruned) + first : nullptr);
  });
}

// ---- prune_quantize: a row stays in the registers of a block, or of a warp -------------------------------------------

constexpr int kMaxRowThreads = 1024;
constexpr int kHeld = 4;  // pieces of a row in each thread's registers; what a row has beyond is read twice
constexpr int kWarpRows = 4;  // rows of a block where a warp holds each

// kCount neighbours of a row: 16 bytes, or one element of rows that are not aligned.
template <class T, int kCount>
struct Piece {
  T v[kCount];
};
template <class T>
__device__ __forceinline__ Piece<T, 1> load_piece(const T* p, Piece<T, 1>) {
  return {{*p}};
}
template <class T>
__device__ __forceinline__ Piece<T, Pack<T>::kCount> load_piece(const T* p, Piece<T, Pack<T>::kCount>) {
  Piece<T, Pack<T>::kCount> piece;
  const Pack<T> pack = load_constant(p);
  memcpy(&piece, &pack, sizeof piece);
  return piece;
}

__device__ __forceinline__ uint32_t block_max(uint32_t v) {
  __shared__ uint32_t warps[kWarp];
  const int t = static_cast<int>(threadIdx.x);
  v = __reduce_max_sync(kAllLanes, v);
  if (t % kWarp == 0) warps[t / kWarp] = v;
  __syncthreads();
  const int lane = t % kWarp;
  return __reduce_max_sync(kAllLanes, lane < static_cast<int>(blockDim.x) / kWarp ? warps[lane] : 0);
}

template <class T, int kCount, bool kWarpHoldsRow>
__global__ void __launch_bounds__(kMaxRowThreads, 1) prune_quantize_rows(PruneQuantizeArgs args) {
  using Word = PackedBytes<kCount>;
  const int lanes = kWarpHoldsRow ? kWarp : static_cast<int>(blockDim.x);
  const int t = static_cast<int>(threadIdx.x) % lanes;
  const int64_t row = kWarpHoldsRow ? static_cast<int64_t>(blockIdx.x) * kWarpRows + threadIdx.x / kWarp
                                    : static_cast<int64_t>(blockIdx.x);
  if (row >= args.rows) return;
  const Rule rule(chosen(args.selection), row * args.cols);
  const T* w = static_cast<const T*>(args.w) + row * args.cols;
  bool* mask = args.mask + row * args.cols;
  int8_t* data = args.data + row * args.cols;
  const int64_t pieces = args.cols / kCount, beyond = t + static_cast<int64_t>(kHeld) * lanes;
  const auto load = [&](int64_t p) { return load_piece(w + p * kCount, Piece<T, kCount>()); };

  uint32_t top = 0;  // the largest finite key that is kept
  const auto write_mask = [&](const Piece<T, kCount>& piece, int64_t p) {
    const PackRule<kCount> pack_rule(rule, p * kCount);
    Word kept_bytes = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const uint32_t key = magnitude_key(to_float(piece.v[i]));
      const bool kept = pack_rule.keeps(key, i);
      kept_bytes |= static_cast<Word>(static_cast<Word>(kept) << (8 * i));
      if (kept && key < kInfKey && key > top) top = key;
    }
    __stcs(reinterpret_cast<Word*>(mask) + p, kept_bytes);
  };
  Piece<T, kCount> held[kHeld];
#pragma unroll
  for (int u = 0; u < kHeld; ++u) {
    if (t + u * lanes < pieces) held[u] = load(t + u * lanes);
  }
#pragma unroll
  for (int u = 0; u < kHeld; ++u) {
    if (t + u * lanes < pieces) write_mask(held[u], t + u * lanes);
  }
  for (int64_t p = beyond; p < pieces; p += lanes) write_mask(load(p), p);

  top = kWarpHoldsRow ? __reduce_max_sync(kAllLanes, top) : block_max(top);
  const Affine affine = symmetric_affine(float_of(top));
  if (t == 0) args.scale[row] = affine.scale;

  const auto quantize = [&](const Piece<T, kCount>& piece, int64_t p) {
    const PackRule<kCount> pack_rule(rule, p * kCount);
    Word q = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float v = to_float(piece.v[i]);
      const uint32_t key = magnitude_key(v);
      const bool counts = pack_rule.keeps(key, i) && key != kNanKey;
      float scaled = counts ? __fmul_rn(v, affine.inv) : 0.0f;
      scaled = scaled > 127.0f ? 127.0f : (scaled < -127.0f ? -127.0f : scaled);
      const auto byte = static_cast<uint8_t>(__float2int_rn(scaled));
      q |= static_cast<Word>(static_cast<Word>(byte) << (8 * i));
    }
    __stcs(reinterpret_cast<Word*>(data) + p, q);
  };
#pragma unroll
  for (int u = 0; u < kHeld; ++u) {
    if (t + u * lanes < pieces) quantize(held[u], t + u * lanes);
  }
  for (int64_t p = beyond; p < pieces; p += lanes) quantize(load(p), p);
}

template <class T, int kCount>
void launch_rows(const Context& c, const PruneQuantizeArgs& args) {
  constexpr const char* kName = "prune_quantize_rows";
  const int64_t pieces = args.cols / kCount;
  if (pieces <= kHeld * kWarp) {
    const auto blocks = static_cast<unsigned>((args.rows + kWarpRows - 1) / kWarpRows);
    return launch<prune_quantize_rows<T, kCount, true>>(c, kName, blocks, kWarpRows * kWarp, 0, args);
  }
  int threads = 2 * kWarp;
  while (threads < kMaxRowThreads && threads * kHeld < pieces) threads *= 2;
  launch<prune_quantize_rows<T, kCount, false>>(c, kName, static_cast<unsigned>(args.rows),
                                                static_cast<unsigned>(threads), 0, args);
}

}  // namespace

void prune(const Context& c, const Segment* segments, int64_t count, const SelectionArg& selection) {
  const SegmentList list = upload(c, segments, count);
  const auto blocks = static_cast<unsigned>((list.total + kTile - 1) / kTile);
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::f64}) {
    if (!has_dtype(segments, count, dtype)) continue;
    with_dtype(dtype, [&](auto type) {
      launch<prune_tiles<decltype(type)>>(c, "prune_tiles", blocks, kPruneThreads, 0, list, dtype, selection);
    });
  }
}

void prune_quantize(const Context& c, const PruneQuantizeArgs& args) {
  if (args.rows == 0) return;
  with_dtype(args.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kCount = Pack<T>::kCount;
    const bool aligned = args.cols % kCount == 0 && is_aligned(args.w, 16) && is_aligned(args.mask, kCount) &&
                         is_aligned(args.data, kCount);
    if (aligned) return launch_rows<T, kCount>(c, args);
    launch_rows<T, 1>(c, args);
  });
}

}  // namespace cuda
}  // namespace octavo
