"""octavo.save and octavo.load: models in safetensors files, without pickle. docs/files.md has the format."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.convert.swap import check_model
from ..ops.masks import pack_mask, unpack_mask
from ..version import __version__
from . import files
from .describe import describe, rebuild
from .state import ModelOrFactory, as_directory, as_model, fill, tensors_of

_FORMAT, _VERSION = "octavo", 2
_READ = (1, 2)
_MANIFEST, _TENSORS = "octavo.json", "model.safetensors"
_BITS, _VALUES = ".mask_bits", ".values"


def save(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Writes what `model` holds to `directory`: octavo.json and model.safetensors.

    Tensors are stored bit for bit; int8 weights that are smaller without their zeros are stored so; tied
    weights and shared modules are stored once. The directory appears complete, or not at all: see
    docs/files.md for what a crash can leave. An earlier checkpoint in its place is replaced, at once.
    ValueError for a directory with anything else in it. TypeError for state that is not a strided tensor, and
    for modules derived from octavo's.
    """
    modules, shared = _int8_modules(model)
    tensors, tied = tensors_of(model, shared)
    stored, storage = _stored(tensors)
    del tensors
    with files.new_directory(directory, _check_replaceable) as draft:
        path = draft / _TENSORS
        files.save_tensors(stored, path)
        manifest = {
            "format": _FORMAT,
            "format_version": _VERSION,
            "octavo": __version__,
            "file": {"nbytes": path.stat().st_size, "sha256": files.sha256(path)},
            "modules": modules,
            "shared": shared,
            "tensors": storage,
            "tied": tied,
        }
        (draft / _MANIFEST).write_text(_render(manifest))


