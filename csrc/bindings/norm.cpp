#include "families.h"

namespace octavo {

void bind_norm(py::module_& m) {
  define(m, "norm_quantize",
         {"x", "residual", "sum", "weight", "bias", "eps", "centered", "data", "scale", "zero_point",
          "normed", "where"},
         [](const FloatRows& x, Address residual, Address sum, Address weight, Address bias, float eps,
            bool centered, Address data, Address scale, Address zero_point, Address normed, int threads) {
           const NormArgs args =
               norm_args(x, residual, sum, weight, bias, eps, centered, data, scale, zero_point, normed);
           const py::gil_scoped_release release;
           norm_quantize(args, threads);
         });
}

}  // namespace octavo
