"""What octavo takes as an array: NumPy arrays, torch tensors and CuPy arrays, seen through a few functions
that serve all.

A tiny call must stay a few microseconds long: the common case of every function here is one dict lookup or
one attribute, and the rest is reached only when that fails.
"""

from __future__ import annotations

import contextlib
import math
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from .backends import _core

Array: TypeAlias = Any  # numpy.ndarray | torch.Tensor | cupy.ndarray

FLOATS = ("float32", "float16", "bfloat16", "float64")
DTYPE_CODES = {"float32": 0, "float16": 1, "bfloat16": 2, "float64": 3, "int32": 4}
_OTHERS = ("bool", "int8", "uint8", "int32", "int64")

# These tables are filled by the first array of each type or dtype, so that torch, CuPy and ml_dtypes need not
# be imported. torch's dtypes have a table of their own: the Dynamo of torch 2.8 cannot trace a look-up in a
# dictionary that has NumPy's dtypes among its keys.
_kinds: dict[type, str] = {np.ndarray: "numpy"}
_numpy_dtypes: dict[str, Any] = {n: np.dtype(n) for n in (*FLOATS, *_OTHERS) if n != "bfloat16"}
_names: dict[Any, str] = {dtype: name for name, dtype in _numpy_dtypes.items()}
_torch_names: dict[str, Any] = {}  # the objects of torch by name: dtypes, and the layout "strided"
_torch_dtypes: dict[Any, str] = {}
_forward_ad: Any = None  # the module that knows whether a level of forward mode is active
FLOAT_CODES: dict[Any, int] = {}
# torch.Tensor and Parameter; not their subclasses, which may want to see the calls that they are in
_plain_tensors: set[type] = set()

_C_CONTIGUOUS_ALIGNED = 0x101  # NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED


# ---- kinds and dtypes ----


def kind_of(**arrays: Array) -> str:
    """The kind of all arrays, "numpy", "torch" or "cupy"; None may follow the first. TypeError on a mix."""
    first_name = first_kind = ""
    device: Any = None
    for name, array in arrays.items():
        if array is None and first_kind:
            continue
        kind = _kinds.get(type(array)) or _learn_kind(array, name)
        if not first_kind:
            first_name, first_kind = name, kind
        elif kind != first_kind:
            raise TypeError(f"{name}: expected {_CLASS[first_kind]} like {first_name}, got {_CLASS[kind]}")
        if kind != "numpy":
            if kind == "torch" and array.layout is not _torch_names["strided"]:
                raise TypeError(f"{name}: expected a strided torch.Tensor, got layout {array.layout}")
            if device is None:
                device = array.device
            elif array.device != device:
                raise TypeError(f"{name}: expected device {device} like {first_name}, got {array.device}")
    return first_kind


_CLASS = {"numpy": "numpy.ndarray", "torch": "torch.Tensor", "cupy": "cupy.ndarray"}
_ANY_CLASS = "numpy.ndarray, torch.Tensor or cupy.ndarray"


def is_array(x: object) -> bool:
    """Whether x is of a type that kind_of takes."""
    try:
        return bool(_kinds.get(type(x)) or _learn_kind(x, "x"))
    except TypeError:
        return False


def _learn_kind(x: object, name: str) -> str:
    cls = type(x)
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if isinstance(x, np.ndarray) and not isinstance(x, (np.ma.MaskedArray, np.matrix)):
        _kinds[cls] = "numpy"
    elif torch is not None and isinstance(x, torch.Tensor):
        if not _torch_names:
            _learn_torch(torch)
        _kinds[cls] = "torch"
    elif cupy is not None and isinstance(x, cupy.ndarray):
        _kinds[cls] = "cupy"
    else:
        got = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
        raise TypeError(f"{name}: expected a {_ANY_CLASS}, got {got}")
    return _kinds[cls]


def is_torch(x: Array) -> bool:
    return (_kinds.get(type(x)) or _learn_kind(x, "x")) == "torch"


def on_cuda(x: Array) -> bool:
    return not isinstance(x, np.ndarray) and (bool(x.is_cuda) if is_torch(x) else True)


