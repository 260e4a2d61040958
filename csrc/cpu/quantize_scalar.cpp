#include "vec_scalar.h"

#include "quantize.inl"

namespace octavo {
extern const QuantizeKernels kQuantizeScalar = {range, quantize, dequantize};
}
