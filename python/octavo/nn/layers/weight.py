"""Int8Weight: the int8 weight of a layer as the float weight that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

if TYPE_CHECKING:
    from typing_extensions import Self


class _Stand(Tensor):
    """A tensor without memory of its own. Where torch asks for values, it gets those of `_values()`; where
    the call has changed them, `_changed` hears of it; where the result is a view of them, it becomes one that
    cannot be changed, since such a change would reach nobody."""

    _is_param = True  # isinstance(weight, nn.Parameter), as for a float layer
    _device: torch.device

    def _values(self) -> Tensor:
        raise NotImplementedError

    def _changed(self, values: Tensor) -> None:
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = {} if kwargs is None else kwargs
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        own = _OWN.get(func)
        found = NotImplemented if own is None else own(func, *args, **kwargs)
        return _of_values(func, args, kwargs) if found is NotImplemented else found

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0]._device
        return _of_values(func, args, {} if kwargs is None else kwargs)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({self._values()!r})"


class Int8Weight(_Stand):
    """`weight` of an int8 layer: a float tensor to other code, with the shape, dtype and device of the float
    weight that was quantized, and no memory of its own.

    - F.linear(x, weight, bias), x @ weight.T and weight @ x compute what the layer does; F.embedding and
      weight[indices] look up in the int8 table; F.conv2d convolves in int8. All return x's dtype, lookups the
      weight's.
    - Everything else sees the dequantized values, weight_int8 * weight_scale, made anew in each call.
    - A change in place (add_, copy_, torch.nn.init, weight[i] = x, weight.data = x) quantizes anew: the layer
      has the nearest int8 weight to the new values, and new scales. RuntimeError where a change could not
      reach the layer (a view, such as weight[0].zero_(); a weight that two layers share), and for
      requires_grad: int8 has no gradient; octavo.prepare_qat_ makes layers that train.

    Made by layers only; `layer.weight = tensor` quantizes the tensor for the layer. Copies (clone, to another
    dtype or device, deepcopy, pickle) are plain float tensors and parameters.
    """

    _layer: Any
    _turned: bool
    _made_for: tuple[Any, torch.dtype, torch.device]

    @staticmethod
    def __new__(cls, layer: Any, turned: bool = False) -> Self:
        """layer: one that holds the int8 values and nothing that holds this weight: no ring that only the
        garbage collector could free."""
        shape = layer._shape[::-1] if turned else layer._shape
        self: Self = _without_memory(cls, shape, layer.dtype, layer._stored.device)
        self._layer, self._turned = layer, turned
        self._made_for = layer._buffers, layer.dtype, layer._stored.device
        return self

    def __init__(self, layer: Any, turned: bool = False) -> None:
        pass

    def _values(self) -> Tensor:
        values: Tensor = self._layer._float_weight(_dtype_of(self))
        return values.t() if self._turned else values

    def _changed(self, values: Tensor) -> None:
        layer = self._layer
        if layer._tied:
            raise RuntimeError(
                "octavo: expected no change in place of an int8 weight that another layer shares, got one; "
                "assign a new weight to each of the layers"
            )
        values = values.t() if self._turned else values
        layer._set_float(values.to(layer._stored.device, layer.dtype))


class _View(_Stand):
    """A view of a weight's values, such as weight[0]: to read."""

    _plain: Tensor

    @staticmethod
    def __new__(cls, plain: Tensor) -> Self:
        self: Self = _without_memory(cls, plain.shape, plain.dtype, plain.device)
        self._plain = plain
        return self

    def __init__(self, plain: Tensor) -> None:
        pass

    def _values(self) -> Tensor:
        return self._plain

    def _changed(self, values: Tensor) -> None:
        raise RuntimeError(
            "octavo: expected no change in place of a view of an int8 weight, which would be lost, got one; "
            "change the weight itself, or a clone()"
        )


def _without_memory(cls: Any, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Any:
    # of the device meta to C++: `other.data = weight`, where Python is not asked, is refused and not a crash
    with torch.inference_mode(False):
        stand = torch.Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=dtype, device=torch.device("meta"), dispatch_device=True
        )
    stand._device = device
    return stand