def _learn_torch(torch: Any) -> None:
    global _forward_ad
    _forward_ad = torch.autograd.forward_ad
    _torch_names.update({n: getattr(torch, n) for n in (*FLOATS, *_OTHERS, "strided")})
    _torch_dtypes.update({dtype: n for n, dtype in _torch_names.items()})
    _plain_tensors.update((torch.Tensor, torch.nn.Parameter))


def _numpy_bfloat16() -> Any:
    if "bfloat16" not in _numpy_dtypes:
        try:
            import ml_dtypes
        except ImportError:
            raise TypeError(
                "dtype: expected a dtype of NumPy, got 'bfloat16', which needs ml_dtypes"
            ) from None
        _numpy_dtypes["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
        _names[_numpy_dtypes["bfloat16"]] = "bfloat16"
    return _numpy_dtypes["bfloat16"]


def dtype_name(dtype: Any) -> str:
    """The name of an array's dtype, such as "int8"; of one unknown to octavo, what it calls itself."""
    name = _torch_dtypes.get(dtype) or _names.get(dtype)
    if name is None:
        if isinstance(dtype, np.dtype) and dtype.name == "bfloat16":
            _numpy_bfloat16()
            return _names.get(dtype, "a bfloat16 that is not of ml_dtypes")
        name = dtype.str if isinstance(dtype, np.dtype) and not dtype.isnative else str(dtype)
    return name


def float_code(x: Array, name: str) -> int:
    """The dtype code of a float array. TypeError for other dtypes, byte-swapped ones included."""
    code = FLOAT_CODES.get(x.dtype)
    if code is None:
        got = dtype_name(x.dtype)
        if got not in FLOATS:
            raise TypeError(f"{name}: expected dtype float32, float16, bfloat16 or float64, got {got}")
        code = FLOAT_CODES[x.dtype] = DTYPE_CODES[got]
    return code


def is_number(value: object, dtype: str) -> bool:
    """Whether value is a Python or NumPy number that can stand for a 0-d array of this dtype."""
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, np.integer)) or (
        dtype != "int32" and isinstance(value, (float, np.floating))
    )


def check_dtype(x: Array, name: str, *expected: str) -> str:
    """The name of x's dtype, which must be one of those expected."""
    got = dtype_name(x.dtype)
    if got not in expected:
        raise TypeError(f"{name}: expected dtype {' or '.join(expected)}, got {got}")
    return got


def check_shape(x: Array, name: str, *expected: tuple[int, ...]) -> None:
    if tuple(x.shape) not in expected:
        raise ValueError(f"{name}: expected shape {' or '.join(map(str, expected))}, got {tuple(x.shape)}")


def as_dtype_name(dtype: Any, name: str, allowed: Sequence[str]) -> str:
    """The name of a dtype argument: a string, a NumPy dtype or scalar type, or a torch dtype."""
    known = ""
    if isinstance(dtype, str):
        known = dtype
    elif type(dtype).__module__ == "torch":
        known = str(dtype).removeprefix("torch.")
    elif dtype is not None:
        with contextlib.suppress(TypeError):
            known = np.dtype(dtype).name
    if known not in allowed:
        raise TypeError(f"{name}: expected {', '.join(allowed[:-1])} or {allowed[-1]}, got {dtype!r}")
    return known


def native_dtype(name: str, like: Array) -> Any:
    """The dtype object of that name for arrays of like's kind."""
    return _torch_names[name] if is_torch(like) else _numpy_dtypes.get(name) or _numpy_bfloat16()


def number_as_array(value: Any, dtype: str, like: Array) -> Any:
    """A Python or NumPy number as an array of shape () like another; anything else as it is."""
    if not is_number(value, dtype) or not is_array(like):
        return value
    array = empty((), dtype, like)
    with on_device_of(array):
        array[()] = value
    return array


# ---- memory ----


def empty(shape: tuple[int, ...], dtype: str, like: Array) -> Array:
    """A new C-contiguous array of like's kind, on its device."""
    if isinstance(like, np.ndarray):
        return np.empty(shape, _numpy_dtypes.get(dtype) or _numpy_bfloat16())
    if is_torch(like):
        wanted = _torch_names[dtype]
        return like.new_empty(shape) if like.dtype is wanted else like.new_empty(shape, dtype=wanted)
    with like.device:
        return sys.modules["cupy"].empty(shape, native_dtype(dtype, like))


