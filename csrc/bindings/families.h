// The families of octavo._core, a file each.
#pragma once

#include "bindings.h"

namespace octavo {

void bind_quantize(py::module_& m);
void bind_norm(py::module_& m);
void bind_prune(py::module_& m);
void bind_linear(py::module_& m);
void bind_conv(py::module_& m);
void bind_embedding(py::module_& m);
void bind_machine(py::module_& m);

// A packed weight [n, k] whose header has been read and found right: it is not looked at again.
struct Weight {
  const void* packed;
  int64_t n, k;
};
PackedHeader checked_header(Address buffer, int64_t nbytes);
Weight checked_weight(Address buffer, int64_t nbytes, int64_t n, int64_t k);

}  // namespace octavo
