// The Python module octavo._cuda, twin of _core for arrays on a device; python/octavo/_cuda.pyi is the contract. The GIL is
// released where kernels are launched: a full queue makes that wait. Nothing here touches a driver until it is asked for a
// device, so that the module imports on machines without one.
//
// With OCTAVO_EMULATED it is _cuda_emulated, for tests: the same kernels run on the host, thread by thread.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "cuda/octavo_cuda.h"
#include "numerics.h"

namespace py = pybind11;

namespace octavo {
namespace cuda {
namespace {

// Whether a family's kernels have passed every parity test on a GPU: until then the Python package leaves them alone, unless
// the user insists.
const std::map<std::string, bool> kProven = {
    {"quantize", false}, {"norm", false}, {"select", false}, {"prune", false}, {"linear", false}};

struct Properties {
  int multiprocessors, capability;
};

#ifdef OCTAVO_EMULATED

int device_count() { return 1; }
Properties query(int) { return {kEmulatedMultiprocessors, 90}; }
class CurrentDevice {
 public:
  explicit CurrentDevice(int) {}
};

#else

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver, one too old, no device: not an error of the next call
  return 0;
}

Properties query(int device) {
  const auto attribute = [device](cudaDeviceAttr which) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
    return value;
  };
  return {attribute(cudaDevAttrMultiProcessorCount),
          10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor)};
}

// Makes a device the current one, and the one before it again at the end.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) : device_(device) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device_) check_cuda(cudaSetDevice(device_), "cudaSetDevice");
  }
  ~CurrentDevice() {
    if (before_ != device_) cudaSetDevice(before_);  // not where it is the same: that may make a context
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int device_, before_ = 0;
};

#endif

const Properties& properties(int device) {  // called with the GIL held
  static std::map<int, Properties> known;
  const auto found = known.find(device);
  return found != known.end() ? found->second : known.emplace(device, query(device)).first->second;
}

// The last argument of every function: device, stream, and allocate(bytes), which returns the address of memory on the device
// that stays valid until the function returns.
using Where = std::tuple<int, Address, py::function>;

class Call : public Context {
 public:
  explicit Call(const Where& where) : Context(), current_(std::get<0>(where)) {
    device = std::get<0>(where);
    stream = reinterpret_cast<cudaStream_t>(std::get<1>(where));
    multiprocessors = properties(device).multiprocessors;
    capability = properties(device).capability;
    allocate = [](void* function, int64_t bytes) {
      const py::gil_scoped_acquire acquire;
      return at<void>((*static_cast<const py::function*>(function))(bytes).cast<Address>());
    };
    user = const_cast<py::function*>(&std::get<2>(where));
  }

 private:
  CurrentDevice current_;
};

using WeightSegments = std::vector<std::tuple<Address, int, int64_t>>;

std::vector<Segment> segments_of(const WeightSegments& list) {
  std::vector<Segment> segments;
  for (const auto& [w, dtype, n] : list)
    segments.push_back({at<const void>(w), float_dtype_of(dtype), n, nullptr, nullptr});
  return segments;
}

std::vector<Segment> segments_of(const WeightSegments& list, int64_t k) {
  int64_t total = 0;
  for (const auto& segment : list) total += std::get<2>(segment);
  if (k < 1 || k > total) fail("k", "between 1 and " + std::to_string(total), k);
  return segments_of(list);
}

int64_t count_of(const std::vector<Segment>& segments) { return static_cast<int64_t>(segments.size()); }

// A selection that is given by value, or by the address of one on the device.
SelectionArg selection_arg(uint32_t key, int64_t keep_equal_from, Address selection) {
  return {{key, keep_equal_from}, at<const Selection>(selection)};
}

