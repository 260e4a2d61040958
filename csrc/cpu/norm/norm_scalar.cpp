#include "cpu/vec/vec_scalar.h"

#include "norm.inl"

namespace octavo {
const NormKernels norm_on::scalar = {normalize};
}
