#include "cpu/vec/vec_avx2.h"

#include "weight_only.inl"

namespace octavo {
extern const WeightOnlyKernels kWeightOnlyAvx2 = {widen, multiply};
}
