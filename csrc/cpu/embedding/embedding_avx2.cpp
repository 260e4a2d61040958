#include "cpu/vec/vec_avx2.h"

#include "embedding.inl"

namespace octavo {
const EmbeddingKernels embedding_on::avx2 = {fold_rows<Add>, fold_rows<Max>, divide};
}
