#include "cpu/vec/vec_scalar.h"

#include "depthwise.inl"

namespace octavo {
const DepthwiseKernels depthwise_on::scalar = {convolve};
}
