"""The rows of octavo.explain()."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import backends
from .arrays import FLOATS, Array, check_dtype, is_array, on_cuda
from .backends import Explanation
from .engines import native_for, why_reference_for
from .linear import pack_weight
from .packed import MAX_K, PackedWeight, density

_FEW_ROWS = 4  # kSmallM of these instruction sets' kernels: up to here they hand over to another
_FEW_ROWS_RUN_ON = {"amx": "avx512vnni", "neoni8mm": "neondot"}
_FAMILIES = {"int8_linear": "linear", "weight_only_linear": "weight_only"}  # of CUDA kernels


def explanations(subject: Any) -> list[Explanation]:
    """What octavo does with each linear layer of a module, or with one weight."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(subject, torch.nn.Module):
        return _module_rows(subject)
    if isinstance(subject, PackedWeight):
        return [_packed_row("weight", subject, "packed")]
    if not is_array(subject):
        raise TypeError(
            "model_or_weight: expected a torch.nn.Module, a PackedWeight or an array, "
            f"got {type(subject).__name__}"
        )
    check_dtype(subject, "model_or_weight", "int8", *FLOATS)
    if subject.ndim != 2 or subject.shape[1] > MAX_K:
        shape = tuple(subject.shape)
        raise ValueError(f"model_or_weight: expected a weight [N, K] with K <= {MAX_K}, got shape {shape}")
    return [_packed_row("weight", pack_weight(subject), "once pack_weight has it")]


def _module_rows(model: Any) -> list[Explanation]:
    import torch

    from .nn.linear import PackedLinear, why_float
    from .nn.weight_only import Int8WeightOnlyLinear

    rows = []
    for name, module in model.named_modules():
        name = name or "(model)"
        if isinstance(module, PackedLinear):
            stored, nbytes = module._stored, module._stored.nbytes + module.weight_scale.nbytes
            shape, state = (module.out_features, module.in_features), type(module).__name__
            op = "weight_only_linear" if isinstance(module, Int8WeightOnlyLinear) else "int8_linear"
            if stored.dim() == 1:
                weight = PackedWeight(stored)
                share, layout = weight.density, weight.layout
            else:
                share, layout = density(stored), "plain"
            rows.append(_int8_row(name, stored, shape, share, nbytes, layout, state, op))
        elif isinstance(module, torch.nn.Linear):
            w = module.weight
            dtype = str(w.dtype).removeprefix("torch.")
            why = (
                why_float(module) or "float: octavo.quantize_ was not called, or its filter_fn left this out"
            )
            row = Explanation(name, tuple(w.shape), f"torch {dtype}", "dense", density(w), int(w.nbytes), why)
            rows.append(row)
    return rows


def _packed_row(name: str, weight: PackedWeight, state: str) -> Explanation:
    return _int8_row(name, weight.buffer, weight.shape, weight.density, weight.nbytes, weight.layout, state)


def _int8_row(
    name: str,
    stored: Array,
    shape: tuple[int, int],
    share: float,
    nbytes: int,
    layout: str,
    state: str,
    op: str = "int8_linear",
) -> Explanation:
    if on_cuda(stored):
        kernel, why = _on_device(stored, op)
    elif not isinstance(stored, np.ndarray) and not stored.is_cpu:
        kernel, why = "torch reference", f"there are no kernels for the device {stored.device}"
    else:
        kernel, why = "reference", backends.reason()
        if backends.native:
            isa = backends.get_isa()
            kernel = f"{op} {isa}"
            if op == "int8_linear" and isa in _FEW_ROWS_RUN_ON:
                kernel += f" ({_FEW_ROWS_RUN_ON[isa]} up to {_FEW_ROWS} rows)"
            why += "; " + _why_layout(layout, share)
    return Explanation(name, shape, kernel, layout, share, nbytes, f"{state}: {why}")


def _on_device(stored: Array, op: str) -> tuple[str, str]:
    """(kernel, why) of a weight on a device."""
    family = _FAMILIES[op]
    engine = native_for(stored, family)
    if engine is None:
        return "torch reference", f"the weight is on a device, and {why_reference_for(stored, family)}"
    kernels, ((device, *_),) = engine
    proven = kernels.kernels()["linear"]
    why = "proven on a GPU" if proven else "unproven on a GPU, and run by OCTAVO_CUDA_UNPROVEN=1"
    return f"int8_linear cuda sm_{kernels.capability(device)}", why


def _why_layout(layout: str, share: float) -> str:
    if layout == "bitmask":
        return f"bitmask stores the {share:.0%} of weights that are not zero, and a bit for each"
    if layout == "block":
        return "block stores the tiles of 4 x 16 that are not all zeros"
    bitmask_pays, block_pays = backends._core.sparse_pays()
    if not bitmask_pays:
        return "dense: without VBMI2, sparse layouts save memory but no time; ask for them by name"
    return f"dense: large weights gain from {bitmask_pays:.0%} kept weights or {block_pays:.0%} kept tiles on"
