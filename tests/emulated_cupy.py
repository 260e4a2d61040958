"""A stand-in for CuPy on machines without a GPU: as much of cupy.ndarray as octavo uses, over host memory.

It is no numpy.ndarray, and has no attribute that CuPy's lacks: what octavo does to it, CuPy can do.
"""

from __future__ import annotations

import math
import types

import numpy as np


class Device:
    """Devices of one number are equal, and a context in which memory is allocated."""

    current: list[int] = [0]  # noqa: RUF012  (a stack, shared)

    def __init__(self, device: int) -> None:
        self.id = device

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> None:
        self.current.append(self.id)

    def __exit__(self, *_: object) -> None:
        self.current.pop()


class ndarray:  # noqa: N801
    """`host` holds the elements; only tests look at it."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: np.ndarray, device: int) -> None:
        self.host = host
        self.device = Device(device)
        self.shape, self.strides, self.dtype = host.shape, host.strides, host.dtype
        self.ndim, self.size, self.nbytes, self.itemsize = host.ndim, host.size, host.nbytes, host.itemsize
        self.flags = types.SimpleNamespace(c_contiguous=host.flags.c_contiguous)
        self.data = types.SimpleNamespace(ptr=host.__array_interface__["data"][0])

    def _like(self, host) -> ndarray:
        return ndarray(np.asarray(host), self.device.id)

    @property
    def T(self) -> ndarray:  # noqa: N802
        return self._like(self.host.T)

    def get(self) -> np.ndarray:
        return self.host.copy()

    def copy(self, order: str = "C") -> ndarray:
        assert Device.current[-1] == self.device.id, "CuPy copies to the current device"
        return self._like(self.host.copy(order))

    def astype(self, dtype) -> ndarray:
        with np.errstate(all="ignore"):
            return self._like(self.host.astype(dtype, order="C"))

    def reshape(self, *shape) -> ndarray:
        return self._like(self.host.reshape(*shape))

    def sum(self) -> ndarray:
        return self._like(self.host.sum())

    def __int__(self) -> int:
        return int(self.host)

    def __getitem__(self, key) -> ndarray:
        return self._like(self.host[_host(key)])

    def __setitem__(self, key, value) -> None:
        self.host[_host(key)] = _host(value)

    def __ne__(self, other) -> ndarray:
        return self._like(self.host != _host(other))

    def __invert__(self) -> ndarray:
        return self._like(~self.host)


ndarray.__module__ = "cupy"


def _host(value):
    return value.host if isinstance(value, ndarray) else value


def empty(shape, dtype) -> ndarray:
    """Aligned to 512 bytes, as CuPy's are, and full of junk."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.full(nbytes + 512, 0xA5, np.uint8)
    at = -memory.ctypes.data % 512
    return ndarray(memory[at : at + nbytes].view(dtype).reshape(shape), Device.current[-1])


def asarray(host: np.ndarray) -> ndarray:
    """The same memory and strides: there is no other device to copy to."""
    return ndarray(host, Device.current[-1])


def module() -> types.ModuleType:
    cupy = types.ModuleType("cupy")
    cupy.ndarray, cupy.empty, cupy.asarray = ndarray, empty, asarray
    stream = types.SimpleNamespace(ptr=0)
    cupy.cuda = types.SimpleNamespace(Device=Device, get_current_stream=lambda: stream)
    return cupy
