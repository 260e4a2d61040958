#include "families.h"

namespace octavo {

void bind_prune(py::module_& m) {
  define_record<Selection>(
      m, "Selection", {"key", "keep_equal_from"},
      [](uint32_t key, int64_t keep_equal_from) { return Selection{key, keep_equal_from}; });
  define(m, "magnitude_select", {"segments", "k", "where"},
         [](const std::vector<Segment>& segments, int64_t k, int threads) {
           check_k(segments, k);
           Selection selection;
           {
             const py::gil_scoped_release release;
             selection = magnitude_select(segments.data(), count_of(segments), k, threads);
           }
           return std::make_pair(selection.key, selection.keep_equal_from);
         });
  define(m, "max_key", {"segments", "where"}, [](const std::vector<Segment>& segments, int threads) {
    const py::gil_scoped_release release;
    return max_key(segments.data(), count_of(segments), threads);
  });
  define(m, "prune", {"segments", "selection", "where"},
         [](const std::vector<Segment>& segments, const Selection& selection, int threads) {
           for (const Segment& s : segments) check_written(s);
           const py::gil_scoped_release release;
           prune(segments.data(), count_of(segments), selection, threads);
         });
  define(m, "prune_quantize", {"w", "selection", "mask", "data", "scale", "where"},
         [](const FloatRows& w, const Selection& selection, Address mask, Address data, Address scale,
            int threads) {
           check_contiguous(w);
           const py::gil_scoped_release release;
           prune_quantize({w.data, w.dtype, w.rows, w.cols, selection, at<bool>(mask), at<int8_t>(data),
                           at<float>(scale)},
                          threads);
         });
  define(m, "prune_nm", {"segment", "n", "m", "where"}, [](const Segment& s, int n, int group, int threads) {
    check_group(n, group);
    const py::gil_scoped_release release;
    prune_nm(s.w, s.dtype, s.n / group, n, group, s.mask, s.pruned, threads);
  });
  define(m, "unit_scores", {"segment", "grid", "scores", "where"},
         [](const Segment& s, const UnitGrid& grid, Address scores, int threads) {
           check_grid(s, grid);
           const py::gil_scoped_release release;
           unit_scores(s.w, s.dtype, grid.rows, grid.cols, grid.unit_rows, grid.unit_cols, at<double>(scores),
                       threads);
         });
  define(m, "prune_units", {"segment", "grid", "keep", "where"},
         [](const Segment& s, const UnitGrid& grid, Address keep, int threads) {
           check_grid(s, grid);
           const py::gil_scoped_release release;
           prune_units(grid, at<const bool>(keep), s.w, s.dtype, s.mask, s.pruned, threads);
         });
  define(m, "pack_mask", {"mask", "rows", "cols", "bits", "where"},
         [](Address mask, int64_t rows, int64_t cols, Address bits, int threads) {
           const py::gil_scoped_release release;
           pack_mask(at<const bool>(mask), rows, cols, at<uint8_t>(bits), threads);
         });
  define(m, "unpack_mask", {"bits", "rows", "cols", "mask", "where"},
         [](Address bits, int64_t rows, int64_t cols, Address mask, int threads) {
           const py::gil_scoped_release release;
           unpack_mask(at<const uint8_t>(bits), rows, cols, at<bool>(mask), threads);
         });
}

}  // namespace octavo
