#include "cpu/vec/vec_neon.h"

#include "weight_only.inl"

namespace octavo {
extern const WeightOnlyKernels kWeightOnlyNeon = {widen, multiply};
}
