#include "cpu/vec/vec_avx512.h"

#include "weight_only.inl"

namespace octavo {
const WeightOnlyKernels weight_only_on::avx512vnni = {widen, multiply};
}
