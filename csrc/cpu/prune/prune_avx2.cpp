#include "cpu/vec/vec_avx2.h"

#include "prune.inl"
#include "prune_patterns.inl"

namespace octavo {
extern const PruneKernels kPruneAvx2 = {prune,    prune_max, quantize_kept, count_equal, bracket,
                                        prune_nm, add_units, add_columns,   apply_mask};
}
