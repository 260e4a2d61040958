#include "cpu/vec/vec_avx2.h"

#include "depthwise.inl"

namespace octavo {
const DepthwiseKernels depthwise_on::avx2 = {convolve};
}