def empty_channels_last(shape: tuple[int, ...], dtype: str, like: Array) -> Array:
    """A new array [B, C, H, W], channels innermost. No view in torch: autograd wants none of an operator."""
    if isinstance(like, np.ndarray):
        b, c, h, w = shape
        return empty((b, h, w, c), dtype, like).transpose(0, 3, 1, 2)
    torch = sys.modules["torch"]
    wanted = native_dtype(dtype, like)
    return torch.empty(shape, dtype=wanted, device=like.device, memory_format=torch.channels_last)


def pointer(x: Array) -> int:
    if isinstance(x, np.ndarray):
        return _core.address(x)
    return int(x.data_ptr()) if is_torch(x) else int(x.data.ptr)


def pointer_of(like: Array) -> Callable[[Array], int]:
    """pointer() for arrays of like's kind, without asking each of them."""
    if isinstance(like, np.ndarray):
        return _core.address
    return _data_ptr if is_torch(like) else _cupy_ptr


_data_ptr: Callable[[Array], int] = operator.methodcaller("data_ptr")
_cupy_ptr: Callable[[Array], int] = operator.attrgetter("data.ptr")


def copy_contiguous(x: Array) -> Array:
    """A new C-contiguous copy, aligned to its element size."""
    if isinstance(x, np.ndarray):
        return np.array(x, order="C", subok=False)
    if is_torch(x):
        return x.detach().resolve_neg().clone(memory_format=sys.modules["torch"].contiguous_format)
    with x.device:
        return x.copy(order="C")


def on_device_of(x: Array) -> Any:
    """A context in which operations of x's library run on x's device: CuPy wants to be told."""
    return contextlib.nullcontext() if isinstance(x, np.ndarray) or is_torch(x) else x.device


def to_host(x: Array) -> Any:
    """x as a NumPy array; waits for a device."""
    if isinstance(x, np.ndarray):
        return x
    return x.detach().cpu().numpy() if is_torch(x) else x.get()


def plain_address(x: Array, like: Array) -> int:
    """The address of x, quickly, if it is contiguous, aligned, of like's kind and on the CPU; else 0."""
    cls = type(x)
    if cls is np.ndarray:
        if type(like) is not cls or x.flags.num & _C_CONTIGUOUS_ALIGNED != _C_CONTIGUOUS_ALIGNED:
            return 0
        return _core.address(x)
    if cls not in _plain_tensors or not x.is_cpu or x.layout is not _torch_names["strided"]:
        return 0
    if type(like) is np.ndarray or not x.is_contiguous() or x.is_neg():
        return 0
    address: int = x.data_ptr()
    return 0 if address & 7 else address


def contiguous(x: Array) -> Array:
    """x, or a C-contiguous and aligned copy where x is not."""
    return x if is_plain(x) else copy_contiguous(x)


def as_float32(parameter: Array | None) -> Array | None:
    """A parameter in float32, contiguous."""
    if parameter is None:
        return None
    wanted = native_dtype("float32", parameter)
    if parameter.dtype != wanted:
        if isinstance(parameter, np.ndarray):
            with np.errstate(over="ignore"):
                return parameter.astype(wanted, order="C")
        with on_device_of(parameter):
            parameter = parameter.detach().to(wanted) if is_torch(parameter) else parameter.astype(wanted)
    return contiguous(parameter)


def is_plain(x: Array) -> bool:
    """Whether x is C-contiguous, and its elements stand in memory aligned and as they read."""
    if isinstance(x, np.ndarray):
        return x.flags.num & _C_CONTIGUOUS_ALIGNED == _C_CONTIGUOUS_ALIGNED
    return is_c_contiguous(x) and is_readable(x)


def is_readable(x: Array) -> bool:
    """Whether elements are aligned, and stand in memory as they read: torch negates views lazily."""
    if isinstance(x, np.ndarray):
        return x.flags.aligned and not any(s % x.itemsize for s in x.strides)
    if is_torch(x):
        address = x.data_ptr()
        return not (address & 7 and address % x.itemsize) and not x.is_neg()
    return not (x.data.ptr % x.itemsize or any(s % x.itemsize for s in x.strides))


