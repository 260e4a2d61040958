// What the tests of emulated kernels share: random numbers, buffers that end where they end, a context, comparisons.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/cuda/octavo_cuda.h"
#include "../../csrc/numerics.h"

namespace octavo {
namespace test {

inline const std::vector<DType> kFloatTypes = {DType::f32, DType::f16, DType::bf16, DType::f64};

// Memory of exactly the size asked for, filled with garbage: the address sanitizer sees both ends. `offset` elements are
// skipped, so that a buffer begins at any address that its elements may have.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count, int64_t offset = 0)
      : count_(count), bytes_(count + offset > 0 ? static_cast<size_t>(count + offset) * sizeof(T) : 0) {
    void* raw = nullptr;
    if (posix_memalign(&raw, 256, bytes_ ? bytes_ : 1)) throw std::bad_alloc();
    memset(raw, 0xA5, bytes_);
    memory_.reset(static_cast<char*>(raw));
    data_ = reinterpret_cast<T*>(memory_.get()) + offset;
  }
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }
  int64_t size() const { return count_; }

 private:
  struct Free {
    void operator()(char* p) const { free(p); }
  };
  int64_t count_;
  size_t bytes_;
  std::unique_ptr<char, Free> memory_;
  T* data_;
};

class Harness {
 public:
  explicit Harness(unsigned seed) : random_(seed) {
    context.stream = nullptr;
    context.device = 0;
    context.multiprocessors = cuda::kEmulatedMultiprocessors;
    context.capability = 80;
    context.allocate = &Harness::allocate;
    context.user = this;
  }

  cuda::Context context;

  int64_t below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(random_); }
  bool coin() { return below(2) != 0; }
  float normal() { return std::normal_distribution<float>()(random_); }
  template <class T>
  const T& pick(const std::vector<T>& list) {
    return list[static_cast<size_t>(below(static_cast<int64_t>(list.size())))];
  }

  // count elements of a float dtype, as bytes; now and then zeros, ties, denormals, and non-finite ones if asked for.
  Buffer<char> floats(DType dtype, int64_t count, bool nonfinite, int64_t offset = 0) {
    const int64_t size = size_of(dtype);
    Buffer<char> buffer(count * size, offset * size);
    for (int64_t i = 0; i < count; ++i) {
      float v = normal();
      const int64_t kind = below(24);
      if (kind == 0) v = coin() ? 0.0f : -0.0f;
      if (kind == 1) v = coin() ? 0.5f : -0.5f;
      if (kind == 2) v = float_of(static_cast<uint32_t>(below(0x00800000)));
      if (nonfinite && kind == 3) v = coin() ? INFINITY : -INFINITY;
      if (nonfinite && kind == 4) v = float_of(0x7FC00000u + static_cast<uint32_t>(below(1000)));
      put(buffer.get() + i * size, dtype, v);
    }
    return buffer;
  }
  static int64_t size_of(DType dtype) {
    return dtype == DType::f64 ? 8 : dtype == DType::f16 || dtype == DType::bf16 ? 2 : 4;
  }
  static void put(char* p, DType dtype, float v) {
    if (dtype == DType::f64) {
      const double d = v;
      memcpy(p, &d, 8);
    } else if (dtype == DType::f32) {
      memcpy(p, &v, 4);
    } else {
      const uint16_t h = dtype == DType::f16 ? float_to_f16(v) : float_to_bf16(v);
      memcpy(p, &h, 2);
    }
  }

  void check(bool ok, const std::string& what) {
    ++checks_;
    if (ok) return;
    ++failures_;
    if (failures_ <= 20) printf("FAILED: %s\n", what.c_str());
  }
  template <class T>
  void check_equal(const T* got, const T* wanted, int64_t count, const std::string& what) {
    for (int64_t i = 0; i < count; ++i) {
      if (memcmp(&got[i], &wanted[i], sizeof(T))) return check(false, what + " at " + std::to_string(i));
    }
    check(true, what);
  }
  template <class F>
  void check_throws(F f, const std::string& what) {
    bool thrown = false;
    try {
      f();
    } catch (const std::exception&) {
      thrown = true;
    }
    check(thrown, what + ": expected an error");
  }

  // Workspaces live until the next call of done(), as an allocator in stream order has them.
  void done() { workspaces_.clear(); }
  int report() const {
    printf("%lld checks, %lld failed\n", static_cast<long long>(checks_), static_cast<long long>(failures_));
    return failures_ != 0;
  }

 private:
  static void* allocate(void* user, int64_t bytes) {
    auto& workspaces = static_cast<Harness*>(user)->workspaces_;
    workspaces.emplace_back(bytes);
    return workspaces.back().get();
  }

  std::mt19937 random_;
  std::vector<Buffer<char>> workspaces_;
  int64_t checks_ = 0, failures_ = 0;
};

}  // namespace test
}  // namespace octavo
