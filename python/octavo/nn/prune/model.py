"""prune_model_: the weights of a whole model, as one or layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from ...ops.prune import prune_mask
from ...ops.selection import Selection, check_units, selection
from ...runtime.arrays import dtype_name, float_code, kind_of, needs_dispatcher
from ...runtime.outputs import check_out
from ..kinds import has_transposed_weight, listed


class PruningMask(nn.Module):
    """The parametrization that prune_model_(keep_masks=True) puts on a weight: 0.0 where `mask` is False.

    mask: bool, of the weight's shape; a buffer, so it is in the state dict. The gradient of what it keeps
    passes unchanged, that of what is pruned is 0. The product is made whenever the weight is read.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight.where(self.mask, 0.0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class _Weight(NamedTuple):
    fqn: str
    parameter: nn.Parameter
    mask: Tensor | None  # of an earlier prune_model_(keep_masks=True)
    transposed: bool  # [K, N]: patterns lie along K, as they do in a Linear's [N, K]

    def as_linear(self, x: Tensor) -> Tensor:
        """The weight, or its mask, as a Linear has it; and back again."""
        return x.t() if self.transposed else x


def prune_model_(
    model: nn.Module,
    *,
    sparsity: float | None = None,
    threshold: float | None = None,
    ratio: float | None = None,
    pattern: str = "unstructured",
    scope: str = "global",
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    keep_masks: bool = False,
) -> nn.Module:
    """Sets weights of `model` to zero, in place, and returns the model.

    sparsity, threshold, ratio, pattern: as for octavo.prune_mask.
    scope: "global" selects over all weights together, whatever their dtypes, by float32 magnitudes; they have
        to be on one device. "layer" selects in each alone, as an "n:m" pattern does anyway.
    filter_fn(module, fqn): chooses among the modules with a float parameter `weight`. Default:
        torch.nn.Linear and transformers' Conv1D, whose patterns lie along the inputs too, but for a weight
        that something else holds as well, such as the embedding that a head is tied to. A weight that several
        modules share is pruned once; filter_fn sees it under its first name.
    keep_masks: False: the weights are zeros once, and training would change them again. True: each of these
        weights also gets its mask as a parametrization (octavo.nn.PruningMask), for every module that has it:
        it trains, and what is pruned stays 0. The parameter stays the same object, so an optimizer goes on.
        torch.nn.utils.parametrize.remove_parametrizations(module, "weight") makes it permanent, which
        torch.save of a whole module needs (its state dict does not) and octavo.quantize_ does not. Masks that
        a weight has from an earlier call stay, and are combined.
    ValueError if there is no such weight, with the reasons, and, with the layer's name, for a shape that the
    pattern does not divide and for a weight that is computed from other parameters; TypeError for an unknown
    dtype, and for devices that differ. The model is unchanged then.
    """
    if scope not in ("global", "layer"):
        raise ValueError(f"scope: expected 'global' or 'layer', got {scope!r}")
    chosen = selection(threshold, ratio, sparsity, pattern, "keep")
    together = scope == "global" and ":" not in pattern
    weights = _weights(model, filter_fn)
    for weight in weights:
        _check_weight(weight, chosen, weights[0] if together else weight)
    arguments: dict[str, Any] = {
        "sparsity": sparsity,
        "threshold": threshold,
        "ratio": ratio,
        "pattern": pattern,
    }
    with torch.no_grad():
        now = [w.parameter.detach() if w.mask is None else w.parameter.where(w.mask, 0.0) for w in weights]
        now = [w.as_linear(each) for w, each in zip(weights, now, strict=True)]
        groups = [now] if together else [[each] for each in now]
        masks = [mask for group in groups for mask in prune_mask(group, **arguments)]
        del now, groups  # copies of what was masked before
        new = {}
        for weight, found in zip(weights, masks, strict=True):
            mask, parameter = weight.as_linear(found).contiguous(), weight.parameter
            new[id(parameter)] = mask if weight.mask is None else mask & weight.mask
            parameter.masked_fill_(~mask, 0)
        _put_masks(model, new, keep_masks)
    return model


def _weights(model: nn.Module, filter_fn: Callable[[nn.Module, str], bool] | None) -> list[_Weight]:
    """The weights to prune, each once. ValueError, with the reasons, if there are none."""
    found: dict[int, _Weight] = {}
    reasons: dict[str, str] = {}
    holders = _holders(model) if filter_fn is None else {}
    for fqn, module in model.named_modules():
        weight, mask = module._parameters.get("weight"), None
        computed = weight is None and "weight_orig" in module._parameters
        if parametrize.is_parametrized(module, "weight"):
            steps: Any = module.parametrizations["weight"]
            computed = not (len(steps) == 1 and isinstance(steps[0], PruningMask))
            if not computed:
                weight, mask = steps.original, steps[0].mask
        if weight is None and not computed:
            continue
        if weight is not None and id(weight) in found:
            continue
        transposed = has_transposed_weight(module)
        if is_lazy(weight):
            why: str | None = "its weight is not initialized: run the model once"
        elif weight is not None and not weight.is_floating_point():
            why = f"its weight is {dtype_name(weight.dtype)}"
        elif filter_fn is not None:
            why = None if filter_fn(module, fqn) else "filter_fn left it out"
        else:
            why = _why_left(module, weight, transposed, holders)
        if why is not None:
            reasons |= {fqn: why} if why else {}
            continue
        if weight is None:
            raise ValueError(
                f"model: layer {fqn!r}: weight: expected a parameter, got one that is computed from others, "
                "by torch.nn.utils.prune or a parametrization: make that permanent first, or leave the layer "
                "out with filter_fn"
            )
        found[id(weight)] = _Weight(fqn, weight, mask, transposed)
    if not found:
        raise ValueError(
            "model: expected at least one module with a float weight that filter_fn accepts, got none"
            + listed(reasons)
        )
    return list(found.values())


def _why_left(
    module: nn.Module, weight: Tensor | None, transposed: bool, holders: dict[int, list[tuple[str, str]]]
) -> str | None:
    """Why a module is left alone without a filter_fn, "" for one that nobody expects to be pruned."""
    if not (transposed or isinstance(module, nn.Linear)):
        is_vector = weight is not None and weight.dim() < 2
        return "" if is_vector else f"{type(module).__name__} is pruned only where filter_fn accepts it"
    for name, kind in () if weight is None else holders[_memory(weight)]:
        if kind != _LINEAR[transposed]:
            return f"its weight is {name!r} too, and pruned only where filter_fn accepts it"
    return None


_LINEAR = ("a weight [N, K]", "a weight [K, N]")  # by whether it is transposed


def _holders(model: nn.Module) -> dict[int, list[tuple[str, str]]]:
    """(name, what it is there) of all that the modules of a model hold in the same memory."""
    holders: dict[int, list[tuple[str, str]]] = {}
    for fqn, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            owner = module
            if isinstance(module, parametrize.ParametrizationList) and name == "original":
                path, _, name = fqn.rpartition(".")
                owner = model.get_submodule(path.rpartition(".")[0])
            is_linear = name == "weight" and (has_transposed_weight(owner) or isinstance(owner, nn.Linear))
            kind = _LINEAR[has_transposed_weight(owner)] if is_linear else ""
            holders.setdefault(_memory(tensor), []).append((f"{fqn}.{name}" if fqn else name, kind))
    return holders


def _memory(tensor: Tensor) -> int:
    """What is the same for tensors that begin at the same address, such as a parameter and its `data`."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return (tensor.data_ptr() if plain else 0) or id(tensor)


def _check_weight(weight: _Weight, chosen: Selection, first: _Weight) -> None:
    data = weight.as_linear(weight.parameter.detach())
    try:
        kind_of(weight=data)
        float_code(data, "weight")
        check_units(data, "weight", chosen)
        if not needs_dispatcher(data):
            check_out(data, "weight", data, data.shape, dtype_name(data.dtype), {})
    except (TypeError, ValueError) as error:
        raise type(error)(f"model: layer {weight.fqn!r}: {error}; filter_fn can leave it out") from error
    if data.device != first.parameter.device:
        raise TypeError(
            f"model: layer {weight.fqn!r}: weight: expected device {first.parameter.device} like layer "
            f"{first.fqn!r} with scope='global', got {data.device}; scope='layer' takes both"
        )


def _put_masks(model: nn.Module, masks: dict[int, Tensor], keep_masks: bool) -> None:
    """Gives every place of these parameters its mask: where there is one already, or everywhere."""
    for module in list(model.modules()):
        if isinstance(module, parametrize.ParametrizationList):
            mask = masks.get(id(module._parameters.get("original")))
            if mask is not None and isinstance(module[0], PruningMask):
                module[0].mask = mask
        elif keep_masks:
            for name, parameter in list(module._parameters.items()):
                if id(parameter) in masks:
                    step = PruningMask(masks[id(parameter)])
                    parametrize.register_parametrization(module, name, step, unsafe=True)
