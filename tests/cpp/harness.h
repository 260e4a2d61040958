// What the tests count with and draw their data from: values by class, in heap buffers of an exact size.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "../../csrc/dispatch.h"
#include "../../csrc/numerics.h"
#include "../../csrc/octavo.h"

namespace {

using namespace octavo;

int64_t passed = 0, failed = 0;

void show(const char* text) { printf(" %s", text); }
template <class Number>
void show(Number number) {
  printf(" %.9g", static_cast<double>(number));
}

// Counts; of the first failures it says what and with which numbers.
template <class... Context>
void expect(bool ok, const char* what, Context... context) {
  ok ? ++passed : ++failed;
  if (ok || failed > 20) return;
  printf("FAILED: %s:", what);
  (show(context), ...);
  printf("\n");
}

// ---- data --------------------------------------------------------------------------------------------------------

uint64_t random_state = 1;
uint32_t random_bits() {  // splitmix64
  uint64_t z = (random_state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return static_cast<uint32_t>(z >> 32);
}
int64_t random_below(int64_t n) { return static_cast<int64_t>(random_bits() % static_cast<uint64_t>(n)); }

const int64_t kSizes[] = {0,  1,  2,  3,  4,  5,  7,   8,   9,   15,  16, 17,
                          31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 513};
const DType kFloats[] = {DType::f32, DType::f16, DType::bf16, DType::f64};
const Activation kActivations[] = {Activation::none, Activation::relu, Activation::gelu,
                                   Activation::gelu_tanh, Activation::silu};
const int kThreads[] = {1, 2, 3};

int64_t bytes_of(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 || dtype == DType::i32 ? 4 : 2;
}

// Bytes on the heap that end where the array ends; it starts `shift` bytes behind the allocation, so that a shift of 1
// leaves it unaligned.
class Bytes {
 public:
  explicit Bytes(int64_t size, int64_t shift = 0, uint8_t fill = 0xA5)
      : size_(size), shift_(shift), memory_(new uint8_t[static_cast<size_t>(size + shift)]) {
    memset(memory_.get(), fill, static_cast<size_t>(size + shift));
  }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(memory_.get() + shift_);
  }
  void* data() { return as<uint8_t>(); }
  int64_t size() const { return size_; }
  bool operator==(Bytes& other) {
    return size_ == other.size_ && memcmp(data(), other.data(), static_cast<size_t>(size_)) == 0;
  }

 private:
  int64_t size_, shift_;
  std::unique_ptr<uint8_t[]> memory_;
};

enum class Values { normal, special, ties, tiny, bits };
const Values kValues[] = {Values::normal, Values::special, Values::ties, Values::tiny, Values::bits};

double random_value(Values values) {
  static const double kSpecial[] = {0.0,   -0.0,  1.0,    -1.0,   0.5,     2.5,    -1.5, 127.0, -128.0,
                                    1e-45, 1e-40, -3e-39, 3.4e38, -3.4e38, 65504., 1e30, -6e-8, 1e300};
  switch (values) {
    case Values::special: {
      const int64_t i = random_below(24);
      if (i >= 22) return NAN;
      if (i == 21) return static_cast<double>(float_of(0x7FFFFFFFu));  // NaN; rounding its bits gives -0
      if (i >= 18) return i & 1 ? INFINITY : -INFINITY;
      return kSpecial[i];
    }
    case Values::ties: return 0.5 * static_cast<double>(random_below(9) - 4);
    case Values::tiny: return (static_cast<double>(random_bits()) - 2147483648.0) * 0x1p-160;
    case Values::bits: return static_cast<double>(float_of(random_bits()));
    default: return (static_cast<double>(random_bits()) - 2147483648.0) * 0x1p-29;
  }
}

Bytes floats(DType dtype, int64_t n, Values values, int64_t shift = 0) {
  Bytes out(n * bytes_of(dtype), shift);
  auto* p = static_cast<char*>(out.data());
  for (int64_t i = 0; i < n; ++i) {
    const double d = random_value(values);
    const float f = std::fabs(d) > 3.4e38 && std::isfinite(d) ? INFINITY : static_cast<float>(d);
    const uint16_t h = float_to_f16(f), b = float_to_bf16(f);
    switch (dtype) {
      case DType::f64: memcpy(p + 8 * i, &d, 8); break;
      case DType::f16: memcpy(p + 2 * i, &h, 2); break;
      case DType::bf16: memcpy(p + 2 * i, &b, 2); break;
      default: memcpy(p + 4 * i, &f, 4); break;
    }
  }
  return out;
}

Bytes scales(int64_t n) {
  Bytes out(n * 4);
  for (int64_t i = 0; i < n; ++i) out.as<float>()[i] = 1e-3f * static_cast<float>(1 + random_below(1000));
  return out;
}

Bytes bools(int64_t n) {
  Bytes out(n);
  for (int64_t i = 0; i < n; ++i) out.as<bool>()[i] = random_bits() & 1;
  return out;
}

Bytes int8s(int64_t n) {
  static const uint8_t kExtremes[] = {0x80, 0x81, 0, 0x7F};
  const bool extremes = random_bits() & 1;
  Bytes out(n);
  for (int64_t i = 0; i < n; ++i) {
    out.as<uint8_t>()[i] = extremes ? kExtremes[random_below(4)] : static_cast<uint8_t>(random_bits());
  }
  return out;
}

// Which NaN comes out of an operation is the machine's business: all are made one before bytes are compared.
void canonize(Bytes& b, DType dtype) {
  const int64_t n = b.size() / bytes_of(dtype);
  for (int64_t i = 0; i < n; ++i) {
    auto* p = static_cast<char*>(b.data()) + i * bytes_of(dtype);
    uint16_t h;
    uint32_t s;
    uint64_t d;
    switch (dtype) {
      case DType::f64:
        memcpy(&d, p, 8);
        if ((d & ~0ull >> 1) > 0x7FF0000000000000u) memset(p, 0xFF, 8);
        break;
      case DType::f32:
        memcpy(&s, p, 4);
        if ((s & 0x7FFFFFFFu) > kInfKey) memset(p, 0xFF, 4);
        break;
      case DType::i32: break;
      default:
        memcpy(&h, p, 2);
        if ((h & 0x7FFFu) > (dtype == DType::f16 ? 0x7C00u : 0x7F80u)) memset(p, 0xFF, 2);
    }
  }
}

// ---- shapes and weights ------------------------------------------------------------------------------------------

struct Shape {
  int64_t m, n, k;
};

// The last element of a strided view is the last of its buffer.
int64_t extent(int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride) {
  return rows && cols ? (rows - 1) * row_stride + (cols - 1) * col_stride + 1 : 0;
}

// A packed weight in a buffer of its exact size.
Bytes pack(const WeightArgs& w, Layout layout = Layout::dense, int threads = 1) {
  Bytes kept(pairs_of(w.n) * 8), tiles(tile_rows_of(w.n) * 8);
  count_weight(w, kept.as<int64_t>(), tiles.as<int64_t>(), threads);
  Bytes& counts = layout == Layout::bitmask ? kept : tiles;
  int64_t count = 0;
  for (int64_t i = 0; layout != Layout::dense && i < counts.size() / 8; ++i) count += counts.as<int64_t>()[i];
  Bytes packed(packed_parts(layout, w.n, w.k, count).end);
  pack_weight(w, layout, counts.as<int64_t>(), packed.data(), threads);
  return packed;
}

// ---- instruction sets --------------------------------------------------------------------------------------------

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> list;
  for (const Kernels& k : all_kernels()) {
    if (k.available && (!k.enable || k.enable())) list.push_back(&k);
  }
  return list;
}

// Runs body(out) on one scalar thread, then on every ISA and thread count: out must come out the same.
template <class Body>
void compare_drivers(const char* name, int64_t size, DType dtype, Body body) {
  Bytes expected(size);
  set_isa("scalar");
  body(expected.data(), 1);
  canonize(expected, dtype);
  for (const Kernels* k : available()) {
    set_isa(k->isa);
    for (const int threads : kThreads) {
      Bytes actual(size, 1);
      body(actual.data(), threads);
      canonize(actual, dtype);
      expect(actual == expected, name, k->isa, threads, size);
    }
  }
  set_isa("");
}

}  // namespace
