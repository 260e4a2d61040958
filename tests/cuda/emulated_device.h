// The words of CUDA C++ and the wrappers of ptx.cuh, on the host: included by emulator.h.
#pragma once

#define threadIdx (::emulated::fiber->thread)
#define blockIdx (::emulated::block->index)
#define blockDim (::emulated::block->size)
#define gridDim (::emulated::block->grid)

inline void __syncthreads() {
  void* order = &emulated::block->order[emulated::fiber->barriers++ % 2];
  emulated::order_before(order);
  emulated::yield(emulated::Wait::block);
  emulated::order_after(order);
}
inline void __syncwarp(uint32_t mask = 0xFFFFFFFFu) {
  int all[32];
  emulated::Rendezvous& r = emulated::block->warps[{emulated::fiber->index / 32, mask}];
  void* order = &r.order[r.count % 2];
  emulated::order_before(order);
  emulated::exchange(mask, "__syncwarp", 0, all);
  emulated::order_after(order);
}
inline void __threadfence() {
  emulated::fiber->fenced = true;
  if (emulated::fiber->last_atomic) emulated::order_after(emulated::fiber->last_atomic);
}
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(uint32_t mask, T value, int from) {
  return emulated::shuffled(mask, "__shfl_sync", value, from);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes) {
  return emulated::shuffled(mask, "__shfl_xor_sync", value, emulated::lane() ^ lanes);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, int lanes) {
  const int from = emulated::lane() + lanes;
  return emulated::shuffled(mask, "__shfl_down_sync", value, from < 32 ? from : emulated::lane());
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, int lanes) {
  const int from = emulated::lane() - lanes;
  return emulated::shuffled(mask, "__shfl_up_sync", value, from >= 0 ? from : emulated::lane());
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  int all[32] = {};
  emulated::exchange(mask, "__ballot_sync", predicate, all);
  uint32_t votes = 0;
  for (int i = 0; i < 32; ++i) votes |= static_cast<uint32_t>(all[i] != 0) << i;
  return votes & mask;
}
inline int __any_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
template <class T>
T emulated_reduce(uint32_t mask, const char* operation, T value, T (*combine)(T, T)) {
  T all[32];
  emulated::exchange(mask, operation, value, all);
  bool first = true;
  T result = value;
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    result = first ? all[i] : combine(result, all[i]);
    first = false;
  }
  return result;
}
inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t v) {
  return emulated_reduce<uint32_t>(mask, "__reduce_max_sync", v,
                                   [](uint32_t a, uint32_t b) { return a > b ? a : b; });
}
inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t v) {
  return emulated_reduce<uint32_t>(mask, "__reduce_add_sync", v,
                                   [](uint32_t a, uint32_t b) { return a + b; });
}
inline int __reduce_add_sync(uint32_t mask, int v) {
  return emulated_reduce<int>(mask, "__reduce_add_sync", v, [](int a, int b) { return a + b; });
}

// What every atomic does around `update`, which reads and writes *p at once.
template <class T, class F>
T emulated_atomic(T* p, F update) {
  if (emulated::fiber->fenced) emulated::order_before(p);
  T old;
  __atomic_load(p, &old, __ATOMIC_RELAXED);
  T changed = update(old);
  __atomic_store(p, &changed, __ATOMIC_RELAXED);
  emulated::fiber->last_atomic = p;
  return old;
}
template <class T>
T atomicAdd(T* p, T v) {
  return emulated_atomic(p, [v](T old) { return static_cast<T>(old + v); });
}
template <class T>
T atomicMax(T* p, T v) {
  return emulated_atomic(p, [v](T old) { return old > v ? old : v; });
}
template <class T>
T atomicMin(T* p, T v) {
  return emulated_atomic(p, [v](T old) { return old < v ? old : v; });
}
template <class T>
T atomicOr(T* p, T v) {
  return emulated_atomic(p, [v](T old) { return static_cast<T>(old | v); });
}
template <class T>
T atomicExch(T* p, T v) {
  return emulated_atomic(p, [v](T) { return v; });
}
template <class T>
T atomicCAS(T* p, T expected, T v) {
  return emulated_atomic(p, [expected, v](T old) { return old == expected ? v : old; });
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T v) {
  *p = v;
}

