"""Quantization-aware training: prepare_qat_, train as before, convert_qat_."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from .. import ops
from ..torch_training import fake_quantized_conv2d, fake_quantized_linear
from .configs import DEFAULT, Int8Dynamic
from .convert import Filter, check_model, leave_fused_paths, replace
from .linear import Int8Linear


class FakeQuantizedLinear(nn.Linear):
    """A torch.nn.Linear that computes, to the bit, what Int8Linear.from_float of it does, and trains.

    Weight and bias are the float parameters of torch.nn.Linear, with its state dict; x is [..., K] of any
    float dtype, y of the same (float32 for float64). Every forward pass quantizes the weight per row and the
    input per row, and multiplies in int8. Gradients are straight through (Bengio et al. 2013,
    arXiv:1308.3432): with G the gradient of y, and W' and x' what the int8 values stand for, rounded to y's
    dtype,

        d W = G^T x',  d x = G W',  d bias = the sum of G over its rows.

    NaN and Inf in the input count as what they are quantized to, 0 and the largest value; in the weight they
    are a ValueError, for which a GPU is waited for. Second derivatives are a RuntimeError. autocast changes
    nothing: the input is taken in its dtype, the weight in its own.
    """

    qat_config: Int8Dynamic = DEFAULT

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = fake_quantized_linear(x, self.weight, self.bias, symmetric=self.qat_config.symmetric)
        return y


class FakeQuantizedConv2d(nn.Conv2d):
    """A torch.nn.Conv2d that computes, to the bit, what Int8Conv2d.from_float of it does, and trains.

    The weight has one scale per output channel, the input one per sample. The rest is as for
    FakeQuantizedLinear, with the gradients of a convolution at the quantized weight and input.
    """

    qat_config: Int8Dynamic = DEFAULT

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        padding = self.padding
        if isinstance(padding, str) or self.padding_mode != "zeros":
            # values of x and zeros: the scale of x is that of the padded x
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = nn.functional.pad(x, self._reversed_padding_repeated_twice, mode=mode)
            padding = (0, 0)
        y: Tensor = fake_quantized_conv2d(
            x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )
        return y


def prepare_qat_(
    model: nn.Module, config: Int8Dynamic = DEFAULT, *, filter_fn: Filter | None = None
) -> nn.Module:
    """Makes the Linear and Conv2d layers of `model` compute as int8 ones do and train; returns the model.

    config: what convert_qat_ will make of the layers.
    filter_fn(module, fqn): chooses among the torch.nn.Linear and torch.nn.Conv2d modules (default: all).

    The modules themselves become octavo.nn.FakeQuantizedLinear and FakeQuantizedConv2d: parameters, hooks and
    parametrizations stay, so that optimizers go on and masks stay in force (those of prune_model_, of
    torch.nn.utils.prune, and others). Layers with a forward of their own, the out_proj of
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
            with torch.no_grad():
                ops.quantize(module.weight.detach(), nonfinite="raise")  # as convert_qat_ will
        except (TypeError, ValueError) as error:
            raise type(error)(f"model: layer {fqn!r}: {error}") from error
        chosen.append((module, fake))
    if not chosen:
        raise ValueError(
            "model: expected at least one torch.nn.Linear or torch.nn.Conv2d that filter_fn accepts, got none"
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
    nothing to convert, for a weight with NaN or Inf, and for one that a forward hook computes, as
    torch.nn.utils.prune does: make that permanent first (prune.remove). The model is unchanged then.
    """
    check_model(model)
    new: dict[int, nn.Module] = {}
    for fqn, module in model.named_modules():
        if isinstance(module, FakeQuantizedLinear | FakeQuantizedConv2d):
            try:
                new[id(module)] = _int8(module)
            except (TypeError, ValueError) as error:
                raise type(error)(f"model: layer {fqn!r}: {error}") from error
    if not new:
        raise ValueError("model: expected at least one layer that prepare_qat_ has prepared, got none")
    return replace(model, new)


def _fake_class(module: nn.Module) -> type[FakeQuantizedLinear | FakeQuantizedConv2d] | None:
    """What prepare_qat_ makes of a module, None for one that stays as it is."""

    def keeps(base: type[nn.Module], *names: str) -> bool:
        kind = type(module)
        return isinstance(module, base) and all(
            getattr(kind, name) is getattr(base, name) and name not in vars(module) for name in names
        )

    if keeps(nn.Linear, "forward") and not isinstance(module, NonDynamicallyQuantizableLinear):
        return FakeQuantizedLinear
    return FakeQuantizedConv2d if keeps(nn.Conv2d, "forward", "_conv_forward") else None


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
    if isinstance(module, FakeQuantizedLinear):
        return Int8Linear.from_float(module, module.qat_config)
    from .conv import Int8Conv2d

    new: nn.Module = Int8Conv2d.from_float(module, module.qat_config)
    return new
