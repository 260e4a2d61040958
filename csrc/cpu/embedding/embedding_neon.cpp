#include "cpu/vec/vec_neon.h"

#include "embedding.inl"

namespace octavo {
extern const EmbeddingKernels kEmbeddingNeon = {fold_rows<Add>, fold_rows<Max>, divide};
}
