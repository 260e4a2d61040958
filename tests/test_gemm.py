"""Packing and products: every ISA and thread count against the reference.

Bit for bit without activation and with relu; gelu and silu within 4 f32 ulp of the reference, and the same on
every ISA and thread count.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import guard
import octavo
from octavo.reference import numpy as reference
from strategies import (
    FLOATS,
    assert_close_ulp,
    assert_same,
    cases,
    cast,
    dtype_of,
    float_arrays,
    flushing_denormals,
    int8_arrays,
    isas,
    mnk,
    needs_torch,
    on_every_isa,
    poisoned,
    running,
    scales,
    to_torch,
    untouched,
)

EXACT = (None, "relu")
SMOOTH = ("gelu", "gelu_tanh", "silu")
OUT_DTYPES = ("float32", "float16", "bfloat16")
MAX_K, MAX_K_UNSIGNED = 131_071, 65_793


def lead(draw, m: int) -> tuple[int, ...]:
    """Leading dimensions that make m rows."""
    options = [(m,), (1, m), (m, 1)] + [(d, m // d) for d in (2, 3, 4) if m and m % d == 0]
    return draw(st.sampled_from(options + ([()] if m == 1 else [])))


def check_epilogue(actual, pre, activation, out_dtype, label):
    """pre: the exact f32 pre-activation."""
    if activation in EXACT:
        expected = reference._activate(pre, activation)
        with np.errstate(all="ignore"):
            assert_same(actual, expected.astype(dtype_of(out_dtype)), label)
    else:
        assert_close_ulp(actual, reference._activate(pre, activation), 4, label)


def check_everywhere(call, pre, activation, out_dtype):
    first = None
    for label, actual in on_every_isa(call):
        label = f"{activation}, {out_dtype}, {label}"
        if first is None:
            first = np.array(actual)
            check_epilogue(actual, pre, activation, out_dtype, label)
        assert_same(np.ascontiguousarray(actual), first, label)


# ---- packing ----


@cases(150)
@given(st.data())
def test_pack_weight_is_the_format_to_the_byte(data):
    _, n, k = data.draw(mnk())
    weight = data.draw(int8_arrays((n, k)))
    scale = data.draw(st.none() | st.just(n).flatmap(scales))
    layout = data.draw(st.sampled_from(["dense", "bitmask", "block"]))
    expected = reference.pack_weight(weight, layout)
    for label, packed in on_every_isa(lambda: octavo.pack_weight(weight, scale, layout=layout)):
        assert_same(packed.buffer, expected, label)
        assert packed.buffer.ctypes.data % 64 == 0
        assert (packed.shape, packed.layout) == ((n, k), layout)
        assert packed.nbytes >= packed.buffer.nbytes
        zeros = 1 - packed.density
        assert abs(zeros * n * k - (n * k - np.count_nonzero(weight))) < 1e-6 * max(1, n * k)
        back, back_scale = packed.unpack()
        assert_same(back, np.ascontiguousarray(weight), label)
        assert_same(back_scale, scale, label)
        again = pickle.loads(pickle.dumps(packed))
        assert_same(again.buffer, expected, label)
        assert_same(again.scale, scale, label)
        assert (again.shape, again.layout) == ((n, k), layout)


@cases(60)
@given(st.data())
def test_pack_weight_of_floats_quantizes_rows(data):
    _, n, k = data.draw(mnk())
    weight = data.draw(float_arrays((n, k)))
    expected, expected_scale, _ = reference.quantize(weight)
    for label, packed in on_every_isa(lambda: octavo.pack_weight(weight), threads=(1, 2)):
        unpacked, scale = packed.unpack()
        assert_same(unpacked, expected, label)
        assert_same(scale, expected_scale, label)


def test_a_packed_buffer_makes_a_weight_wherever_it_lies():
    weight = np.arange(-50, 50, dtype=np.int8).reshape(10, 10)
    buffer = octavo.pack_weight(weight).buffer
    for offset in (0, 1, 32, 64):
        memory = np.zeros(buffer.size + 64 + 64, np.uint8)
        start = -memory.ctypes.data % 64 + offset
        moved = memory[start : start + buffer.size]
        moved[:] = buffer
        moved.flags.writeable = False
        packed = octavo.PackedWeight.from_buffer(moved, np.ones(10, np.float32))
        assert_same(packed.unpack()[0], weight)
        a = np.ones((3, 10), np.int8)
        assert_same(octavo.int_mm(a, packed), reference.int_mm(a, weight.T))


# ---- integer products ----


@cases(800)
@given(st.data())
def test_int_mm(data):
    m, n, k = data.draw(mnk())
    a = data.draw(int8_arrays((m, k), data.draw(st.sampled_from(["int8", "uint8"]))))
    b = data.draw(int8_arrays((k, n)))
    expected = reference.int_mm(a, b)
    packed = octavo.pack_weight(b.T)
    for label, actual in on_every_isa(lambda: octavo.int_mm(a, b)):
        assert_same(actual, expected, label)
    pad = data.draw(st.sampled_from([0, 3]))
    out = poisoned((m, n), np.int32, pad)
    for label, actual in on_every_isa(lambda: octavo.int_mm(a, packed, out=out)):
        assert actual is out, label
        assert_same(actual, expected, label)
        assert untouched(out, pad), label
        out.fill(-1)


@pytest.mark.parametrize("m", [1, 2, 7, 17])
def test_sums_are_exact_at_the_limit_of_k(m):
    """The largest sums that int32 holds, of both signs, and those whose u8 * s8 partial sums wrap around."""
    for k, dtype, low, high in ((MAX_K, np.int8, -128, 127), (MAX_K_UNSIGNED, np.uint8, 0, 255)):
        a = np.full((m, k), low, dtype)
        a[m // 2 :] = high
        b = np.full((k, 3), -128, np.int8)
        b[:, 1], b[::2, 2] = 127, 127
        expected = (a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32)
        for label, actual in on_every_isa(lambda a=a, b=b: octavo.int_mm(a, b), threads=(1, 3)):
            assert_same(actual, expected, f"{dtype.__name__}, {label}")


# ---- int8_linear ----


@st.composite
def linear_case(draw, activations):
    m, n, k = draw(mnk())
    x = draw(
        float_arrays(
            (*lead(draw, m), k), flavours=("normal", "normal", "ties", "special", "huge", "tiny", "wide")
        )
    )
    weight, weight_scale = draw(int8_arrays((n, k))), draw(scales(n))
    bias = draw(st.none() | float_arrays((n,), flavours=("normal", "special", "wide", "tiny")))
    return (
        x,
        weight,
        weight_scale,
        bias,
        draw(st.sampled_from(activations)),
        draw(st.sampled_from(OUT_DTYPES)),
    )


@cases(800)
@given(linear_case(EXACT), st.sampled_from([0, 0, 2]), st.booleans())
def test_int8_linear(case, pad, symmetric):
    x, weight, weight_scale, bias, activation, out_dtype = case
    pre = reference.int8_linear(x, weight, weight_scale, bias, symmetric=symmetric)
    packed = octavo.pack_weight(weight, weight_scale)
    args = {"activation": activation, "out_dtype": out_dtype, "symmetric": symmetric}
    check_everywhere(lambda: octavo.int8_linear(x, packed, bias, **args), pre, activation, out_dtype)
    out = poisoned(pre.shape, dtype_of(out_dtype), pad)
    check_everywhere(lambda: octavo.int8_linear(x, packed, bias, **args, out=out), pre, activation, out_dtype)
    assert untouched(out, pad)


@cases(400)
@given(linear_case(SMOOTH))
def test_int8_linear_with_an_activation(case):
    x, weight, weight_scale, bias, activation, out_dtype = case
    pre = reference.int8_linear(x, weight, weight_scale, bias)
    packed = octavo.pack_weight(weight, weight_scale)
    args = {"activation": activation, "out_dtype": out_dtype}
    check_everywhere(lambda: octavo.int8_linear(x, packed, bias, **args), pre, activation, out_dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_int8_linear_gives_back_the_dtype_of_x(dtype):
    x = cast(np.random.default_rng(0).standard_normal((5, 20)), dtype)
    packed = octavo.pack_weight(np.eye(20, dtype=np.float32))
    expected = "float32" if dtype == "float64" else dtype
    assert octavo.int8_linear(x, packed).dtype == dtype_of(expected)
    sums = octavo.int8_linear(x, packed, out_dtype="int32")
    assert_same(sums, reference.int_mm(reference.quantize(x)[0], packed.unpack()[0].T))


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("out_dtype", OUT_DTYPES)
def test_activations_of_any_float(activation, out_dtype):
    """With sums of 0 the bias is the pre-activation: every kind of f32 goes through, by its bits."""
    rng = np.random.default_rng(8)
    bits = rng.integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32)
    near = rng.uniform(-20, 20, 20_000).astype(np.float32)
    tails = -np.geomspace(1e-3, 110, 20_000).astype(np.float32)
    small = (rng.standard_normal(4_000) * 10.0 ** rng.integers(-44, 0, 4_000)).astype(np.float32)
    edges = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1e-45, -1e-45], np.float32)
    bias = np.concatenate([bits.view(np.float32), near, tails, small, edges])
    weight = octavo.pack_weight(np.zeros((bias.size, 1), np.int8), np.ones(bias.size, np.float32))
    x = np.ones((1, 1), np.float32)
    args = {"activation": activation, "out_dtype": out_dtype}
    check_everywhere(lambda: octavo.int8_linear(x, weight, bias, **args), bias[None], activation, out_dtype)


@cases(100)
@given(linear_case((*EXACT, *SMOOTH)), st.booleans())
def test_a_row_does_not_depend_on_the_others(case, symmetric):
    x, weight, weight_scale, bias, activation, out_dtype = case
    x = x.reshape(-1, x.shape[-1]) if x.size else x.reshape(0, x.shape[-1])
    packed = octavo.pack_weight(weight, weight_scale)
    args = {"activation": activation, "out_dtype": out_dtype, "symmetric": symmetric}
    for isa in isas():
        with running(isa, 2):
            whole = octavo.int8_linear(x, packed, bias, **args)
            for i in range(0, x.shape[0], max(1, x.shape[0] // 5)):
                assert_same(octavo.int8_linear(x[i], packed, bias, **args), whole[i].copy(), isa)
                assert_same(octavo.int8_linear(x[i:], packed, bias, **args), whole[i:].copy(), isa)


@cases(60)
@given(linear_case(EXACT))
def test_a_weight_is_the_same_however_it_comes(case):
    x, weight, weight_scale, bias, activation, out_dtype = case
    args = {"activation": activation, "out_dtype": out_dtype}
    packed = octavo.int8_linear(x, octavo.pack_weight(weight, weight_scale), bias, **args)
    quantized = octavo.Quantized(np.ascontiguousarray(weight), weight_scale, None)
    assert_same(octavo.int8_linear(x, quantized, bias, **args), packed)
    floats = cast(weight.astype(np.float64) * 0.5, "float32")
    expected = octavo.int8_linear(x, octavo.pack_weight(floats), bias, **args)
    assert_same(octavo.int8_linear(x, floats, bias, **args), expected)


# ---- int8_linear with several weights ----


@st.composite
def shared_case(draw):
    """x, and for each of several weights what int8_linear takes: weight, bias, activation."""
    m, _, k = draw(mnk())
    x = draw(float_arrays((*lead(draw, m), k), flavours=("normal", "ties", "special", "wide")))
    layers = []
    for n in draw(st.lists(st.sampled_from([0, 1, 7, 16, 33, 64, 65, 129]), min_size=1, max_size=4)):
        weight = octavo.pack_weight(draw(int8_arrays((n, k))), draw(scales(n)))
        bias = draw(st.none() | float_arrays((n,), flavours=("normal", "special")))
        layers.append((weight, bias, draw(st.sampled_from((*EXACT, *SMOOTH)))))
    return x, *map(list, zip(*layers, strict=True)), draw(st.sampled_from((None, *OUT_DTYPES)))


@cases(300)
@given(shared_case(), st.sampled_from([0, 2]), st.booleans())
def test_weights_that_share_an_input(case, pad, symmetric):
    x, weights, biases, activations, out_dtype = case
    args = {"activation": activations, "out_dtype": out_dtype, "symmetric": symmetric}
    apart = [
        octavo.int8_linear(x, w, b, activation=a, out_dtype=out_dtype, symmetric=symmetric)
        for w, b, a in zip(weights, biases, activations, strict=True)
    ]
    outs = [poisoned(y.shape, y.dtype, pad) for y in apart]
    for label, shared in on_every_isa(lambda: octavo.int8_linear(x, weights, biases, **args)):
        assert type(shared) is list
        for actual, expected in zip(shared, apart, strict=True):
            assert_same(actual, expected, label)
    for label, shared in on_every_isa(
        lambda: octavo.int8_linear(x, tuple(weights), biases, **args, out=outs)
    ):
        for actual, out, expected in zip(shared, outs, apart, strict=True):
            assert actual is out, label
            assert_same(np.ascontiguousarray(out), expected, label)
            assert untouched(out, pad), label
            out.fill(1)
    with octavo.use_backend("reference"):
        fallback = octavo.int8_linear(x, weights, biases, **args)
    for w, b, a, y, z in zip(weights, biases, activations, apart, fallback, strict=True):
        pre = reference.int8_linear(x, *w.unpack(), b, symmetric=symmetric)
        check_epilogue(y, pre, a, y.dtype.name, "native")
        check_epilogue(z, pre, a, y.dtype.name, "reference")


@pytest.mark.parametrize("m", [1, 5, 47, 50, 145, 200])
def test_weights_that_share_an_input_share_the_threads(m):
    rng = np.random.default_rng(m)
    x = rng.standard_normal((m, 400)).astype(np.float32)
    weights = [
        octavo.pack_weight(rng.standard_normal((n, 400)).astype(np.float32)) for n in (70, 513, 1, 260)
    ]
    biases = [cast(rng.standard_normal(w.shape[0]), d) for w, d in zip(weights, FLOATS, strict=True)]
    expected = [reference.int8_linear(x, *w.unpack(), b) for w, b in zip(weights, biases, strict=True)]
    fused = np.empty((m, 70 + 513 + 1 + 260), np.float32)  # as one matrix: different columns do not overlap
    columns = [fused[:, :70], fused[:, 70:583], fused[:, 583:584], fused[:, 584:]]
    for label, shared in on_every_isa(lambda: octavo.int8_linear(x, weights, biases)):
        for actual, wanted in zip(shared, expected, strict=True):
            assert_same(actual, wanted, label)
    for label, _ in on_every_isa(lambda: octavo.int8_linear(x, weights, biases, out=columns)):
        assert_same(fused, np.concatenate(expected, axis=1), label)
        fused.fill(np.nan)


def test_a_list_of_weights_takes_what_one_weight_takes():
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((5, 20)).astype(np.float32), rng.standard_normal((7, 20)).astype(np.float32)
    weights = [w, octavo.quantize(w), octavo.pack_weight(w)]
    for more in ({}, {"activation": "gelu"}, {"out_dtype": "int32"}):
        expected = octavo.int8_linear(x, w, **more)
        for actual in octavo.int8_linear(x, weights, **more):
            assert_same(actual, expected)
        (alone,) = octavo.int8_linear(x, [w], **more)
        assert_same(alone, expected)


# ---- scaled_int_mm ----


@st.composite
def scaled_case(draw):
    m, n, k = draw(mnk())
    dtype = draw(st.sampled_from(["int8", "uint8"]))
    rows = lead(draw, m)
    a = draw(int8_arrays((*rows, k), dtype))
    info = np.iinfo(dtype)
    zero_point = None
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        zero_point = rng.choice(np.array([info.min, info.max, 0, 3], np.int32), rows)
        zero_point = np.asarray(zero_point if draw(st.booleans()) else np.int32(info.max), np.int32)
    a_scale = draw(scales(m)).reshape(rows) if draw(st.booleans()) else np.asarray(draw(scales(1))[0])
    weight, weight_scale = draw(int8_arrays((n, k))), draw(scales(n))
    bias = draw(st.none() | float_arrays((n,), flavours=("normal", "special", "wide")))
    return a, a_scale, weight, weight_scale, bias, zero_point


@cases(500)
@given(scaled_case(), st.sampled_from((*EXACT, *SMOOTH)), st.sampled_from(OUT_DTYPES))
def test_scaled_int_mm(case, activation, out_dtype):
    a, a_scale, weight, weight_scale, bias, zero_point = case
    pre = reference.scaled_int_mm(a, a_scale, weight, weight_scale, bias, zero_point)
    packed = octavo.pack_weight(weight, weight_scale)
    args = {"a_zero_point": zero_point, "activation": activation, "out_dtype": out_dtype}
    check_everywhere(
        lambda: octavo.scaled_int_mm(a, a_scale, packed, bias, **args), pre, activation, out_dtype
    )
    sums = reference.scaled_int_mm(a, None, weight, None, None, zero_point, out_dtype="int32")
    for label, actual in on_every_isa(
        lambda: octavo.scaled_int_mm(a, a_scale, packed, a_zero_point=zero_point, out_dtype="int32")
    ):
        assert_same(actual, sums, label)
    out = poisoned(pre.shape, dtype_of(out_dtype), 2)
    check_everywhere(
        lambda: octavo.scaled_int_mm(a, a_scale, packed, bias, **args, out=out), pre, activation, out_dtype
    )
    assert untouched(out, 2)


def test_zero_points_at_the_limit_of_k():
    for dtype, low, high in ((np.int8, -128, 127), (np.uint8, 0, 255)):
        a = np.full((2, MAX_K_UNSIGNED), low, dtype)
        a[1] = high
        weight = np.full((2, MAX_K_UNSIGNED), -128, np.int8)
        weight[1] = 127
        zero_point = np.array([high, low], np.int32)
        expected = (a.astype(np.int64) - zero_point[:, None]) @ weight.astype(np.int64).T
        args = {"a_zero_point": zero_point, "out_dtype": "int32"}
        packed = octavo.pack_weight(weight, np.ones(2, np.float32))
        for label, actual in on_every_isa(
            lambda a=a, p=packed, args=args: octavo.scaled_int_mm(a, 1.0, p, **args), threads=(1, 2)
        ):
            assert_same(actual, expected.astype(np.int32), label)


# ---- torch ----


@needs_torch
@cases(150)
@given(linear_case((*EXACT, *SMOOTH)), st.booleans())
def test_torch_tensors_give_the_same_bits(case, symmetric):
    x, weight, weight_scale, bias, activation, out_dtype = case
    args = {"activation": activation, "out_dtype": out_dtype}
    both = {**args, "symmetric": symmetric}
    expected = octavo.int8_linear(x, octavo.pack_weight(weight, weight_scale), bias, **both)
    tensors = [None if v is None else to_torch(v) for v in (x, weight, weight_scale, bias)]
    packed = octavo.pack_weight(tensors[1], tensors[2])
    assert packed.buffer.data_ptr() % 64 == 0
    for label, actual in on_every_isa(
        lambda: octavo.int8_linear(tensors[0], packed, tensors[3], **both), threads=(1, 3)
    ):
        assert_same(actual, expected, label)
    data, scale, zero_point = octavo.quantize(tensors[0], symmetric=symmetric)
    apart = octavo.scaled_int_mm(data, scale, packed, tensors[3], a_zero_point=zero_point, **args)
    assert_same(apart, expected)
    flat = data.reshape(-1, data.shape[-1]) if data.numel() else data.reshape(0, data.shape[-1])
    sums = reference.int_mm(reference.quantize(x, symmetric=symmetric)[0].reshape(flat.shape), weight.T)
    assert_same(octavo.int_mm(flat, packed), sums)
    assert_same(octavo.int_mm(flat, tensors[1].T), sums)


@needs_torch
@cases(120)
@given(linear_case((*EXACT, *SMOOTH)))
def test_the_callers_flush_to_zero_changes_nothing(case):
    x, weight, weight_scale, bias, activation, out_dtype = case
    packed = octavo.pack_weight(weight, weight_scale)
    args = {"activation": activation, "out_dtype": out_dtype}
    for isa in isas():
        for threads in (1, 2):
            with running(isa, threads):
                expected = octavo.int8_linear(x, packed, bias, **args)
                with flushing_denormals():
                    actual = octavo.int8_linear(x, packed, bias, **args)
            assert_same(actual, expected, isa)


@needs_torch
def test_denormal_scales_and_biases_count_even_where_the_caller_flushes_them():
    rng = np.random.default_rng(4)
    a = rng.integers(-128, 128, (5, 40)).astype(np.int8)
    weight = rng.integers(-128, 128, (33, 40)).astype(np.int8)
    a_scale, weight_scale = np.full(5, 1e-30, np.float32), np.full(33, 1e-12, np.float32)
    for bias in (None, *(cast(rng.standard_normal(33) * 1e-39, dtype) for dtype in FLOATS)):
        for scale in (weight_scale, np.full(33, 2e-40, np.float32)):
            expected = reference.scaled_int_mm(a, a_scale, weight, scale, bias)
            packed = octavo.pack_weight(weight, scale)
            for isa in isas():
                with running(isa), flushing_denormals():
                    actual = octavo.scaled_int_mm(a, a_scale, packed, bias)
                assert_same(actual, expected, f"{isa}, {None if bias is None else bias.dtype}")


@needs_torch
@cases(100)
@given(shared_case(), st.booleans())
def test_torch_tensors_that_share_an_input_give_the_same_bits(case, symmetric):
    x, weights, biases, activations, out_dtype = case
    args = {"activation": activations, "out_dtype": out_dtype, "symmetric": symmetric}
    expected = octavo.int8_linear(x, weights, biases, **args)
    tensor = to_torch(x)
    packed = [octavo.pack_weight(*map(to_torch, w.unpack())) for w in weights]
    added = [None if b is None else to_torch(b) for b in biases]
    for label, shared in on_every_isa(
        lambda: octavo.int8_linear(tensor, packed, added, **args), threads=(1, 3)
    ):
        for actual, wanted in zip(shared, expected, strict=True):
            assert_same(actual, wanted, label)


# ---- memory ----


@pytest.mark.parametrize("side", guard.SIDES)
def test_nothing_outside_the_arrays_is_touched(side):
    rng = np.random.default_rng(9)
    shapes = [
        (m, n, k) for m in (1, 2, 5, 6, 7, 13, 17) for n in (1, 15, 17, 63, 65) for k in (1, 3, 4, 31, 65)
    ]
    shapes += [(1, 64, 64), (16, 64, 64), (33, 130, 129), (3, 5, 2049), (50, 9, 12)]
    for i, (m, n, k) in enumerate(shapes):
        dtype, out_dtype = FLOATS[i % 4], OUT_DTYPES[i % 3]
        x = guard.copy(cast(rng.standard_normal((m, k)), dtype), side, row_pad=i % 2)
        a = guard.copy(rng.integers(-128, 128, (m, k)).astype(np.int8), side, row_pad=i % 2)
        weight = guard.copy(rng.integers(-128, 128, (n, k)).astype(np.int8), side, row_pad=(i + 1) % 2)
        weight_scale = guard.copy(rng.uniform(0.1, 1, n).astype(np.float32), side)
        a_scale = guard.copy(rng.uniform(0.1, 1, m).astype(np.float32), side)
        zero_point = guard.copy(rng.integers(-128, 128, m).astype(np.int32), side)
        bias = guard.copy(cast(rng.standard_normal(n), FLOATS[i // 4 % 4]), side)
        out = guard.empty((m, n), dtype_of(out_dtype), side, row_pad=i % 3)
        other = guard.empty((m, n), dtype_of(out_dtype), side, row_pad=i % 2)
        sums = guard.empty((m, n), np.int32, side, row_pad=i % 3)
        buffer = guard.copy(reference.pack_weight(weight), "end")  # its size is a multiple of 64: aligned
        packed = octavo.PackedWeight.from_buffer(buffer, weight_scale)
        assert packed.buffer.ctypes.data == buffer.ctypes.data
        expected = reference.int8_linear(x, weight, weight_scale, bias, None, out_dtype)
        scaled = reference.scaled_int_mm(a, a_scale, weight, weight_scale, bias, zero_point, None, out_dtype)
        for isa in isas():
            with running(isa, 1 + i % 2):
                args = {"out_dtype": out_dtype, "out": out}
                assert_same(np.ascontiguousarray(octavo.int8_linear(x, packed, bias, **args)), expected, isa)
                args["out"] = [other, out]
                for each in octavo.int8_linear(x, [packed] * 2, [bias] * 2, **args):
                    assert_same(np.ascontiguousarray(each), expected, isa)
                args = {"out_dtype": out_dtype, "out": out, "a_zero_point": zero_point}
                actual = octavo.scaled_int_mm(a, a_scale, packed, bias, **args)
                assert_same(np.ascontiguousarray(actual), scaled, isa)
                octavo.int8_linear(x, packed, bias, activation=SMOOTH[i % 3], out_dtype=out_dtype, out=out)
                for b in (packed, weight.T):
                    actual = octavo.int_mm(a, b, out=sums)
                    assert_same(np.ascontiguousarray(actual), reference.int_mm(a, weight.T), isa)
                assert_same(packed.unpack()[0], np.ascontiguousarray(weight), isa)
                assert_same(octavo.pack_weight(weight).buffer, np.array(buffer), isa)