inline int __popc(uint32_t v) { return __builtin_popcount(v); }
inline int __clz(uint32_t v) { return v ? __builtin_clz(v) : 32; }
inline int __ffs(uint32_t v) { return __builtin_ffs(static_cast<int>(v)); }
inline uint32_t __brev(uint32_t v) {
  uint32_t r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1) << (31 - i);
  return r;
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t s = selector >> (4 * i) & 15;
    uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (s & 7)) & 0xFF);
    if (s & 8) byte = byte & 0x80 ? 0xFF : 0;
    r |= byte << (8 * i);
  }
  return r;
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  return c;
}
inline uint32_t __float_as_uint(float v) {
  uint32_t u;
  memcpy(&u, &v, sizeof u);
  return u;
}
inline float __uint_as_float(uint32_t u) {
  float v;
  memcpy(&v, &u, sizeof v);
  return v;
}
inline int __float2int_rn(float v) {
  if (v != v) return 0;
  if (!(v < 0x1p31f)) return 0x7FFFFFFF;
  return v < -0x1p31f ? -0x7FFFFFFF - 1 : static_cast<int>(__builtin_nearbyintf(v));
}
inline float __int2float_rn(int v) { return static_cast<float>(v); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }

namespace octavo {
namespace cuda {
namespace ptx {

inline uint4 ld_global_nc_no_allocate(const void* p) {
  uint4 v;
  if (reinterpret_cast<uintptr_t>(p) % 16) emulated::stop("ld.global.v4: a misaligned address");
  memcpy(&v, p, sizeof v);
  return v;
}

inline uint4 ld_global_nc_no_allocate(const void* p, bool valid) {
  return valid ? ld_global_nc_no_allocate(p) : uint4{0, 0, 0, 0};
}

inline void arrive(const emulated::CpAsync& copy) {
  if (copy.valid) {
    memcpy(copy.to, copy.from, 16);
  } else {
    memset(copy.to, 0, 16);
  }
}
inline void cp_async_16(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || (valid && reinterpret_cast<uintptr_t>(global) % 16))
    emulated::stop("cp.async: a misaligned address");
  emulated::fiber->open.push_back({shared, global, valid});
  if (emulated::coin()) arrive(emulated::fiber->open.back());
}
inline void cp_async_commit() {
  emulated::fiber->groups.push_back(std::move(emulated::fiber->open));
  emulated::fiber->open.clear();
}
template <int kPending>
void cp_async_wait() {
  auto& groups = emulated::fiber->groups;
  while (groups.size() > kPending) {
    for (const emulated::CpAsync& copy : groups.front()) arrive(copy);
    groups.erase(groups.begin());
  }
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row) {
  if (reinterpret_cast<uintptr_t>(shared_row) % 16) emulated::stop("ldmatrix: a misaligned row");
  const void* rows[32];
  emulated::exchange(0xFFFFFFFFu, "ldmatrix", shared_row, rows);
  const int l = emulated::lane();
  for (int i = 0; i < 4; ++i) memcpy(&r[i], static_cast<const char*>(rows[8 * i + l / 4]) + 4 * (l % 4), 4);
}

struct MmaOperands {
  int8_t a[4][4], b[2][4];
};
inline void mma_m16n8k32_s8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaOperands mine, all[32];
  memcpy(mine.a, a, sizeof mine.a);
  memcpy(mine.b, b, sizeof mine.b);
  emulated::exchange(0xFFFFFFFFu, "mma", mine, all);
  const int g = emulated::lane() / 4, t = emulated::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row_half = i / 2, column = 2 * t + i % 2;
    uint32_t sum = static_cast<uint32_t>(c[i]);  // wraps as the hardware does
    for (int k = 0; k < 32; ++k) {
      const int8_t left = all[g * 4 + k % 16 / 4].a[row_half + 2 * (k / 16)][k % 4];
      const int8_t right = all[column * 4 + k % 16 / 4].b[k / 16][k % 4];
      sum += static_cast<uint32_t>(left * right);
    }
    c[i] = static_cast<int32_t>(sum);
  }
}

inline void forget(uint4&) {}

}  // namespace ptx
}  // namespace cuda
}  // namespace octavo
