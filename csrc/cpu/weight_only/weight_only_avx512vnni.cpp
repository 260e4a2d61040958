#include "cpu/vec/vec_avx512.h"

#include "weight_only.inl"

namespace octavo {
extern const WeightOnlyKernels kWeightOnlyAvx512Vnni = {widen, multiply};
}
