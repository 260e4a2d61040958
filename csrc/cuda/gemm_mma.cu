// Many rows of A: mma.sync on tiles in shared memory, for every device from sm_80 on. cp.async fills kStages tiles of 64
// bytes of k, three ahead; ldmatrix reads them without bank conflicts (swizzled, tiles.h) into fragments, one step of 32
// bytes ahead of the tensor cores.
//
// big: 128 x 256, 8 warps of 64 x 64, 128 accumulators of each thread; 96 KiB of shared memory, one block on a
// multiprocessor. Smaller warp tiles would read more shared memory, smaller blocks more of L2, than either can deliver.
// small: 64 x 128, 4 warps of 32 x 64, 48 KiB, three blocks: for few rows and small weights.
#include "octavo_cuda.h"
#include "product.cuh"
#include "ptx.cuh"

namespace octavo {
namespace cuda {
namespace {

constexpr int kStages = 4;
constexpr int kMmaM = 16, kMmaN = 8, kMmaK = 32;
constexpr int kSteps = kTileK / kMmaK;  // of a stage
static_assert(kSteps == 2, "the step's parity chooses the fragments");

struct Big {
  static constexpr TileShape kTile = kBigTile;
  static constexpr int kWarpsM = 2, kWarpsN = 4;
};
struct Small {
  static constexpr TileShape kTile = kSmallTile;
  static constexpr int kWarpsM = 2, kWarpsN = 2;
};

template <class Shape>
struct Sizes {
  static constexpr int kM = Shape::kTile.m, kN = Shape::kTile.n;
  static constexpr int kThreads = kWarp * Shape::kWarpsM * Shape::kWarpsN;
  static constexpr int kWarpM = kM / Shape::kWarpsM, kWarpN = kN / Shape::kWarpsN;
  static constexpr int kTilesM = kWarpM / kMmaM, kTilesN = kWarpN / kMmaN;  // of a warp's mma
  static constexpr int kStageBytes = (kM + kN) * kTileK;
  static constexpr int kSums = kTilesM * kTilesN;  // int4 of a thread
};

// The share of one thread in copying kRows rows of an operand, stage after stage: a chunk of every kPass-th row.
template <int kRows, int kThreads>
class Copier {
 public:
  // rows: from `first` on, of `count` rows; bytes from k on.
  __device__ __forceinline__ Copier(const int8_t* operand, int64_t pitch, int64_t first, int64_t count, int k)
      : from_(operand + (first + row()) * pitch + k + column()),
        pass_bytes_(pitch * kPass),
        rows_(static_cast<int>(count - first < kRows ? count - first : kRows) - row()) {}

  // The next kTileK bytes of the rows, `rest` of them before the end; zeros from there and from the last row on.
  __device__ __forceinline__ void copy(int8_t* to, int rest) {
    const int rows = column() < rest ? rows_ : 0;
    OCTAVO_UNROLL
    for (int i = 0; i < kRows / kPass; ++i) {
      ptx::cp_async_16(to + swizzled(row(), threadIdx.x % kRowChunks) + i * kPass * kTileK,
                       from_ + i * pass_bytes_, i * kPass < rows);
    }
    from_ += kTileK;
  }

 private:
  static constexpr int kPass = kThreads / kRowChunks;
  static_assert(kRows % kPass == 0 && kPass % 8 == 0, "a pass keeps the swizzle");
  static __device__ __forceinline__ int row() { return threadIdx.x / kRowChunks; }
  static __device__ __forceinline__ int column() { return threadIdx.x % kRowChunks * kChunk; }
  const int8_t* from_;
  int64_t pass_bytes_;
  int rows_;
};

template <class Shape>
struct Fragments {
  using S = Sizes<Shape>;
  uint32_t a[S::kTilesM][4], b[S::kTilesN / 2][4];

