#include "vec_avx2.h"
// clang-format off: the vector words come first
#include "prune.inl"

namespace octavo {
extern const PruneKernels kPruneAvx2 = {mask, count_equal};
}
