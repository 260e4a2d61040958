// What is built and what runs, and the machine's limits for the benchmarks.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <map>

#include "dispatch.h"
#include "families.h"
#include "parallel.h"

namespace octavo {

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
  m.def("few_rows", [] {
    const GemmKernels& gemm = *kernels().gemm;
    return std::make_pair(gemm.few_rows, std::string(gemm.few_rows_isa));
  });
  m.def("default_threads", &default_threads);
  m.def("threads_info", [] {
    const ThreadsInfo info = threads_info();
    return std::map<std::string, std::string>{{"runtime", info.runtime},
                                              {"threads", std::to_string(info.threads)}};
  });
  m.def("compiler", [] { return std::string(__VERSION__); });
  define(m, "address", {"array"},
         [](const py::array& array) { return reinterpret_cast<Address>(array.data()); });
  define(m, "probe_peak", {"milliseconds", "threads"}, [](double milliseconds, int threads) {
    const py::gil_scoped_release release;
    return probe_peak(milliseconds, threads);
  });
  define(m, "probe_read", {"buffer", "nbytes", "threads"}, [](Address buffer, int64_t nbytes, int threads) {
    const py::gil_scoped_release release;
    return probe_read(at<const void>(buffer), nbytes, threads);
  });
  define(m, "probe_copy", {"source", "target", "nbytes", "threads"},
         [](Address source, Address target, int64_t nbytes, int threads) {
           const py::gil_scoped_release release;
           probe_copy(at<const void>(source), at<void>(target), nbytes, threads);
         });
}

}  // namespace octavo
