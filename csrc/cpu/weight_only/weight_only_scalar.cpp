#include "cpu/vec/vec_scalar.h"

#include "weight_only.inl"

namespace octavo {
const WeightOnlyKernels weight_only_on::scalar = {widen, multiply};
}
