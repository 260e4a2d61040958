#include "vec_avx2.h"

#include "embedding.inl"

namespace octavo {
extern const EmbeddingKernels kEmbeddingAvx2 = {add_row, max_row, divide};
}
