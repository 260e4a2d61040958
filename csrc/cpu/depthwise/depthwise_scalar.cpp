#include "cpu/vec/vec_scalar.h"

#include "depthwise.inl"

namespace octavo {
extern const DepthwiseKernels kDepthwiseScalar = {convolve};
}
