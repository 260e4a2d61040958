// The Python module octavo._core. Pointers arrive as integers from octavo.ops, which has validated them; here only what
// would be undefined behaviour is checked, the GIL released, the kernel called. python/octavo/_core.pyi is the contract.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "dispatch.h"
#include "layouts.h"
#include "parallel.h"

namespace py = pybind11;

namespace octavo {
namespace {

// A packed buffer of another version or layout is refused, never read as numbers.
PackedHeader checked_header(Address buffer, int64_t nbytes) {
  constexpr const char* kName = "packed weight";
  check(nbytes >= static_cast<int64_t>(sizeof(PackedHeader)), kName, "a header of 64 bytes", nbytes);
  check(buffer % 8 == 0, kName, "an address divisible by 8", static_cast<long long>(buffer));
  PackedHeader header;
  memcpy(&header, at<const void>(buffer), sizeof header);
  check(header.magic == PackedHeader::kMagic, kName, "the magic number of octavo", header.magic);
  check(header.version == PackedHeader::kVersion, kName, "version 1", header.version);
  check(header.layout <= Layout::block, kName, "a layout from 0 to 2", static_cast<uint32_t>(header.layout));
  check(header.isa == PackedHeader::kAnyIsa, kName, "instruction set 0 (any)", header.isa);
  const bool sane = header.n >= 0 && header.k >= 0 && header.k <= kMaxK && header.n <= nbytes &&
                    header.count >= 0 && header.count <= nbytes;
  check(sane && packed_parts(header.layout, header.n, header.k, header.count).end == nbytes, kName,
        "as many bytes as its shape needs", nbytes);
  return header;
}

Layout layout_of(int code) {
  check(code >= 0 && code <= 2, "layout", "a code from 0 to 2", code);
  return static_cast<Layout>(code);
}

std::vector<Segment> segments_of(const std::vector<std::tuple<Address, int, int64_t>>& list) {
  std::vector<Segment> segments;
  for (const auto& [w, dtype, n] : list)
    segments.push_back({at<const void>(w), float_dtype_of(dtype), n, nullptr, nullptr});
  return segments;
}

void bind_elementwise(py::module_& m) {
  m.def("quantize",
        [](Address x, int x_dtype, int64_t rows, int64_t groups, int64_t group_size, int64_t row_stride,
           int64_t col_stride, Address mask, Address data, int64_t data_row_stride, Address scale,
           Address zero_point, bool per_tensor, bool given, bool stochastic, uint64_t seed, int threads) {
          const FloatRows view = {
              at<const void>(x), float_dtype_of(x_dtype), rows, groups * group_size, row_stride, col_stride};
          const py::gil_scoped_release release;
          quantize({view, groups, group_size, at<const bool>(mask), at<int8_t>(data), data_row_stride,
                    at<float>(scale), at<int32_t>(zero_point), per_tensor, given, stochastic, seed},
                   threads);
        });
  m.def("dequantize", [](Address data, int64_t rows, int64_t groups, int64_t group_size, int64_t row_stride,
                         int64_t col_stride, Address scale, Address zero_point, bool per_tensor, Address out,
                         int out_dtype, int64_t out_row_stride, int threads) {
    const DequantizeArgs args = {at<const int8_t>(data),
                                 rows,
                                 groups,
                                 group_size,
                                 row_stride,
                                 col_stride,
                                 at<const float>(scale),
                                 at<const int32_t>(zero_point),
                                 per_tensor,
                                 at<void>(out),
                                 float_dtype_of(out_dtype),
                                 out_row_stride};
    const py::gil_scoped_release release;
    dequantize(args, threads);
  });
  m.def("count_nonfinite", [](Address x, int x_dtype, int64_t rows, int64_t cols, int64_t row_stride,
                              int64_t col_stride, int threads) {
    const FloatRows view = {at<const void>(x), float_dtype_of(x_dtype), rows, cols, row_stride, col_stride};
    NonFinite found;
    {
      const py::gil_scoped_release release;
      found = count_nonfinite(view, threads);
    }
    return std::make_pair(found.count, found.first);
  });
}

void bind_norm(py::module_& m) {
  m.def("norm_quantize", [](Address x, int x_dtype, int64_t rows, int64_t cols, int64_t row_stride,
                            int64_t col_stride, Address residual, Address sum, Address weight, Address bias,
                            float eps, bool centered, Address data, Address scale, Address zero_point,
                            Address normed, int threads) {
    check(!residual || sum || rows * cols == 0, "sum", "an address beside a residual", 0);
    const NormArgs args = {{at<const void>(x), float_dtype_of(x_dtype), rows, cols, row_stride, col_stride},
                           at<const void>(residual),
                           at<void>(sum),
                           at<const float>(weight),
                           at<const float>(bias),
                           eps,
                           centered,
                           at<int8_t>(data),
                           at<float>(scale),
                           at<int32_t>(zero_point),
                           at<void>(normed)};
    const py::gil_scoped_release release;
    norm_quantize(args, threads);
  });
}

void bind_prune(py::module_& m) {
  m.def("magnitude_select",
        [](const std::vector<std::tuple<Address, int, int64_t>>& list, int64_t k, int threads) {
          const std::vector<Segment> segments = segments_of(list);
          int64_t total = 0;
          for (const Segment& s : segments) total += s.n;
          if (k < 1 || k > total) fail("k", "between 1 and " + std::to_string(total), k);
          Selection selection;
          {
            const py::gil_scoped_release release;
            selection = magnitude_select(segments.data(), static_cast<int64_t>(segments.size()), k, threads);
          }
          return std::make_pair(selection.key, selection.keep_equal_from);
        });
  m.def("max_key", [](const std::vector<std::tuple<Address, int, int64_t>>& list, int threads) {
    const std::vector<Segment> segments = segments_of(list);
    const py::gil_scoped_release release;
    return max_key(segments.data(), static_cast<int64_t>(segments.size()), threads);
  });
  m.def("prune", [](const std::vector<std::tuple<Address, int, int64_t, Address, Address>>& list,
                    uint32_t key, int64_t keep_equal_from, int threads) {
    std::vector<Segment> segments;
    for (const auto& [w, dtype, n, mask, pruned] : list) {
      check(mask || pruned || n == 0, "mask", "an address, or one for the pruned values", 0);
      segments.push_back({at<const void>(w), float_dtype_of(dtype), n, at<bool>(mask), at<void>(pruned)});
    }
    const py::gil_scoped_release release;
    prune(segments.data(), static_cast<int64_t>(segments.size()), {key, keep_equal_from}, threads);
  });
  m.def("prune_quantize",
        [](Address w, int dtype, int64_t rows, int64_t cols, uint32_t key, int64_t keep_equal_from,
           Address mask, Address data, Address scale, int threads) {
          const PruneQuantizeArgs args = {
              at<const void>(w), float_dtype_of(dtype), rows, cols, {key, keep_equal_from}, at<bool>(mask),
              at<int8_t>(data),  at<float>(scale)};
          const py::gil_scoped_release release;
          prune_quantize(args, threads);
        });
  m.def("prune_nm", [](Address w, int dtype, int64_t groups, int n, int group, Address mask, Address pruned,
                       int threads) {
    const DType type = float_dtype_of(dtype);
    const py::gil_scoped_release release;
    prune_nm(at<const void>(w), type, groups, n, group, at<bool>(mask), at<void>(pruned), threads);
  });
  m.def("unit_scores", [](Address w, int dtype, int64_t rows, int64_t cols, int64_t unit_rows,
                          int64_t unit_cols, Address scores, int threads) {
    const DType type = float_dtype_of(dtype);
    check(unit_rows >= 1 && unit_cols >= 1, "unit", "at least one row and column",
          unit_rows < 1 ? unit_rows : unit_cols);
    const py::gil_scoped_release release;
    unit_scores(at<const void>(w), type, rows, cols, unit_rows, unit_cols, at<double>(scores), threads);
  });
  m.def("prune_units", [](int64_t rows, int64_t cols, int64_t unit_rows, int64_t unit_cols, Address keep,
                          Address w, int dtype, Address mask, Address pruned, int threads) {
    const DType type = float_dtype_of(dtype);
    check(unit_rows >= 1 && unit_cols >= 1, "unit", "at least one row and column",
          unit_rows < 1 ? unit_rows : unit_cols);
    const py::gil_scoped_release release;
    prune_units({rows, cols, unit_rows, unit_cols}, at<const bool>(keep), at<const void>(w), type,
                at<bool>(mask), at<void>(pruned), threads);
  });
  m.def("pack_mask", [](Address mask, int64_t rows, int64_t cols, Address bits, int threads) {
    const py::gil_scoped_release release;
    pack_mask(at<const bool>(mask), rows, cols, at<uint8_t>(bits), threads);
  });
  m.def("unpack_mask", [](Address bits, int64_t rows, int64_t cols, Address mask, int threads) {
    const py::gil_scoped_release release;
    unpack_mask(at<const uint8_t>(bits), rows, cols, at<bool>(mask), threads);
  });
}

LinearTarget linear_target(int64_t n, int64_t k, Address buffer, int64_t nbytes, Address w_scale,
                           Address bias, int bias_dtype, int activation, Address out, int out_dtype,
                           int64_t out_row_stride) {
  const PackedHeader header = checked_header(buffer, nbytes);
  check(header.n == n, "n", "the packed weight's", n);
  check(header.k == k, "k", "the packed weight's", k);
  return {n,
          at<const void>(buffer),
          at<const float>(w_scale),
          at<const void>(bias),
          float_dtype_of(bias_dtype),
          activation_of(activation),
          at<void>(out),
          out_dtype_of(out_dtype),
          out_row_stride};
}

LinearArgs linear_args(int64_t rows, int64_t k, const LinearTarget* targets, size_t count) {
  LinearArgs args = {};
  args.m = rows;
  args.k = k;
  args.targets = targets;
  args.count = static_cast<int64_t>(count);
  return args;
}

void bind_linear(py::module_& m) {
  m.attr("PACKED_VERSION") = PackedHeader::kVersion;
  m.def("packed_shape", [](Address buffer, int64_t nbytes) {
    const PackedHeader header = checked_header(buffer, nbytes);
    return std::make_pair(header.n, header.k);
  });
  m.def("count_weight", [](Address w, int64_t n, int64_t k, int64_t n_stride, int64_t k_stride, Address kept,
                           Address tiles, int threads) {
    const py::gil_scoped_release release;
    count_weight({at<const int8_t>(w), n, k, n_stride, k_stride}, at<int64_t>(kept), at<int64_t>(tiles),
                 threads);
  });
  m.def("pack_weight", [](Address w, int64_t n, int64_t k, int64_t n_stride, int64_t k_stride, int layout,
                          Address counts, Address buffer, int threads) {
    const Layout chosen = layout_of(layout);
    const py::gil_scoped_release release;
    pack_weight({at<const int8_t>(w), n, k, n_stride, k_stride}, chosen, at<const int64_t>(counts),
                at<void>(buffer), threads);
  });
  m.def("unpack_weight", [](Address buffer, int64_t nbytes, Address w, int threads) {
    checked_header(buffer, nbytes);
    const py::gil_scoped_release release;
    unpack_weight(at<const void>(buffer), at<int8_t>(w), threads);
  });
  m.def("sparse_pays",
        [] { return std::make_pair(kernels().sparse->bitmask_pays, kernels().sparse->block_pays); });
  // Both end in the same arguments: weight, epilogue, output.
  m.def("int8_linear",
        [](Address x, int x_dtype, int64_t rows, int64_t n, int64_t k, int64_t row_stride, int64_t col_stride,
           bool symmetric, Address buffer, int64_t nbytes, Address w_scale, Address bias, int bias_dtype,
           int activation, Address out, int out_dtype, int64_t out_row_stride, int threads) {
          const LinearTarget target = linear_target(n, k, buffer, nbytes, w_scale, bias, bias_dtype,
                                                    activation, out, out_dtype, out_row_stride);
          LinearArgs args = linear_args(rows, k, &target, 1);
          args.quantize_x = true;
          args.asymmetric_x = !symmetric;
          args.x = {at<const void>(x), float_dtype_of(x_dtype), rows, k, row_stride, col_stride};
          const py::gil_scoped_release release;
          linear(args, threads);
        });
  // What belongs to a weight comes as a tuple: n, buffer, nbytes, w_scale, bias, bias_dtype, activation, out,
  // out_row_stride.
  using Target = std::tuple<int64_t, Address, int64_t, Address, Address, int, int, Address, int64_t>;
  m.def("int8_linears",
        [](Address x, int x_dtype, int64_t rows, int64_t k, int64_t row_stride, int64_t col_stride,
           bool symmetric, const std::vector<Target>& list, int out_dtype, int threads) {
          std::vector<LinearTarget> targets;
          targets.reserve(list.size());
          for (const auto& [n, buffer, nbytes, w_scale, bias, bias_dtype, activation, out, stride] : list) {
            targets.push_back(linear_target(n, k, buffer, nbytes, w_scale, bias, bias_dtype, activation, out,
                                            out_dtype, stride));
          }
          LinearArgs args = linear_args(rows, k, targets.data(), targets.size());
          args.quantize_x = true;
          args.asymmetric_x = !symmetric;
          args.x = {at<const void>(x), float_dtype_of(x_dtype), rows, k, row_stride, col_stride};
          const py::gil_scoped_release release;
          linear(args, threads);
        });
  m.def("scaled_int_mm", [](Address a, bool a_signed, int64_t rows, int64_t n, int64_t k, int64_t row_stride,
                            int64_t col_stride, Address a_scale, Address a_zero_point, Address buffer,
                            int64_t nbytes, Address w_scale, Address bias, int bias_dtype, int activation,
                            Address out, int out_dtype, int64_t out_row_stride, int threads) {
    const LinearTarget target = linear_target(n, k, buffer, nbytes, w_scale, bias, bias_dtype, activation,
                                              out, out_dtype, out_row_stride);
    LinearArgs args = linear_args(rows, k, &target, 1);
    args.a = at<const void>(a);
    args.a_signed = a_signed;
    args.a_row_stride = row_stride;
    args.a_col_stride = col_stride;
    args.a_scale = at<const float>(a_scale);
    args.a_zero_point = at<const int32_t>(a_zero_point);
    const py::gil_scoped_release release;
    linear(args, threads);
  });
}

void bind_conv(py::module_& m) {
  using Four = std::array<int64_t, 4>;
  m.def("int8_conv2d", [](Address x, int x_dtype, const Four& shape, const Four& strides, const Four& kernel,
                          const Four& window, int64_t groups, int64_t n, Address weight, int64_t nbytes,
                          Address w_scale, Address bias, int bias_dtype, int activation, Address out,
                          int out_dtype, int64_t out_height, int64_t out_width, bool channels_last,
                          int threads) {
    const auto [batch, channels, height, width] = shape;
    const auto [kernel_h, kernel_w, pad_top, pad_left] = kernel;
    const auto [stride_h, stride_w, dilation_h, dilation_w] = window;
    const int64_t taps = kernel_h * kernel_w;
    int64_t packed_nbytes = 0;
    if (channels != groups || n != groups || taps > kMaxTaps) {
      packed_nbytes = nbytes / groups;
      for (int64_t group = 0; group < groups; ++group) {
        const PackedHeader header = checked_header(weight + group * packed_nbytes, packed_nbytes);
        check(header.n == n / groups, "n", "the packed weight's", n / groups);
        check(header.k == taps * (channels / groups), "k", "the packed weight's", taps * (channels / groups));
      }
    } else {
      check(nbytes == taps * n, "weight", "a byte for each tap and channel", nbytes);
    }
    ConvArgs args = {};
    args.x = at<const void>(x);
    args.dtype = float_dtype_of(x_dtype);
    args.batch = batch;
    args.channels = channels;
    args.height = height;
    args.width = width;
    std::copy(strides.begin(), strides.end(), args.x_strides);
    args.kernel_h = kernel_h;
    args.kernel_w = kernel_w;
    args.stride_h = stride_h;
    args.stride_w = stride_w;
    args.dilation_h = dilation_h;
    args.dilation_w = dilation_w;
    args.pad_top = pad_top;
    args.pad_left = pad_left;
    args.groups = groups;
    args.n = n;
    args.weight = at<const void>(weight);
    args.packed_nbytes = packed_nbytes;
    args.w_scale = at<const float>(w_scale);
    args.bias = at<const void>(bias);
    args.bias_dtype = float_dtype_of(bias_dtype);
    args.activation = activation_of(activation);
    args.out = at<void>(out);
    args.out_dtype = out_dtype_of(out_dtype);
    args.out_height = out_height;
    args.out_width = out_width;
    args.channels_last = channels_last;
    const py::gil_scoped_release release;
    conv2d(args, threads);
  });
}

void bind_weight_only(py::module_& m) {
  m.def("weight_only_linear", [](Address x, int x_dtype, int64_t rows, int64_t n, int64_t k,
                                 int64_t row_stride, int64_t col_stride, Address buffer, int64_t nbytes,
                                 Address scale, int64_t groups, Address bias, int bias_dtype, int activation,
                                 Address out, int out_dtype, int64_t out_row_stride, int threads) {
    const WeightOnlyArgs args = {
        {at<const void>(x), float_dtype_of(x_dtype), rows, k, row_stride, col_stride},
        linear_target(n, k, buffer, nbytes, 0, bias, bias_dtype, activation, out, out_dtype, out_row_stride),
        at<const float>(scale),
        groups};
    const bool whole = groups == 1 || (groups > 1 && k % (groups * kGroupK) == 0);
    check(whole, "groups", "1, or as many as split k into multiples of 4", groups);
    check(args.target.out_dtype != DType::i32, "out_dtype", "a float", out_dtype);
    const py::gil_scoped_release release;
    weight_only_linear(args, threads);
  });
}

EmbeddingTable table_of(Address data, Address scale, int64_t entries, int64_t dim) {
  return {at<const int8_t>(data), at<const float>(scale), entries, dim};
}

// Both return where the first index outside the table is, and then write nothing; else -1.
void bind_embedding(py::module_& m) {
  m.def("embedding", [](Address data, Address scale, int64_t entries, int64_t dim, Address indices, bool wide,
                        int64_t count, Address out, int out_dtype, int threads) {
    const EmbeddingTable table = table_of(data, scale, entries, dim);
    const Integers where = {at<const void>(indices), wide, count};
    const DType type = float_dtype_of(out_dtype);
    const py::gil_scoped_release release;
    const int64_t outside = first_outside(table, where, threads);
    if (outside < 0) embedding(table, where, at<void>(out), type, threads);
    return outside;
  });
  m.def("embedding_bag", [](Address data, Address scale, int64_t entries, int64_t dim, Address indices,
                            bool wide, int64_t count, Address ends, int64_t bags, Address weights,
                            int64_t padding, int mode, Address out, int out_dtype, int threads) {
    check(mode >= 0 && mode <= 2, "mode", "a code from 0 to 2", mode);
    int64_t last = 0;
    for (int64_t i = 0; i < bags; ++i) {
      const int64_t end = at<const int64_t>(ends)[i];
      check(end >= last && end <= count, "ends", "ascending positions among the indices", end);
      last = end;
    }
    const EmbeddingBagArgs args = {table_of(data, scale, entries, dim),
                                   {at<const void>(indices), wide, count},
                                   at<const int64_t>(ends),
                                   bags,
                                   at<const float>(weights),
                                   padding,
                                   static_cast<BagMode>(mode),
                                   at<void>(out),
                                   float_dtype_of(out_dtype)};
    const py::gil_scoped_release release;
    const int64_t outside = first_outside(args.table, args.indices, threads);
    if (outside < 0) embedding_bag(args, threads);
    return outside;
  });
}

void bind_machine(py::module_& m) {
  m.def("isas_built", [] {
    std::vector<std::string> names;
    for (const Kernels& k : all_kernels()) names.emplace_back(k.isa);
    return names;
  });
  m.def("isas_available", [] {
    std::vector<std::string> names;
    for (const Kernels& k : all_kernels()) {
      if (k.available) names.emplace_back(k.isa);
    }
    return names;
  });
  m.def("get_isa", [] { return std::string(kernels().isa); });
  m.def("set_isa", &set_isa);
  m.def("default_threads", &default_threads);
  m.def("threads_info", [] {
    const ThreadsInfo info = threads_info();
    return std::map<std::string, std::string>{{"runtime", info.runtime},
                                              {"threads", std::to_string(info.threads)}};
  });
  m.def("compiler", [] { return std::string(__VERSION__); });
  m.def("address", [](const py::array& array) { return reinterpret_cast<Address>(array.data()); });
  m.def("probe_peak", &probe_peak, py::call_guard<py::gil_scoped_release>());
  m.def("probe_read", [](Address buffer, int64_t nbytes, int threads) {
    const py::gil_scoped_release release;
    return probe_read(at<const void>(buffer), nbytes, threads);
  });
  m.def("probe_copy", [](Address source, Address target, int64_t nbytes, int threads) {
    const py::gil_scoped_release release;
    probe_copy(at<const void>(source), at<void>(target), nbytes, threads);
  });
}

}  // namespace
}  // namespace octavo

PYBIND11_MODULE(_core, m) {
  m.doc() = "octavo's native CPU kernels; use them through the octavo package";
  octavo::bind_elementwise(m);
  octavo::bind_norm(m);
  octavo::bind_prune(m);
  octavo::bind_linear(m);
  octavo::bind_conv(m);
  octavo::bind_weight_only(m);
  octavo::bind_embedding(m);
  octavo::bind_machine(m);
}
