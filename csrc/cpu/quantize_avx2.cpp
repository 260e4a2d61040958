#include "vec_avx2.h"
// clang-format off: the vector words come first
#include "quantize.inl"

namespace octavo {
extern const QuantizeKernels kQuantizeAvx2 = {range, quantize, dequantize};
}
