#include "vec_neon.h"

#include "quantize.inl"

namespace octavo {
extern const QuantizeKernels kQuantizeNeon = {range, quantize, dequantize};
}
