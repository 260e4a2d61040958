// The driver of every product: A is staged once as int8 rows of whole 16-byte chunks, then multiplied by each weight. Up to 16
// rows the time is that of reading the weight: gemv; above, gemm. Packing is here because it is the same staging.
#include "check.h"
#include "octavo_cuda.h"
#include "product.cuh"

namespace octavo {
namespace cuda {
namespace {

constexpr int kCopyTile = 64, kCopyThreads = 256;
constexpr int kTileChunks = kCopyTile / kChunk;
static_assert(kCopyThreads == kCopyTile * kTileChunks, "a chunk for each thread");

// Bytes with any strides.
struct ByteRows {
  const int8_t* data;
  int64_t rows, cols, row_stride, col_stride;
};

// Copies a tile to rows of `pitch` bytes, a multiple of 16, with zeros from cols and from rows on. What is read is adjacent
// for adjacent threads whichever stride is smaller. flip is exclusive-ored into each byte that is read; sums, if given,
// zeroed, get those of the rows.
__global__ void __launch_bounds__(kCopyThreads)
    copy_rows(ByteRows from, uint8_t flip, int8_t* to, int64_t to_rows, int64_t pitch, int32_t* sums) {
  alignas(16) __shared__ uint8_t tile[kCopyTile][kCopyTile + kChunk];
  const int64_t tiles_across = ceil_div(pitch, kCopyTile);
  const int64_t first_row = blockIdx.x / tiles_across * kCopyTile;
  const int64_t first_col = blockIdx.x % tiles_across * kCopyTile;
  const int thread = threadIdx.x, along = thread % kCopyTile, across = thread / kCopyTile;
  const bool rows_adjacent = from.row_stride == 1 && from.col_stride != 1;
  OCTAVO_UNROLL
  for (int i = across; i < kCopyTile; i += kCopyThreads / kCopyTile) {
    const int r = rows_adjacent ? along : i, c = rows_adjacent ? i : along;
    const int64_t row = first_row + r, col = first_col + c;
    const bool inside = row < from.rows && col < from.cols;
    tile[r][c] =
        inside ? static_cast<uint8_t>(from.data[row * from.row_stride + col * from.col_stride] ^ flip) : 0;
  }
  __syncthreads();
  const int r = thread / kTileChunks, at = thread % kTileChunks * kChunk;
  const int64_t row = first_row + r, col = first_col + at;
  const uint4 v = *reinterpret_cast<const uint4*>(&tile[r][at]);
  if (row < to_rows && col < pitch) *reinterpret_cast<uint4*>(to + row * pitch + col) = v;
  if (!sums) return;
  int sum = 0;
  for (const unsigned word : {v.x, v.y, v.z, v.w}) sum = __dp4a(static_cast<int>(word), 0x01010101, sum);
  sum += __shfl_xor_sync(kAllLanes, sum, 1);
  sum += __shfl_xor_sync(kAllLanes, sum, 2);
  static_assert(kTileChunks == 4, "the lanes of a row");
  if (at == 0 && row < from.rows) atomicAdd(sums + row, sum);
}

void launch_copy_rows(const Context& c, const ByteRows& from, uint8_t flip, int8_t* to, int64_t to_rows,
                      int64_t pitch, int32_t* sums) {
  const int64_t tiles = ceil_div(to_rows, kCopyTile) * ceil_div(pitch, kCopyTile);
  if (tiles == 0) return;
  launch<copy_rows>(c, "copy_rows", static_cast<unsigned>(tiles), kCopyThreads, 0, from, flip, to, to_rows,
                    pitch, sums);
}

__global__ void write_header(PackedHeader header, PackedHeader* to) { *to = header; }

// A warp for each row of k bytes.
__global__ void __launch_bounds__(kCopyThreads)
    unpack_rows(const int8_t* rows, int64_t pitch, int64_t n, int64_t k, int8_t* w) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kCopyThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= n) return;
  for (int64_t i = threadIdx.x % kWarp; i < k; i += kWarp) w[row * k + i] = rows[row * pitch + i];
}

// A few rows of float x: each block of gemv reads them for itself sooner than a kernel before it would have them ready.
constexpr int64_t kFusedBytes = 32 << 10;
bool is_fused(const LinearArgs& args) {
  const int64_t size = args.x.dtype == DType::f64 ? 8 : args.x.dtype == DType::f32 ? 4 : 2;
  return args.quantize_x && !args.asymmetric_x && args.m <= kFusedRows &&
         args.m * args.k * size <= kFusedBytes;
}

// int8 rows as the kernels read them, their scales and zero points (or nullptr).
struct Staged {
  const int8_t* rows;
  int64_t pitch;
  const float* scale;
  const int32_t* zero_point;
};

Staged stage(const Context& c, const LinearArgs& args) {
  const int64_t pitch = round_up(args.k, kChunk);
  if (args.quantize_x) {
    int8_t* const rows = c.workspace<int8_t>(args.m * pitch);
    float* const scale = c.workspace<float>(args.m);
    int32_t* const zero_point = args.asymmetric_x ? c.workspace<int32_t>(args.m) : nullptr;
    if (args.k != pitch) zero(c, rows, args.m * pitch);  // the ends of the rows
    quantize(c, {args.x, 1, args.k, nullptr, rows, pitch, scale, zero_point, false, false, false, 0});
    return {rows, pitch, scale, zero_point};
  }
  const auto* a = static_cast<const int8_t*>(args.a);
  const bool whole = args.a_col_stride == 1 && args.k == pitch;
  if (args.a_signed && whole && (reinterpret_cast<intptr_t>(a) | args.a_row_stride) % kChunk == 0) {
    return {a, args.a_row_stride, args.a_scale, args.a_zero_point};
  }
  int8_t* const rows = c.workspace<int8_t>(args.m * pitch);
  const uint8_t flip = args.a_signed ? 0 : 0x80;
  launch_copy_rows(c, {a, args.m, args.k, args.a_row_stride, args.a_col_stride}, flip, rows, args.m, pitch,
                   nullptr);
  return {rows, pitch, args.a_scale, args.a_zero_point};
}

Epilogue epilogue_of(const LinearArgs& args, const Staged& staged, const LinearTarget& target) {
  Epilogue e;
  e.colsum = target.colsum;
  e.offset = args.quantize_x || args.a_signed ? 0 : -128;
  e.row_zero_point = staged.zero_point;
  e.row_scale = staged.scale;
  e.col_scale = target.w_scale;
  e.bias = target.bias;
  e.bias_dtype = target.bias_dtype;
  e.activation = target.activation;
  e.out = target.out;
  e.out_dtype = target.out_dtype;
  e.out_row_stride = target.out_row_stride;
  return e;
}

}  // namespace

