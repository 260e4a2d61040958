"""torch.library.opcheck on every op of torch.ops.octavo, over dtypes, shapes and strides.

A new op needs an entry in OPS: a function that makes the arguments of one call from what a Sample gives.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import random
from collections.abc import Iterator
from typing import Any

import pytest

import octavo

torch = pytest.importorskip("torch")

Call = tuple[tuple[Any, ...], dict[str, Any]]

# (dtype, shape, layout) of a sample's tensors: every dtype, rank and kind of strides; empty ones; size 1
VIEWS = (
    ("float32", (4, 16), "contiguous"),
    ("float16", (2, 3, 16), "transposed"),
    ("bfloat16", (6, 48), "sliced"),
    ("float64", (4, 16), "expanded"),
    ("float32", (2, 16, 4, 16), "channels_last"),
    ("bfloat16", (0, 16), "contiguous"),
    ("float16", (4, 0), "transposed"),
    ("float64", (16,), "offset"),
    ("float32", (1, 1, 16), "transposed"),
    ("float32", (), "contiguous"),
)
WANTING = (0, 2, 3, 6)  # the views whose floats want a gradient


class Sample:
    """What one call is made from: tensors like those of a view, and choices, the same in every run."""

    def __init__(self, name: str, index: int) -> None:
        self.dtype, self.shape, self.layout = VIEWS[index]
        self.wants_grad = index in WANTING
        self.choices = random.Random(f"{name} {index}")
        self.numbers = torch.Generator().manual_seed(index)

    def floats(self, *shape: int, dtype: str = "", grad: bool = True) -> Any:
        """Floats of the view's shape, dtype and strides, or contiguous ones of another shape."""
        x = torch.randn(shape or self.shape, generator=self.numbers).to(getattr(torch, dtype or self.dtype))
        return (x if shape else self._laid_out(x)).requires_grad_(grad and self.wants_grad)

    def ints(self, *shape: int, dtype: Any = torch.int8) -> Any:
        limits = torch.iinfo(dtype)
        x = torch.randint(
            limits.min, limits.max + 1, shape or self.shape, dtype=dtype, generator=self.numbers
        )
        return x if shape else self._laid_out(x)

    def scales(self, *shape: int, grad: bool = True) -> Any:
        return (torch.rand(shape, generator=self.numbers) + 0.01).requires_grad_(grad and self.wants_grad)

    def mask(self) -> Any:
        return self._laid_out(torch.rand(self.shape, generator=self.numbers) < 0.5)

    def one_of(self, *values: Any) -> Any:
        return self.choices.choice(values)

    def rows(self) -> tuple[int, ...]:
        return self.shape[:-1]

    def cols(self) -> int:
        return self.shape[-1]

    def weight(self, n: int = 5) -> Any:
        """A weight [n, cols], plain, or packed in any layout."""
        weight = self.ints(n, self.cols())
        weight[torch.rand(weight.shape, generator=self.numbers) < 0.6] = 0
        layout = self.one_of(None, "dense", "bitmask", "block")
        return weight if layout is None else torch.ops.octavo.pack_weight(weight, layout)

    def _laid_out(self, x: Any) -> Any:
        if self.layout == "transposed":
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        if self.layout == "sliced":
            return x.repeat_interleave(2, dim=-1)[..., ::2]
        if self.layout == "offset":
            return torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape)
        if self.layout == "expanded":
            return x[:1].expand(x.shape)
        if self.layout == "channels_last":
            return x.contiguous(memory_format=torch.channels_last)
        return x


class UnfitError(Exception):
    """The op takes no tensors like those of this view."""


def with_rows(sample: Sample) -> None:
    if not sample.shape:
        raise UnfitError


def matrix(sample: Sample) -> None:
    if len(sample.shape) != 2:
        raise UnfitError


def groups(sample: Sample) -> dict[str, Any]:
    granularity = sample.one_of("row", "tensor", "group") if sample.shape and sample.cols() else "tensor"
    return {"granularity": granularity, "group_size": 8 if granularity == "group" else None}


def selection(sample: Sample) -> dict[str, Any]:
    patterns = ("row", "column", "2:4", "block1x8") if sample.shape else ()
    pattern = sample.one_of("unstructured", *patterns)
    if pattern == "2:4":
        return {"pattern": pattern}
    return {sample.one_of("threshold", "ratio", "sparsity"): 0.5, "pattern": pattern}


# ---- the ops ----


def quantize(s: Sample) -> Call:
    keywords = {**groups(s), "symmetric": s.one_of(True, False)}
    if s.one_of(True, False):
        keywords |= {"rounding": "stochastic", "seed": -5}
    elif keywords["granularity"] == "tensor":
        keywords |= {"symmetric": True, "scale": s.scales(grad=False)}
    return (s.floats(),), keywords


def dequantize(s: Sample) -> Call:
    shape = s.one_of((), s.rows(), (*s.rows(), 2)) if s.shape and s.cols() else ()
    zero_point = torch.zeros(shape, dtype=torch.int32) if s.one_of(True, False) else None
    return (s.ints(), s.scales(*shape), zero_point), {"dtype": getattr(torch, s.dtype)}


