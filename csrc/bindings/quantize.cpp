#include "families.h"

namespace octavo {

void bind_quantize(py::module_& m) {
  define(m, "quantize",
         {"x", "scales", "mask", "data", "data_row_stride", "given", "stochastic", "seed", "where"},
         [](const FloatRows& x, const Scales& scales, Address mask, Address data, int64_t data_row_stride,
            bool given, bool stochastic, uint64_t seed, int threads) {
           const QuantizeArgs args =
               quantize_args(x, scales, mask, data, data_row_stride, given, stochastic, seed);
           const py::gil_scoped_release release;
           quantize(args, threads);
         });
  define(m, "dequantize", {"data", "scales", "out", "out_dtype", "out_row_stride", "where"},
         [](const IntRows& data, const Scales& scales, Address out, int out_dtype, int64_t out_row_stride,
            int threads) {
           const DequantizeArgs args = dequantize_args(data, scales, out, out_dtype, out_row_stride);
           const py::gil_scoped_release release;
           dequantize(args, threads);
         });
  define(m, "count_nonfinite", {"x", "where"}, [](const FloatRows& x, int threads) {
    NonFinite found;
    {
      const py::gil_scoped_release release;
      found = count_nonfinite(x, threads);
    }
    return std::make_pair(found.count, found.first);
  });
}

}  // namespace octavo
