#include "vec_avx512.h"
// clang-format off: the vector words come first
#include "quantize.inl"

namespace octavo {
extern const QuantizeKernels kQuantizeAvx512Vnni = {range, quantize, dequantize};
}
