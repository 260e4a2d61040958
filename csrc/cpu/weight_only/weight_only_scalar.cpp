#include "cpu/vec/vec_scalar.h"

#include "weight_only.inl"

namespace octavo {
extern const WeightOnlyKernels kWeightOnlyScalar = {widen, multiply};
}
