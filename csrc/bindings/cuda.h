// Where kernels on a device run, and the families of octavo._cuda. The GIL is released where kernels are launched: a full queue
// makes that wait.
#pragma once

#include <tuple>

#include "bindings.h"
#include "cuda/octavo_cuda.h"

namespace octavo {
namespace cuda {

// Device, stream, and allocate(bytes), which returns the address of memory on the device that stays valid until the function
// returns.
using Where = std::tuple<int, Address, py::function>;

#ifdef OCTAVO_EMULATED

class CurrentDevice {
 public:
  explicit CurrentDevice(int) {}
};

#else

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

struct Properties {
  int multiprocessors, capability;
};
const Properties& properties(int device);

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

void bind_quantize(py::module_& m);  // and norm
void bind_prune(py::module_& m);
void bind_linear(py::module_& m);

}  // namespace cuda

template <>
struct Argument<cuda::Where> {
  static cuda::Where read(PyObject* object, const char* name) {
    if (!PyTuple_Check(object) || PyTuple_GET_SIZE(object) != 3)
      wrong_type(name, "a tuple of device, stream and allocate", object);
    return {Argument<int>::read(PyTuple_GET_ITEM(object, 0), "device"),
            Argument<Address>::read(PyTuple_GET_ITEM(object, 1), "stream"),
            Argument<py::function>::read(PyTuple_GET_ITEM(object, 2), "allocate")};
  }
};

}  // namespace octavo
