#include "cpu/vec/vec_avx2.h"

#include "weight_only.inl"

namespace octavo {
const WeightOnlyKernels weight_only_on::avx2 = {widen, multiply};
}
