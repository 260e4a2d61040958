#include "vec_scalar.h"
// clang-format off: the vector words come first
#include "prune.inl"

namespace octavo {
extern const PruneKernels kPruneScalar = {mask, count_equal};
}
