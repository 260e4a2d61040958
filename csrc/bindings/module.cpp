// The Python module octavo._core.
#include "families.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "octavo's native CPU kernels; use them through the octavo package";
  octavo::define_records(m);
  octavo::bind_quantize(m);
  octavo::bind_norm(m);
  octavo::bind_prune(m);
  octavo::bind_linear(m);
  octavo::bind_conv(m);
  octavo::bind_embedding(m);
  octavo::bind_machine(m);
}
