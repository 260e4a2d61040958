#include "cpu/vec/vec_avx2.h"

#include "quantize.inl"

namespace octavo {
const QuantizeKernels quantize_on::avx2 = {max_bits, range, quantize, quantize_bounded, dequantize};
}
