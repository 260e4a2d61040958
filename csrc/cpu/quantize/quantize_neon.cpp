#include "cpu/vec/vec_neon.h"

#include "quantize.inl"

namespace octavo {
const QuantizeKernels quantize_on::neon = {max_bits, range, quantize, quantize_bounded, dequantize};
}
