"""What layers with an int8 weight share; and what keeps a float layer from becoming one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self


class ScaledModule(nn.Module):
    """Keeps `weight_scale` in float32, whatever the model's dtype, and whatever a checkpoint has."""

    weight_scale: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        scale = self.weight_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight_scale.dtype != torch.float32:
            self.weight_scale = scale.to(self.weight_scale.device)
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.weight_scale = self.weight_scale.to(torch.float32)  # assign=True takes what the checkpoint has


class PackedModule(ScaledModule):
    """Holds, saves, loads and moves an int8 weight and its scales.

    The state dict has the logical values, `weight` and `weight_scale` beside `bias`; in memory there is one
    copy of the weight, `_stored`, in the form that the kernels of its device read. A subclass says of which
    shape the weight is, and how it is packed and unpacked.
    """

    kernel: str  # for octavo.explain
    bias: nn.Parameter | None
    _stored: Tensor

    @property
    def _shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def _packed(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _unpacked(self, stored: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """int8, of the float weight's shape; a new tensor where the weight is stored packed."""
        stored = self._stored
        return stored if stored.dim() == len(self._shape) else self._unpacked(stored)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        device = self._stored.device
        super()._apply(fn, recurse)
        if self._stored.device.type != device.type:
            self._stored = self._packed(self.weight)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

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
        key = prefix + "weight"
        rest = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if key not in state_dict:
            if strict:
                missing_keys.append(key)
            return
        weight, shape = state_dict[key], self._shape
        if weight.dtype != torch.int8 or tuple(weight.shape) != shape:
            error_msgs.append(f"{key}: expected int8 {shape}, got {weight.dtype} {tuple(weight.shape)}")
            return
        assign = local_metadata.get("assign_to_params_buffers", False)
        device = weight.device if assign else self._stored.device
        self._stored = self._packed(weight.detach().to(device, copy=device.type != "cpu"))  # packing copies


# what torch.nn.utils.prune and its like compute anew, from other parameters, before each call
_COMPUTED = {"weight", "bias", "in_proj_weight", "in_proj_bias"}


def why_changed(layer: nn.Module, plain: type[nn.Module]) -> str:
    """Why no int8 layer computes what this one does, for what a `plain` one does not have; "" if it can."""
    if type(layer).forward is not plain.forward or "forward" in vars(layer):
        return f"float: {type(layer).__name__} has a forward of its own, which int8 would not run"
    if _COMPUTED & vars(layer).keys():
        return "float: torch.nn.utils.prune or a hook computes its weight in every call: make it permanent"
    return ""
