#include "cpu/vec/vec_scalar.h"

#include "norm.inl"

namespace octavo {
extern const NormKernels kNormScalar = {normalize};
}
