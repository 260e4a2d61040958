// Both functions return where the first index outside the table is, and then write nothing; else -1.
#include "families.h"

namespace octavo {

void bind_embedding(py::module_& m) {
  define_record<EmbeddingTable>(m, "Table", {"address", "scale", "entries", "dim"},
                                [](Address address, Address scale, int64_t entries, int64_t dim) {
                                  return EmbeddingTable{at<const int8_t>(address), at<const float>(scale),
                                                        entries, dim};
                                });
  define_record<Integers>(m, "Integers", {"address", "wide", "count"},
                          [](Address address, bool wide, int64_t count) {
                            return Integers{at<const void>(address), wide, count};
                          });
  define(m, "embedding", {"table", "indices", "out", "out_dtype", "where"},
         [](const EmbeddingTable& table, const Integers& indices, Address out, int out_dtype, int threads) {
           const DType type = float_dtype_of(out_dtype);
           const py::gil_scoped_release release;
           const int64_t outside = first_outside(table, indices, threads);
           if (outside < 0) embedding(table, indices, at<void>(out), type, threads);
           return outside;
         });
  define(m, "embedding_bag",
         {"table", "indices", "ends", "bags", "weights", "padding", "mode", "out", "out_dtype", "where"},
         [](const EmbeddingTable& table, const Integers& indices, Address ends, int64_t bags, Address weights,
            int64_t padding, int mode, Address out, int out_dtype, int threads) {
           check(mode >= 0 && mode <= 2, "mode", "a code from 0 to 2", mode);
           int64_t last = 0;
           for (int64_t i = 0; i < bags; ++i) {
             const int64_t end = at<const int64_t>(ends)[i];
             check(end >= last && end <= indices.count, "ends", "ascending positions among the indices", end);
             last = end;
           }
           const EmbeddingBagArgs args = {table,
                                          indices,
                                          at<const int64_t>(ends),
                                          bags,
                                          at<const float>(weights),
                                          padding,
                                          static_cast<BagMode>(mode),
                                          at<void>(out),
                                          float_dtype_of(out_dtype)};
           const py::gil_scoped_release release;
           const int64_t outside = first_outside(table, indices, threads);
           if (outside < 0) embedding_bag(args, threads);
           return outside;
         });
}

}  // namespace octavo
