#include "cpu/vec/vec_avx512.h"

#include "norm.inl"

namespace octavo {
const NormKernels norm_on::avx512vnni = {normalize};
}
