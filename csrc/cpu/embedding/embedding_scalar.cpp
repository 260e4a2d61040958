#include "cpu/vec/vec_scalar.h"

#include "embedding.inl"

namespace octavo {
extern const EmbeddingKernels kEmbeddingScalar = {fold_rows<Add>, fold_rows<Max>, divide};
}
