#include "cpu/vec/vec_avx2.h"

#include "norm.inl"

namespace octavo {
extern const NormKernels kNormAvx2 = {normalize};
}
