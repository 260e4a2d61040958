"""The rows of octavo.explain()."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import backends
from .arrays import FLOATS, check_dtype, is_array
from .backends import Explanation
from .linear import pack_weight
from .packed import MAX_K, PackedWeight, density

_FEW_ROWS = 4  # kSmallM of these instruction sets' kernels: up to here they hand over to another
_FEW_ROWS_RUN_ON = {"amx": "avx512vnni", "neoni8mm": "neondot"}


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

    from .nn import Int8Linear, why_float

    rows = []
    for name, module in model.named_modules():
        name = name or "(model)"
        if isinstance(module, Int8Linear):
            stored, scale = module._stored, module.weight_scale
            if stored.dim() == 1:
                rows.append(_packed_row(name, PackedWeight(stored, scale), "Int8Linear"))
            else:
                nbytes = stored.nbytes + scale.nbytes
                rows.append(
                    _int8_row(
                        name,
                        (module.out_features, module.in_features),
                        density(stored),
                        nbytes,
                        None,
                        "Int8Linear",
                    )
                )
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
    on_cpu = isinstance(weight.buffer, np.ndarray) or weight.buffer.is_cpu
    layout = weight.layout if on_cpu else None
    return _int8_row(name, weight.shape, weight.density, weight.nbytes, layout, state)


def _int8_row(
    name: str, shape: tuple[int, int], share: float, nbytes: int, layout: str | None, state: str
) -> Explanation:
    """layout: None on a device."""
    if layout is None:
        kernel, why = "torch reference", "the weight is on a device, and this build has no CUDA kernels"
    else:
        kernel, why = "reference", backends.reason()
        if backends.native:
            isa = backends.get_isa()
            kernel = f"int8_linear {isa}"
            if isa in _FEW_ROWS_RUN_ON:
                kernel += f" ({_FEW_ROWS_RUN_ON[isa]} up to {_FEW_ROWS} rows)"
            why += "; " + _why_layout(layout, share)
    return Explanation(name, shape, kernel, layout or "plain", share, nbytes, f"{state}: {why}")


def _why_layout(layout: str, share: float) -> str:
    if layout == "bitmask":
        return f"bitmask stores the {share:.0%} of weights that are not zero, and a bit for each"
    if layout == "block":
        return "block stores the tiles of 4 x 16 that are not all zeros"
    bitmask_pays, block_pays = backends._core.sparse_pays()
    if not bitmask_pays:
        return "dense: without VBMI2, sparse layouts save memory but no time; ask for them by name"
    return f"dense: large weights gain from {bitmask_pays:.0%} kept weights or {block_pays:.0%} kept tiles on"
