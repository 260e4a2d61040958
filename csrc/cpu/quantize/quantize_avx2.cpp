#include "cpu/vec/vec_avx2.h"

#include "quantize.inl"

namespace octavo {
extern const QuantizeKernels kQuantizeAvx2 = {max_bits, range, quantize, quantize_bounded, dequantize};
}
