#include "cpu/vec/vec_avx512.h"

#include "embedding.inl"

namespace octavo {
const EmbeddingKernels embedding_on::avx512vnni = {fold_rows<Add>, fold_rows<Max>, divide};
}
