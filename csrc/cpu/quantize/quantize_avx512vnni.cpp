#include "cpu/vec/vec_avx512.h"

#include "quantize.inl"

namespace octavo {
extern const QuantizeKernels kQuantizeAvx512Vnni = {max_bits, range, quantize, quantize_bounded, dequantize};
}
