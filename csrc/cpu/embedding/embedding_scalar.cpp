#include "cpu/vec/vec_scalar.h"

#include "embedding.inl"

namespace octavo {
const EmbeddingKernels embedding_on::scalar = {fold_rows<Add>, fold_rows<Max>, divide};
}
