#include "cpu/vec/vec_neon.h"

#include "norm.inl"

namespace octavo {
extern const NormKernels kNormNeon = {normalize};
}
