#include "vec_avx2.h"

#include "quantize.inl"

namespace octavo {
extern const QuantizeKernels kQuantizeAvx2 = {range, quantize, dequantize};
}
