"""quantize and dequantize: every ISA and thread count against the reference, bit for bit."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import guard
import octavo
from octavo.reference import numpy as reference
from strategies import (
    FLOATS,
    SPECIAL,
    assert_same,
    cases,
    cast,
    dtype_of,
    float_arrays,
    flushing_denormals,
    int8_arrays,
    isas,
    needs_torch,
    on_every_isa,
    poisoned,
    running,
    scales,
    shapes,
    small_sizes,
    to_torch,
    untouched,
)

seeds = st.one_of(st.sampled_from([0, -1, 2**63, 2**64 - 1]), st.integers(-(2**63), 2**64 - 1))
# Extremes that a given scale may have: its reciprocal is finite, and subnormal for the last ones.
GIVEN_SCALES = (1.0, 0.1, 1e-3, 3e-39, 1.2e-38, 1e30, 2e38, 3.4e38)


@st.composite
def quantize_arguments(draw, shape):
    """The keyword arguments of reference.quantize."""
    k = shape[-1] if shape else 1
    granularity = draw(st.sampled_from(["row", "tensor", "group"])) if shape else "tensor"
    group_size = None
    if granularity == "group":
        group_size = draw(st.sampled_from([g for g in range(1, k + 1) if k % g == 0] or [1, 4]))
    args = {"granularity": granularity, "group_size": group_size, "symmetric": draw(st.booleans())}
    if draw(st.booleans()):
        args |= {"rounding": "stochastic", "seed": draw(seeds)}
    return args


def scale_shape(shape, args) -> tuple[int, ...]:
    if args["granularity"] == "tensor":
        return ()
    return shape[:-1] if args["granularity"] == "row" else (*shape[:-1], shape[-1] // args["group_size"])


@st.composite
def static_parameters(draw, shape, symmetric):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = rng.choice(np.array(GIVEN_SCALES, np.float32), shape)
    if symmetric:
        return {"scale": np.asarray(scale)}
    zero_point = rng.choice(np.array([-128, -127, -1, 0, 5, 127], np.int32), shape)
    return {"scale": np.asarray(scale), "zero_point": np.asarray(zero_point)}


def assert_quantized(actual, expected, label):
    assert isinstance(actual, octavo.Quantized)
    for name, got, want in zip(actual._fields, actual, expected, strict=True):
        assert_same(got, want, f"{name}, {label}")


@cases(1000)
@given(st.data())
def test_quantize(data):
    x = data.draw(float_arrays(st.one_of(shapes(), st.just(()))))
    args = data.draw(quantize_arguments(x.shape))
    expected = reference.quantize(x, **args)
    for label, actual in on_every_isa(lambda: octavo.quantize(x, **args)):
        assert_quantized(actual, expected, label)


@cases(400)
@given(st.data())
def test_quantize_with_a_given_scale(data):
    x = data.draw(float_arrays(flavours=("normal", "special", "huge", "tiny", "wide", "halves")))
    args = data.draw(quantize_arguments(x.shape))
    args |= data.draw(static_parameters(scale_shape(x.shape, args), args["symmetric"]))
    expected = reference.quantize(x, **args)
    for label, actual in on_every_isa(lambda: octavo.quantize(x, **args)):
        assert_quantized(actual, expected, label)


@cases(150)
@given(st.data())
def test_quantize_into_out(data):
    x = data.draw(float_arrays())
    args = data.draw(quantize_arguments(x.shape))
    expected = reference.quantize(x, **args)
    pad = data.draw(st.sampled_from([0, 1, 5]))
    for label, (outs, returned) in on_every_isa(
        lambda: quantize_into(x, args, expected, pad), threads=(1, 2)
    ):
        assert_quantized(returned, expected, label)
        for out, got in zip(outs, returned, strict=False):
            assert got is out, label
        assert untouched(outs[0], pad), label


@cases(20)
@given(st.data())
def test_out_may_be_the_data_alone(data):
    x = data.draw(float_arrays((data.draw(small_sizes), 17)))
    expected = octavo.quantize(x)
    out = poisoned(x.shape, np.int8, 0)
    returned = octavo.quantize(x, out=out)
    assert returned.data is out
    assert_quantized(returned, expected, "out=data")


def quantize_into(x, args, expected, pad):
    outs = [poisoned(x.shape, np.int8, pad)]
    outs += [poisoned(part.shape, part.dtype) for part in expected[1:] if part is not None]
    return outs, octavo.quantize(x, **args, out=tuple(outs))


@cases(60)
@given(x=float_arrays(st.tuples(st.integers(1, 5), small_sizes)), seed=seeds, symmetric=st.booleans())
def test_a_row_does_not_depend_on_the_others(x, seed, symmetric):
    for label, whole in on_every_isa(lambda: octavo.quantize(x, symmetric=symmetric), threads=(1,)):
        for i in range(x.shape[0]):
            alone = octavo.quantize(x[i : i + 1], symmetric=symmetric)
            for got, want in zip(alone, whole, strict=True):
                assert got is want or np.array_equal(got[0], want[i]), label


def test_stochastic_rounding_is_reproducible():
    x = np.random.default_rng(0).standard_normal((64, 3000)).astype(np.float32)  # enough for several threads
    args = {"rounding": "stochastic", "seed": 1234}
    expected = reference.quantize(x, **args)
    for label, actual in on_every_isa(lambda: octavo.quantize(x, **args)):
        assert_quantized(actual, expected, label)
    other = octavo.quantize(x, rounding="stochastic", seed=1235).data
    assert (other != expected[0]).any()
    view = np.asfortranarray(x)  # the index is that of the element, not of its memory
    assert_quantized(octavo.quantize(view, **args), expected, "transposed")


# Seeds whose first word gives u = 0, and whose third word gives the largest u there is.
@pytest.mark.parametrize("seed", [12_121_362, 12_118_387])
@pytest.mark.parametrize("symmetric", [True, False])
def test_stochastic_rounding_at_the_ends_of_u(seed, symmetric):
    u = reference._uniform(seed, 4)
    assert u[0] == 0 or u[2] == 1 - 2.0**-24
    rows = [[-1e-40] * 4, [-1e-45, 1e-45, 0.0, -0.0], [-3e38, 3e38, -1.0, 1.0], [-1.0, 1.0, 0.5, -0.5]]
    for row in rows:
        x = np.array([row], np.float32)
        args = {"symmetric": symmetric, "rounding": "stochastic", "seed": seed}
        for label, actual in on_every_isa(lambda x=x, args=args: octavo.quantize(x, **args), threads=(1,)):
            assert_quantized(actual, reference.quantize(x, **args), f"{row}, {label}")


@cases(80)
@given(st.data())
def test_nonfinite_raise_tells_count_and_place(data):
    x = data.draw(float_arrays(flavours=("normal", "special", "one special", "wide")))
    with np.errstate(all="ignore"):
        bad = np.argwhere(~np.isfinite(x.astype(np.float32)))
    for isa in isas():
        with running(isa, 2):
            if len(bad) == 0:
                octavo.quantize(x, nonfinite="raise")
            else:
                with pytest.raises(ValueError, match=r"^x: expected finite.* got ") as error:
                    octavo.quantize(x, nonfinite="raise")
                place = tuple(int(i) for i in bad[0])
                assert re.search(rf"\b{len(bad)}\b", str(error.value)), error.value
                assert str(place) in str(error.value)


def test_nonfinite_raise_finds_the_first_in_a_large_array():
    x = np.ones((300, 1000), np.float32)
    x[7, 900] = x[250, 3] = x[299, 999] = np.inf
    for isa in isas():
        for threads in (1, 2, 3):
            with running(isa, threads), pytest.raises(ValueError, match=r"got 3 .*\(7, 900\)"):
                octavo.quantize(x, nonfinite="raise")


# ---- dequantize ----


@st.composite
def dequantize_arguments(draw):
    shape = draw(shapes())
    data = draw(int8_arrays(shape))
    groups = draw(st.sampled_from([g for g in range(1, shape[-1] + 1) if shape[-1] % g == 0] or [0]))
    parameters = draw(st.sampled_from([(), shape[:-1], (*shape[:-1], groups)]))
    n = int(np.prod(parameters))
    scale = draw(scales(n)).reshape(parameters)
    if draw(st.booleans()):
        scale = cast(np.random.default_rng(n).choice(SPECIAL, parameters), "float32").reshape(parameters)
    zero_point = None
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        zero_point = rng.integers(-128, 128, parameters).astype(np.int32).reshape(parameters)
    return data, scale, zero_point, draw(st.sampled_from(FLOATS))


@cases(600)
@given(dequantize_arguments(), st.sampled_from([0, 0, 3]))
def test_dequantize(arguments, pad):
    data, scale, zero_point, dtype = arguments
    expected = reference.dequantize(data, scale, zero_point, dtype)
    for label, actual in on_every_isa(lambda: octavo.dequantize(data, scale, zero_point, dtype=dtype)):
        assert_same(actual, expected, label)
    out = poisoned(data.shape, dtype_of(dtype), pad)
    for label, actual in on_every_isa(
        lambda: octavo.dequantize(data, scale, zero_point, dtype=dtype, out=out)
    ):
        assert actual is out, label
        assert_same(actual, expected, label)
        assert untouched(out, pad), label
        out.fill(7)


@pytest.mark.parametrize("dtype", FLOATS)
def test_dequantize_rounds_every_kind_of_number(dtype):
    q = np.arange(-128, 128, dtype=np.int8)
    rng = np.random.default_rng(1)
    scale = (
        rng.integers(0, 2**31, 500, dtype=np.int64).astype(np.uint32).view(np.float32)
    )  # any bits, NaN too
    data = np.broadcast_to(q, (500, 256))
    expected = reference.dequantize(data, scale, None, dtype)
    for label, actual in on_every_isa(lambda: octavo.dequantize(data, scale, dtype=dtype), threads=(1, 2)):
        assert_same(actual, expected, label)


# ---- torch ----


@needs_torch
@cases(150)
@given(st.data())
def test_torch_tensors_give_the_same_bits(data):
    x = data.draw(float_arrays())
    args = data.draw(quantize_arguments(x.shape))
    static = {}
    if data.draw(st.booleans()):
        static = data.draw(static_parameters(scale_shape(x.shape, args), args["symmetric"]))
    expected = reference.quantize(x, **args, **static)
    t, static = to_torch(x), {k: to_torch(v) for k, v in static.items()}
    for label, actual in on_every_isa(lambda: octavo.quantize(t, **args, **static), threads=(1, 3)):
        assert_quantized(actual, expected, label)
        back = octavo.dequantize(*actual, dtype=t.dtype)
        assert back.dtype == t.dtype
        name = str(t.dtype).removeprefix("torch.")
        assert_same(back, reference.dequantize(*expected, name), label)


@needs_torch
@cases(150)
@given(st.data())
def test_the_callers_flush_to_zero_changes_nothing(data):
    x = data.draw(float_arrays(flavours=("tiny", "wide", "special", "normal", "huge")))
    args = data.draw(quantize_arguments(x.shape))
    if data.draw(st.booleans()):
        args |= data.draw(static_parameters(scale_shape(x.shape, args), args["symmetric"]))
    expected = reference.quantize(x, **args)
    back = [reference.dequantize(*expected, dtype) for dtype in FLOATS]
    for isa in isas():
        for threads in (1, 2):
            with running(isa, threads), flushing_denormals():
                actual = octavo.quantize(x, **args)
                actual_back = [octavo.dequantize(*actual, dtype=dtype) for dtype in FLOATS]
            assert_quantized(actual, expected, isa)
            for got, want in zip(actual_back, back, strict=True):
                assert_same(got, want, isa)


# ---- memory ----


@pytest.mark.parametrize("side", guard.SIDES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_nothing_outside_the_arrays_is_touched(dtype, side):
    rng = np.random.default_rng(5)
    for cols in (*range(1, 36), 63, 64, 65, 127, 129, 513, 4097):
        x = cast(rng.standard_normal((3, cols)), dtype)
        guarded = [guard.copy(x, side), guard.copy(x, side, row_pad=2), guard.copy(x[:, ::-1], side)[:, ::-1]]
        for symmetric in (True, False):
            expected = reference.quantize(x, symmetric=symmetric)
            outs = [guard.empty(part.shape, part.dtype, side) for part in expected if part is not None]
            outs[0] = guard.empty(x.shape, np.int8, side, row_pad=cols % 3)
            inputs = [guard.copy(part, side) for part in expected if part is not None]
            back = guard.empty(x.shape, dtype_of(dtype), side, row_pad=cols % 3)
            for isa in isas():
                for source in guarded:
                    with running(isa):
                        actual = octavo.quantize(source, symmetric=symmetric, out=tuple(outs))
                        octavo.quantize(
                            source, symmetric=symmetric, rounding="stochastic", seed=1, out=tuple(outs[:])
                        )
                        octavo.quantize(source, symmetric=symmetric, nonfinite="raise", out=tuple(outs))
                    assert_quantized(actual, expected, isa)
                with running(isa):
                    octavo.dequantize(*inputs, dtype=dtype, out=back)
                assert_same(np.ascontiguousarray(back), reference.dequantize(*expected, dtype), isa)
