"""What layers with an int8 weight share; and what keeps a float layer from becoming one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ...ops.quantize import DEQUANTIZE, quantize
from ...runtime.arrays import needs_dispatcher
from ...torch_ops.quantize import dequantize_op
from .weight import Int8Weight

if TYPE_CHECKING:
    from typing_extensions import Self


# buffers, whatever the model's dtype: half() casts those of float32, type(torch.half) all
_KEEP_THEIR_DTYPE = ("_stored", "weight_scale", "input_scale", "input_zero_point")


class PackedModule(nn.Module):
    """Holds, saves, loads and moves an int8 weight and its scales.

    The state dict has the logical values, `weight_int8` and `weight_scale`, beside `bias` and an empty
    `weight`: a float model that is given it would take int8 for floats under that name, and refuses the shape
    so. In memory there is one copy of the weight, `_stored`, in the form that the kernels of its device read.
    A subclass says of which shape the weight is, how it is packed and unpacked, and what is computed with it.
    """

    kernel: str  # for octavo.explain
    weight_scale: Tensor  # float32, whatever the model's dtype, and whatever a checkpoint has
    bias: nn.Parameter | None
    dtype: torch.dtype
    _stored: Tensor
    _tied = False  # whether another layer was made from the same float weight
    _weight: Int8Weight | None = None

    def __prepare_scriptable__(self) -> nn.Module:
        return no_script(self)

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = torch.get_default_dtype() if dtype is None else dtype

    def _add_like(self, device: Any) -> None:
        """Of a layer without a bias: an empty parameter, so that next(model.parameters()) tells device and
        dtype where no other layer has one."""
        self._like = nn.Parameter(torch.empty(0, dtype=self.dtype, device=device), requires_grad=False)

    def _set_dtype(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        like = self._parameters.get("_like")
        if like is not None and (like.dtype is not dtype or like.device != self._stored.device):
            self._add_like(self._stored.device)

    # ---- for subclasses ----

    @property
    def _shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def _packed(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _unpacked(self, stored: Tensor) -> Tensor:
        raise NotImplementedError

    def _quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(int8 values, scales) of a float weight. ValueError for NaN and Inf."""
        rows, scale, _ = quantize(weight.detach().flatten(1), nonfinite="raise")
        return rows.reshape(weight.shape), scale.reshape(-1, *[1] * (weight.dim() - 1))

    def _linear(self, x: Tensor, bias: Tensor | None) -> Any:
        """x @ weight.T + bias, as the layer computes it; NotImplemented where it has no such product. The
        same for _lookup, weight[indices], and _convolution."""
        return NotImplemented

    def _lookup(self, indices: Tensor) -> Any:
        return NotImplemented

    def _convolution(self, x: Tensor, bias: Tensor | None, *window: Any) -> Any:
        return NotImplemented

    # ---- the weight ----

    @property
    def weight(self) -> Tensor:
        """The float weight that the layer stands for: an octavo.nn.Int8Weight. In compiled and exported code
        the dequantized values."""
        if torch.compiler.is_compiling():
            return self._float_weight(self.dtype)
        found: Int8Weight | None = self.__dict__.get("_weight")
        if found is not None:
            buffers, dtype, device = found._made_for
            if buffers is self._buffers and dtype is self.dtype and device == self._stored.device:
                return found
        twin = object.__new__(type(self))  # has the same dictionary of buffers, and so what will be in it
        twin.__dict__.update(self.__dict__, _weight=None)
        found = self.__dict__["_weight"] = Int8Weight(twin)
        return found

    @weight.setter
    def weight(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"weight: expected a float torch.Tensor, got {type(value).__name__}")
        if value is self._weight:
            return
        if tuple(value.shape) == (0,):  # the placeholder of a state dict
            return
        if tuple(value.shape) != self._shape:
            raise ValueError(f"weight: expected shape {self._shape}, got {tuple(value.shape)}")
        if self._weight is not None:  # whoever has the old one keeps its values
            layer = self._weight._layer
            layer.__dict__["_buffers"] = dict(layer._buffers)
            self.__dict__["_weight"] = None
        if type(value) is Int8Weight and not value._turned:
            self._take(value._layer)
        else:
            self._set_float(value)
        self._tied = False

    @property
    def weight_int8(self) -> Tensor:
        """int8, of the float weight's shape; a new tensor where the weight is stored packed."""
        stored = self._stored
        return stored if stored.dim() == len(self._shape) else self._unpacked(stored)

    @weight_int8.setter
    def weight_int8(self, value: Tensor) -> None:
        if value.dtype != torch.int8 or tuple(value.shape) != self._shape:
            got = f"{value.dtype} {tuple(value.shape)}"
            raise ValueError(f"weight_int8: expected torch.int8 {self._shape}, got {got}")
        self._stored = self._packed(value.detach())

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name in ("weight", "weight_int8"):
            getattr(type(self), name).fset(self, param)
        else:
            super().register_parameter(name, param)

    def _float_weight(self, dtype: torch.dtype) -> Tensor:
        """A new tensor."""
        data, scale, shape = self.weight_int8, self.weight_scale, self._shape
        if len(shape) > 2:
            data, scale = data.flatten(1), scale.flatten(1)
        dequantize = dequantize_op if needs_dispatcher(data, scale) else DEQUANTIZE.run
        values: Tensor = dequantize(data, scale, None, dtype=dtype)
        return values.reshape(shape) if len(shape) > 2 else values

    def _set_float(self, weight: Tensor) -> None:
        if not weight.is_floating_point():
            raise TypeError(f"weight: expected a float dtype, got {weight.dtype}; int8 goes to weight_int8")
        if tuple(weight.shape) != self._shape:
            raise ValueError(f"weight: expected shape {self._shape}, got {tuple(weight.shape)}")
        weight = weight.clone() if type(weight) not in (Tensor, nn.Parameter) else weight
        data, scale = self._quantized(weight)
        self._stored, self.weight_scale = self._packed(data), scale
        self._set_dtype(weight.dtype)

    def _take(self, other: PackedModule) -> None:
        """The int8 values of another layer, as they are where it has the same kind of scales."""
        if other.weight_scale.shape != self.weight_scale.shape:
            self._set_float(other._float_weight(other.dtype))
            return
        self._stored, self.weight_scale = self._packed(other.weight_int8), other.weight_scale
        self._set_dtype(other.dtype)

    # ---- moving, saving, loading ----

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        device, before = self._stored.device, {name: self._buffers.get(name) for name in _KEEP_THEIR_DTYPE}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=device)).dtype
        for name, buffer in before.items():
            if buffer is not None and (now := getattr(self, name)).dtype != buffer.dtype:
                setattr(self, name, buffer.to(now.device))
        if self._stored.device.type != device.type:
            self._stored = self._packed(self.weight_int8)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_checked", "_weight")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "dtype" not in state:  # of octavo 0.1
            if "weight" in self._buffers:
                self._buffers["_stored"] = self._buffers.pop("weight")
                self._non_persistent_buffers_set.add("_stored")
            like = self._buffers.pop("_like", self._parameters.get("bias"))
            self.dtype = torch.get_default_dtype() if like is None else like.dtype

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = torch.empty(0, dtype=self.dtype, device=self._stored.device)
        destination[prefix + "weight_int8"] = self.weight_int8
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(prefix + "_like", None)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key, place = prefix + "weight_int8", prefix + "weight"
        rest = {name: value for name, value in state_dict.items() if name not in (key, place)}
        if "_like" in self._parameters:
            rest[prefix + "_like"] = self._like
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        # copied as it is, or taken with assign=True
        self.weight_scale = self.weight_scale.to(torch.float32)
        placeholder, weight = state_dict.get(place), state_dict.get(key)
        if placeholder is not None and tuple(placeholder.shape) != (0,):  # int8 by octavo 0.1, or an error
            weight, placeholder, key = placeholder, None, place
        if weight is None:
            if strict:
                missing_keys.append(key)
            return
        if weight.dtype != torch.int8 or tuple(weight.shape) != self._shape:
            got = f"{weight.dtype} {tuple(weight.shape)}"
            error_msgs.append(f"{key}: expected int8 {self._shape}, got {got}")
            return
        assign = local_metadata.get("assign_to_params_buffers", False)
        device = weight.device if assign else self._stored.device
        weight = weight.detach().to(device)
        stored = self._packed(weight)
        if stored is not weight or assign:
            self._stored = stored
        elif stored.is_meta or self._stored.shape != stored.shape:
            self._stored = stored.clone()
        else:
            self._stored.copy_(stored)  # the memory that tied layers share
        if assign:
            like = self._parameters.get("bias") if placeholder is None else placeholder
            self._set_dtype(self.dtype if like is None else like.dtype)


