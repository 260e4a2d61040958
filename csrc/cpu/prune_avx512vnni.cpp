#include "vec_avx512.h"

#include "prune.inl"

namespace octavo {
extern const PruneKernels kPruneAvx512Vnni = {mask, count_equal};
}
