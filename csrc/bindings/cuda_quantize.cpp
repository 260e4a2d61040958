#include "cuda.h"

namespace octavo {
namespace cuda {

void bind_quantize(py::module_& m) {
  define(m, "quantize",
         {"x", "scales", "mask", "data", "data_row_stride", "given", "stochastic", "seed", "where"},
         [](const FloatRows& x, const Scales& scales, Address mask, Address data, int64_t data_row_stride,
            bool given, bool stochastic, uint64_t seed, const Where& where) {
           const QuantizeArgs args =
               quantize_args(x, scales, mask, data, data_row_stride, given, stochastic, seed);
           const Call call(where);
           const py::gil_scoped_release release;
           quantize(call, args);
         });
  define(m, "dequantize", {"data", "scales", "out", "out_dtype", "out_row_stride", "where"},
         [](const IntRows& data, const Scales& scales, Address out, int out_dtype, int64_t out_row_stride,
            const Where& where) {
           const DequantizeArgs args = dequantize_args(data, scales, out, out_dtype, out_row_stride);
           const Call call(where);
           const py::gil_scoped_release release;
           dequantize(call, args);
         });
  define(m, "count_nonfinite", {"x", "where"}, [](const FloatRows& x, const Where& where) {
    const Call call(where);
    NonFinite found;
    {
      const py::gil_scoped_release release;
      found = count_nonfinite(call, x);
    }
    return std::make_pair(found.count, found.first);
  });
  define(
      m, "norm_quantize",
      {"x", "residual", "sum", "weight", "bias", "eps", "centered", "data", "scale", "zero_point", "normed",
       "where"},
      [](const FloatRows& x, Address residual, Address sum, Address weight, Address bias, float eps,
         bool centered, Address data, Address scale, Address zero_point, Address normed, const Where& where) {
        check(!zero_point && !normed, "zero_point, normed", "none on a device", 1);
        const NormArgs args =
            norm_args(x, residual, sum, weight, bias, eps, centered, data, scale, zero_point, normed);
        const Call call(where);
        const py::gil_scoped_release release;
        norm_quantize(call, args);
      });
}

}  // namespace cuda
}  // namespace octavo
