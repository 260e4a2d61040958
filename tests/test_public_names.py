"""What users and files name, word for word: tests/public_names.txt lists it, one name a line.

A change on purpose is written with `python tests/test_public_names.py`; the difference then says to a reader
what became of the interface. The file's second part is what needs torch.
"""

from __future__ import annotations

import inspect
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import octavo
import octavo.reference
from strategies import needs_torch

LIST = Path(__file__).with_name("public_names.txt")
NEED_TORCH = {
    "Int8Dynamic", "Int8Static", "Int8WeightOnly", "convert_qat_", "export_compressed_tensors", "fuse_",
    "load", "load_compressed_tensors", "prepare_qat_", "prune_model_", "quantize_", "save",
}  # fmt: skip
IMPORTED = {"Any", "TYPE_CHECKING", "annotations"}  # what a module's own code needs
INTERNAL = {"operands", "trusted"}  # of classes: the short way of tiny calls


class Text:
    """An annotation as it is written in the source, without quotes."""

    def __init__(self, annotation):
        self.text = getattr(annotation, "__forward_arg__", annotation)

    def __repr__(self):
        return self.text if isinstance(self.text, str) else inspect.formatannotation(self.text)


def signature(value):
    found = inspect.signature(value)
    given = [
        each if each.annotation is each.empty else each.replace(annotation=Text(each.annotation))
        for each in found.parameters.values()
    ]
    result = found.return_annotation
    nothing = result is found.empty or inspect.isclass(value)
    return str(found.replace(parameters=given, return_annotation=found.empty if nothing else Text(result)))


def of_class(name, cls):
    """Its constructor, and the methods, properties and slots that octavo gives it."""
    members = {}
    for base in reversed([base for base in cls.__mro__ if base.__module__.partition(".")[0] == "octavo"]):
        members |= vars(base)
    own = "__init__" in members or "__new__" in members
    yield f"{name}{signature(cls)}" if own else f"{name}, made as {cls.__base__.__name__}"
    for member in sorted(members.keys() - INTERNAL):
        value = members[member]
        if member.startswith("_"):
            continue
        if isinstance(value, property) or inspect.ismemberdescriptor(value):
            yield f"{name}.{member}"
        elif inspect.isroutine(value):
            kind = "classmethod " if isinstance(value, classmethod) else ""
            yield f"{kind}{name}.{member}{signature(getattr(cls, member))}"


def of_module(module, names):
    for name in sorted(names):
        value, path = getattr(module, name), f"{module.__name__}.{name}"
        if inspect.isclass(value):
            yield from of_class(path, value)
        else:
            yield path + (signature(value) if inspect.isroutine(value) else "")


def without_torch():
    own = {name for name, value in vars(octavo.reference).items() if inspect.isfunction(value)}
    return [
        *of_module(octavo, set(octavo.__all__) - NEED_TORCH - {"nn"}),
        *of_module(octavo.reference, {name for name in own if not name.startswith("_")}),
    ]


def with_torch():
    same = {name for name in NEED_TORCH if getattr(octavo.nn, name, None) is getattr(octavo, name)}
    return [
        *of_module(octavo, NEED_TORCH - same),
        *(f"octavo.{name} is octavo.nn.{name}" for name in sorted(same)),
        *of_module(octavo.nn, octavo.nn.__all__),
        *operators(),
    ]


def operators():
    """The schemas of torch.ops.octavo, and what is registered for them: kernels, a fake, a gradient."""
    import torch

    has = torch._C._dispatch_has_kernel_for_dispatch_key
    words = {"CPU": "CPU", "CUDA": "CUDA", "Meta": "fake", "Autograd": "gradient"}
    for schema in sorted(map(str, torch._C._jit_get_all_schemas())):
        name = schema.partition("(")[0]
        if name.startswith("octavo::"):
            yield f"{schema}  # {', '.join(word for key, word in words.items() if has(name, key))}"


def test_names_and_signatures_without_torch():
    section, _, _ = LIST.read_text().partition("\n\n")
    assert without_torch() == section.splitlines()


@needs_torch
def test_names_signatures_and_schemas_with_torch():
    _, _, section = LIST.read_text().partition("\n\n")
    assert with_torch() == section.splitlines()


def public(module):
    found = {name for name in dir(module) if not name.startswith("_")}
    return {name for name in found - IMPORTED if not isinstance(getattr(module, name), ModuleType)}


@needs_torch
def test_nothing_else_is_public():
    assert list(octavo.__all__) == sorted(octavo.__all__)
    assert public(octavo) == set(octavo.__all__) - {"__version__", "nn"}
    assert public(octavo.nn) == set(octavo.nn.__all__)
    assert isinstance(octavo.nn, ModuleType)


@needs_torch
def test_torch_compile_knows_the_backend():
    (backend,) = entry_points(group="torch_dynamo_backends", name="octavo")
    assert callable(backend.load())


if __name__ == "__main__":
    LIST.write_text("\n".join([*without_torch(), "", *with_torch()]) + "\n")
