#include "vec_avx512.h"

#include "embedding.inl"

namespace octavo {
extern const EmbeddingKernels kEmbeddingAvx512Vnni = {add_row, max_row, divide};
}
