// Everything that multiplies by a packed weight: linear, int_mm, weight_only.
#include "dispatch.h"
#include "families.h"
#include "layouts.h"

namespace octavo {
namespace {

// A weight and what happens to its product.
struct Target {
  LinearTarget target;
  int64_t k;
};

Layout layout_of(int code) {
  check(code >= 0 && code <= 2, "layout", "a code from 0 to 2", code);
  return static_cast<Layout>(code);
}

std::vector<LinearTarget> targets_of(const std::vector<Target>& list, int64_t k) {
  std::vector<LinearTarget> targets;
  targets.reserve(list.size());
  for (const Target& each : list) {
    check(each.k == k, "k", "the packed weight's", k);
    targets.push_back(each.target);
  }
  return targets;
}

LinearArgs linear_args(int64_t rows, int64_t k, const std::vector<LinearTarget>& targets) {
  LinearArgs args = {};
  args.m = rows;
  args.k = k;
  args.targets = targets.data();
  args.count = static_cast<int64_t>(targets.size());
  return args;
}

}  // namespace

// A buffer of another version, layout or shape is refused, never read as numbers.
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

Weight checked_weight(Address buffer, int64_t nbytes, int64_t n, int64_t k) {
  const PackedHeader header = checked_header(buffer, nbytes);
  check(header.n == n, "n", "the packed weight's", n);
  check(header.k == k, "k", "the packed weight's", k);
  return {at<const void>(buffer), n, k};
}

void bind_linear(py::module_& m) {
  m.attr("PACKED_VERSION") = PackedHeader::kVersion;
  m.attr("MAX_K") = kMaxK;
  m.attr("MAX_K_UNSIGNED") = kMaxKUnsigned;
  m.attr("PANEL_COLUMNS") = kPanelN;
  m.attr("PANEL_TERMS") = kPanelK;
  m.attr("GROUP_TERMS") = kGroupK;
  define_record<Weight>(m, "Weight", {"address", "nbytes", "n", "k"},
                        [](Address address, int64_t nbytes, int64_t n, int64_t k) {
                          return checked_weight(address, nbytes, n, k);
                        });
  define_record<Target>(
      m, "Target",
      {"weight", "scale", "bias", "bias_dtype", "activation", "out", "out_dtype", "out_row_stride"},
      [](const Weight& weight, Address scale, Address bias, int bias_dtype, int activation, Address out,
         int out_dtype, int64_t out_row_stride) {
        return Target{{weight.n, weight.packed, at<const float>(scale), at<const void>(bias),
                       float_dtype_of(bias_dtype), activation_of(activation), at<void>(out),
                       out_dtype_of(out_dtype), out_row_stride},
                      weight.k};
      });
  define(m, "packed_shape", {"address", "nbytes"}, [](Address address, int64_t nbytes) {
    const PackedHeader header = checked_header(address, nbytes);
    return std::make_pair(header.n, header.k);
  });
  define(m, "count_weight", {"w", "kept", "tiles", "where"},
         [](const IntRows& w, Address kept, Address tiles, int threads) {
           const WeightArgs args = weight_args(w);
           const py::gil_scoped_release release;
           count_weight(args, at<int64_t>(kept), at<int64_t>(tiles), threads);
         });
  define(m, "pack_weight", {"w", "layout", "counts", "buffer", "where"},
         [](const IntRows& w, int layout, Address counts, Address buffer, int threads) {
           const WeightArgs args = weight_args(w);
           const Layout chosen = layout_of(layout);
           const py::gil_scoped_release release;
           pack_weight(args, chosen, at<const int64_t>(counts), at<void>(buffer), threads);
         });
  define(m, "unpack_weight", {"weight", "w", "where"}, [](const Weight& weight, Address w, int threads) {
    const py::gil_scoped_release release;
    unpack_weight(weight.packed, at<int8_t>(w), threads);
  });
  m.def("sparse_pays",
        [] { return std::make_pair(kernels().sparse->bitmask_pays, kernels().sparse->block_pays); });
  define(m, "int8_linears", {"x", "targets", "symmetric", "where"},
         [](const FloatRows& x, const std::vector<Target>& list, bool symmetric, int threads) {
           const std::vector<LinearTarget> targets = targets_of(list, x.cols);
           LinearArgs args = linear_args(x.rows, x.cols, targets);
           args.quantize_x = true;
           args.asymmetric_x = !symmetric;
           args.x = x;
           const py::gil_scoped_release release;
           linear(args, threads);
         });
  define(m, "scaled_int_mm", {"a", "a_scale", "a_zero_point", "target", "where"},
         [](const IntRows& a, Address a_scale, Address a_zero_point, const Target& target, int threads) {
           const std::vector<LinearTarget> targets = targets_of({target}, a.cols);
           LinearArgs args = linear_args(a.rows, a.cols, targets);
           args.a = a.data;
           args.a_signed = a.is_signed;
           args.a_row_stride = a.row_stride;
           args.a_col_stride = a.col_stride;
           args.a_scale = at<const float>(a_scale);
           args.a_zero_point = at<const int32_t>(a_zero_point);
           const py::gil_scoped_release release;
           linear(args, threads);
         });
  define(m, "weight_only_linear", {"x", "target", "scale", "groups", "where"},
         [](const FloatRows& x, const Target& target, Address scale, int64_t groups, int threads) {
           const WeightOnlyArgs args = {x, targets_of({target}, x.cols)[0], at<const float>(scale), groups};
           const bool whole = groups == 1 || (groups > 1 && x.cols % (groups * kGroupK) == 0);
           check(whole, "groups", "1, or as many as split k into multiples of 4", groups);
           check(args.target.out_dtype != DType::i32, "out_dtype", "a float", 4);
           const py::gil_scoped_release release;
           weight_only_linear(args, threads);
         });
}

}  // namespace octavo
