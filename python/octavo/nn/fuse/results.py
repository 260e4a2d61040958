"""What a forward returns, as a flat list of tensors; and objects like it, made anew around other tensors."""

from __future__ import annotations

import copy
import struct
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Container, Sequence
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_CONSTANTS = frozenset({
    type(None), bool, int, float, complex, str, bytes, range, type(...), torch.dtype, torch.device,
    torch.layout, torch.memory_format,
})  # fmt: skip
# What a class may be built on for its objects to be their attributes and items, and nothing else.
_BASES = (object, list, set, dict, OrderedDict, defaultdict, types.SimpleNamespace)
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE, which classes of Python and some of C have
_POINTER = struct.calcsize("P")


def is_constant(value: object) -> bool:
    """Whether it is a number, a name or the like, which nothing changes."""
    return type(value) in _CONSTANTS or isinstance(value, Enum | type | np.generic)


class Structure:
    """Takes a result apart, however it is nested: `leaves` are its tensors and symbolic sizes, each once, and
    `build` makes a result like it around others.

    Objects whose ids `known` has stay what they are. The others are made anew in every build, without a call
    of their own code. ValueError for what is more than its attributes and items, such as a file.
    """

    def __init__(self, result: Any, known: Container[int] = ()) -> None:
        self.leaves: list[Any] = []
        self._known = known
        self._values: list[Any] = []  # constants, and None where a build puts a leaf or an object
        self._leaf_places: list[int] = []
        self._makers: list[tuple[int, Callable[[list[Any]], Any], list[int]]] = []
        self._fillers: list[tuple[int, Callable[[Any, list[Any]], Any], list[int]]] = []
        self._places: dict[int, int] = {}
        self._alive: list[Any] = []  # so that no id is given twice
        self._result = self._place(result, "result")
        del self._known, self._places, self._alive

    def __deepcopy__(self, memo: dict[int, Any]) -> Structure:
        new = copy.copy(self)
        new._values = copy.deepcopy(self._values, memo)  # what a model's copy has copies of
        return new

    def build(self, leaves: Sequence[Any]) -> Any:
        values = self._values.copy()
        for at, leaf in zip(self._leaf_places, leaves, strict=True):
            values[at] = leaf
        for at, make, places in self._makers:
            values[at] = make([values[i] for i in places])
        for at, fill, places in self._fillers:
            fill(values[at], [values[i] for i in places])
        return values[self._result]

    def _place(self, each: Any, path: str) -> int:
        """Where in the values it is."""
        if id(each) in self._places:
            return self._places[id(each)]
        if isinstance(each, Tensor | torch.SymInt | torch.SymFloat | torch.SymBool):
            self.leaves.append(each)
            self._leaf_places.append(self._new(each))
        elif isinstance(each, nn.Module):
            raise _unlike(each, path)
        elif is_constant(each) or id(each) in self._known or _is_plain_function(each):
            self._values[self._new(each)] = each
        elif isinstance(each, tuple):
            items = [self._place(item, f"{path}[{i}]") for i, item in enumerate(each)]
            make = _tuple_maker(type(each))
            self._makers.append((self._new(each), make, items))
            if make is not type(each):
                self._fill_attributes(each, path)
        else:
            base = _base_of(type(each))
            if base not in _BASES:
                raise _unlike(each, path)
            make = partial(base.__new__, type(each))
            self._makers.append(
                (self._new(each), lambda _: make(), [])
            )  # before what it holds: it may hold it
            self._fill_items(each, base, path)
            self._fill_attributes(each, path)
        return self._places[id(each)]

    def _new(self, each: Any) -> int:
        self._alive.append(each)
        self._values.append(None)
        return self._places.setdefault(id(each), len(self._values) - 1)

    def _fill(self, each: Any, fill: Callable[[Any, list[Any]], Any], *parts: tuple[str, Any]) -> None:
        if parts:
            places = [self._place(part, path) for path, part in parts]
            self._fillers.append((self._places[id(each)], fill, places))

    def _fill_items(self, each: Any, base: type, path: str) -> None:
        if issubclass(base, list):
            self._fill(
                each, list.extend, *((f"{path}[{i}]", part) for i, part in enumerate(list.__iter__(each)))
            )
        elif issubclass(base, dict | set):
            keys = [*base.__iter__(each)]
            for key in keys:
                if not all(map(is_constant, key if type(key) is tuple else (key,))):
                    raise _unlike(key, f"a key of {path}")
            if issubclass(base, set):
                self._fill(each, set.update, *((path, key) for key in keys))
                return

            def fill(new: Any, values: list[Any]) -> None:
                for key, value in zip(keys, values, strict=True):
                    base.__setitem__(new, key, value)

            self._fill(each, fill, *((f"{path}[{key!r}]", base.__getitem__(each, key)) for key in keys))

    def _fill_attributes(self, each: Any, path: str) -> None:
        held = getattr(each, "__dict__", {})
        names = [*held]
        self._fill(
            each,
            lambda new, values: vars(new).update(zip(names, values, strict=True)),
            *((f"{path}.{name}", held[name]) for name in names),
        )
        for slot in _slots_of(type(each)):
            try:
                value = slot.__get__(each)
            except AttributeError:  # empty
                continue
            self._fill(each, partial(_set_slot, slot), (f"{path}.{slot.__name__}", value))


def _unlike(each: object, path: str) -> ValueError:
    kind = type(each)
    return ValueError(
        "model: expected a result of tensors, and of objects that are no more than their attributes and "
        f"items, which every call makes anew; got a {kind.__module__}.{kind.__qualname__} as {path}"
    )


def _is_plain_function(each: object) -> bool:
    if isinstance(each, types.FunctionType):
        return each.__closure__ is None
    return isinstance(each, types.BuiltinFunctionType) and isinstance(each.__self__, types.ModuleType | None)


def _tuple_maker(kind: type) -> Callable[[list[Any]], Any]:
    if kind is tuple or not kind.__flags__ & _HEAP_TYPE or hasattr(kind, "n_fields"):
        return kind  # torch.Size and the results of torch.max and the like
    return partial(tuple.__new__, kind)


def _base_of(kind: type) -> type:
    """What classes of Python build on; a class that is written in C itself, which has memory of its own."""
    while kind.__flags__ & _HEAP_TYPE and kind.__base__ is not None:
        slots = len(_own_slots(kind)) + ("__dict__" in vars(kind)) + ("__weakref__" in vars(kind))
        if kind.__basicsize__ - kind.__base__.__basicsize__ > slots * _POINTER or kind.__itemsize__:
            break
        kind = kind.__base__
    return kind


def _slots_of(kind: type) -> list[Any]:
    return [
        slot for cls in kind.__mro__ if cls not in _BASES or cls is defaultdict for slot in _own_slots(cls)
    ]


def _own_slots(kind: type) -> list[Any]:
    return [each for each in vars(kind).values() if isinstance(each, types.MemberDescriptorType)]


def _set_slot(slot: Any, new: Any, values: list[Any]) -> None:
    slot.__set__(new, values[0])
