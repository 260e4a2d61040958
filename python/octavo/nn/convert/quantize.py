"""quantize_: int8 layers in the place of a model's float ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..configs import DEFAULT, Config, Int8Static, check_config
from ..kinds import listed
from ..layers.attention import Int8MultiheadAttention
from ..layers.static import Int8StaticLinear, Range
from .belongings import REASON, weights_of_eval, why_clash
from .calibrate import calibrate
from .replaceable import as_linear, base_of, forms_of, why_float, why_left
from .swap import Filter, check_model, replace, swapped

Configs = Config | Mapping[str | type[nn.Module], Config | None]
Rule = tuple[str | type[nn.Module], Config | None]
Origin = tuple[int, tuple[int, ...]]


class _Layer(NamedTuple):
    fqn: str
    module: nn.Module
    config: Config


def quantize_(model: nn.Module, config: Configs = DEFAULT, *, filter_fn: Filter | None = None) -> nn.Module:
    """Replaces the layers of `model` that have an int8 form, in place, and returns the model.

    They are torch.nn.Linear, Conv2d, Embedding, EmbeddingBag, MultiheadAttention, whose projections it
    decides for, and transformers' Conv1D, which becomes a linear layer with the weight [N, K]. Convolutions
    stay float with Int8WeightOnly and Int8Static; embeddings have one form for all configs.
    config: octavo.Int8Dynamic, Int8WeightOnly or Int8Static, for all layers; or a mapping whose keys are
        types of modules, and names, with the wildcards of fnmatch if wanted (`*` matches dots too). The first
        key that fits a layer decides; None leaves the layer float, and so it stays if no key fits.
    filter_fn(module, fqn): chooses among these layers (default: all). A module used in several places stays
        one module; filter_fn and config see it under its first name.

    A model that is such a layer itself comes back as a new module. Hooks and attributes go on; parametrized
    weights are taken as in eval mode. Layers that share a weight share its int8 form again, if they store it
    alike, until it is loaded or moved to another device. octavo.explain says why a layer stayed float, such
    as one with a forward or other members of its own, or with parameters beside its weight.
    ValueError if there is nothing to replace, with the reasons, for a name in config that fits no layer, and
    for a weight with NaN or Inf; TypeError for another config. The model is unchanged then.
    """
    check_model(model)
    rules = _rules(config)
    layers, reasons = _choose(model, rules, filter_fn)
    with weights_of_eval(model):
        new = _int8_layers(model, layers, reasons)
    if not new:
        whys = {fqn: reasons.get(id(model.get_submodule(fqn)), why) for fqn, why in why_left(model).items()}
        raise ValueError(
            "model: expected at least one layer with an int8 form that filter_fn and config accept, got none"
            + listed(whys)
        )
    for module in model.modules():
        if id(module) in reasons:
            setattr(module, REASON, reasons[id(module)])
    return replace(model, new)


def _rules(config: Configs) -> list[Rule]:
    rules: list[Rule] = list(config.items()) if isinstance(config, Mapping) else [("*", config)]
    for key, each in rules:
        if not (isinstance(key, str) or (isinstance(key, type) and issubclass(key, nn.Module))):
            raise TypeError(f"config: expected names and types of modules as keys, got {key!r}")
        if each is not None or not isinstance(config, Mapping):
            check_config(each)
    return rules


def _choose(
    model: nn.Module, rules: Sequence[Rule], filter_fn: Filter | None
) -> tuple[list[_Layer], dict[int, str]]:
    """The layers to replace; and, by their ids, why others that could be are not."""
    layers: list[_Layer] = []
    reasons: dict[int, str] = {}
    unused = {key for key, _ in rules if isinstance(key, str) and key != "*"}
    for fqn, module in model.named_modules():
        if why_float(module):
            continue
        fitting = [rule for rule in rules if _fits(rule[0], module, fqn)]
        unused.difference_update(key for key, _ in fitting)
        config = fitting[0][1] if fitting else None
        if filter_fn is not None and not filter_fn(module, fqn):
            reasons[id(module)] = "float: filter_fn left it out"
        elif not fitting:
            reasons[id(module)] = "float: no key of config fits it"
        elif config is None:
            reasons[id(module)] = f"float: config has None for it, with the key {fitting[0][0]!r}"
        elif type(config) not in forms_of(module):
            name, kind = type(config).__name__, type(module).__name__
            reasons[id(module)] = f"float: octavo has no int8 form of {kind} with {name}"
        else:
            layers.append(_Layer(fqn, module, config))
    if unused:
        raise ValueError(f"config: expected names of layers that have an int8 form, got {sorted(unused)}")
    return layers, reasons


def _fits(key: str | type[nn.Module], module: nn.Module, fqn: str) -> bool:
    return fnmatchcase(fqn, key) if isinstance(key, str) else isinstance(module, key)


def _int8_layers(model: nn.Module, layers: Sequence[_Layer], reasons: dict[int, str]) -> dict[int, nn.Module]:
    """The int8 forms of the layers, by the ids of these; adds the reasons of those that calibration did not
    see. The model is unchanged."""
    attention = {}
    for layer in layers:
        if isinstance(layer.module, nn.MultiheadAttention):
            with _named(layer):
                attention[id(layer.module)] = Int8MultiheadAttention.with_float_projections(layer.module)
    parts = {id(layer.module): _parts(layer, attention.get(id(layer.module))) for layer in layers}
    ranges: dict[int, Range] = {}
    static = [layer for layer in layers if _is_calibrated(layer)]
    for config in {id(layer.config): layer.config for layer in static}.values():
        observed = [p.module for each in static if each.config is config for p in parts[id(each.module)]]
        assert isinstance(config, Int8Static)
        with swapped(model, attention) as whole:
            ranges.update(calibrate(whole, observed, config))
    new: dict[int, nn.Module] = {}
    tied: dict[Origin, nn.Module] = {}
    for layer in layers:
        key = id(layer.module)
        if _is_calibrated(layer) and any(id(each.module) not in ranges for each in parts[key]):
            reasons[key] = "float: its input was never seen in calibration"
            continue
        forms = {each.fqn: _int8_layer(each, ranges.get(id(each.module))) for each in parts[key]}
        form: nn.Module = attention[key] if key in attention else next(iter(forms.values()))
        if key in attention:
            for fqn, part in forms.items():
                form.add_module(fqn.rpartition(".")[2], part)
        why = _why_clash(layer.module, form)
        if why:
            reasons[key] = why
            continue
        for fqn, part in forms.items():
            _share(part, _origin(layer.module, fqn.rpartition(".")[2]), tied)
        new[key] = form
    return new


def _why_clash(old: nn.Module, new: nn.Module) -> str:
    base = base_of(old)
    assert base is not None
    why = why_clash(old, new, base)
    if not why and isinstance(old, nn.MultiheadAttention):
        why = why_clash(old.out_proj, new.out_proj, nn.Linear)  # type: ignore[arg-type]
    return why


def _is_calibrated(layer: _Layer) -> bool:
    return issubclass(forms_of(layer.module)[type(layer.config)], Int8StaticLinear)


def _parts(layer: _Layer, attention: nn.Module | None) -> list[_Layer]:
    """The layer itself, or the projections of an attention layer."""
    if attention is None:
        return [layer]
    prefix = f"{layer.fqn}." if layer.fqn else ""
    return [_Layer(prefix + name, child, layer.config) for name, child in attention.named_children()]


def _int8_layer(layer: _Layer, input_range: Range | None) -> nn.Module:
    form = forms_of(layer.module)[type(layer.config)]
    more: dict[str, Any] = {} if input_range is None else {"input_range": input_range}
    with _named(layer):
        new: nn.Module = form.from_float(as_linear(layer.module), layer.config, **more)
    return new


@contextmanager
def _named(layer: _Layer) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"model: layer {layer.fqn!r}: {error}") from error


def _origin(layer: nn.Module, part: str) -> Origin:
    """Of what tensors a layer's weight is, or that of a projection of attention, and which share of these."""
    name, index = "weight", 0
    if isinstance(layer, nn.MultiheadAttention):
        if part == "out_proj":
            layer = layer.out_proj
        elif layer.in_proj_weight is not None:
            name, index = "in_proj_weight", "qkv".index(part[0])
        else:
            name = f"{part}_weight"
    return index, tuple(map(id, _tensors(layer, name)))


def _tensors(layer: nn.Module, name: str) -> list[torch.Tensor | None]:
    if not parametrize.is_parametrized(layer, name):
        return [layer._parameters.get(name)]
    one: nn.Module = layer.parametrizations[name]  # type: ignore[index, assignment]
    return [getattr(one, each) for each in (*one._parameters, *one._buffers) if each.startswith("original")]


def _share(new: nn.Module, origin: Origin, tied: dict[Origin, nn.Module]) -> None:
    """Gives the int8 form of a weight that was seen before the first one's memory, if it holds the same.

    Not the scales, which are small: load_state_dict fills them in place, but replaces what is packed.
    """
    first = tied.setdefault(origin, new)
    if first is new:
        return
    new._tied = first._tied = True  # type: ignore[assignment]
    for name, buffer in new.named_buffers(recurse=False):
        for other in first.buffers(recurse=False):
            alike = (buffer.dtype, buffer.device, buffer.shape) == (other.dtype, other.device, other.shape)
            if alike and buffer.itemsize == 1 and not buffer.is_meta and torch.equal(buffer, other):
                new._buffers[name] = other