void bind_elementwise(py::module_& m) {
  m.def("quantize", [](Address x, int x_dtype, int64_t rows, int64_t groups, int64_t group_size,
                       int64_t row_stride, int64_t col_stride, Address mask, Address data,
                       int64_t data_row_stride, Address scale, Address zero_point, bool per_tensor,
                       bool given, bool stochastic, uint64_t seed, const Where& where) {
    const FloatRows view = {at<const void>(x), float_dtype_of(x_dtype), rows, groups * group_size, row_stride,
                            col_stride};
    const Call call(where);
    const py::gil_scoped_release release;
    quantize(call, {view, groups, group_size, at<const bool>(mask), at<int8_t>(data), data_row_stride,
                    at<float>(scale), at<int32_t>(zero_point), per_tensor, given, stochastic, seed});
  });
  m.def("dequantize", [](Address data, int64_t rows, int64_t groups, int64_t group_size, int64_t row_stride,
                         int64_t col_stride, Address scale, Address zero_point, bool per_tensor, Address out,
                         int out_dtype, int64_t out_row_stride, const Where& where) {
    const Call call(where);
    const py::gil_scoped_release release;
    dequantize(call, {at<const int8_t>(data), rows, groups, group_size, row_stride, col_stride,
                      at<const float>(scale), at<const int32_t>(zero_point), per_tensor, at<void>(out),
                      float_dtype_of(out_dtype), out_row_stride});
  });
  m.def("count_nonfinite", [](Address x, int x_dtype, int64_t rows, int64_t cols, int64_t row_stride,
                              int64_t col_stride, const Where& where) {
    const FloatRows view = {at<const void>(x), float_dtype_of(x_dtype), rows, cols, row_stride, col_stride};
    const Call call(where);
    NonFinite found;
    {
      const py::gil_scoped_release release;
      found = count_nonfinite(call, view);
    }
    return std::make_pair(found.count, found.first);
  });
}

void bind_norm(py::module_& m) {
  m.def("norm_quantize", [](Address x, int x_dtype, int64_t rows, int64_t cols, int64_t row_stride,
                            int64_t col_stride, Address residual, Address sum, Address weight, Address bias,
                            float eps, bool centered, Address data, Address scale, Address zero_point,
                            Address normed, const Where& where) {
    check(!residual || sum || rows * cols == 0, "sum", "an address beside a residual", 0);
    check(!zero_point && !normed, "zero_point, normed", "none on a device", 1);
    const Call call(where);
    const py::gil_scoped_release release;
    norm_quantize(call, {{at<const void>(x), float_dtype_of(x_dtype), rows, cols, row_stride, col_stride},
                         at<const void>(residual),
                         at<void>(sum),
                         at<const float>(weight),
                         at<const float>(bias),
                         eps,
                         centered,
                         at<int8_t>(data),
                         at<float>(scale),
                         nullptr,
                         nullptr});
  });
}