def _dtype_of(stand: Tensor) -> torch.dtype:
    with torch._C.DisableTorchFunctionSubclass():
        return stand.dtype


# ---- everything ----


def _of_values(func: Any, args: Any, kwargs: Any) -> Any:
    """func of the values; changes go to their owners."""
    found: dict[int, tuple[_Stand, Tensor, int]] = {}

    def values_of(stand: _Stand) -> Tensor:
        if id(stand) not in found:
            with torch.inference_mode(False), torch.no_grad():  # which counts versions
                values = stand._values()
            found[id(stand)] = stand, values, values._version
        return found[id(stand)][1]

    args, kwargs = tree_map_only(_Stand, values_of, (args, kwargs))
    result = func(*args, **kwargs)
    for stand, values, version in found.values():
        if values._version != version:
            with torch.no_grad():
                stand._changed(values)
    memories = {_memory(values): stand for stand, values, _ in found.values() if values.numel()}

    def returned(each: Any) -> Any:
        if isinstance(each, np.ndarray):
            if memories and each.size:
                each.flags.writeable = False
            return each
        if type(each) is not Tensor or not each.numel() or _memory(each) not in memories:
            return each
        same = next((stand for stand, values, _ in found.values() if values is each), None)
        return _View(each.detach()) if same is None else same

    return tree_map(returned, result)


