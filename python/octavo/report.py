"""The rows of octavo.explain()."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import backends
from .arrays import FLOATS, check_dtype, is_array
from .backends import Explanation
from .packed import MAX_K, PackedWeight, density, packed_nbytes


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

    from .nn import Int8Linear

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
            why = f"a {type(module).__name__} that octavo.quantize_ did not replace"
            row = Explanation(name, tuple(w.shape), f"torch {dtype}", "dense", density(w), int(w.nbytes), why)
            rows.append(row)
    return rows


def _int8_row(
    name: str, shape: tuple[int, int], share: float, nbytes: int, on_cpu: bool, state: str
) -> Explanation:
    if not on_cpu:
        kernel, why = "torch reference", "the weight is on a device, and this build has no CUDA kernels"
    elif backends.native:
        kernel, why = (
            f"int8_linear {backends.get_isa()}",
            "chosen for this machine, or forced (show_config says more)",
        )
    else:
        kernel = "reference"
        why = (
            f"the native module is missing: {backends.native_error}"
            if backends.native_error
            else "use_backend"
        )
    if share <= 0.5:
        why += "; zeros are multiplied: this version has no sparse layout"
    return Explanation(name, shape, kernel, "dense" if on_cpu else "plain", share, nbytes, f"{state}: {why}")
