#include "vec_scalar.h"

#include "prune.inl"

namespace octavo {
extern const PruneKernels kPruneScalar = {mask, count_equal};
}
