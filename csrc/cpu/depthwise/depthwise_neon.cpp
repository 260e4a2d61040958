#include "cpu/vec/vec_neon.h"

#include "depthwise.inl"

namespace octavo {
const DepthwiseKernels depthwise_on::neon = {convolve};
}
