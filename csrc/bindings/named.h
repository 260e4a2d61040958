// Functions and records whose arguments Python passes by name: only the first may come by position, and none is left out.
//
// pybind11 3.1 compares the names of a call with those of the function as strings, each with each: 17 of them take five times
// as long as the same arguments by position, and a record by its class_ takes longer than a tiny product. Names that stand in
// a program are interned, and nearly always in the order of the declaration: here each costs one comparison of pointers.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace octavo {

// ---- Records: C++ structs, as Python objects that nobody looks into. ----

template <class T>
struct RecordObject {
  PyObject head;
  T value;
};

template <class T>
struct RecordType {
  static_assert(std::is_trivially_destructible_v<T>, "a record is memory and nothing more");
  static inline PyTypeObject* type = nullptr;  // where there is one, T is a record
};

// ---- What an argument has to be. ----

[[noreturn]] inline void wrong_type(const char* name, const char* expected, PyObject* got) {
  throw py::type_error(std::string(name) + ": expected " + expected + ", got " + Py_TYPE(got)->tp_name);
}

template <class T, class = void>
struct Argument {
  static const T& read(PyObject* object, const char* name) {
    if (Py_TYPE(object) != RecordType<T>::type) wrong_type(name, RecordType<T>::type->tp_name, object);
    return reinterpret_cast<RecordObject<T>*>(object)->value;
  }
};

template <class T>
struct Argument<T, std::enable_if_t<std::is_integral_v<T>>> {
  static T read(PyObject* object, const char* name) {
    if (!PyLong_Check(object)) {
      const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(object));
      if (index) return read(index.ptr(), name);
      PyErr_Clear();
      wrong_type(name, "an int", object);
    }
    if constexpr (std::is_unsigned_v<T>) {
      const unsigned long long value = PyLong_AsUnsignedLongLong(object);
      return checked(value, value == static_cast<unsigned long long>(-1), name);
    } else {
      const long long value = PyLong_AsLongLong(object);
      return checked(value, value == -1, name);
    }
  }

  template <class Wide>
  static T checked(Wide value, bool maybe_error, const char* name) {
    const bool outside = value < std::numeric_limits<T>::min() || value > std::numeric_limits<T>::max();
    if (outside || (maybe_error && PyErr_Occurred())) {
      PyErr_Clear();
      throw py::value_error(std::string(name) + ": expected an integer of " + std::to_string(8 * sizeof(T)) +
                            " bits, got another");
    }
    return static_cast<T>(value);
  }
};

template <>
struct Argument<bool> {
  static bool read(PyObject* object, const char* name) {
    if (object == Py_True || object == Py_False) return object == Py_True;
    const PyNumberMethods* number = Py_TYPE(object)->tp_as_number;
    if (!number || !number->nb_bool) wrong_type(name, "a bool", object);
    const int value = number->nb_bool(object);
    if (value < 0) throw py::error_already_set();
    return value != 0;
  }
};

template <class T>
struct Argument<T, std::enable_if_t<std::is_floating_point_v<T>>> {
  static T read(PyObject* object, const char* name) {
    const double value = PyFloat_AsDouble(object);
    if (value == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      wrong_type(name, "a float", object);
    }
    return static_cast<T>(value);
  }
};

template <class T>
struct Argument<T, std::enable_if_t<std::is_base_of_v<py::object, T>>> {
  static T read(PyObject* object, const char* name) {
    if (!py::isinstance<T>(object)) wrong_type(name, "an array", object);
    return py::reinterpret_borrow<T>(object);
  }
};

template <class T>
struct Argument<std::vector<T>> {
  static std::vector<T> read(PyObject* object, const char* name) {
    if (!PyList_Check(object)) wrong_type(name, "a list", object);
    std::vector<T> values;
    values.reserve(static_cast<size_t>(PyList_GET_SIZE(object)));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(object); ++i)
      values.push_back(Argument<T>::read(PyList_GET_ITEM(object, i), name));
    return values;
  }
};

// ---- Calls. One Named for each lambda that is bound. ----

template <class Function, class Signature = decltype(&Function::operator())>
struct Named;

template <class Function, class Result, class... Args>
struct Named<Function, Result (Function::*)(Args...) const> {
  static constexpr size_t kCount = sizeof...(Args);
  static inline const Function* function = nullptr;
  static inline const char* called = nullptr;
  static inline const char* names[kCount];
  static inline PyObject* interned[kCount];

  static void declare(const char* name, const Function& body, std::initializer_list<const char*> arguments) {
    if (arguments.size() != kCount) throw std::logic_error(std::string(name) + ": a name for each argument");
    function = new Function(body);
    called = name;
    size_t i = 0;
    for (const char* argument : arguments) {
      names[i] = argument;
      interned[i++] = PyUnicode_InternFromString(argument);
    }
  }

