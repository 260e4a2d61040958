// What the two Python modules share: pointers arrive as integers, dtypes and activations as codes.
#pragma once

#include "check.h"
#include "octavo.h"

namespace octavo {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

static inline DType float_dtype_of(int code) {
  check(code >= 0 && code <= 3, "dtype", "a float code from 0 to 3", code);
  return static_cast<DType>(code);
}

static inline DType out_dtype_of(int code) {
  check(code >= 0 && code <= 4 && code != 3, "out_dtype", "a code of 0, 1, 2 or 4", code);
  return static_cast<DType>(code);
}

static inline Activation activation_of(int code) {
  check(code >= 0 && code <= 4, "activation", "a code from 0 to 4", code);
  return static_cast<Activation>(code);
}

}  // namespace octavo