def as_rows(x: Array) -> tuple[int, int, int, int, Array]:
    """(rows, cols, row stride, column stride, base) of the 2-D view [prod(shape[:-1]), shape[-1]]; strides in
    elements.

    base is x, or a contiguous copy of it where its leading dimensions don't collapse into one stride, or
    where it is not aligned to its element size.
    """
    shape = x.shape
    cols = shape[-1] if shape else 1
    rows = shape[0] if len(shape) == 2 else math.prod(shape[:-1])
    if is_plain(x):
        return rows, cols, cols, 1, x
    strides = row_strides(x)
    if strides is None:
        return rows, cols, cols, 1, copy_contiguous(x)
    return rows, cols, *strides, x


def row_strides(x: Array) -> tuple[int, int] | None:
    """Row and column stride of the 2-D view of x in elements, where x has one."""
    if not is_readable(x):
        return None
    strides = element_strides(x)
    row_stride = _collapsed(x.shape[:-1], strides[:-1])
    return None if row_stride is None else (row_stride, strides[-1] if strides else 1)


def element_strides(x: Array) -> Sequence[int]:
    return x.stride() if is_torch(x) else [s // x.itemsize for s in x.strides]


def _collapsed(shape: Sequence[int], strides: Sequence[int]) -> int | None:
    """The one stride that walks these dimensions in C order, if there is one."""
    if 0 in shape:
        return 0
    stride: int | None = None
    span = 0
    for size, step in zip(reversed(shape), reversed(strides), strict=True):
        if size == 1:
            continue
        if stride is None:
            stride, span = step, step * size
        elif step == span:
            span *= size
        else:
            return None
    return 0 if stride is None else stride


def address_of(x: Array) -> int:
    """pointer(), which needs the native module for NumPy arrays; this one does not."""
    if _core is None and isinstance(x, np.ndarray):
        return int(x.__array_interface__["data"][0])
    return pointer(x)


def is_c_contiguous(x: Array) -> bool:
    return bool(x.is_contiguous()) if is_torch(x) else bool(x.flags.c_contiguous)


def byte_strides(x: Array) -> tuple[int, ...]:
    return tuple(s * x.itemsize for s in x.stride()) if is_torch(x) else x.strides


# ---- torch's dispatcher ----


def is_jit_traced() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.jit.is_tracing())


def needs_dispatcher(*arrays: object) -> bool:
    """Whether torch has to see this call: it is traced, or an array is a subclass, wants a gradient, or is
    neither on the CPU nor on a CUDA device.

    Dynamo traces this function, so the first question comes first and everything after it runs in eager only.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    if torch.compiler.is_compiling():
        return True
    if not _plain_tensors:
        _learn_torch(torch)
    found = False
    for x in arrays:
        if type(x) in _plain_tensors:
            if not (x.is_cpu or x.is_cuda) or (x.requires_grad and torch.is_grad_enabled()):  # type: ignore[attr-defined]
                return True
            found = True
        elif isinstance(x, torch.Tensor):
            return True
    if not found:
        return False
    # dispatch modes, transforms of functorch, jit.trace and forward-mode derivatives want to see every call
    c = torch._C
    return bool(
        c._len_torch_dispatch_stack()
        or c._functorch.peek_interpreter_stack() is not None
        or c._get_tracing_state() is not None
        or _forward_ad._current_level >= 0
    )


def check_tangents(op: str, *arrays: object) -> None:
    """NotImplementedError for a tensor with a tangent, which torch would drop and say nothing."""
    torch = sys.modules.get("torch")
    if torch is None or torch.autograd.forward_ad._current_level < 0:
        return
    for x in arrays:
        if isinstance(x, torch.Tensor) and torch.autograd.forward_ad.unpack_dual(x).tangent is not None:
            raise NotImplementedError(
                f"octavo.{op}: expected tensors without a tangent, got one with: octavo has no derivatives "
                "in forward mode (torch.func.jvp, jacfwd); reverse mode works (vjp, jacrev, backward())"
            )


def detached(op: str, *arrays: Array) -> list[Array]:
    """The arrays, those of torch without their gradients."""
    check_tangents(op, *arrays)
    return [x.detach() if hasattr(x, "detach") else x for x in arrays]
