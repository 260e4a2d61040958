"""What arrays on a device must compute: the reference, to the bit, whoever holds the arrays.

The checks take an adapter, which puts NumPy arrays on the device and gets results from there, and a
Hypothesis data object: the same checks serve CuPy, torch tensors on a GPU, and the emulator.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

import octavo
from octavo.ops.norm import NORM_RESULTS
from octavo.reference import numpy as reference
from strategies import (
    FLOATS,
    assert_close_ulp,
    assert_same,
    dtype_of,
    float_arrays,
    int8_arrays,
    mnk,
    scales,
    shapes,
)
from test_norm import norm_arguments, normalize
from test_prune import AMOUNTS, patterned
from test_quantize import quantize_arguments, scale_shape, static_parameters

EXACT, SMOOTH = (None, "relu"), ("gelu", "gelu_tanh", "silu")
OUT_DTYPES = ("float32", "float16", "bfloat16")


@dataclass
class Adapter:
    """Arrays of one kind on one device."""

    put: Any  # a NumPy array -> the same values with the same strides, where the kind can have them
    get: Any  # an array -> a NumPy array
    max_elements: int = 1 << 14
    dtypes: tuple[str, ...] = FLOATS

    def floats(self, shape=None, **more):
        shape = shapes(max_elements=self.max_elements) if shape is None else shape
        return float_arrays(shape, dtypes=self.dtypes, **more)

    def filled(self, shape, dtype):
        """An out of junk whose last rows are not contiguous."""
        pad = (*shape[:-1], shape[-1] + 3) if shape else shape
        return self.put(np.full(pad, 77, dtype_of(dtype)))[..., : shape[-1] if shape else None]

    def assert_same(self, actual, expected, label=""):
        if expected is None:
            assert actual is None, label
        else:
            assert_same(self.get(actual), np.asarray(expected), label)


def check_quantize(on: Adapter, data) -> None:
    x = data.draw(st.one_of(on.floats(), on.floats(())))
    args = data.draw(quantize_arguments(x.shape))
    given = {}
    if data.draw(st.booleans()):
        given = data.draw(static_parameters(scale_shape(x.shape, args), args["symmetric"]))
    expected = reference.quantize(x, **args, **given)
    there = {name: on.put(value) for name, value in given.items()}
    actual = octavo.quantize(on.put(x), **args, **there)
    assert isinstance(actual, octavo.Quantized)
    for name, got, want in zip(actual._fields, actual, expected, strict=True):
        on.assert_same(got, want, name)
    if x.ndim:
        out = on.filled(x.shape, "int8")
        result = octavo.quantize(on.put(x), **args, **there, out=out)
        assert result.data is out
        on.assert_same(out, expected[0], "out")


def check_dequantize(on: Adapter, data) -> None:
    x = data.draw(on.floats())
    args = data.draw(quantize_arguments(x.shape))
    _, scale, zero_point = reference.quantize(x, **args)
    q = data.draw(int8_arrays(x.shape))
    dtype = data.draw(st.sampled_from(on.dtypes))
    expected = reference.dequantize(q, scale, zero_point, dtype)
    parameters = [None if p is None else on.put(np.asarray(p)) for p in (scale, zero_point)]
    actual = octavo.dequantize(on.put(q), *parameters, dtype=dtype)
    on.assert_same(actual, expected)
    out = on.filled(x.shape, dtype)
    assert octavo.dequantize(on.put(q), *parameters, dtype=dtype, out=out) is out
    on.assert_same(out, expected, "out")


def check_nonfinite(on: Adapter, data) -> None:
    x = data.draw(on.floats())
    with np.errstate(all="ignore"):
        bad = np.flatnonzero(~np.isfinite(x.astype(np.float32)))
    if not bad.size:
        octavo.quantize(on.put(x), nonfinite="raise")
        return
    at = tuple(int(i) for i in np.unravel_index(bad[0], x.shape))
    with pytest.raises(ValueError, match=r"^x: ") as caught:
        octavo.quantize(on.put(x), nonfinite="raise")
    assert f"got {bad.size} that are not, the first at {at}".replace("(", "\\(") in str(caught.value).replace(
        "(", "\\("
    )


def check_norm(on: Adapter, data) -> None:
    x, args = data.draw(norm_arguments(on_device=True))
    expected = reference.norm_quantize(x, **args)
    there = {k: on.put(v) if isinstance(v, np.ndarray) else v for k, v in args.items()}
    actual = normalize(on.put(x), **there)
    for name, got, want in zip(NORM_RESULTS, actual, expected, strict=True):
        on.assert_same(got, want, name)


def check_int_mm(on: Adapter, data) -> None:
    m, n, k = data.draw(mnk())
    a = data.draw(int8_arrays((m, k), data.draw(st.sampled_from(["int8", "uint8"]))))
    b = data.draw(int8_arrays((k, n)))
    expected = reference.int_mm(a, b)
    there = on.put(a)
    on.assert_same(octavo.int_mm(there, on.put(b)), expected, "b")
    on.assert_same(octavo.int_mm(there, on.put(np.ascontiguousarray(b.T)).T), expected, "rows of b.T")
    out = on.filled((m, n), "int32")
    assert octavo.int_mm(there, octavo.pack_weight(on.put(b).T), out=out) is out
    on.assert_same(out, expected, "packed, out")


def draw_weight(on: Adapter, data, n, k):
    """(int8 [N, K], scale, the same as int8_linear takes it)."""
    weight, scale = data.draw(int8_arrays((n, k))), data.draw(scales(n))
    there = on.put(weight), on.put(scale)
    if data.draw(st.booleans()):
        return weight, scale, octavo.pack_weight(*there)
    return weight, scale, octavo.Quantized(*there)


def draw_bias(data, n):
    """Any float dtype, or None."""
    return data.draw(st.none() | float_arrays((n,), flavours=("normal", "special", "wide")))


def assert_linear(on: Adapter, actual, pre, activation, out_dtype, label=""):
    """pre: the exact float32 pre-activation."""
    result = reference._activate(pre, activation)
    if activation in EXACT:
        with np.errstate(all="ignore"):
            on.assert_same(actual, result.astype(dtype_of(out_dtype)), label)
    else:
        assert_close_ulp(on.get(actual), result, 4, label)


def check_int8_linear(on: Adapter, data) -> None:
    m, n, k = data.draw(mnk())
    x = data.draw(on.floats((m, k)))
    count = data.draw(st.sampled_from([1, 1, 2, 3]))
    drawn = [
        draw_weight(on, data, n if i == 0 else data.draw(st.sampled_from([1, 8, 33])), k)
        for i in range(count)
    ]
    biases = [draw_bias(data, len(scale)) for _, scale, _ in drawn]
    activations = [data.draw(st.sampled_from([*EXACT, *SMOOTH])) for _ in drawn]
    out_dtype, symmetric = data.draw(st.sampled_from(OUT_DTYPES)), data.draw(st.booleans())
    pres = [
        reference.int8_linear(x, weight, scale, bias, None, "float32", symmetric)
        for (weight, scale, _), bias in zip(drawn, biases, strict=True)
    ]
    there = [None if bias is None else on.put(bias) for bias in biases]
    outs = [on.filled(pre.shape, out_dtype) for pre in pres]
    if count == 1:
        args = (on.put(x), drawn[0][2], there[0])
        more = {"activation": activations[0], "out_dtype": out_dtype, "symmetric": symmetric}
        actuals = [octavo.int8_linear(*args, **more)]
        assert octavo.int8_linear(*args, **more, out=outs[0]) is outs[0]
    else:
        args = (on.put(x), [w for *_, w in drawn], there)
        more = {"activation": activations, "out_dtype": out_dtype, "symmetric": symmetric}
        actuals = octavo.int8_linear(*args, **more)
        assert all(a is b for a, b in zip(octavo.int8_linear(*args, **more, out=outs), outs, strict=True))
    for actual, out, pre, activation in zip(actuals, outs, pres, activations, strict=True):
        assert_linear(on, actual, pre, activation, out_dtype)
        assert_same(np.ascontiguousarray(on.get(out)), np.ascontiguousarray(on.get(actual)), "out")


def check_scaled_int_mm(on: Adapter, data) -> None:
    m, n, k = data.draw(mnk())
    dtype = data.draw(st.sampled_from(["int8", "uint8"]))
    a = data.draw(int8_arrays((m, k), dtype))
    a_scale = data.draw(scales(m))
    zero = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    limits = np.iinfo(dtype)
    zero_point = rng.integers(limits.min, limits.max + 1, m).astype(np.int32) if zero else None
    weight, scale, operand = draw_weight(on, data, n, k)
    bias = draw_bias(data, n)
    args = (on.put(a), on.put(a_scale), operand)
    there = None if zero_point is None else on.put(zero_point)
    sums = reference.scaled_int_mm(a, a_scale, weight, scale, None, zero_point, None, "int32")
    on.assert_same(octavo.scaled_int_mm(*args, a_zero_point=there, out_dtype="int32"), sums, "int32")
    activation = data.draw(st.sampled_from([*EXACT, *SMOOTH]))
    out_dtype = data.draw(st.sampled_from(OUT_DTYPES))
    pre = reference.scaled_int_mm(a, a_scale, weight, scale, bias, zero_point, None, "float32")
    more = {"a_zero_point": there, "activation": activation, "out_dtype": out_dtype}
    bias_there = None if bias is None else on.put(bias)
    assert_linear(on, octavo.scaled_int_mm(*args, bias_there, **more), pre, activation, out_dtype)
    one = reference.scaled_int_mm(a, np.full(m, 0.5, np.float32), weight, scale, None, None, None, "float32")
    on.assert_same(octavo.scaled_int_mm(args[0], 0.5, operand), one, "a_scale is a number")


def check_pack_weight(on: Adapter, data) -> None:
    _, n, k = data.draw(mnk())
    weight, scale = data.draw(int8_arrays((n, k))), data.draw(scales(n))
    packed = octavo.pack_weight(on.put(weight), on.put(scale))
    assert (packed.shape, packed.layout) == ((n, k), "dense")
    on.assert_same(packed.buffer, packed_rows(weight), "buffer")
    again = octavo.PackedWeight.from_buffer(packed.buffer, packed.scale)
    for each in (packed, again, pickle.loads(pickle.dumps(packed))):
        back, back_scale = each.unpack()
        on.assert_same(back, np.ascontiguousarray(weight))
        on.assert_same(back_scale, scale)
    assert abs((1 - packed.density) * n * k - (n * k - np.count_nonzero(weight))) < 1e-6 * max(1, n * k)


def packed_rows(weight: np.ndarray) -> np.ndarray:
    """The buffer that CUDA kernels read (csrc/layouts.h)."""
    n, k = weight.shape
    rows = np.zeros((n + -n % 16, k + -k % 64), np.int8)
    rows[:n, :k] = weight
    header = np.array([0x5654434F, 1, 0, 1, n, 0, k, 0, *[0] * 8], np.uint32)
    colsum = rows.sum(1, dtype=np.int32)
    gap = np.zeros(-(64 + 4 * len(rows)) % 256 + 256, np.uint8)
    parts = (header.view(np.uint8), colsum.view(np.uint8), gap, rows.reshape(-1).view(np.uint8))
    return np.concatenate(parts)


def check_prune(on: Adapter, data) -> None:
    (w,), args = data.draw(patterned())
    (mask,) = reference.prune_masks([w], **args)
    pruned = reference.apply_mask(w, mask)
    on.assert_same(octavo.prune_mask(on.put(w), **args), mask, "prune_mask")
    on.assert_same(octavo.prune(on.put(w), **args), pruned, "prune")
    changed = on.put(np.array(w, order="C"))
    on.assert_same(octavo.prune_(changed, **args), mask, "mask of prune_")
    on.assert_same(changed, pruned, "prune_")
    if w.ndim:
        out = on.filled(w.shape, "bool")
        assert octavo.prune_mask(on.put(w), **args, out=out) is out
        on.assert_same(out, mask, "out")


def check_prune_lists(on: Adapter, data) -> None:
    ws, args = data.draw(patterned(max_tensors=3))
    masks = reference.prune_masks(ws, **args)
    there = [on.put(w) for w in ws]
    found = octavo.prune_mask(there, **args), octavo.prune(there, **args)
    for w, mask, got, pruned in zip(ws, masks, *found, strict=True):
        on.assert_same(got, mask, "prune_mask")
        on.assert_same(pruned, reference.apply_mask(w, mask), "prune")
    changed = [on.put(np.array(w, order="C")) for w in ws]
    for got, mask in zip(octavo.prune_(changed, **args), masks, strict=True):
        on.assert_same(got, mask, "prune_")
    sparsity = data.draw(AMOUNTS)
    actual = octavo.magnitude_threshold(there, sparsity)
    assert isinstance(actual, float)
    assert_same(actual, reference.magnitude_threshold(ws, sparsity), "magnitude_threshold")


def check_prune_quantize(on: Adapter, data) -> None:
    (w,), args = data.draw(patterned())
    granularity = data.draw(st.sampled_from(["row", "row", "tensor"]))
    (mask,) = reference.prune_masks([w], **args)
    expected = reference.quantize(reference.apply_mask(w, mask), granularity)
    found, got = octavo.prune_quantize(on.put(w), granularity=granularity, **args)
    on.assert_same(got, mask, "mask")
    on.assert_same(found.data, expected[0], "data")
    on.assert_same(found.scale, expected[1], "scale")


def check_masks(on: Adapter, data) -> None:
    shape = data.draw(shapes(max_elements=on.max_elements))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    mask = rng.random(shape) < 0.5
    bits = octavo.pack_mask(on.put(mask))
    on.assert_same(bits, np.packbits(mask, axis=-1, bitorder="little"))
    on.assert_same(octavo.unpack_mask(bits, shape), mask)
    on.assert_same(octavo.pack_mask(on.put(np.asfortranarray(mask))), on.get(bits))


CHECKS = [
    check_quantize,
    check_dequantize,
    check_nonfinite,
    check_norm,
    check_int_mm,
    check_int8_linear,
    check_scaled_int_mm,
    check_pack_weight,
    check_prune,
    check_prune_lists,
    check_prune_quantize,
    check_masks,
]
