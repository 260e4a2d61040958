// The Python module octavo._cuda, twin of _core for arrays on a device. Nothing here touches a driver until it is asked for a
// device, so that the module imports on machines without one.
//
// With OCTAVO_EMULATED it is _cuda_emulated, for tests: the same kernels run on the host, thread by thread.
#include <pybind11/stl.h>

#include <map>

#include "cuda.h"

namespace octavo {
namespace cuda {
namespace {

// Whether a family's kernels have passed every parity test on a GPU: until then the Python package leaves them alone, unless
// the user insists.
const std::map<std::string, bool> kProven = {
    {"quantize", false}, {"norm", false}, {"select", false}, {"prune", false}, {"linear", false}};

#ifdef OCTAVO_EMULATED

int device_count() { return 1; }
Properties query(int) { return {kEmulatedMultiprocessors, 90}; }

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

#endif

void bind(py::module_& m) {
  m.doc() = "octavo's native CUDA kernels; use them through the octavo package";
  m.def("device_count", &device_count);
  m.def("capability", [](int device) { return properties(device).capability; });
  m.def("kernels", [] { return kProven; });
  define_records(m);
  bind_quantize(m);
  bind_prune(m);
  bind_linear(m);
}

}  // namespace

const Properties& properties(int device) {  // called with the GIL held
  static std::map<int, Properties> known;
  const auto found = known.find(device);
  return found != known.end() ? found->second : known.emplace(device, query(device)).first->second;
}

}  // namespace cuda
}  // namespace octavo

#ifdef OCTAVO_EMULATED
PYBIND11_MODULE(_cuda_emulated, m) { octavo::cuda::bind(m); }
#else
PYBIND11_MODULE(_cuda, m) { octavo::cuda::bind(m); }
#endif
