#include "cpu/vec/vec_avx2.h"

#include "embedding.inl"

namespace octavo {
extern const EmbeddingKernels kEmbeddingAvx2 = {fold_rows<Add>, fold_rows<Max>, divide};
}
