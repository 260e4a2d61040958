#include "cpu/vec/vec_scalar.h"

#include "prune.inl"
#include "prune_patterns.inl"

namespace octavo {
const PruneKernels prune_on::scalar = {prune,    prune_max, quantize_kept, count_equal, bracket,
                                       prune_nm, add_units, add_columns,   apply_mask};
}