def _memory(tensor: Tensor) -> tuple[Any, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


# ---- what has an answer of its own ----

_ATTRIBUTES = (
    "_version dtype grad grad_fn is_leaf is_mkldnn is_nested is_quantized is_sparse is_sparse_csr itemsize "
    "layout nbytes ndim output_nr requires_grad retains_grad shape"
)
_METHODS = (
    "__hash__ __len__ dim element_size is_complex is_contiguous is_floating_point is_inference "
    "is_signed ndimension nelement numel size storage_offset stride"
)
_METADATA = {getattr(Tensor, name).__get__ for name in _ATTRIBUTES.split()}
_METADATA |= {getattr(Tensor, name) for name in _METHODS.split()}


def _same(func: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
    """A call that may return its argument: asked of an empty tensor, it tells without the values."""
    if not isinstance(weight, _Stand):
        return NotImplemented
    probe = torch.empty(0, dtype=weight.dtype, device=weight.device)
    args, kwargs = tree_map_only(_Stand, lambda each: probe.new_empty(0, dtype=each.dtype), (args, kwargs))
    return weight if func(probe, *args, **kwargs) is probe else NotImplemented


_PERMUTE = (torch.permute, Tensor.permute)


def _itself(func: Any, weight: Any) -> Any:
    return weight


def _set(func: Any, weight: Any, value: Any) -> None:
    weight._changed(value)


def _deepcopy(func: Any, weight: Any, memo: dict[int, Any]) -> Any:
    if type(weight) is not Int8Weight:
        return NotImplemented
    return memo.setdefault(id(weight), nn.Parameter(weight._values(), requires_grad=False))


def _reduce(func: Any, weight: Any, protocol: int) -> Any:
    if type(weight) is not Int8Weight:
        return NotImplemented
    return nn.Parameter(weight._values(), False).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


def _no_memory(func: Any, *args: Any) -> Any:
    raise RuntimeError(
        "octavo: expected a tensor with memory of its own, got an int8 weight; clone() has some"
    )


def _wants_gradient(func: Any, weight: Any, requires_grad: bool = True) -> Any:
    if requires_grad and isinstance(weight, _Stand):
        raise RuntimeError(
            "octavo: expected requires_grad=False of an int8 weight, got True; octavo.prepare_qat_ makes "
            "layers that train, and clone() a float tensor"
        )
    return weight


def _turn(func: Any, weight: Any, *axes: Any, **named: Any) -> Any:
    if type(weight) is not Int8Weight or weight.dim() != 2:
        return NotImplemented
    given, _ = tree_flatten((axes, list(named.values())))
    if given:
        a, b = given
        if not (-2 <= a < 2 and -2 <= b < 2) or (func in _PERMUTE and (a - b) % 2 == 0):
            return NotImplemented  # torch's own error
        if a % 2 == b % 2 or (func in _PERMUTE and a % 2 == 0):
            return weight
    return Int8Weight(weight._layer, not weight._turned)


def _linear(func: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    if type(weight) is not Int8Weight or weight._turned or _is_stand(x, bias):
        return NotImplemented
    return weight._layer._linear(x, bias)


def _matmul(func: Any, a: Any, b: Any) -> Any:
    if type(b) is Int8Weight and b._turned and not _is_stand(a):  # x @ weight.T
        return b._layer._linear(a, None)
    if type(a) is Int8Weight and not a._turned and not _is_stand(b):  # weight @ x = (x.T @ weight.T).T
        if b.dim() == 1:
            return a._layer._linear(b, None)
        return _transposed(a._layer._linear(_transposed(b), None))
    return NotImplemented


def _transposed(x: Any) -> Any:
    return x if x is NotImplemented else x.transpose(-2, -1)


def _matmul_from_right(func: Any, a: Any, b: Any) -> Any:
    return _matmul(func, b, a)


def _embedding(
    func: Any,
    indices: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    if type(weight) is not Int8Weight or weight._turned or max_norm is not None or _is_stand(indices):
        return NotImplemented
    return weight._layer._lookup(indices)


def _item(func: Any, weight: Any, index: Any) -> Any:
    is_lookup = type(index) is Tensor and index.dtype in (torch.int64, torch.int32)
    if type(weight) is not Int8Weight or weight._turned or not is_lookup or (index < 0).any():
        return NotImplemented
    return weight._layer._lookup(index)


def _conv2d(
    func: Any,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if type(weight) is not Int8Weight or _is_stand(x, bias):
        return NotImplemented
    return weight._layer._convolution(x, bias, stride, padding, dilation, groups)


def _is_stand(*arguments: Any) -> bool:
    return any(isinstance(each, _Stand) for each in arguments)


_OWN: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    F.conv2d: _conv2d,
    torch.conv2d: _conv2d,
    Tensor.__getitem__: _item,
    Tensor.__matmul__: _matmul,
    Tensor.__rmatmul__: _matmul_from_right,
    Tensor.T.__get__: _turn,  # type: ignore[attr-defined]
    Tensor.mT.__get__: _turn,  # type: ignore[attr-defined]
    Tensor.device.__get__: lambda func, weight: weight._device,
    Tensor.is_cpu.__get__: lambda func, weight: weight._device.type == "cpu",  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: lambda func, weight: weight._device.type == "cuda",  # type: ignore[attr-defined]
    Tensor.is_meta.__get__: lambda func, weight: weight._device.type == "meta",  # type: ignore[attr-defined]
    Tensor.data.__get__: _itself,  # type: ignore[attr-defined]
    Tensor.data.__set__: _set,  # type: ignore[attr-defined]
    Tensor.detach: _itself,
    torch.detach: _itself,
    Tensor.__deepcopy__: _deepcopy,
    Tensor.__reduce_ex__: _reduce,
    Tensor.data_ptr: _no_memory,
    Tensor.untyped_storage: _no_memory,
    Tensor.requires_grad_: _wants_gradient,
    Tensor.requires_grad.__set__: _wants_gradient,  # type: ignore[attr-defined]
}
for _name in ("matmul", "mm"):
    _OWN[getattr(torch, _name)] = _OWN[getattr(Tensor, _name)] = _matmul
for _name in ("t", "transpose", "swapaxes", "swapdims", "permute", "adjoint"):
    _OWN[getattr(torch, _name)] = _OWN[getattr(Tensor, _name)] = _turn
for _name in ("to", "type", "type_as", "float", "half", "bfloat16", "double", "cpu", "cuda", "contiguous"):
    _OWN[getattr(Tensor, _name)] = _same
