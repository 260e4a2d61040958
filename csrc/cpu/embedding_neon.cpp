#include "vec_neon.h"

#include "embedding.inl"

namespace octavo {
extern const EmbeddingKernels kEmbeddingNeon = {add_row, max_row, divide};
}