void pack_weight(const Context& c, const WeightArgs& args, void* buffer) {
  const PackedParts parts = cuda_packed_parts(args.n, args.k);
  PackedHeader header = {};
  header.magic = PackedHeader::kMagic;
  header.version = PackedHeader::kVersion;
  header.layout = Layout::dense;
  header.isa = PackedHeader::kCudaIsa;
  header.n = args.n;
  header.k = args.k;
  auto* const bytes = static_cast<int8_t*>(buffer);
  zero(c, buffer, parts.weights);
  launch<write_header>(c, "write_header", 1, 1, 0, header, static_cast<PackedHeader*>(buffer));
  launch_copy_rows(c, {args.w, args.n, args.k, args.n_stride, args.k_stride}, 0, bytes + parts.weights,
                   padded_n(args.n), padded_k(args.k), reinterpret_cast<int32_t*>(bytes + colsum_offset()));
}

void unpack_weight(const Context& c, const void* buffer, int64_t n, int64_t k, int8_t* w) {
  if (n == 0 || k == 0) return;
  const int8_t* const rows = static_cast<const int8_t*>(buffer) + cuda_packed_parts(n, k).weights;
  const int64_t blocks = ceil_div(n, kCopyThreads / kWarp);
  launch<unpack_rows>(c, "unpack_rows", static_cast<unsigned>(blocks), kCopyThreads, 0, rows, padded_k(k), n,
                      k, w);
}

void linear(const Context& c, const LinearArgs& args) {
  const bool wide_range = args.quantize_x ? args.asymmetric_x : !args.a_signed || args.a_zero_point;
  const int64_t limit = wide_range ? kMaxKUnsigned : kMaxK;
  if (args.k > limit)
    fail("k", "at most " + std::to_string(limit) + ", so that int32 sums are exact", args.k);
  if (args.m == 0) return;
  const bool fused = is_fused(args);
  const Staged staged = fused ? Staged{} : stage(c, args);
  for (int64_t i = 0; i < args.count; ++i) {
    const LinearTarget& target = args.targets[i];
    if (target.n == 0) continue;
    if (target.n > kMaxN) fail("n", "at most " + std::to_string(kMaxN), target.n);
    const Product product = {staged.rows,
                             staged.pitch,
                             target.rows,
                             target.pitch,
                             args.m,
                             static_cast<int>(target.n),
                             static_cast<int>(args.k),
                             epilogue_of(args, staged, target)};
    if (fused) {
      gemv_quantized(c, args.x, product);
    } else if (args.m <= kGemvMaxM) {
      gemv(c, product);
    } else {
      gemm_mma(c, product);
    }
  }
}

}  // namespace cuda
}  // namespace octavo
