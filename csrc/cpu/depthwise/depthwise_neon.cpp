#include "cpu/vec/vec_neon.h"

#include "depthwise.inl"

namespace octavo {
extern const DepthwiseKernels kDepthwiseNeon = {convolve};
}