def fake_quantize(s: Sample) -> Call:
    return (s.floats(), *groups(s).values(), s.one_of(True, False)), {}


def norm_quantize(s: Sample) -> Call:
    with_rows(s)
    # without the sum's gradient, which test_norm tests: opcheck adds outputs up in place, in the first one's
    # dtype, and stumbles over an integer before floats with a gradient
    residual = s.floats(grad=False) if s.one_of(True, False) else None
    x, weight = s.floats(grad=residual is None), s.floats(s.cols(), grad=False)
    more = {"symmetric": s.one_of(True, False), "normed": s.one_of(True, False)}
    return (x, weight, None, residual, 1e-5, s.one_of(True, False)), more


def int_mm(s: Sample) -> Call:
    matrix(s)
    return (s.ints(dtype=s.one_of(torch.int8, torch.uint8)), s.ints(7, s.cols()).t()), {}


def pack_weight(s: Sample) -> Call:
    matrix(s)
    return (s.ints(), s.one_of("dense", "bitmask", "block")), {}


def unpack_weight(s: Sample) -> Call:
    matrix(s)
    packed = torch.ops.octavo.pack_weight(s.ints(), s.one_of("dense", "bitmask", "block"))
    return (packed, *s.shape), {}


def unpack_conv_weight(s: Sample) -> Call:
    weight, groups = s.ints(8, s.one_of(1, 3), 3, 2), s.one_of(1, 2, 8)
    packed = octavo.pack_conv_weight(weight, torch.ones(8, dtype=torch.float32), groups=groups)
    return (packed.buffer, weight.shape, groups), {}


def int8_linear(s: Sample) -> Call:
    with_rows(s)
    bias = s.floats(5) if s.one_of(True, False) else None
    activation = s.one_of(None, "relu", "gelu", "gelu_tanh", "silu")
    out_dtype = s.one_of(None, torch.float32, torch.float16, torch.bfloat16)
    more = {"activation": activation, "out_dtype": out_dtype, "symmetric": s.one_of(True, False)}
    return (s.floats(), s.weight(), s.scales(5, 1), bias), more


def int8_linears(s: Sample) -> Call:
    with_rows(s)
    weights, scales = [s.weight(), s.weight(3)], [s.scales(5, 1), s.scales(3)]
    biases = [s.floats(5), torch.empty(0)]
    activations = [s.one_of("", "gelu"), s.one_of("", "relu", "silu")]
    return (s.floats(), weights, scales, biases, activations), {"symmetric": s.one_of(True, False)}


def scaled_int_mm(s: Sample) -> Call:
    with_rows(s)
    a = s.ints(dtype=s.one_of(torch.int8, torch.uint8))
    zero_point = torch.ones(s.rows(), dtype=torch.int32) if s.one_of(True, False) else None
    out_dtype, activation = s.one_of(None, torch.int32, torch.float16), s.one_of(None, "gelu")
    bias = s.floats(5)
    if out_dtype is torch.int32:
        bias = activation = None
    arguments = (a, s.scales(*s.rows()), s.weight(), s.scales(5), bias, zero_point)
    return arguments, {"activation": activation, "out_dtype": out_dtype}


def weight_only_linear(s: Sample) -> Call:
    with_rows(s)
    groups = s.one_of(1, 2) if s.cols() % 8 == 0 and s.cols() else 1
    bias = s.floats(5) if s.one_of(True, False) else None
    more = {"activation": s.one_of(None, "gelu"), "out_dtype": s.one_of(None, torch.float32)}
    return (s.floats(), s.weight(), s.scales(5, groups), bias), more


def fake_quantized_linear(s: Sample) -> Call:
    with_rows(s)
    bias = s.floats(5) if s.one_of(True, False) else None
    return (s.floats(), s.floats(5, s.cols()), bias), {"symmetric": s.one_of(True, False)}


def images(s: Sample) -> Any:
    x = s.floats(2, 4, 6, 5)
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_(x.requires_grad)
    return last if s.one_of(True, False) else x


