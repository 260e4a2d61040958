#include "cpu/vec/vec_avx512.h"

#include "quantize.inl"

namespace octavo {
const QuantizeKernels quantize_on::avx512vnni = {max_bits, range, quantize, quantize_bounded, dequantize};
}
