// Masks by magnitude over the vector words of the vec_*.h included before. Magnitudes are compared as integer keys.
#include "../octavo.h"

namespace octavo {
namespace {

template <class T>
void mask_of(const T* w, int64_t n, uint32_t key, bool keep_equal, bool* mask) {
  // >= key is > key - 1; keys are below 2^31, and key 0 with keep_equal compares with -1.
  const I32 above = set1(static_cast<int32_t>(key) - (keep_equal ? 1 : 0));
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_mask(mask + i, greater(keys(load(w + i)), above));
  if (i < n) {
    const int lanes = static_cast<int>(n - i);
    store_mask_n(mask + i, greater(keys(load_n(w + i, lanes)), above), lanes);
  }
}

template <class T>
int64_t count_equal_of(const T* w, int64_t n, uint32_t key) {
  const I32 wanted = set1(static_cast<int32_t>(key));
  int64_t total = 0, i = 0;
  for (; i + kLanes <= n; i += kLanes) total += count(equal(keys(load(w + i)), wanted));
  if (i < n) {
    const int lanes = static_cast<int>(n - i);
    total += count(equal(keys(load_n(w + i, lanes)), wanted));
    if (key == 0) total -= kLanes - lanes;  // the lanes beyond the end read as 0
  }
  return total;
}

void mask(const void* w, DType dtype, int64_t n, uint32_t key, bool keep_equal, bool* out) {
  switch (dtype) {
    case DType::f32: return mask_of(static_cast<const float*>(w), n, key, keep_equal, out);
    case DType::f16: return mask_of(static_cast<const f16*>(w), n, key, keep_equal, out);
    case DType::bf16: return mask_of(static_cast<const bf16*>(w), n, key, keep_equal, out);
    default: return mask_of(static_cast<const double*>(w), n, key, keep_equal, out);
  }
}

int64_t count_equal(const void* w, DType dtype, int64_t n, uint32_t key) {
  switch (dtype) {
    case DType::f32: return count_equal_of(static_cast<const float*>(w), n, key);
    case DType::f16: return count_equal_of(static_cast<const f16*>(w), n, key);
    case DType::bf16: return count_equal_of(static_cast<const bf16*>(w), n, key);
    default: return count_equal_of(static_cast<const double*>(w), n, key);
  }
}

}  // namespace
}  // namespace octavo
