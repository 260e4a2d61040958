"""octavo.explain: what octavo does with each layer of a model, or with one weight."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from .ops.layouts import MAX_K
from .ops.pack import PackedWeight, density, pack_weight
from .runtime import backends
from .runtime.arrays import FLOATS, Array, check_dtype, is_array, on_cuda
from .runtime.routing import native_for, why_reference_for

_PRODUCTS = ("int8_linear", "quantize, scaled_int_mm")  # the kernels of this family


class Explanation(NamedTuple):
    """What octavo does with one layer or weight: one row of explain()."""

    name: str
    shape: tuple[int, ...]
    kernel: str
    layout: str
    density: float
    nbytes: int
    why: str


def explain(model_or_weight: Any) -> list[Explanation]:
    """Prints and returns, per layer or for one weight: kernel that will run, layout, density, bytes, and why.

    model_or_weight: a torch.nn.Module, a PackedWeight, or a weight [N, K] as pack_weight takes it (array or
    tensor). Layers are the modules that hold int8, or float parameters of two or more dimensions themselves;
    for one that stays float, the shape is that of the first of these, and why says what keeps it so.
    The density is the share of weights that are not zero; counting it reads every weight once.
    TypeError for others.
    """
    rows = explanations(model_or_weight)
    table = [Explanation._fields] + [
        (r.name, "x".join(map(str, r.shape)), r.kernel, r.layout, f"{r.density:.3f}", str(r.nbytes), r.why)
        for r in rows
    ]
    widths = [max(len(row[i]) for row in table) for i in range(6)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + "  " + row[6])
    return rows


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

    from .nn.convert.replaceable import int8_kinds

    rows, kinds = [], int8_kinds()
    for name, module in model.named_modules():
        name = name or "(model)"
        if isinstance(module, kinds):
            rows.append(_int8_module_row(name, module))
        elif not isinstance(module, ParametrizationList):
            rows += _float_module_rows(name, module)
    return rows


def _int8_module_row(name: str, module: Any) -> Explanation:
    from .nn.layers.base import PackedModule
    from .nn.layers.linear import PackedLinear

    nbytes = sum(buffer.nbytes for buffer in module.buffers(recurse=False))
    more = (nbytes, type(module).__name__, module.kernel)
    if isinstance(module, PackedLinear) and module._stored.dim() == 1:
        weight = PackedWeight(module._stored)
        return _int8_row(name, weight.buffer, weight.shape, weight.density, weight.layout, *more)
    stored = module.weight_int8 if isinstance(module, PackedModule) else module.weight
    return _int8_row(name, stored, tuple(stored.shape), density(stored), "plain", *more)


def _float_module_rows(name: str, module: Any) -> list[Explanation]:
    """One row if the module itself holds weights, float parameters with two dimensions or more; else none."""
    from torch.nn.utils.parametrize import is_parametrized

    from .nn.convert.belongings import weights_of_eval
    from .nn.convert.replaceable import why_noted

    names = [*module._parameters, *(module.parametrizations if is_parametrized(module) else ())]
    with weights_of_eval(module):
        found = [getattr(module, each) for each in names]
    weights = [w for w in found if w is not None and w.dim() > 1 and w.is_floating_point()]
    if not weights:
        return []
    size = sum(w.numel() for w in weights)
    share = sum(density(w) * w.numel() for w in weights) / size if size else 1.0
    nbytes = sum(int(w.nbytes) for w in weights)
    why = why_noted(module)
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
