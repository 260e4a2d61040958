#include "cpu/vec/vec_scalar.h"

#include "quantize.inl"

namespace octavo {
const QuantizeKernels quantize_on::scalar = {max_bits, range, quantize, quantize_bounded, dequantize};
}
