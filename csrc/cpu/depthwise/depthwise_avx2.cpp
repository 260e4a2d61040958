#include "cpu/vec/vec_avx2.h"

#include "depthwise.inl"

namespace octavo {
extern const DepthwiseKernels kDepthwiseAvx2 = {convolve};
}
