#include "cpu/vec/vec_neon.h"

#include "embedding.inl"

namespace octavo {
const EmbeddingKernels embedding_on::neon = {fold_rows<Add>, fold_rows<Max>, divide};
}