void bind_prune(py::module_& m) {
  m.attr("SELECTION_NBYTES") = sizeof(Selection);
  m.def("magnitude_select", [](const WeightSegments& list, int64_t k, const Where& where) {
    const std::vector<Segment> segments = segments_of(list, k);
    const Call call(where);
    Selection selection;
    {
      const py::gil_scoped_release release;
      Selection* on_device = call.workspace<Selection>(1);
      magnitude_select(call, segments.data(), count_of(segments), k, on_device);
      read_back(call, &selection, on_device, sizeof selection);
    }
    return std::make_pair(selection.key, selection.keep_equal_from);
  });
  m.def("magnitude_select_to",
        [](const WeightSegments& list, int64_t k, Address selection, const Where& where) {
          const std::vector<Segment> segments = segments_of(list, k);
          const Call call(where);
          const py::gil_scoped_release release;
          magnitude_select(call, segments.data(), count_of(segments), k, at<Selection>(selection));
        });
  m.def("ratio_select_to", [](const WeightSegments& list, uint32_t ratio_bits, Address selection,
                              const Where& where) {
    const std::vector<Segment> segments = segments_of(list);
    const Call call(where);
    const py::gil_scoped_release release;
    ratio_select(call, segments.data(), count_of(segments), float_of(ratio_bits), at<Selection>(selection));
  });
  m.def("prune", [](const std::vector<std::tuple<Address, int, int64_t, Address, Address>>& list,
                    uint32_t key, int64_t keep_equal_from, Address selection, const Where& where) {
    std::vector<Segment> segments;
    for (const auto& [w, dtype, n, mask, pruned] : list) {
      check(mask || pruned || n == 0, "mask", "an address, or one for the pruned values", 0);
      segments.push_back({at<const void>(w), float_dtype_of(dtype), n, at<bool>(mask), at<void>(pruned)});
    }
    const Call call(where);
    const py::gil_scoped_release release;
    prune(call, segments.data(), count_of(segments), selection_arg(key, keep_equal_from, selection));
  });
  m.def("prune_quantize",
        [](Address w, int dtype, int64_t rows, int64_t cols, uint32_t key, int64_t keep_equal_from,
           Address selection, Address mask, Address data, Address scale, const Where& where) {
          const PruneQuantizeArgs args = {at<const void>(w),
                                          float_dtype_of(dtype),
                                          rows,
                                          cols,
                                          selection_arg(key, keep_equal_from, selection),
                                          at<bool>(mask),
                                          at<int8_t>(data),
                                          at<float>(scale)};
          const Call call(where);
          const py::gil_scoped_release release;
          prune_quantize(call, args);
        });
  m.def("prune_nm", [](Address w, int dtype, int64_t groups, int n, int group, Address mask, Address pruned,
                       const Where& where) {
    const Call call(where);
    const py::gil_scoped_release release;
    prune_nm(call, at<const void>(w), float_dtype_of(dtype), groups, n, group, at<bool>(mask),
             at<void>(pruned));
  });
  m.def("unit_scores", [](Address w, int dtype, int64_t rows, int64_t cols, int64_t unit_rows,
                          int64_t unit_cols, Address scores, const Where& where) {
    check(unit_rows >= 1 && unit_cols >= 1, "unit", "at least one row and column",
          unit_rows < 1 ? unit_rows : unit_cols);
    const Call call(where);
    const py::gil_scoped_release release;
    unit_scores(call, at<const void>(w), float_dtype_of(dtype), rows, cols, unit_rows, unit_cols,
                at<double>(scores));
  });
  m.def("unit_select", [](Address scores, int64_t count, int64_t k, Address keep, const Where& where) {
    if (k < 0 || k > count) fail("k", "between 0 and " + std::to_string(count), k);
    const Call call(where);
    const py::gil_scoped_release release;
    unit_select(call, at<const double>(scores), count, k, at<bool>(keep));
  });
  m.def("unit_threshold",
        [](Address scores, int64_t count, double limit, bool is_ratio, Address keep, const Where& where) {
          const Call call(where);
          const py::gil_scoped_release release;
          unit_threshold(call, at<const double>(scores), count, limit, is_ratio, at<bool>(keep));
        });
  m.def("prune_units", [](int64_t rows, int64_t cols, int64_t unit_rows, int64_t unit_cols, Address keep,
                          Address w, int dtype, Address mask, Address pruned, const Where& where) {
    check(unit_rows >= 1 && unit_cols >= 1, "unit", "at least one row and column",
          unit_rows < 1 ? unit_rows : unit_cols);
    const Call call(where);
    const py::gil_scoped_release release;
    prune_units(call, {rows, cols, unit_rows, unit_cols}, at<const bool>(keep), at<const void>(w),
                float_dtype_of(dtype), at<bool>(mask), at<void>(pruned));
  });
  m.def("pack_mask", [](Address mask, int64_t rows, int64_t cols, Address bits, const Where& where) {
    const Call call(where);
    const py::gil_scoped_release release;
    pack_mask(call, at<const bool>(mask), rows, cols, at<uint8_t>(bits));
  });
  m.def("unpack_mask", [](Address bits, int64_t rows, int64_t cols, Address mask, const Where& where) {
    const Call call(where);
    const py::gil_scoped_release release;
    unpack_mask(call, at<const uint8_t>(bits), rows, cols, at<bool>(mask));
  });
}

// No header is read here, which would wait for the device: the size alone tells a packed weight from plain rows, and from one
// that was packed for the CPU.
LinearTarget linear_target(int64_t n, int64_t k, Address weight, int64_t nbytes, Address w_scale,
                           Address bias, int bias_dtype, int activation, Address out, int out_dtype,
                           int64_t out_row_stride) {
  check(n >= 0, "n", "at least 0", n);
  check(k >= 0 && k <= kMaxK, "k", "between 0 and 131071", k);
  check(weight % 16 == 0, "weight", "an address divisible by 16", static_cast<long long>(weight));
  const PackedParts parts = cuda_packed_parts(n, k);
  const bool packed = nbytes == parts.end;
  check(packed || (nbytes == n * k && k % 16 == 0), "weight", "as many bytes as its shape needs", nbytes);
  return {n,
          at<const int8_t>(packed ? weight + static_cast<Address>(parts.weights) : weight),
          packed ? padded_k(k) : k,
          packed ? at<const int32_t>(weight + static_cast<Address>(colsum_offset())) : nullptr,
          at<const float>(w_scale),
          at<const void>(bias),
          float_dtype_of(bias_dtype),
          activation_of(activation),
          at<void>(out),
          out_dtype_of(out_dtype),
          out_row_stride};
}

