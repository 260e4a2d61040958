#include "cpu/vec/vec_avx512.h"

#include "embedding.inl"

namespace octavo {
extern const EmbeddingKernels kEmbeddingAvx512Vnni = {fold_rows<Add>, fold_rows<Max>, divide};
}
