#include "cuda.h"
#include "numerics.h"

namespace octavo {
namespace cuda {

void bind_prune(py::module_& m) {
  m.attr("SELECTION_NBYTES") = sizeof(Selection);
  define_record<SelectionArg>(
      m, "Selection", {"key", "keep_equal_from"},
      [](uint32_t key, int64_t keep_equal_from) { return SelectionArg{{key, keep_equal_from}, nullptr}; });
  m.def("selection_at",
        [](Address address) { return new_record(SelectionArg{{0, 0}, at<const Selection>(address)}); });
  define(m, "magnitude_select", {"segments", "k", "where"},
         [](const std::vector<Segment>& segments, int64_t k, const Where& where) {
           check_k(segments, k);
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
  define(m, "magnitude_select_to", {"segments", "k", "selection", "where"},
         [](const std::vector<Segment>& segments, int64_t k, Address selection, const Where& where) {
           check_k(segments, k);
           const Call call(where);
           const py::gil_scoped_release release;
           magnitude_select(call, segments.data(), count_of(segments), k, at<Selection>(selection));
         });
  define(
      m, "ratio_select_to", {"segments", "ratio_bits", "selection", "where"},
      [](const std::vector<Segment>& segments, uint32_t ratio_bits, Address selection, const Where& where) {
        const Call call(where);
        const py::gil_scoped_release release;
        ratio_select(call, segments.data(), count_of(segments), float_of(ratio_bits),
                     at<Selection>(selection));
      });
  define(m, "prune", {"segments", "selection", "where"},
         [](const std::vector<Segment>& segments, const SelectionArg& selection, const Where& where) {
           for (const Segment& s : segments) check_written(s);
           const Call call(where);
           const py::gil_scoped_release release;
           prune(call, segments.data(), count_of(segments), selection);
         });
  define(m, "prune_quantize", {"w", "selection", "mask", "data", "scale", "where"},
         [](const FloatRows& w, const SelectionArg& selection, Address mask, Address data, Address scale,
            const Where& where) {
           check_contiguous(w);
           const Call call(where);
           const py::gil_scoped_release release;
           prune_quantize(call, {w.data, w.dtype, w.rows, w.cols, selection, at<bool>(mask), at<int8_t>(data),
                                 at<float>(scale)});
         });
  define(m, "prune_nm", {"segment", "n", "m", "where"},
         [](const Segment& s, int n, int group, const Where& where) {
           check_group(n, group);
           const Call call(where);
           const py::gil_scoped_release release;
           prune_nm(call, s.w, s.dtype, s.n / group, n, group, s.mask, s.pruned);
         });
  define(m, "unit_scores", {"segment", "grid", "scores", "where"},
         [](const Segment& s, const UnitGrid& grid, Address scores, const Where& where) {
           check_grid(s, grid);
           const Call call(where);
           const py::gil_scoped_release release;
           unit_scores(call, s.w, s.dtype, grid.rows, grid.cols, grid.unit_rows, grid.unit_cols,
                       at<double>(scores));
         });
  define(m, "unit_select", {"scores", "count", "k", "keep", "where"},
         [](Address scores, int64_t count, int64_t k, Address keep, const Where& where) {
           if (k < 0 || k > count) fail("k", "between 0 and " + std::to_string(count), k);
           const Call call(where);
           const py::gil_scoped_release release;
           unit_select(call, at<const double>(scores), count, k, at<bool>(keep));
         });
  define(m, "unit_threshold", {"scores", "count", "limit", "is_ratio", "keep", "where"},
         [](Address scores, int64_t count, double limit, bool is_ratio, Address keep, const Where& where) {
           const Call call(where);
           const py::gil_scoped_release release;
           unit_threshold(call, at<const double>(scores), count, limit, is_ratio, at<bool>(keep));
         });
  define(m, "prune_units", {"segment", "grid", "keep", "where"},
         [](const Segment& s, const UnitGrid& grid, Address keep, const Where& where) {
           check_grid(s, grid);
           const Call call(where);
           const py::gil_scoped_release release;
           prune_units(call, grid, at<const bool>(keep), s.w, s.dtype, s.mask, s.pruned);
         });
  define(m, "pack_mask", {"mask", "rows", "cols", "bits", "where"},
         [](Address mask, int64_t rows, int64_t cols, Address bits, const Where& where) {
           const Call call(where);
           const py::gil_scoped_release release;
           pack_mask(call, at<const bool>(mask), rows, cols, at<uint8_t>(bits));
         });
  define(m, "unpack_mask", {"bits", "rows", "cols", "mask", "where"},
         [](Address bits, int64_t rows, int64_t cols, Address mask, const Where& where) {
           const Call call(where);
           const py::gil_scoped_release release;
           unpack_mask(call, at<const uint8_t>(bits), rows, cols, at<bool>(mask));
         });
}

}  // namespace cuda
}  // namespace octavo
