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

_PRODUCTS = ("int8_linear", "quantize, scaled_int_mm")  # the kernels of this family


def explanations(subject: Any) -> list[Explanation]:
    """What octavo does with each layer of a module that holds weights, or with one weight."""
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
    from torch.nn.utils.parametrize import ParametrizationList

    from .nn.forms import int8_kinds

    rows, kinds = [], int8_kinds()
    for name, module in model.named_modules():
        name = name or "(model)"
        if isinstance(module, kinds):
            rows.append(_int8_module_row(name, module))
        elif not isinstance(module, ParametrizationList):
            rows += _float_module_rows(name, module)
    return rows


def _int8_module_row(name: str, module: Any) -> Explanation:
    from .nn.linear import PackedLinear

    nbytes = sum(buffer.nbytes for buffer in module.buffers(recurse=False))
    more = (nbytes, type(module).__name__, module.kernel)
    if isinstance(module, PackedLinear) and module._stored.dim() == 1:
        weight = PackedWeight(module._stored)
        return _int8_row(name, weight.buffer, weight.shape, weight.density, weight.layout, *more)
    stored = module.weight
    return _int8_row(name, stored, tuple(stored.shape), density(stored), "plain", *more)


def _float_module_rows(name: str, module: Any) -> list[Explanation]:
    """One row if the module itself holds weights, float parameters with two dimensions or more; else none."""
    from torch.nn.utils.parametrize import is_parametrized

    from .nn.forms import REASON, why_float

    names = [*module._parameters, *(module.parametrizations if is_parametrized(module) else ())]
    found = [getattr(module, each) for each in names]
    weights = [w for w in found if w is not None and w.dim() > 1 and w.is_floating_point()]
    if not weights:
        return []
    size = sum(w.numel() for w in weights)
    share = sum(density(w) * w.numel() for w in weights) / size if size else 1.0
    nbytes = sum(int(w.nbytes) for w in weights)
    why = why_float(module) or vars(module).get(REASON, "float: octavo.quantize_ was not called")
    dtype = str(weights[0].dtype).removeprefix("torch.")
    return [Explanation(name, tuple(weights[0].shape), f"torch {dtype}", "dense", share, nbytes, why)]


def _packed_row(name: str, weight: PackedWeight, state: str) -> Explanation:
    w = weight
    return _int8_row(name, w.buffer, w.shape, w.density, w.layout, w.nbytes, state, "int8_linear")


def _int8_row(
    name: str,
    stored: Array,
    shape: tuple[int, ...],
    share: float,
    layout: str,
    nbytes: int,
    state: str,
    kernel: str,
) -> Explanation:
    if on_cuda(stored):
        kernel, why = _on_device(stored, kernel)
    elif not isinstance(stored, np.ndarray) and not stored.is_cpu:
        kernel, why = "torch reference", f"there are no kernels for the device {stored.device}"
    else:
        why = backends.reason()
        if not backends.native:
            kernel = "reference"
        else:
            kernel += f" {backends.get_isa()}"
            if layout != "plain":
                why += "; " + _why_layout(layout, share)
                few, other = backends._core.few_rows()
                if few and kernel.startswith(_PRODUCTS):
                    kernel += f" ({other} up to {few} rows)"
    return Explanation(name, shape, kernel, layout, share, nbytes, f"{state}: {why}")


def _on_device(stored: Array, kernel: str) -> tuple[str, str]:
    """(kernel, why) of a weight on a device."""
    family = "linear" if kernel.endswith(_PRODUCTS) else kernel
    engine = native_for(stored, family)
    if engine is None:
        return "torch reference", f"the weight is on a device, and {why_reference_for(stored, family)}"
    kernels, (device, *_) = engine
    proven = kernels.kernels()[family]
    why = "proven on a GPU" if proven else "unproven on a GPU, and run by OCTAVO_CUDA_UNPROVEN=1"
    return f"{kernel} cuda sm_{kernels.capability(device)}", why


def _why_layout(layout: str, share: float) -> str:
    if layout == "bitmask":
        return f"bitmask stores the {share:.0%} of weights that are not zero, and a bit for each"
    if layout == "block":
        return "block stores the tiles of 4 x 16 that are not all zeros"
    bitmask_pays, block_pays = backends._core.sparse_pays()
    if not bitmask_pays:
        return "dense: without VBMI2, sparse layouts save memory but no time; ask for them by name"
    return f"dense: large weights gain from {bitmask_pays:.0%} kept weights or {block_pays:.0%} kept tiles on"
