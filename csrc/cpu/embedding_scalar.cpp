#include "vec_scalar.h"

#include "embedding.inl"

namespace octavo {
extern const EmbeddingKernels kEmbeddingScalar = {add_row, max_row, divide};
}
