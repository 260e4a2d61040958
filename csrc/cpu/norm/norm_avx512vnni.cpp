#include "cpu/vec/vec_avx512.h"

#include "norm.inl"

namespace octavo {
extern const NormKernels kNormAvx512Vnni = {normalize};
}
