"""What Python's way through a forward depends on: the attributes that it reads, hooks, children."""

from __future__ import annotations

import logging
import threading
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import getitem, is_
from typing import Any

import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn

from .results import is_constant

# what every module has; what a module is to Python is in the rest of its attributes
INNER = frozenset(vars(nn.Module())) - {"training"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_GLOBAL_HOOKS = (torch_module._global_forward_pre_hooks, torch_module._global_forward_hooks)
_NO_OBJECTS = (
    nn.Module, Tensor, logging.Logger, types.FunctionType, types.MethodType, types.BuiltinFunctionType,
    types.ModuleType, torch.SymInt, torch.SymFloat, torch.SymBool,
)  # fmt: skip
_lock = threading.RLock()
MISSING = object()


def is_object(value: object) -> bool:
    """Whether it may be a configuration: something with attributes that are its own."""
    return hasattr(value, "__dict__") and not is_constant(value) and not isinstance(value, _NO_OBJECTS)


def check_hooks(model: nn.Module) -> None:
    """ValueError for hooks of submodules, which a graph would not call. Those of torch.nn.utils compute
    weights, octavo's clear padding, transformers' only collect what a call asks for: they are a part of the
    graph."""
    hooks = [("every module", each) for hooks in _GLOBAL_HOOKS for each in hooks.values()]
    for name, module in model.named_modules():
        if module is not model:
            hooks += [(repr(name), each) for part in _HOOKS for each in vars(module)[part].values()]
    for name, hook in hooks:
        origin = getattr(hook, "__module__", type(hook).__module__) or ""
        if not origin.startswith(("torch.nn.utils.", "transformers.", "octavo.")):
            raise ValueError(
                "model: expected no hooks on its modules, which fused kernels would not call, got "
                f"{getattr(hook, '__qualname__', repr(hook))} on {name}"
            )


@contextmanager
def recorded_reads(modules: Iterable[nn.Module]) -> Iterator[dict[int, set[str]]]:
    """By the ids of the modules, the names of the attributes that this thread reads, as long as they are what
    they were at the start."""
    start = {id(module): (vars(module).copy(), module._buffers.copy()) for module in modules}
    found: dict[int, set[str]] = {key: set() for key in start}
    thread = threading.get_ident()

    def read(self: nn.Module, name: str) -> Any:
        if id(self) in found and threading.get_ident() == thread:
            now, (own, buffers) = original(self, "__dict__"), start[id(self)]
            if now.get(name) is own.get(name) and now["_buffers"].get(name) is buffers.get(name):
                found[id(self)].add(name)
        return original(self, name)

    with _lock:
        is_own = "__getattribute__" in vars(nn.Module)
        original = nn.Module.__getattribute__
        nn.Module.__getattribute__ = read  # type: ignore[method-assign, assignment]
        try:
            yield found
        finally:
            if is_own:
                nn.Module.__getattribute__ = original  # type: ignore[method-assign]
            else:
                del nn.Module.__getattribute__


class Snapshot:
    """The attributes of a model's modules, with what their lists, dictionaries, sets and objects hold."""

    def __init__(self, model: nn.Module) -> None:
        self._held: dict[int, tuple[Any, Any, str]] = {}
        for name, module in model.named_modules():
            self._take(vars(module), name)

    def _take(self, value: Any, name: str) -> None:
        if id(value) in self._held:
            return
        if isinstance(value, dict):
            self._held[id(value)] = (value, dict(value), name)
            for key, each in value.items():
                self._take(each, f"{name}.{key}" if name else str(key))
        elif isinstance(value, list | set):
            self._held[id(value)] = (value, [*value] if isinstance(value, list) else {*value}, name)
        elif is_object(value):
            self._take(vars(value), name)
        if isinstance(value, list | tuple):
            for i, each in enumerate(value):
                self._take(each, f"{name}.{i}")

    def known(self) -> set[int]:
        """The ids of all that was there."""
        copies = [copy for _, copy, _ in self._held.values()]
        return {id(each) for copy in copies for each in (copy.values() if isinstance(copy, dict) else copy)}

    def changes(self) -> Iterator[tuple[Any, Any, str]]:
        """(container, key, name) of what has been changed since; for lists and sets the key is None."""
        for value, copy, name in self._held.values():
            if isinstance(value, dict):
                for key in {**copy, **value}:
                    if value.get(key, MISSING) is not copy.get(key, MISSING):
                        yield value, key, f"{name}.{key}" if name else str(key)
            elif isinstance(value, set):
                if value != copy:
                    yield value, None, name
            elif [*map(id, value)] != [*map(id, copy)]:
                yield value, None, name

    def restore(self) -> None:
        for container in {id(container): container for container, *_ in self.changes()}.values():
            copy = self._held[id(container)][1]
            if isinstance(container, list):
                container[:] = copy
            else:
                container.clear()
                container.update(copy)


class Guards:
    """Whether Python would go through a forward as it went when its reads were recorded.

    A value of a module's attribute is compared, for lists, tuples, dictionaries and sets with a copy; an
    object has to be the same one, with equal attributes if it has any; functions, tensors and the like too.
    """

    def __init__(self, model: nn.Module, reads: Mapping[int, set[str]]) -> None:
        self._modules = [module for module in model.modules() if reads.get(id(module))]
        self._default_dtype = torch.get_default_dtype()
        # (what has the attribute, the dictionary among its own or "" for itself, name, value)
        self._equal: list[tuple[Any, str, str, Any]] = []
        self._same: list[tuple[Any, str, str, Any]] = []
        self._absent: list[tuple[Any, str, str]] = []
        self._whole: list[tuple[Any, str, Any]] = []
        self._empty: list[tuple[Any, str]] = []
        self._classes: dict[tuple[type, str], Any] = {}
        self._objects: dict[int, Any] = {}
        self._lists: Any = None
        for module in self._modules:
            for name in sorted(reads[id(module)] - INNER):
                self._watch(module, name)
            if module._modules:
                self._whole.append((module, "_modules", dict(module._modules)))
            for part in _HOOKS if module is not model else ():
                if vars(module)[part]:
                    self._whole.append((module, part, dict(vars(module)[part])))
                else:
                    self._empty.append((module, part))
        self._lists = self._listed()

    def _watch(self, module: nn.Module, name: str) -> None:
        own = vars(module)
        if name in own:
            self._watch_value(module, name, own[name])
            return
        if name in own["_modules"]:
            return
        for part in ("_parameters", "_buffers"):
            if name in own[part]:
                if own[part][name] is None:
                    self._same.append((module, part, name, None))
                return  # a tensor: the graph's input
        if hasattr(type(module), name):
            if hasattr(nn.Module, name) and name != "forward":
                return
            self._classes[type(module), name] = getattr(type(module), name)
            if not hasattr(self._classes[type(module), name], "__set__"):  # a property comes first
                self._absent.append((module, "", name))
        else:
            self._absent += [(module, part, name) for part in ("", "_modules", "_parameters", "_buffers")]

    def _watch_value(self, owner: Any, name: str, value: Any) -> None:
        if is_constant(value) or isinstance(value, list | tuple | dict | set):
            self._equal.append((owner, "", name, _frozen(value)))
        else:
            self._same.append((owner, "", name, value))
        if is_object(value) and id(value) not in self._objects:
            self._objects[id(value)] = value
            self._whole.append((value, "", _frozen(vars(value))))
            for each, inner in vars(value).items():
                if is_object(inner):
                    self._watch_value(value, each, inner)

    def hold(self) -> bool:
        try:
            if self._lists is None:
                self._lists = self._listed()
            equal, same, whole, empty, classes, types, sizes = self._lists
            return (
                [*map(getitem, *equal[:2])] == equal[2]
                and all(map(is_, map(getitem, *same[:2]), same[2]))
                and whole[0] == whole[1]
                and not any(empty)
                and [*map(getattr, *classes[:2])] == classes[2]
                and [*map(type, types[0])] == types[1]
                and ([*map(len, sizes[0])] == sizes[1] or self._still_absent(sizes))
                and torch.get_default_dtype() is self._default_dtype
            )
        except Exception:  # an attribute is gone, or cannot be compared with what was there
            return False

    def _still_absent(self, sizes: tuple[list[Any], list[int]]) -> bool:
        """For dictionaries that have grown or shrunk: names in them that were not there would be read now."""
        if any(name in _part(owner, part) for owner, part, name in self._absent):
            return False
        sizes[1][:] = map(len, sizes[0])
        return True

    def _listed(self) -> tuple[Any, ...]:
        """What is compared in every call, as lists that C code runs through."""

        def columns(entries: list[tuple[Any, str, str, Any]]) -> tuple[list[Any], list[str], list[Any]]:
            return [_part(*e[:2]) for e in entries], [e[2] for e in entries], [e[3] for e in entries]

        kinds = [kind for kind, _ in self._classes], [name for _, name in self._classes]
        absent = [*{id(d): d for d in (_part(*each[:2]) for each in self._absent)}.values()]
        return (
            columns(self._equal),
            columns(self._same),
            ([_part(*each[:2]) for each in self._whole], [each[2] for each in self._whole]),
            [*(_part(*each) for each in self._empty), *_GLOBAL_HOOKS],
            (*kinds, [*self._classes.values()]),
            (self._modules, [*map(type, self._modules)]),
            (absent, [*map(len, absent)]),
        )

    def __getstate__(self) -> dict[str, Any]:  # for copy.deepcopy
        return {**vars(self), "_lists": None, "_objects": {}}


def _part(owner: Any, part: str) -> dict[str, Any]:
    own: dict[str, Any] = vars(owner)
    return own[part] if part else own


def _frozen(value: Any) -> Any:
    """A copy of a list, tuple, dictionary or set that what changes it does not change."""
    if isinstance(value, dict):
        return {key: _frozen(each) for key, each in value.items()}
    if isinstance(value, list):
        return [*map(_frozen, value)]
    if isinstance(value, tuple):
        return tuple(map(_frozen, value))
    return set(value) if isinstance(value, set) else value
