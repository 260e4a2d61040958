#include "cpu/vec/vec_neon.h"

#include "weight_only.inl"

namespace octavo {
const WeightOnlyKernels weight_only_on::neon = {widen, multiply};
}
