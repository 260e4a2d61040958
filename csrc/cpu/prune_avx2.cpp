#include "vec_avx2.h"

#include "prune.inl"

namespace octavo {
extern const PruneKernels kPruneAvx2 = {mask, count_equal};
}
