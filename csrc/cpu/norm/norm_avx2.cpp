#include "cpu/vec/vec_avx2.h"

#include "norm.inl"

namespace octavo {
const NormKernels norm_on::avx2 = {normalize};
}