  // a_rows, b_rows: the lane's swizzled place in the warp's rows of a stage, at its first step.
  __device__ __forceinline__ void load(const int8_t* a_rows, const int8_t* b_rows) {
    OCTAVO_UNROLL
    for (int i = 0; i < S::kTilesM; ++i) ptx::ldmatrix_x4(a[i], a_rows + i * kMmaM * kTileK);
    OCTAVO_UNROLL
    for (int j = 0; j < S::kTilesN / 2; ++j) ptx::ldmatrix_x4(b[j], b_rows + j * 2 * kMmaN * kTileK);
  }
  __device__ __forceinline__ void multiply(int32_t (&acc)[S::kTilesM][S::kTilesN][4]) const {
    OCTAVO_UNROLL
    for (int i = 0; i < S::kTilesM; ++i) {
      OCTAVO_UNROLL
      for (int j = 0; j < S::kTilesN; ++j) {
        const uint32_t right[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
        ptx::mma_m16n8k32_s8(acc[i][j], a[i], right);
      }
    }
  }
};

// A split's sums, as the threads hold them.
template <class Shape>
__device__ __forceinline__ void save(const int32_t (&acc)[Sizes<Shape>::kTilesM][Sizes<Shape>::kTilesN][4],
                                     int4* sums) {
  using S = Sizes<Shape>;
  OCTAVO_UNROLL
  for (int i = 0; i < S::kSums; ++i) {
    const int32_t (&v)[4] = acc[i / S::kTilesN][i % S::kTilesN];
    sums[i * S::kThreads] = make_int4(v[0], v[1], v[2], v[3]);
  }
}
template <class Shape>
__device__ __forceinline__ void add(const int4* sums,
                                    int32_t (&acc)[Sizes<Shape>::kTilesM][Sizes<Shape>::kTilesN][4]) {
  using S = Sizes<Shape>;
  OCTAVO_UNROLL
  for (int i = 0; i < S::kSums; ++i) {
    const int4 v = sums[i * S::kThreads];
    int32_t (&to)[4] = acc[i / S::kTilesN][i % S::kTilesN];
    to[0] += v.x;
    to[1] += v.y;
    to[2] += v.z;
    to[3] += v.w;
  }
}

// A warp's sums go out through its part of shared memory, 32 rows at a time, so that lanes hold adjacent columns. Rows are
// 8 words more than a multiple of the banks apart: neither the writes nor the reads conflict.
template <class Shape>
struct Exit {
  using S = Sizes<Shape>;
  static constexpr int kTiles = 2, kRows = kTiles * kMmaM, kPitch = S::kWarpN + 8;
  static constexpr int kColumns = 4, kLanes = S::kWarpN / kColumns;  // of a lane; of a row
  static_assert(kPitch % 32 == 8, "free of bank conflicts");
  static_assert(S::kTilesM % kTiles == 0, "whole passes");
  static_assert(Shape::kWarpsM * Shape::kWarpsN * kRows * kPitch * 4 <= kStages * S::kStageBytes, "room");
};
template <class Shape>
__device__ __forceinline__ void finish(const int32_t (&acc)[Sizes<Shape>::kTilesM][Sizes<Shape>::kTilesN][4],
                                       const Product& p, int64_t first_row, int first_column,
                                       int32_t* shared) {
  using E = Exit<Shape>;
  const int lane = threadIdx.x % kWarp, column = lane % E::kLanes * E::kColumns;
  const Columns<E::kColumns> columns(p.epilogue, first_column + column, p.n);
  OCTAVO_UNROLL
  for (int first = 0; first < E::S::kTilesM; first += E::kTiles) {
    __syncwarp();  // the rows before are read
    OCTAVO_UNROLL
    for (int i = 0; i < E::kTiles * E::S::kTilesN * 2; ++i) {
      const int tile = i / 2 / E::S::kTilesN, j = i / 2 % E::S::kTilesN, half = i % 2;
      const int32_t (&v)[4] = acc[first + tile][j];
      const int row = tile * kMmaM + mma_row(lane, 2 * half);
      *reinterpret_cast<int2*>(shared + row * E::kPitch + j * kMmaN + mma_column(lane, 0)) =
          make_int2(v[2 * half], v[2 * half + 1]);
    }
    __syncwarp();
    OCTAVO_ROLLED
    for (int r = lane / E::kLanes; r < E::kRows; r += kWarp / E::kLanes) {
      const int64_t row = first_row + first * kMmaM + r;
      if (row >= p.m) break;
      const int4 v = *reinterpret_cast<const int4*>(shared + r * E::kPitch + column);
      columns.finish(row, {v.x, v.y, v.z, v.w});
    }
  }
}

template <class Shape>
__global__ void __launch_bounds__(Sizes<Shape>::kThreads, Shape::kTile.blocks)
    gemm_mma(Product p, GemmPlan plan, Splits splits) {
  using S = Sizes<Shape>;
  int8_t* const shared = dynamic_shared<int8_t>();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warp_m = warp / Shape::kWarpsN * S::kWarpM, warp_n = warp % Shape::kWarpsN * S::kWarpN;
  const TileIndex tile = tile_of(blockIdx.x, ceil_div(p.m, S::kM), ceil_div(p.n, S::kN), S::kM);
  const int64_t first_m = tile.m * S::kM;
  const int first_n = static_cast<int>(tile.n) * S::kN;

  const int padded_k = static_cast<int>(ceil_div(p.k, kChunk)) * kChunk;
  const int begin = static_cast<int>(blockIdx.y * plan.steps) * kTileK;
  const int rest = static_cast<int>(ceil_div(padded_k - begin, kTileK));
  const int stages = rest < plan.steps ? rest : static_cast<int>(plan.steps);
  Copier<S::kM, S::kThreads> a(p.a, p.a_pitch, first_m, p.m, begin);
  Copier<S::kN, S::kThreads> b(p.b, p.b_pitch, first_n, p.n, begin);
  const auto copy_stage = [&](int stage) {
    if (stage < stages) {
      int8_t* const to = shared + stage % kStages * S::kStageBytes;
      a.copy(to, padded_k - begin - stage * kTileK);
      b.copy(to + S::kM * kTileK, padded_k - begin - stage * kTileK);
    }
    ptx::cp_async_commit();  // an empty group, too, keeps the count
  };
  OCTAVO_UNROLL
  for (int stage = 0; stage < kStages - 1; ++stage) copy_stage(stage);

  const RowChunk of_a = ldmatrix_a(lane), of_b = ldmatrix_b(lane);
  const int a_at = swizzled(warp_m + of_a.row, of_a.chunk);
  const int b_at = S::kM * kTileK + swizzled(warp_n + of_b.row, of_b.chunk);
  Fragments<Shape> fragments[kSteps];
  const auto load_fragments = [&](int stage, int step) {
    const int8_t* const from = shared + stage % kStages * S::kStageBytes;
    const int flip = step * kMmaK;  // chunks are exclusive-ored: so is a step of two chunks
    fragments[step].load(from + (a_at ^ flip), from + (b_at ^ flip));
  };
  // The next stage is there for all threads, and no thread reads the one before this any more.
  const auto await_stage = [&] {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();
  };

  int32_t acc[S::kTilesM][S::kTilesN][4] = {};
  await_stage();
  if (stages > 0) load_fragments(0, 0);
  for (int stage = 0; stage < stages; ++stage) {
    load_fragments(stage, 1);
    copy_stage(stage + kStages - 1);
    fragments[0].multiply(acc);
    await_stage();
    load_fragments(stage + 1, 0);  // behind the last stage: of what is not multiplied
    fragments[1].multiply(acc);
  }

  if (gridDim.y > 1) {
    constexpr int kSize = S::kSums * S::kThreads;
    int4* sums = reinterpret_cast<int4*>(splits.sums) + static_cast<int64_t>(blockIdx.x) * gridDim.y * kSize +
                 threadIdx.x;
    const bool has_rows = first_m + warp_m < p.m;  // warps without any leave no sums
    if (has_rows) save<Shape>(acc, sums + static_cast<int64_t>(blockIdx.y) * kSize);
    if (!last_to_arrive(splits.arrived + blockIdx.x, gridDim.y)) return;
    OCTAVO_ROLLED
    for (unsigned s = 0; s < gridDim.y; ++s, sums += kSize) {
      if (has_rows && s != blockIdx.y) add<Shape>(sums, acc);
    }
  }
  ptx::cp_async_wait<0>();
  __syncthreads();  // all stages are read
  finish<Shape>(acc, p, first_m + warp_m, first_n + warp_n,
                reinterpret_cast<int32_t*>(shared) + warp * Exit<Shape>::kRows * Exit<Shape>::kPitch);
}

template <class Shape>
void launch_gemm(const Context& c, const Product& p, const GemmPlan& plan) {
  using S = Sizes<Shape>;
  const int64_t tiles = ceil_div(p.m, S::kM) * ceil_div(p.n, S::kN);
  const Splits splits = allocate_splits(c, tiles, plan.splits, S::kM * S::kN);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(plan.splits));
  launch<gemm_mma<Shape>>(c, "gemm_mma", grid, S::kThreads, kStages * S::kStageBytes, p, plan, splits);
}

}  // namespace

void gemm_mma(const Context& c, const Product& p) {
  const GemmPlan plan = plan_gemm(p.m, p.n, p.k, c.multiprocessors, c.capability);
  if (plan.big) {
    launch_gemm<Big>(c, p, plan);
  } else {
    launch_gemm<Small>(c, p, plan);
  }
}

}  // namespace cuda
}  // namespace octavo
