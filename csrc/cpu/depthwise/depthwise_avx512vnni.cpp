#include "cpu/vec/vec_avx512.h"

#include "depthwise.inl"

namespace octavo {
extern const DepthwiseKernels kDepthwiseAvx512Vnni = {convolve};
}