  // What inspect.signature() reads.
  static std::string signature() {
    std::string text = std::string(called) + "(" + names[0] + (kCount > 1 ? ", *" : "");
    for (size_t i = 1; i < kCount; ++i) text += std::string(", ") + names[i];
    return text + ")\n--\n\n";
  }

  static Result call(PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
    PyObject* found[kCount] = {};
    const Py_ssize_t named = keywords ? PyTuple_GET_SIZE(keywords) : 0;
    if (positional > 1) {
      throw py::type_error(std::string(called) + "() takes 1 positional argument but " +
                           std::to_string(positional) + " were given");
    }
    if (positional) found[0] = args[0];
    for (Py_ssize_t i = 0; i < named; ++i) {
      const size_t at = index_of(PyTuple_GET_ITEM(keywords, i), static_cast<size_t>(positional + i));
      if (found[at]) throw py::type_error(std::string(called) + "() got two of '" + names[at] + "'");
      found[at] = args[positional + i];
    }
    for (size_t i = 0; i < kCount; ++i) {
      if (!found[i]) throw py::type_error(std::string(called) + "() is missing '" + names[i] + "'");
    }
    return apply(found, std::index_sequence_for<Args...>());
  }

 private:
  static size_t index_of(PyObject* keyword, size_t likely) {
    if (likely < kCount && interned[likely] == keyword) return likely;
    for (size_t i = 0; i < kCount; ++i) {
      if (interned[i] == keyword || PyUnicode_Compare(interned[i], keyword) == 0) return i;
    }
    throw py::type_error(std::string(called) + "() has no argument '" +
                         py::cast<std::string>(py::handle(keyword)) + "'");
  }

  template <size_t... kIndex>
  static Result apply(PyObject* const* found, std::index_sequence<kIndex...>) {
    return (*function)(Argument<std::decay_t<Args>>::read(found[kIndex], names[kIndex])...);
  }
};

// A record of the module; its type has been defined.
template <class T>
py::object new_record(const T& value) {
  auto* self = PyObject_New(RecordObject<T>, RecordType<T>::type);
  if (!self) throw std::bad_alloc();
  self->value = value;
  return py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(self));
}

// Runs body, which returns a new reference; C++ exceptions become Python's. Nothing else is caught: a thread that an ending
// interpreter stops unwinds through here.
template <class Body>
PyObject* translated(const Body& body) {
  try {
    return body();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc& error) {
    PyErr_SetString(PyExc_MemoryError, error.what());
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// m.name(first, *, second, ...) calls body; arguments: their names, in the order of body's.
template <class Function>
void define(py::module_& m, const char* name, std::initializer_list<const char*> arguments,
            const Function& body) {
  using Call = Named<Function>;
  Call::declare(name, body, arguments);
  static const std::string doc = Call::signature();
  const auto entry = [](PyObject*, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
    return translated([=] {
      using Result = decltype(Call::call(args, count, keywords));
      if constexpr (std::is_void_v<Result>) {
        Call::call(args, count, keywords);
        return py::none().release().ptr();
      } else {
        return py::cast(Call::call(args, count, keywords)).release().ptr();
      }
    });
  };
  static PyMethodDef method = {
      name,
      reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(
          +static_cast<PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*)>(entry))),
      METH_FASTCALL | METH_KEYWORDS, doc.c_str()};
  const py::object module_name = m.attr("__name__");
  m.attr(name) = py::reinterpret_steal<py::object>(PyCFunction_NewEx(&method, nullptr, module_name.ptr()));
}

// m.name(first, *, second, ...) makes a T as make does, to be passed where an argument is a T.
template <class T, class Function>
void define_record(py::module_& m, const char* name, std::initializer_list<const char*> arguments,
                   const Function& make) {
  using Call = Named<Function>;
  Call::declare(name, make, arguments);
  static const std::string doc = Call::signature();
  static const std::string full = py::cast<std::string>(m.attr("__name__")) + "." + name;
  const destructor free = [](PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
  };
  PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(free)},
                         {Py_tp_doc, const_cast<char*>(doc.c_str())},
                         {0, nullptr}};
  PyType_Spec spec = {full.c_str(), static_cast<int>(sizeof(RecordObject<T>)), 0,
                      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
  const py::object type = py::reinterpret_steal<py::object>(PyType_FromSpec(&spec));
  if (!type) throw py::error_already_set();
  RecordType<T>::type = reinterpret_cast<PyTypeObject*>(py::object(type).release().ptr());
  RecordType<T>::type->tp_vectorcall = [](PyObject*, PyObject* const* args, size_t count,
                                          PyObject* keywords) {
    return translated(
        [=] { return new_record<T>(Call::call(args, PyVectorcall_NARGS(count), keywords)).release().ptr(); });
  };
  m.attr(name) = type;
}

}  // namespace octavo
