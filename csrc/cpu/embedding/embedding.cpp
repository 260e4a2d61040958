// Lookups in an int8 table: rows, or bags of rows, by threads. Rows lie anywhere in memory, so those that come next are
// asked for early.
#include <algorithm>
#include <atomic>

#include "cpu/rows.h"
#include "parallel.h"

namespace octavo {
namespace {

constexpr int64_t kGrain = 1 << 15;       // elements worth a thread
constexpr int64_t kCheckGrain = 1 << 17;  // indices worth a thread
constexpr int64_t kRowsAhead = 16;

int64_t at(const Integers& v, int64_t i) {
  return v.wide ? static_cast<const int64_t*>(v.data)[i] : static_cast<const int32_t*>(v.data)[i];
}

int64_t grain_of(int64_t elements) { return kGrain / (elements + 1) + 1; }

void prefetch_row(const EmbeddingTable& table, const Integers& indices, int64_t i) {
  if (i >= indices.count) return;
  const int64_t row = at(indices, i);
  prefetch_ahead(table.data + row * table.dim, table.dim, 0);
  __builtin_prefetch(table.scale + row);
}

}  // namespace

int64_t first_outside(const EmbeddingTable& table, const Integers& indices, int threads) {
  std::atomic<int64_t> first{indices.count};
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = at(indices, i);
      if (row >= 0 && row < table.entries) continue;
      int64_t found = first.load();
      while (i < found && !first.compare_exchange_weak(found, i)) {
      }
      return;
    }
  };
  parallel_for(indices.count, kCheckGrain, threads, body);
  return first.load() == indices.count ? -1 : first.load();
}

void embedding(const EmbeddingTable& table, const Integers& indices, void* out, DType out_dtype,
               int threads) {
  const int64_t bytes = table.dim * size_of(out_dtype);
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      prefetch_row(table, indices, i + kRowsAhead);
      const int64_t row = at(indices, i);
      kernels().quantize->dequantize(table.data + row * table.dim, table.dim, 0, table.scale[row],
                                     static_cast<char*>(out) + i * bytes, out_dtype);
    }
  };
  parallel_for(indices.count, grain_of(table.dim), threads, body);
}

void embedding_bag(const EmbeddingBagArgs& args, int threads) {
  const EmbeddingTable& table = args.table;
  const int64_t dim = table.dim, bytes = dim * size_of(args.out_dtype);
  auto bag = [&](int64_t number, float* total) {
    const EmbeddingKernels& kernel = *kernels().embedding;
    const bool is_max = args.mode == BagMode::max;
    std::fill(total, total + dim, is_max ? -__builtin_inff() : 0.0f);
    BagRow rows[kRowsAhead];
    int64_t kept = 0;
    for (int64_t i = number ? args.ends[number - 1] : 0; i < args.ends[number]; i += kRowsAhead) {
      int64_t found = 0;
      for (int64_t j = i; j < std::min(i + kRowsAhead, args.ends[number]); ++j) {
        prefetch_row(table, args.indices, j + kRowsAhead);
        const int64_t row = at(args.indices, j);
        if (row == args.padding) continue;
        rows[found++] = {table.data + row * dim, table.scale[row], args.weights ? args.weights[j] : 1.0f};
      }
      (is_max ? kernel.max : kernel.add)(rows, found, dim, total);
      kept += found;
    }
    if (kept == 0) std::fill(total, total + dim, 0.0f);
    const float divisor = args.mode == BagMode::mean && kept ? static_cast<float>(kept) : 1.0f;
    kernel.divide(total, dim, divisor, static_cast<char*>(args.out) + number * bytes, args.out_dtype);
  };
  auto body = [&](int64_t begin, int64_t end) {
    auto* total = static_cast<float*>(scratch(Slot::rows, dim * 4));
    for (int64_t number = begin; number < end; ++number) bag(number, total);
  };
  const int64_t per_bag = args.bags ? args.indices.count / args.bags + 1 : 1;
  parallel_for(args.bags, grain_of(dim * per_bag), threads, body);
}

}  // namespace octavo
