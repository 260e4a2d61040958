"""Quantization-aware training: prepare_qat_, train as before, convert_qat_."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from ...ops.conv_weight import weight_shape
from ...ops.layouts import check_k
from ...ops.quantize import quantize
from ..configs import DEFAULT, Int8Dynamic
from ..kinds import listed
from ..layers.conv import Int8Conv2d
from ..layers.fake_quantized import FakeQuantizedConv2d, FakeQuantizedLinear
from ..layers.linear import Int8Linear
from .belongings import weights_of_eval, why_clash, why_held, why_members
from .replaceable import why_left
from .swap import Filter, check_model, leave_fused_paths, replace


def prepare_qat_(
    model: nn.Module, config: Int8Dynamic = DEFAULT, *, filter_fn: Filter | None = None
) -> nn.Module:
    """Makes the Linear and Conv2d layers of `model` compute as int8 ones do and train; returns the model.

    config: what convert_qat_ will make of the layers.
    filter_fn(module, fqn): chooses among the torch.nn.Linear and torch.nn.Conv2d modules (default: all).

    The modules themselves become octavo.nn.FakeQuantizedLinear and FakeQuantizedConv2d: parameters, hooks and
    parametrizations stay, so that optimizers go on and masks stay in force (those of prune_model_, of
    torch.nn.utils.prune, and others). Layers with a forward or other members of their own, the out_proj of
    torch.nn.MultiheadAttention, and all other layers stay float. Train, then call convert_qat_.
    ValueError if there is nothing to prepare, or for a weight with NaN or Inf; TypeError for another config.
    The model is unchanged then.
    """
    check_model(model)
    if not isinstance(config, Int8Dynamic):
        raise TypeError(f"config: expected an octavo.Int8Dynamic, got {config!r}")
    chosen = []
    for fqn, module in model.named_modules():
        fake = _fake_class(module)
        if fake is None or not (filter_fn is None or filter_fn(module, fqn)):
            continue
        try:
            with torch.no_grad(), weights_of_eval(module):
                _check_sums(module, config)
                quantize(module.weight.detach(), nonfinite="raise")  # as convert_qat_ will
        except (TypeError, ValueError) as error:
            raise type(error)(f"model: layer {fqn!r}: {error}") from error
        chosen.append((module, fake))
    if not chosen:
        raise ValueError(
            "model: expected at least one torch.nn.Linear or torch.nn.Conv2d that filter_fn accepts, got none"
            + listed(_why_unprepared(model))
        )
    for module, fake in chosen:
        _become(module, fake)
        module.qat_config = config
    leave_fused_paths(model, FakeQuantizedLinear)
    return model


def convert_qat_(model: nn.Module) -> nn.Module:
    """Replaces what prepare_qat_ has prepared by int8 layers, in place, and returns the model.

    FakeQuantizedLinear becomes octavo.nn.Int8Linear and FakeQuantizedConv2d octavo.nn.Int8Conv2d, with the
    same results to the bit; weights that a mask pruned are zeros there. A module used in several places stays
    one module, and a model that is such a layer itself comes back as a new module. ValueError if there is
    nothing to convert, for a weight with NaN or Inf, for one that a forward hook computes, as
    torch.nn.utils.prune does: make that permanent first (prune.remove); and for parameters, buffers and
    modules that were registered on a layer. The model is unchanged then.
    """
    check_model(model)
    new: dict[int, nn.Module] = {}
    for fqn, module in model.named_modules():
        if isinstance(module, FakeQuantizedLinear | FakeQuantizedConv2d):
            try:
                with weights_of_eval(module):
                    new[id(module)] = _int8(module)
            except (TypeError, ValueError) as error:
                raise type(error)(f"model: layer {fqn!r}: {error}") from error
    if not new:
        whys = {
            fqn: why if why.startswith("int8") else "float: octavo.prepare_qat_ was not called for it"
            for fqn, why in why_left(model).items()
        }
        raise ValueError(
            f"model: expected at least one layer that prepare_qat_ has prepared, got none{listed(whys)}"
        )
    return replace(model, new)


def _why_unprepared(model: nn.Module) -> dict[str, str]:
    found = why_left(model)
    for fqn, why in found.items():
        module = model.get_submodule(fqn)
        if _fake_class(module) is not None:
            found[fqn] = "float: filter_fn left it out"
        elif not why.startswith("int8") and not isinstance(module, nn.Linear | nn.Conv2d):
            found[fqn] = f"float: octavo trains no {type(module).__name__} for int8"
    return found


def _fake_class(module: nn.Module) -> type[FakeQuantizedLinear | FakeQuantizedConv2d] | None:
    """What prepare_qat_ makes of a module, None for one that stays as it is."""

    def keeps(base: type[nn.Module], *names: str) -> bool:
        kind = type(module)
        return (
            isinstance(module, base)
            and all(getattr(kind, name) is getattr(base, name) and name not in vars(module) for name in names)
            and not why_members(module, base)
        )

    if keeps(nn.Linear, "forward") and not isinstance(module, NonDynamicallyQuantizableLinear):
        return FakeQuantizedLinear
    return FakeQuantizedConv2d if keeps(nn.Conv2d, "forward", "_conv_forward") else None


def _check_sums(module: nn.Module, config: Int8Dynamic) -> None:
    weight: Tensor = module.weight  # type: ignore[assignment]
    if isinstance(module, nn.Conv2d):
        weight_shape(weight.shape, module.groups)
    else:
        check_k(weight.shape[1], "weight", config.symmetric)


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Changes the class of a module, parametrized or not."""
    if parametrize.is_parametrized(module):
        # torch has made a class for this module alone, which computes the weight and must stay its last one:
        # remove_parametrizations deletes from it, and goes back to its base
        own = dict(vars(type(module)))
        kind = type(f"Parametrized{kind.__name__}", (kind,), own)
    module.__class__ = kind


def _int8(module: FakeQuantizedLinear | FakeQuantizedConv2d) -> nn.Module:
    if "weight" not in module._parameters and not parametrize.is_parametrized(module, "weight"):
        # what the hook computed last may be older than the last step of an optimizer
        raise ValueError("weight: expected a parameter, got one that a forward hook computes")
    kind: type[nn.Module]
    new: nn.Module
    if isinstance(module, FakeQuantizedLinear):
        kind, new = FakeQuantizedLinear, Int8Linear.from_float(module, module.qat_config)
    else:
        kind, new = FakeQuantizedConv2d, Int8Conv2d.from_float(module, module.qat_config)
    why = why_held(module, kind) or why_clash(module, new, kind)
    if why:
        raise ValueError(f"expected a layer with an int8 form, got one that stays {why}")
    return new