def load(
    model_or_factory: ModelOrFactory, directory: str | os.PathLike[str], *, verify: bool = True
) -> nn.Module:
    """The model that octavo.save wrote to `directory`.

    model_or_factory: a model of the same architecture, float or quantized, which is changed in place; or a
        callable that makes one. A callable's parameters take no memory: they are made on the meta device, but
        where it makes other tensors of them.
        octavo.nn's modules take the places that the file says; one that is a model itself comes back as a new
        one. Make optimizers afterwards: parameters are new objects.
    verify: compare the checksum of model.safetensors, which reads all of it. Without, only what is used is
        read; octavo.json, and names, shapes and sizes, are checked always.
    On the CPU, float tensors are the file's own memory, mapped; what changes them later changes a copy. The
    file must not be written to meanwhile, which octavo.save never does: it replaces files.
    ValueError for a file that is truncated, altered, of a newer format or not octavo's, and for a model whose
    names, shapes or dtypes are others. The model is unchanged then.
    """
    path = as_directory(directory)
    manifest = _read_manifest(path / _MANIFEST)
    _check_file(path / _TENSORS, manifest["file"], verify)
    model = as_model(model_or_factory)
    with files.open_tensors(path / _TENSORS) as file:
        storage = manifest["tensors"]
        _check_names(path / _TENSORS, set(file.keys()), storage)
        try:
            return fill(
                model,
                {fqn: rebuild(each) for fqn, each in manifest["modules"].items()},
                storage,
                lambda name: _read(file, name, storage[name]),
                shared=manifest["shared"],
                tied=manifest["tied"],
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


# ---- what a model holds ----


def _int8_modules(model: nn.Module) -> tuple[dict[str, Any], dict[str, str]]:
    """The descriptions of octavo's modules by name, and the further names of those with several."""
    check_model(model)
    modules: dict[str, Any] = {}
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    for fqn, module in model.named_modules(remove_duplicate=False):
        if fqn.startswith(tuple(f"{name}." if name else "" for name in (*modules, *shared))):
            continue  # a part of one of them
        try:
            described = describe(module)
        except TypeError as error:
            raise TypeError(f"model: layer {fqn!r}: {error}") from error
        if described is None:
            continue
        if id(module) in first:
            shared[fqn] = first[id(module)]
        else:
            modules[fqn] = described
            first[id(module)] = fqn
    return modules, shared


def _stored(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What goes into the file, by its name there; and how each tensor is stored."""
    stored: dict[str, Tensor] = {}
    storage: dict[str, Any] = {}
    for name, tensor in tensors.items():
        parts = _bitmask(name, tensor)
        for part in parts:
            if part in tensors:
                raise ValueError(
                    f"model: expected no tensor named {part!r}: parts of {name!r} have these names"
                )
        stored |= parts or {name: tensor}
        storage[name] = {"storage": "bitmask", "shape": list(tensor.shape)} if parts else {"storage": "dense"}
    return stored, storage


def _bitmask(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The two tensors that hold an int8 weight without its zeros; none where they would not be smaller."""
    if tensor.dtype != torch.int8 or not tensor.numel():
        return {}
    rows = tensor.reshape(len(tensor) if tensor.dim() else 1, -1)
    if len(rows) * -(-rows.shape[1] // 8) + int(rows.count_nonzero()) >= tensor.numel():
        return {}
    mask = rows != 0
    return {name + _BITS: pack_mask(mask), name + _VALUES: rows[mask]}


# ---- what a file holds ----


def _render(manifest: dict[str, Any]) -> str:
    """The text of octavo.json, which ends with a checksum of the rest; one text for one manifest."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    checksum = sha256(json.dumps(rest).encode()).hexdigest()
    return json.dumps(rest | {"checksum": checksum}, indent=1) + "\n"


def _check_replaceable(target: Path) -> None:
    if not target.exists():
        return
    others = [target.name]
    if target.is_dir():
        others = sorted({each.name for each in target.iterdir()} - {_MANIFEST, _TENSORS})
        if not others and any(target.iterdir()):
            _read_manifest(target / _MANIFEST, any_version=True)
    if others:
        raise ValueError(
            f"directory: expected nothing, an empty directory or an octavo checkpoint, which is replaced, "
            f"got {str(target)!r} with {others}"
        )


def _read_manifest(path: Path, *, any_version: bool = False) -> dict[str, Any]:
    if not path.exists():
        here = sorted(each.name for each in path.parent.iterdir())
        raise ValueError(f"{path}: expected this file, with which octavo.save describes a model, got {here}")
    text = path.read_bytes()
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    found = manifest.get("format") if isinstance(manifest, dict) else manifest
    if found != _FORMAT:
        raise ValueError(f"{path}: expected format {_FORMAT!r}, got {found!r}")
    version = manifest.get("format_version")
    if any_version:
        return manifest  # type: ignore[no-any-return]
    if version not in _READ:
        raise ValueError(
            f"{path}: expected format_version {' or '.join(map(str, _READ))}, which octavo {__version__} "
            f"reads, got {version!r}, written by octavo {manifest.get('octavo')!r}"
        )
    if text != _render(manifest).encode():
        raise ValueError(f"{path}: expected the text that its checksum is of, got a file altered since")
    return manifest  # type: ignore[no-any-return]


def _check_file(path: Path, expected: dict[str, Any], verify: bool) -> None:
    if not path.exists():
        raise ValueError(f"{path}: expected a file of {expected['nbytes']} bytes, got none")
    got = path.stat().st_size
    if got != expected["nbytes"]:
        raise ValueError(f"{path}: expected {expected['nbytes']} bytes, got {got}")
    if verify:
        digest = files.sha256(path)
        if digest != expected["sha256"]:
            raise ValueError(f"{path}: expected sha256 {expected['sha256']}, got {digest}")


def _check_names(path: Path, got: set[str], storage: dict[str, Any]) -> None:
    expected = {part for name, each in storage.items() for part in _parts(name, each)}
    if got != expected:
        raise ValueError(
            f"{path}: expected the tensors in {_MANIFEST}, got a file that lacks {sorted(expected - got)} "
            f"and has {sorted(got - expected)} besides"
        )


def _parts(name: str, stored: dict[str, Any]) -> Iterator[str]:
    bitmask = stored["storage"] == "bitmask"
    yield from (name + _BITS, name + _VALUES) if bitmask else (name,)


def _read(file: Any, name: str, stored: dict[str, Any]) -> Tensor:
    bits, *values = (file.get_tensor(part) for part in _parts(name, stored))
    if not values:
        return bits  # type: ignore[no-any-return]
    shape = tuple(stored["shape"])
    rows = shape[0] if shape else 1
    mask = unpack_mask(bits, (rows, math.prod(shape) // rows))
    if values[0].dtype != torch.int8 or values[0].shape != (int(mask.sum()),) or not values[0].all():
        raise ValueError(f"{name + _VALUES}: expected {int(mask.sum())} int8 values, none 0, got others")
    weight = torch.zeros(mask.shape, dtype=torch.int8, device=mask.device)
    return weight.masked_scatter_(mask, values[0]).reshape(shape)
