#include "cpu/vec/vec_avx512.h"

#include "depthwise.inl"

namespace octavo {
const DepthwiseKernels depthwise_on::avx512vnni = {convolve};
}
