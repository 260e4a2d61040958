#include "cpu/vec/vec_neon.h"

#include "norm.inl"

namespace octavo {
const NormKernels norm_on::neon = {normalize};
}
