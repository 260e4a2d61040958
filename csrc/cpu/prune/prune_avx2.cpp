#include "cpu/vec/vec_avx2.h"

#include "prune.inl"
#include "prune_patterns.inl"

namespace octavo {
const PruneKernels prune_on::avx2 = {prune,    prune_max, quantize_kept, count_equal, bracket,
                                     prune_nm, add_units, add_columns,   apply_mask};
}