void bind_linear(py::module_& m) {
  m.def("pack_weight", [](Address w, int64_t n, int64_t k, int64_t n_stride, int64_t k_stride, Address buffer,
                          int64_t nbytes, const Where& where) {
    check(nbytes == cuda_packed_parts(n, k).end, "buffer", "as many bytes as its shape needs", nbytes);
    check(buffer % 16 == 0, "buffer", "an address divisible by 16", static_cast<long long>(buffer));
    const Call call(where);
    const py::gil_scoped_release release;
    pack_weight(call, {at<const int8_t>(w), n, k, n_stride, k_stride}, at<void>(buffer));
  });
  m.def("unpack_weight",
        [](Address buffer, int64_t nbytes, int64_t n, int64_t k, Address w, const Where& where) {
          check(nbytes == cuda_packed_parts(n, k).end, "buffer", "as many bytes as its shape needs", nbytes);
          const Call call(where);
          const py::gil_scoped_release release;
          unpack_weight(call, at<const void>(buffer), n, k, at<int8_t>(w));
        });
  // What belongs to a weight comes as a tuple: n, weight, nbytes, w_scale, bias, bias_dtype, activation, out, out_row_stride.
  using Target = std::tuple<int64_t, Address, int64_t, Address, Address, int, int, Address, int64_t>;
  m.def("int8_linears",
        [](Address x, int x_dtype, int64_t rows, int64_t k, int64_t row_stride, int64_t col_stride,
           bool symmetric, const std::vector<Target>& list, int out_dtype, const Where& where) {
          std::vector<LinearTarget> targets;
          targets.reserve(list.size());
          for (const auto& [n, weight, nbytes, w_scale, bias, bias_dtype, activation, out, stride] : list) {
            targets.push_back(linear_target(n, k, weight, nbytes, w_scale, bias, bias_dtype, activation, out,
                                            out_dtype, stride));
            check(targets.back().colsum || symmetric, "weight", "a packed one with zero points", nbytes);
          }
          LinearArgs args = {};
          args.quantize_x = true;
          args.asymmetric_x = !symmetric;
          args.x = {at<const void>(x), float_dtype_of(x_dtype), rows, k, row_stride, col_stride};
          args.m = rows;
          args.k = k;
          args.targets = targets.data();
          args.count = static_cast<int64_t>(targets.size());
          const Call call(where);
          const py::gil_scoped_release release;
          linear(call, args);
        });
  m.def("scaled_int_mm", [](Address a, bool a_signed, int64_t rows, int64_t n, int64_t k, int64_t row_stride,
                            int64_t col_stride, Address a_scale, Address a_zero_point, Address weight,
                            int64_t nbytes, Address w_scale, Address bias, int bias_dtype, int activation,
                            Address out, int out_dtype, int64_t out_row_stride, const Where& where) {
    const LinearTarget target = linear_target(n, k, weight, nbytes, w_scale, bias, bias_dtype, activation,
                                              out, out_dtype, out_row_stride);
    check(target.colsum || (a_signed && !a_zero_point), "weight",
          "a packed one with uint8 activations or zero points", nbytes);
    LinearArgs args = {};
    args.a = at<const void>(a);
    args.a_signed = a_signed;
    args.a_row_stride = row_stride;
    args.a_col_stride = col_stride;
    args.a_scale = at<const float>(a_scale);
    args.a_zero_point = at<const int32_t>(a_zero_point);
    args.m = rows;
    args.k = k;
    args.targets = &target;
    args.count = 1;
    const Call call(where);
    const py::gil_scoped_release release;
    linear(call, args);
  });
}

void bind(py::module_& m) {
  m.doc() = "octavo's native CUDA kernels; use them through the octavo package";
  m.def("device_count", &device_count);
  m.def("capability", [](int device) { return properties(device).capability; });
  m.def("kernels", [] { return kProven; });
  bind_elementwise(m);
  bind_norm(m);
  bind_prune(m);
  bind_linear(m);
}

}  // namespace
}  // namespace cuda
}  // namespace octavo

#ifdef OCTAVO_EMULATED
PYBIND11_MODULE(_cuda_emulated, m) { octavo::cuda::bind(m); }
#else
PYBIND11_MODULE(_cuda, m) { octavo::cuda::bind(m); }
#endif
