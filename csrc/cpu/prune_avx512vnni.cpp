#include "vec_avx512.h"
// clang-format off: the vector words come first
#include "prune.inl"

namespace octavo {
extern const PruneKernels kPruneAvx512Vnni = {mask, count_equal};
}
