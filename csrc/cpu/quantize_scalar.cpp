#include "vec_scalar.h"
// clang-format off: the vector words come first
#include "quantize.inl"

namespace octavo {
extern const QuantizeKernels kQuantizeScalar = {range, quantize, dequantize};
}
