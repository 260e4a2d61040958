#include "cpu/vec/vec_neon.h"

#include "quantize.inl"

namespace octavo {
extern const QuantizeKernels kQuantizeNeon = {max_bits, range, quantize, quantize_bounded, dequantize};
}
