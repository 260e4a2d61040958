"""The rows of octavo.explain()."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import backends
from .arrays import FLOATS, check_dtype, is_array
from .backends import Explanation
from .packed import MAX_K, PackedWeight, density, packed_nbytes

_FEW_ROWS = 4  # kSmallM of these instruction sets' kernels: up to here they hand over to another
_FEW_ROWS_RUN_ON = {"amx": "avx512vnni", "neoni8mm": "neondot"}


def explanations(subject: Any) -> list[Explanation]:
    """What octavo does with each linear layer of a module, or with one weight."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(subject, torch.nn.Module):
        return _module_rows(subject)
    if isinstance(subject, PackedWeight):
        on_cpu = isinstance(subject.buffer, np.ndarray) or subject.buffer.is_cpu
        return [_int8_row("weight", subject.shape, subject.density, subject.nbytes, on_cpu, "packed")]
    if not is_array(subject):
        raise TypeError(
            "model_or_weight: expected a torch.nn.Module, a PackedWeight or an array, "
            f"got {type(subject).__name__}"
        )
    check_dtype(subject, "model_or_weight", "int8", *FLOATS)
    if subject.ndim != 2 or subject.shape[1] > MAX_K:
        shape = tuple(subject.shape)
        raise ValueError(f"model_or_weight: expected a weight [N, K] with K <= {MAX_K}, got shape {shape}")
    n, k = subject.shape
    on_cpu = isinstance(subject, np.ndarray) or subject.is_cpu
    row = _int8_row(
        "weight", (n, k), density(subject), packed_nbytes(n, k) + 4 * n, on_cpu, "once pack_weight has it"
    )
    return [row]


def _module_rows(model: Any) -> list[Explanation]:
    import torch

    from .nn import Int8Linear, why_float

    rows = []
    for name, module in model.named_modules():
        name = name or "(model)"
        if isinstance(module, Int8Linear):
            n, k = module.out_features, module.in_features
            on_cpu = module.weight_scale.is_cpu
            nbytes = packed_nbytes(n, k) if on_cpu else n * k
            rows.append(_int8_row(name, (n, k), density(module.weight), nbytes + 4 * n, on_cpu, "Int8Linear"))
        elif isinstance(module, torch.nn.Linear):
            w = module.weight
            dtype = str(w.dtype).removeprefix("torch.")
            why = (
                why_float(module) or "float: octavo.quantize_ was not called, or its filter_fn left this out"
            )
            row = Explanation(name, tuple(w.shape), f"torch {dtype}", "dense", density(w), int(w.nbytes), why)
            rows.append(row)
    return rows


def _int8_row(
    name: str, shape: tuple[int, int], share: float, nbytes: int, on_cpu: bool, state: str
) -> Explanation:
    if not on_cpu:
        kernel, why = "torch reference", "the weight is on a device, and this build has no CUDA kernels"
    else:
        kernel, why = "reference", backends.reason()
        if backends.native:
            isa = backends.get_isa()
            kernel = f"int8_linear {isa}"
            if isa in _FEW_ROWS_RUN_ON:
                kernel += f" ({_FEW_ROWS_RUN_ON[isa]} up to {_FEW_ROWS} rows)"
        why += "; dense is the only layout of this version"
        if share <= 0.5:
            why += ", so zeros are multiplied too"
    return Explanation(name, shape, kernel, "dense" if on_cpu else "plain", share, nbytes, f"{state}: {why}")