def int8_conv2d(s: Sample) -> Call:
    groups = s.one_of(1, 2, 4)
    weight = s.ints(8, 4 // groups, 3, 2)
    bias, padding = s.floats(8) if s.one_of(True, False) else None, (1, 0, 2, 1)
    window = (s.one_of((1, 1), (2, 1)), padding, s.one_of((1, 1), (2, 1)), groups)
    more = {"activation": s.one_of(None, "relu", "gelu"), "out_dtype": s.one_of(None, torch.float32)}
    if s.one_of(True, False):
        scale = s.scales(8, grad=False)
        weight = octavo.pack_conv_weight(weight, scale, groups=groups).buffer
        more["kernel_size"] = (3, 2)
    return (images(s), weight, s.scales(8), bias, *window), more


def fake_quantized_conv2d(s: Sample) -> Call:
    groups = s.one_of(1, 2, 4)
    bias = s.floats(8) if s.one_of(True, False) else None
    return (images(s), s.floats(8, 4 // groups, 3, 2), bias, (2, 1), (1, 0), (1, 2), groups), {}


def indices(s: Sample, *shape: int) -> Any:
    return (s.ints(*shape) % 7).to(s.one_of(torch.int32, torch.int64))


def int8_embedding(s: Sample) -> Call:
    table = s.ints(7, 12)
    return (indices(s), table, s.scales(7, 1)), {"out_dtype": getattr(torch, s.dtype)}


def int8_embedding_bag(s: Sample) -> Call:
    mode = s.one_of("sum", "mean", "max")
    where = indices(s, 3, 4)
    weights = s.scales(3, 4) if mode == "sum" else None
    arguments = (where, s.ints(7, 12), s.scales(7), None, mode, weights, False, s.one_of(None, 2))
    return arguments, {"out_dtype": getattr(torch, s.dtype)}


def prune_mask(s: Sample) -> Call:
    return (s.floats(),), selection(s)


def prune_masks(s: Sample) -> Call:
    return ([s.floats(), s.floats(3, 8)],), selection(s)


def prune_(s: Sample) -> Call:
    if s.layout == "expanded":  # cannot be written to
        raise UnfitError
    return (s.floats(grad=False),), selection(s)


def prune_quantize(s: Sample) -> Call:
    return (s.floats(),), {**groups(s), **selection(s)}


def magnitude_threshold(s: Sample) -> Call:
    return ([s.floats(), s.floats(3)], s.one_of(0.0, 0.3, 1.0)), {}


def pack_mask(s: Sample) -> Call:
    with_rows(s)
    return (s.mask(),), {}


def unpack_mask(s: Sample) -> Call:
    with_rows(s)
    shape = (*s.rows(), max(0, 8 * s.cols() - 3))
    return (s.ints(dtype=torch.uint8), shape), {}


OPS = {
    "dequantize": dequantize,
    "fake_quantize": fake_quantize,
    "fake_quantized_conv2d": fake_quantized_conv2d,
    "fake_quantized_linear": fake_quantized_linear,
    "int8_conv2d": int8_conv2d,
    "int8_embedding": int8_embedding,
    "int8_embedding_bag": int8_embedding_bag,
    "int8_linear": int8_linear,
    "int8_linears": int8_linears,
    "int_mm": int_mm,
    "magnitude_threshold": magnitude_threshold,
    "norm_quantize": norm_quantize,
    "pack_mask": pack_mask,
    "pack_weight": pack_weight,
    "prune": prune_mask,
    "prune_": prune_,
    "prune_mask": prune_mask,
    "prune_masks": prune_masks,
    "prune_quantize": prune_quantize,
    "quantize": quantize,
    "scaled_int_mm": scaled_int_mm,
    "unpack_conv_weight": unpack_conv_weight,
    "unpack_mask": unpack_mask,
    "unpack_weight": unpack_weight,
    "weight_only_linear": weight_only_linear,
}
# functions of octavo that are an op under another name
RENAMED = {"layer_norm_quantize": "norm_quantize", "rms_norm_quantize": "norm_quantize"}
NOT_OPS = {
    "convert_qat_", "explain", "export_compressed_tensors", "force_isa", "fuse_", "get_isa",
    "get_num_threads", "load", "load_compressed_tensors", "pack_conv_weight", "prepare_qat_", "prune_model_",
    "quantize_", "save", "set_num_threads", "show_config", "use_backend",
}  # fmt: skip


def registered() -> set[str]:
    for module in pkgutil.walk_packages(octavo.__path__, "octavo."):
        if not module.name.endswith("._cuda"):
            importlib.import_module(module.name)
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("octavo::") for name in names if name.startswith("octavo::")}


REGISTERED = registered()


def test_every_op_has_samples():
    assert set(OPS) == REGISTERED


def test_every_function_is_an_op():
    functions = {
        name
        for name in octavo.__all__
        if callable(each := getattr(octavo, name)) and not isinstance(each, type)
    }
    assert {RENAMED.get(name, name) for name in functions - NOT_OPS} <= REGISTERED


def calls(name: str) -> Iterator[Call]:
    """One call for every view that the op takes."""
    for index in range(len(VIEWS)):
        with contextlib.suppress(UnfitError):
            yield OPS[name](Sample(name, index))


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name):
    results = [
        torch.library.opcheck(getattr(torch.ops.octavo, name), *call, raise_exception=False)
        for call in calls(name)
    ]
    assert len(results) >= 4
    for result in results:
        assert set(result.values()) == {"SUCCESS"}, result


@pytest.mark.parametrize("name", OPS)
def test_fakes_have_the_strides_of_the_reference_too(name):
    with octavo.use_backend("reference"):
        for arguments, keywords in calls(name):
            op = getattr(torch.ops.octavo, name)
            torch.library.opcheck(op, arguments, keywords, test_utils=("test_schema", "test_faketensor"))
