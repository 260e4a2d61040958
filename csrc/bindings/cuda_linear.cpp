#include "cuda.h"
#include "layouts.h"

namespace octavo {
namespace cuda {
namespace {

constexpr int64_t kRowBytes = 16;  // what rows begin at for kernels to read them as they are

// A packed weight [n, k], or contiguous int8 rows.
struct Weight {
  Address address;
  int64_t n, k;
  bool packed;
};

struct Target {
  LinearTarget target;
  int64_t k;
};

std::vector<LinearTarget> targets_of(const std::vector<Target>& list, int64_t k, bool needs_sums) {
  std::vector<LinearTarget> targets;
  targets.reserve(list.size());
  for (const Target& each : list) {
    check(each.k == k, "k", "the weight's", k);
    check(each.target.colsum || !needs_sums, "weight", "a packed one with uint8 activations or zero points",
          k);
    targets.push_back(each.target);
  }
  return targets;
}

}  // namespace

void bind_linear(py::module_& m) {
  m.attr("ROW_BYTES") = kRowBytes;
  // No header is read, which would wait for the device: the size alone tells a packed weight from plain rows, and from one that
  // was packed for the CPU.
  define_record<Weight>(m, "Weight", {"address", "nbytes", "n", "k"},
                        [](Address address, int64_t nbytes, int64_t n, int64_t k) {
                          check(n >= 0, "n", "at least 0", n);
                          check(k >= 0 && k <= kMaxK, "k", "between 0 and 131071", k);
                          check(address % kRowBytes == 0, "weight", "an address divisible by 16",
                                static_cast<long long>(address));
                          const bool packed = nbytes == cuda_packed_parts(n, k).end;
                          check(packed || (nbytes == n * k && k % kRowBytes == 0), "weight",
                                "as many bytes as its shape needs", nbytes);
                          return Weight{address, n, k, packed};
                        });
  define_record<Target>(
      m, "Target",
      {"weight", "scale", "bias", "bias_dtype", "activation", "out", "out_dtype", "out_row_stride"},
      [](const Weight& w, Address scale, Address bias, int bias_dtype, int activation, Address out,
         int out_dtype, int64_t out_row_stride) {
        const auto rows = w.packed ? static_cast<Address>(cuda_packed_parts(w.n, w.k).weights) : 0;
        return Target{
            {w.n, at<const int8_t>(w.address + rows), w.packed ? padded_k(w.k) : w.k,
             w.packed ? at<const int32_t>(w.address + static_cast<Address>(colsum_offset())) : nullptr,
             at<const float>(scale), at<const void>(bias), float_dtype_of(bias_dtype),
             activation_of(activation), at<void>(out), out_dtype_of(out_dtype), out_row_stride},
            w.k};
      });
  define(m, "pack_weight", {"w", "buffer", "nbytes", "where"},
         [](const IntRows& w, Address buffer, int64_t nbytes, const Where& where) {
           const WeightArgs args = weight_args(w);
           check(nbytes == cuda_packed_parts(w.rows, w.cols).end, "buffer",
                 "as many bytes as its shape needs", nbytes);
           check(buffer % kRowBytes == 0, "buffer", "an address divisible by 16",
                 static_cast<long long>(buffer));
           const Call call(where);
           const py::gil_scoped_release release;
           pack_weight(call, args, at<void>(buffer));
         });
  define(m, "unpack_weight", {"weight", "w", "where"},
         [](const Weight& weight, Address w, const Where& where) {
           check(weight.packed, "weight", "a packed one", weight.k);
           const Call call(where);
           const py::gil_scoped_release release;
           unpack_weight(call, at<const void>(weight.address), weight.n, weight.k, at<int8_t>(w));
         });
  define(m, "int8_linears", {"x", "targets", "symmetric", "where"},
         [](const FloatRows& x, const std::vector<Target>& list, bool symmetric, const Where& where) {
           const std::vector<LinearTarget> targets = targets_of(list, x.cols, !symmetric);
           LinearArgs args = {};
           args.quantize_x = true;
           args.asymmetric_x = !symmetric;
           args.x = x;
           args.m = x.rows;
           args.k = x.cols;
           args.targets = targets.data();
           args.count = static_cast<int64_t>(targets.size());
           const Call call(where);
           const py::gil_scoped_release release;
           linear(call, args);
         });
  define(
      m, "scaled_int_mm", {"a", "a_scale", "a_zero_point", "target", "where"},
      [](const IntRows& a, Address a_scale, Address a_zero_point, const Target& target, const Where& where) {
        const std::vector<LinearTarget> targets = targets_of({target}, a.cols, !a.is_signed || a_zero_point);
        LinearArgs args = {};
        args.a = a.data;
        args.a_signed = a.is_signed;
        args.a_row_stride = a.row_stride;
        args.a_col_stride = a.col_stride;
        args.a_scale = at<const float>(a_scale);
        args.a_zero_point = at<const int32_t>(a_zero_point);
        args.m = a.rows;
        args.k = a.cols;
        args.targets = targets.data();
        args.count = 1;
        const Call call(where);
        const py::gil_scoped_release release;
        linear(call, args);
      });
}

}  // namespace cuda
}  // namespace octavo
