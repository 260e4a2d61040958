#include "vec_neon.h"

#include "prune.inl"

namespace octavo {
extern const PruneKernels kPruneNeon = {mask, count_equal};
}
