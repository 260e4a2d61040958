#include "cpu/vec/vec_scalar.h"

#include "quantize.inl"

namespace octavo {
extern const QuantizeKernels kQuantizeScalar = {max_bits, range, quantize, quantize_bounded, dequantize};
}
