"""int8 W8A8 models in the form of the compressed-tensors package, with which transformers reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.convert.replaceable import why_left
from ..nn.convert.swap import check_model
from ..nn.kinds import listed
from ..nn.layers import INT8_LAYERS
from ..nn.layers.base import PackedModule
from ..nn.layers.embedding import Int8Embedding, Int8EmbeddingBag
from ..nn.layers.linear import Int8Linear
from ..ops.quantize import dequantize
from ..storage import files
from ..storage.state import ModelOrFactory, as_directory, as_model, fill, tensors_of

_CONFIG, _TENSORS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_WEIGHT, _SCALE, _ZERO_POINT = ".weight", ".weight_scale", ".weight_zero_point"
_INT8 = ".weight_int8"  # in octavo's state dicts, with a placeholder at _WEIGHT
_FORMAT = "int-quantized"
_TABLES = (Int8Embedding, Int8EmbeddingBag)

# What a group of layers must say for Int8Linear to compute it: the value written, then others that are read.
_WEIGHTS: dict[str, tuple[Any, ...]] = {
    "num_bits": (8,),
    "type": ("int",),
    "symmetric": (True,),
    "strategy": ("channel", "tensor"),
    "dynamic": (False,),
}
_ACTIVATIONS = _WEIGHTS | {"strategy": ("token",), "dynamic": (True,)}
_IF_ABSENT = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False}


def export_compressed_tensors(
    model: nn.Module, directory: str | os.PathLike[str], *, base_config: Mapping[str, Any] | None = None
) -> None:
    """Writes a model with Int8Linear layers to `directory`: config.json and model.safetensors.

    transformers loads it, with the compressed-tensors package. Each layer is `weight` int8 [N, K],
    `weight_scale` float32 [N, 1] and `bias`. Int8 embeddings, which this form does not have, are stored as
    the floats that they look up, and the rest as it is. transformers rounds the scales to the model's dtype
    when it loads.
    base_config: what config.json says beside its quantization_config; by default the configuration of a
        transformers model, and nothing for others.
    ValueError for a directory that is not empty, for a model without Int8Linear, and for one with what this
    form cannot hold: other modules of octavo, asymmetric activations, activation functions inside layers.
    """
    ignore = _float_linears(model)
    tensors, _ = tensors_of(model)
    for fqn, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, PackedModule) or fqn + _INT8 not in tensors:
            continue
        data = tensors.pop(fqn + _INT8)
        if isinstance(module, _TABLES):
            data = dequantize(data, tensors.pop(fqn + _SCALE)[:, 0], dtype=module.dtype)
        tensors[fqn + _WEIGHT] = data
    config = _base_config(model) if base_config is None else dict(base_config)
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": _FORMAT,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {key: values[0] for key, values in _WEIGHTS.items()},
                "input_activations": {key: values[0] for key, values in _ACTIVATIONS.items()},
                "output_activations": None,
                "format": _FORMAT,
            }
        },
        "ignore": ignore,
    }
    text = json.dumps(config, indent=2) + "\n"
    with files.new_directory(directory, _check_empty) as draft:
        files.save_tensors(tensors, draft / _TENSORS)
        (draft / _CONFIG).write_text(text)


def _float_linears(model: nn.Module) -> list[str]:
    """The names of the Linear layers that stay float, of a model that can be exported."""
    check_model(model)
    found, ignore, other = False, [], tuple(INT8_LAYERS.values())
    for fqn, module in model.named_modules(remove_duplicate=False):
        if type(module) is Int8Linear:
            found = True
            if module.activation is not None:
                raise ValueError(
                    f"model: layer {fqn!r}: expected no activation, which layers of compressed-tensors do "
                    f"not have, got {module.activation!r}; export before layers are fused"
                )
            if not module.symmetric:
                raise ValueError(
                    f"model: layer {fqn!r}: expected symmetric activations, as W8A8 has them here, got "
                    "symmetric=False"
                )
        elif isinstance(module, other) and not isinstance(module, _TABLES):
            raise ValueError(
                f"model: layer {fqn!r}: expected int8 layers to be Int8Linear, as W8A8 has no others, got "
                f"{type(module).__name__}; octavo.save holds them all"
            )
        elif isinstance(module, nn.Linear):
            ignore.append(fqn)
    if not found:
        why = listed(why_left(model))
        raise ValueError(
            f"model: expected at least one Int8Linear, got none{why}; octavo.quantize_ makes them"
        )
    return ignore


def _base_config(model: nn.Module) -> dict[str, Any]:
    pretrained: Any = model
    if not hasattr(getattr(model, "config", None), "to_json_string"):
        return {}
    config: dict[str, Any] = json.loads(pretrained.config.to_json_string())
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(pretrained.dtype).removeprefix("torch.")
    if isinstance(pretrained.get_output_embeddings(), Int8Linear):
        config["tie_word_embeddings"] = False  # or a loader ties the int8 weight to the float embedding
    return config


def _check_empty(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"directory: expected nothing or an empty directory, got {str(target)!r}")


def load_compressed_tensors(model_or_factory: ModelOrFactory, directory: str | os.PathLike[str]) -> nn.Module:
    """The model in a directory of int8 W8A8 in the compressed-tensors form, whoever wrote it.

    model_or_factory: as for octavo.load; for a transformers model, lambda: AutoModel.from_config(config).
    Read are int8 symmetric weights with a scale per channel or tensor, and dynamic symmetric activations per
    token, in one file or in shards. Int8Linear divides activations by max|x| / 127, the compressed-tensors
    package by max|x| / 127.5: results are close, not equal.
    ValueError for other schemes, by name, for damaged files, and where names, shapes or dtypes are not the
    model's. The model is unchanged then.
    """
    path = as_directory(directory)
    _check_scheme(path / _CONFIG)
    with ExitStack() as stack:
        sources = _sources(path, stack)
        modules = {
            name.removesuffix(_SCALE): _layer(path, name.removesuffix(_SCALE), sources)
            for name in sources
            if name.endswith(_SCALE)
        }
        if not modules:
            raise ValueError(f"{path}: expected at least one tensor named *{_SCALE}, got none")
        model = as_model(model_or_factory)
        names = [name for name in sources if not _is_zero_point(path, name, modules, sources)]

        def tensor_of(name: str) -> Tensor:
            tensor: Tensor = sources[name].get_tensor(name)
            fqn = name.removesuffix(_SCALE)
            return tensor if fqn not in modules else _as_scale(path, name, tensor, modules[fqn].out_features)

        try:
            return fill(model, modules, names, tensor_of, shared={}, tied=_ties(model, names))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a JSON file, got {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


# ---- schemes ----


def _check_scheme(path: Path) -> None:
    """ValueError for a config.json of anything but the int8 W8A8 that Int8Linear computes."""
    found = _read_json(path)
    config = found.get("quantization_config", found.get("compression_config"))
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a quantization_config, got keys {sorted(found)}")
    _expect(path, "quant_method", config.get("quant_method"), "compressed-tensors")
    for key in ("kv_cache_scheme", "transform_config"):
        if config.get(key):
            raise ValueError(f"{path}: {key}: expected none, got {config[key]}")
    sparsity = config.get("sparsity_config") or {}
    _expect(path, "sparsity_config.format", sparsity.get("format", "dense"), "dense")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ValueError(f"{path}: config_groups: expected at least one group, got {groups!r}")
    for name, group in groups.items():
        label = f"config_groups.{name}"
        if not isinstance(group, dict):
            raise ValueError(f"{path}: {label}: expected an object, got {group!r}")
        form = group.get("format") or config.get("format")
        _expect(path, f"{label}.format", form, _FORMAT, "naive-quantized")
        _expect(path, f"{label}.output_activations", group.get("output_activations"), None)
        for part, expected in (("weights", _WEIGHTS), ("input_activations", _ACTIVATIONS)):
            args = group.get(part)
            if not isinstance(args, dict):
                raise ValueError(f"{path}: {label}.{part}: expected an object, got {args!r}")
            for key, values in expected.items():
                _expect(path, f"{label}.{part}.{key}", args.get(key, _default(key, args)), *values)


def _default(key: str, args: dict[str, Any]) -> Any:
    if key != "strategy":
        return _IF_ABSENT[key]
    group_size = args.get("group_size")
    return "tensor" if group_size is None else "channel" if group_size == -1 else "group"


def _expect(path: Path, name: str, got: Any, *expected: Any) -> None:
    if got not in expected or isinstance(got, bool) != isinstance(expected[0], bool):
        wanted = " or ".join(map(repr, expected))
        raise ValueError(f"{path}: {name}: expected {wanted}, which is what octavo reads, got {got!r}")


# ---- tensors ----


def _sources(path: Path, stack: ExitStack) -> dict[str, Any]:
    """The open file of each tensor, by the tensor's name."""
    if not (path / _INDEX).exists():
        if not (path / _TENSORS).exists():
            here = sorted(each.name for each in path.iterdir())
            raise ValueError(f"{path}: expected {_TENSORS} or {_INDEX}, got {here}")
        file = stack.enter_context(files.open_tensors(path / _TENSORS))
        return dict.fromkeys(file.keys(), file)
    listed = _read_json(path / _INDEX).get("weight_map")
    shards: dict[str, Any] = {}
    if not isinstance(listed, dict) or not all(isinstance(shard, str) for shard in listed.values()):
        raise ValueError(f"{path / _INDEX}: expected a weight_map of file names, got {listed!r}")
    for shard in sorted(set(listed.values())):
        if Path(shard).name != shard or not (path / shard).exists():
            raise ValueError(f"{path / _INDEX}: expected names of files beside it, got {shard!r}")
        shards[shard] = stack.enter_context(files.open_tensors(path / shard))
    held = {(name, shard) for shard, file in shards.items() for name in file.keys()}  # noqa: SIM118
    if held != set(listed.items()):
        differ = sorted(held ^ set(listed.items()))
        raise ValueError(f"{path / _INDEX}: expected the tensors that the shards hold, got others: {differ}")
    return {name: shards[shard] for name, shard in listed.items()}