# what torch.nn.utils.prune and its like compute anew, from other parameters, before each call
_COMPUTED = {"weight", "bias", "in_proj_weight", "in_proj_bias"}


def why_changed(layer: nn.Module, plain: type[nn.Module]) -> str:
    """Why no int8 layer computes what this one does, for what a `plain` one does not have; "" if it can."""
    if type(layer).forward is not plain.forward or "forward" in vars(layer):
        return f"float: {type(layer).__name__} has a forward of its own, which int8 would not run"
    if _COMPUTED & vars(layer).keys():
        return "float: torch.nn.utils.prune or a hook computes its weight in every call: make it permanent"
    return ""


# ---- what layers do with their inputs and results ----


def no_script(layer: nn.Module) -> nn.Module:
    """What torch.jit.script gets of a layer: it would stumble over the first type that it does not know."""
    raise RuntimeError(
        f"torch.jit.script: expected layers that it can compile, got octavo.nn.{type(layer).__name__}; "
        "torch.jit.trace, torch.export and torch.compile take int8 layers"
    )


def in_dtype_of(x: Tensor, y: Tensor) -> Tensor:
    """The result of an operation, which is float32 for float64, in x's dtype, as a float layer has it."""
    return y.to(torch.float64) if x.dtype == torch.float64 else y


def leaf(layer: nn.Module, x: Any, *args: Any, **kwargs: Any) -> Any:
    """What torch.fx.symbolic_trace gets of a layer: a call of it. None where nothing is traced so."""
    if not isinstance(x, Proxy):
        return None
    tracer: Any = x.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), (x, *args), kwargs)