def _layer(path: Path, fqn: str, sources: dict[str, Any]) -> Int8Linear:
    name = fqn + _WEIGHT
    if name not in sources:
        raise ValueError(f"{path}: expected {name!r} beside {fqn + _SCALE!r}, got none")
    header = sources[name].get_slice(name)
    shape, dtype = tuple(header.get_shape()), header.get_dtype()
    if dtype != "I8" or len(shape) != 2:
        raise ValueError(f"{path}: {name}: expected I8 [N, K], got {dtype} {shape}")
    return Int8Linear(shape[1], shape[0], f"{fqn}.bias" in sources, device="meta")


def _as_scale(path: Path, name: str, scale: Tensor, n: int) -> Tensor:
    """float32 [N, 1]: widening is exact, and a tensor's one scale is every channel's."""
    if scale.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"{path}: {name}: expected float32, bfloat16 or float16, got {scale.dtype}")
    if tuple(scale.shape) not in ((n, 1), (n,), (1,), ()):
        raise ValueError(f"{path}: {name}: expected shape {(n, 1)} or (1,), got {tuple(scale.shape)}")
    scale = scale.float()
    if not (scale.isfinite() & (scale >= 0)).all():
        raise ValueError(f"{path}: {name}: expected finite scales >= 0, got others")
    return scale.reshape(-1, 1).expand(n, 1).contiguous()


def _is_zero_point(path: Path, name: str, modules: Mapping[str, Any], sources: dict[str, Any]) -> bool:
    """Whether a tensor is the zero point of a symmetric weight: some writers store it, and it is 0."""
    if not name.endswith(_ZERO_POINT) or name.removesuffix(_ZERO_POINT) not in modules:
        return False
    if sources[name].get_tensor(name).any():
        raise ValueError(f"{path}: {name}: expected zeros, as the weight is symmetric, got others")
    return True


def _ties(model: nn.Module, names: list[str]) -> dict[str, str]:
    """What the model has tied to a tensor in the file, and the file therefore left out."""
    held = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    groups: dict[int, list[str]] = {}
    for name, tensor in held:
        groups.setdefault(id(tensor), []).append(name)
    known = set(names)
    first = {name: next((n for n in group if n in known), "") for group in groups.values() for name in group}
    return {name: source for name, source in first.items() if source and name not in known}
