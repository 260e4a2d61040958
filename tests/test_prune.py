"""Masks and pruning: every ISA and thread count against the reference, bit for bit."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import guard
import octavo
from octavo.reference import numpy as reference
from octavo.runtime import backends
from strategies import (
    FLOATS,
    PEAK_MEMORY,
    SPECIAL,
    THREADS,
    assert_same,
    cases,
    cast,
    float_arrays,
    flushing_denormals,
    isas,
    lay_out,
    needs_proc,
    needs_torch,
    on_every_isa,
    poisoned,
    running,
    shapes,
    to_numpy,
    to_torch,
    untouched,
)

AMOUNTS = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1))
THRESHOLDS = st.one_of(
    st.sampled_from([0.0, -0.0, -1.0, -1e-300, 1e-45, 1e-40, 0.5, 1.0, 1e300, math.inf, -math.inf]),
    st.floats(0, 4),
)
BLOCKS = ((1, 1), (1, 16), (4, 16), (2, 3), (8, 1))


@st.composite
def how(draw):
    """Exactly one of threshold, ratio and sparsity."""
    name = draw(st.sampled_from(["threshold", "ratio", "sparsity"]))
    amounts = {"threshold": THRESHOLDS, "ratio": st.one_of(AMOUNTS, st.just(3.0)), "sparsity": AMOUNTS}
    return {name: draw(amounts[name])}


@st.composite
def patterned(draw, max_tensors=1):
    """Tensors and arguments of prune_mask that fit them."""
    pattern = draw(st.sampled_from(["unstructured", "unstructured", "row", "column", "block", "n:m"]))
    count = draw(st.integers(1, max_tensors))
    if pattern == "block":
        r, c = draw(st.sampled_from(BLOCKS))
        units = st.tuples(st.integers(0, 9), st.integers(0, 9))
        drawn = [draw(units) for _ in range(count)]
        ws = [draw(float_arrays((r * i, c * j))) for i, j in drawn]
        return ws, {"pattern": f"block{r}x{c}", **draw(how())}
    if pattern == "n:m":
        m = draw(st.sampled_from([2, 3, 4, 8, 16, 32]))
        n = draw(st.sampled_from([1, m // 2, m - 1]))
        groups = st.integers(0, 20)
        shape = st.sampled_from([(), (3,), (2, 5)])
        ws = [draw(float_arrays((*draw(shape), m * draw(groups)))) for _ in range(count)]
        return ws, {"pattern": f"{n}:{m}"}
    ws = [draw(float_arrays(shapes(max_elements=6000))) for _ in range(count)]
    return ws, {"pattern": pattern, **draw(how())}


@cases(1000)
@given(patterned())
def test_prune_mask(case):
    (w,), args = case
    (expected,) = reference.prune_masks([w], **args)
    for label, actual in on_every_isa(lambda: octavo.prune_mask(w, **args)):
        assert_same(actual, expected, label)


@cases(400)
@given(patterned(max_tensors=4))
def test_prune_masks_of_many_tensors_as_one(case):
    ws, args = case
    expected = reference.prune_masks(ws, **args)
    for label, actual in on_every_isa(lambda: octavo.prune_mask(ws, **args)):
        assert isinstance(actual, list)
        for got, want in zip(actual, expected, strict=True):
            assert_same(got, want, label)


@cases(150)
@given(patterned(), st.sampled_from([0, 3]))
def test_prune_mask_into_out(case, pad):
    (w,), args = case
    (expected,) = reference.prune_masks([w], **args)
    out = poisoned(w.shape, np.bool_, pad)
    for label, actual in on_every_isa(lambda: octavo.prune_mask(w, **args, out=out), threads=(1, 2)):
        assert actual is out, label
        assert_same(actual, expected, label)
        assert untouched(out, pad), label
        out.fill(False)


@cases(150)
@given(ws=st.lists(float_arrays(shapes(max_elements=3000)), min_size=1, max_size=3), sparsity=AMOUNTS)
def test_magnitude_threshold(ws, sparsity):
    expected = reference.magnitude_threshold(ws, sparsity)
    for label, actual in on_every_isa(lambda: octavo.magnitude_threshold(ws, sparsity), threads=(1, 3)):
        assert_same(actual, expected, label)
    alone = reference.magnitude_threshold(ws[:1], sparsity)
    for label, actual in on_every_isa(lambda: octavo.magnitude_threshold(ws[0], sparsity), threads=(1,)):
        assert_same(actual, alone, label)


@cases(150)
@given(patterned(max_tensors=2))
def test_prune_copies_and_prune_in_place(case):
    ws, args = case
    masks = reference.prune_masks(ws, **args)
    expected = [reference.apply_mask(w, mask) for w, mask in zip(ws, masks, strict=True)]
    before = [w.copy() for w in ws]
    for label, (pruned, changed, returned) in on_every_isa(lambda: prune_both_ways(ws, args), threads=(1, 2)):
        for i, want in enumerate(expected):
            assert_same(pruned[i], want, label)
            assert_same(changed[i], want, label)
            assert_same(returned[i], masks[i], label)
            assert_same(np.asarray(ws[i]), before[i], f"the argument, {label}")


def prune_both_ways(ws, args):
    in_place = [poisoned(w.shape, w.dtype, 2) for w in ws]  # rows apart: not contiguous
    for copy, w in zip(in_place, ws, strict=True):
        copy[...] = w
    returned = octavo.prune_(in_place, **args)
    assert all(untouched(w, 2) for w in in_place)
    single = ws[0].copy()
    mask = (
        octavo.prune_(single, **args) if len(ws) == 1 else octavo.prune_([single, *in_place[1:]], **args)[0]
    )
    assert mask.shape == single.shape
    return octavo.prune(ws, **args), in_place, returned


@cases(400)
@given(case=patterned(), granularity=st.sampled_from(["row", "tensor", "group"]), with_out=st.booleans())
def test_prune_quantize_is_prune_then_quantize(case, granularity, with_out):
    (w,), args = case
    group = next((g for g in (16, 3, 2, 1) if w.shape[-1] % g == 0), 1) if granularity == "group" else None
    (mask,) = reference.prune_masks([w], **args)
    data, scale, _ = reference.quantize(reference.apply_mask(w, mask), granularity, group)
    outs = None
    if with_out:
        outs = (
            poisoned(w.shape, np.int8, 1),
            poisoned(scale.shape, np.float32),
            poisoned(w.shape, np.bool_, 1),
        )
    call = {"granularity": granularity, "group_size": group, **args}
    for label, (quantized, got) in on_every_isa(lambda: octavo.prune_quantize(w, **call, out=outs)):
        assert isinstance(quantized, octavo.Quantized)
        assert quantized.zero_point is None
        assert_same(got, mask, label)
        assert_same(quantized.data, data, label)
        assert_same(quantized.scale, scale, label)
        if outs is not None:
            assert got is outs[2], label
            assert quantized.data is outs[0], label
            assert untouched(outs[0], 1), label
            assert untouched(outs[2], 1), label


@pytest.mark.parametrize("dtype", FLOATS)
def test_exactly_k_go_on_large_tensors(dtype):
    """Enough elements for several chunks and threads, most of them ties."""
    rng = np.random.default_rng(11)
    ws = [cast(rng.integers(-3, 4, n) * 0.25, dtype) for n in (200_000, 1, 70_001)]
    total = sum(w.size for w in ws)
    for sparsity in (0.1, 0.5, 0.77):
        expected = reference.prune_masks(ws, sparsity=sparsity)
        assert total - sum(int(m.sum()) for m in expected) == round(sparsity * total)
        for label, actual in on_every_isa(lambda s=sparsity: octavo.prune_mask(ws, sparsity=s)):
            for got, want in zip(actual, expected, strict=True):
                assert_same(got, want, f"{sparsity}, {label}")


def test_patterns_on_large_tensors():
    rng = np.random.default_rng(12)
    w = rng.standard_normal((512, 768)).astype(np.float32)
    w[rng.random(w.shape) < 0.01] = np.nan
    cases = [{"pattern": p, "sparsity": 0.5} for p in ("row", "column", "block4x16")]
    cases += [{"pattern": "2:4"}, {"ratio": 0.3}, {"threshold": 0.7}]
    for args in cases:
        (expected,) = reference.prune_masks([w], **args)
        for label, actual in on_every_isa(lambda a=args: octavo.prune_mask(w, **a)):
            assert_same(actual, expected, f"{args}, {label}")


@cases(60)
@given(w=float_arrays(flavours=("normal", "special", "one special")), raising=st.sampled_from(FLOATS))
def test_nonfinite_raise(w, raising):
    with np.errstate(all="ignore"):
        bad = int((~np.isfinite(w.astype(np.float32))).sum())
    for isa in isas():
        with running(isa):
            for call in (octavo.prune_mask, octavo.prune, octavo.prune_quantize):
                if bad:
                    with pytest.raises(ValueError, match=rf"^w: expected finite.* got {bad} "):
                        call(w, sparsity=0.5, nonfinite="raise")
                else:
                    call(w, sparsity=0.5, nonfinite="raise")


# ---- selection ----

SAMPLED = 200_000  # elements: enough for the bracket, a recursion and several chunks


def sampled_places(n):
    """Where select.cpp samples n elements: data made against it has to know."""
    size = min(n // 32, 1 << 15)
    i = np.arange(size, dtype=np.uint64)
    spread = (i * np.uint64(0x9E3779B9) & np.uint64(0xFFFFFFFF)) * 2.0**-32
    return np.minimum(((i + spread) * (n / size)).astype(np.int64), n - 1)


def hostile(kind, n, rng):
    """Data that a sample describes badly, or that has its k-th magnitude among ties."""
    w = rng.standard_normal(n)
    if kind == "sorted":
        w.sort()
    elif kind == "constant":
        w[:] = -1.5
    elif kind == "zeros":
        w[:] = rng.choice([0.0, -0.0], n)
    elif kind == "constant but a few":
        w[:] = 1.0
        w[rng.integers(0, n, 5)] = [0.5, -0.25, 2.0, np.inf, np.nan]
    elif kind == "two values":
        w[:] = rng.choice([0.5, -2.0], n)
    elif kind == "half zeros":
        w[rng.random(n) < 0.5] = 0.0
    elif kind == "few values":
        w[:] = rng.integers(-3, 4, n) * 0.25
    elif kind == "periodic":
        w[:] = np.arange(n) % 32
    elif kind == "steps":
        w *= 10.0 ** (np.arange(n) * 8 // n - 4)
    elif kind == "denormals":
        w *= 1e-41
    elif kind == "nan":
        w[rng.random(n) < 0.6] = np.nan
    elif kind == "the sample is small":  # the bracket lies below everything else
        w = 10 + np.abs(w)
        w[sampled_places(n)] *= 0.01
    elif kind == "the sample is large":
        w[sampled_places(n)] += 100
    elif kind == "all inside":  # the bracket holds nearly everything
        w = 1.1 + 1e-3 * w
        w[sampled_places(n)] = np.linspace(1, 1.2, len(sampled_places(n)))
    return w


HOSTILE = (
    "sorted",
    "constant",
    "zeros",
    "constant but a few",
    "two values",
    "half zeros",
    "few values",
    "periodic",
)
HOSTILE += ("steps", "denormals", "nan", "the sample is small", "the sample is large", "all inside", "normal")


@pytest.mark.parametrize("kind", HOSTILE)
@cases(6)
@given(data=st.data())
def test_selection_is_exact_whatever_the_sample_says(kind, data):
    n = SAMPLED + data.draw(st.integers(0, 20_000))
    dtype = data.draw(st.sampled_from(FLOATS))
    sparsity = data.draw(st.sampled_from([0.5, 1e-5, 0.25, 0.4, 0.6, 0.999, 1.0]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    with np.errstate(all="ignore"):
        whole = cast(hostile(kind, n, rng), dtype)
    cut = data.draw(st.sampled_from([0, 1, 7, 16_384, 100_003]))
    ws = [whole[:cut], whole[cut:]]
    expected = reference.prune_masks(ws, sparsity=sparsity)
    limit = reference.magnitude_threshold(ws, sparsity)
    label_and_result = on_every_isa(
        lambda: (octavo.prune_mask(ws, sparsity=sparsity), octavo.magnitude_threshold(ws, sparsity)),
        threads=(1, 3),
    )
    for label, (masks, threshold) in label_and_result:
        assert_same(threshold, limit, f"{kind}, {dtype}, {sparsity}, {label}")
        for got, want in zip(masks, expected, strict=True):
            assert_same(got, want, f"{kind}, {dtype}, {sparsity}, {label}")


def test_more_elements_than_32_bits_count():
    """A list that names the same memory many times is as large as it likes to be."""
    w = np.random.default_rng(3).standard_normal(1 << 20).astype(np.float16)
    times = 4200  # 4.4e9 elements
    n, sparsity = times * w.size, 0.98
    k = round(sparsity * n)
    assert k > 2**32
    expected = np.sort(np.abs(w))[-(-k // times) - 1]
    assert octavo.magnitude_threshold([w] * times, sparsity) == expected
    w[:] = 0
    core, threads = backends._core, octavo.get_num_threads()
    segments = [core.Segment(w.ctypes.data, dtype=1, n=w.size, mask=0, pruned=0)] * times
    assert core.magnitude_select(segments, k=k, where=threads) == (0, k)  # equal ones stay from k on
    assert core.magnitude_select(segments, k=n, where=threads)[0] == 0


MEMORY = (
    PEAK_MEMORY
    + """
import numpy as np, octavo
rng = np.random.default_rng(0)
ws = [np.empty(n, np.float32) for n in (3_000_000, 5_000_000, 8_000_000)]
for w in ws:
    rng.random(out=w, dtype=np.float32)
masks = [np.ones(w.shape, np.bool_) for w in ws]
octavo.prune_mask(ws[0][:100_000], sparsity=0.5)
before = peak_memory()
octavo.prune_mask(ws, sparsity=0.5, out=masks)
print((peak_memory() - before) / sum(w.nbytes for w in ws))
"""
)


@needs_proc
def test_global_selection_takes_little_memory():
    """5 % of the tensors beside the masks: nothing is concatenated."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.05 + 0.02  # and what the allocator keeps


# ---- out ----


@cases(150)
@given(patterned(max_tensors=3), st.sampled_from([0, 2]))
def test_prune_into_out(case, pad):
    ws, args = case
    masks = reference.prune_masks(ws, **args)
    outs = [poisoned(w.shape, w.dtype, pad) for w in ws]
    mask_outs = [poisoned(w.shape, np.bool_, pad) for w in ws]

    def call():
        changed = [w.copy() for w in ws]
        returned = octavo.prune_(changed, **args, out=mask_outs)
        return octavo.prune(ws, **args, out=outs), changed, returned

    for label, (pruned, changed, returned) in on_every_isa(call, threads=(1, 2)):
        for i, (w, mask) in enumerate(zip(ws, masks, strict=True)):
            want = reference.apply_mask(w, mask)
            assert pruned[i] is outs[i], label
            assert returned[i] is mask_outs[i], label
            assert_same(pruned[i], want, label)
            assert_same(changed[i], want, label)
            assert_same(returned[i], mask, label)
            assert untouched(outs[i], pad), label
            assert untouched(mask_outs[i], pad), label


def test_prune_in_place_of_tensors_that_share_memory():
    """The mask is that of what was there before anything changed."""
    w = np.array([1, 1, 2, 1], np.float32)
    masks = octavo.prune_([w, w], sparsity=0.5)
    assert [mask.tolist() for mask in masks] == [[False, False, True, False], [False, True, True, True]]
    assert w.tolist() == [0, 0, 2, 0]


@pytest.mark.parametrize("at", [0, 1])
def test_outputs_too_large_for_the_caches(at):
    """Those are written past the caches, in whole lines: from wherever the arrays begin."""
    rng = np.random.default_rng(5)
    shape = (2100, 4004)
    whole = rng.standard_normal(shape[0] * shape[1] + 1).astype(np.float32)
    whole[[1, 77_777]] = [np.nan, np.inf]
    w = whole[at:][: shape[0] * shape[1]].reshape(shape)
    pruned, mask, data = (
        np.empty(w.size + 1, t)[at:][: w.size].reshape(shape) for t in (np.float32, bool, np.int8)
    )
    scale = np.empty(shape[0], np.float32)
    for args in ({"threshold": 0.5}, {"pattern": "2:4"}, {"pattern": "block3x4", "threshold": 9.0}):
        (expected,) = reference.prune_masks([w], **args)
        expected_pruned = reference.apply_mask(w, expected)
        for label, _ in on_every_isa(lambda a=args: octavo.prune_mask(w, **a, out=mask), threads=(2,)):
            assert_same(mask, expected, f"{args}, {label}")
            mask.fill(True)
        for label, _ in on_every_isa(lambda a=args: octavo.prune(w, **a, out=pruned), threads=(2,)):
            assert_same(pruned, expected_pruned, f"{args}, {label}")
            pruned.fill(7)
    (expected,) = reference.prune_masks([w], threshold=0.5)
    expected_data, expected_scale, _ = reference.quantize(reference.apply_mask(w, expected))
    for label, _ in on_every_isa(
        lambda: octavo.prune_quantize(w, threshold=0.5, out=(data, scale, mask)), threads=(2,)
    ):
        assert_same(data, expected_data, label)
        assert_same(scale, expected_scale, label)
        assert_same(mask, expected, label)
        data.fill(1)
    expected_data, expected_scale, _ = reference.quantize(w)
    for label, _ in on_every_isa(lambda: octavo.quantize(w, out=(data, scale)), threads=(2,)):
        assert_same(data, expected_data, label)
        assert_same(scale, expected_scale, label)
        data.fill(1)


# ---- bits ----


@cases(60)
@given(
    shape=shapes(), seed=st.integers(0, 99), layout=st.sampled_from(["contiguous", "strided", "transposed"])
)
def test_pack_mask_is_numpys_packbits(shape, seed, layout):
    mask = lay_out(np.random.default_rng(seed).random(shape) < 0.5, layout)
    bits = octavo.pack_mask(mask)
    assert_same(bits, np.packbits(mask, axis=-1, bitorder="little"))
    assert_same(octavo.unpack_mask(bits, shape), np.ascontiguousarray(mask))


@needs_torch
@cases(40)
@given(shape=shapes(), seed=st.integers(0, 99))
def test_pack_mask_of_torch_is_that_of_numpy(shape, seed):
    mask = np.random.default_rng(seed).random(shape) < 0.5
    bits = octavo.pack_mask(to_torch(mask))
    assert_same(bits, octavo.pack_mask(mask))
    assert_same(octavo.unpack_mask(bits, shape), mask)


# ---- torch ----


@needs_torch
@cases(200)
@given(patterned(max_tensors=2))
def test_torch_tensors_give_the_same_bits(case):
    ws, args = case
    expected = reference.prune_masks(ws, **args)
    tensors = [to_torch(w) for w in ws]
    for label, actual in on_every_isa(lambda: octavo.prune_mask(tensors, **args), threads=(1, 3)):
        for got, want in zip(actual, expected, strict=True):
            assert_same(got, want, label)
    for label, actual in on_every_isa(lambda: octavo.prune(tensors, **args), threads=(1,)):
        for got, w, mask in zip(actual, ws, expected, strict=True):
            assert_same(got, reference.apply_mask(w, mask), label)
    (alone,) = reference.prune_masks(ws[:1], **args)
    copy = tensors[0].clone()
    assert_same(octavo.prune_(copy, **args), alone)
    assert_same(copy, reference.apply_mask(ws[0], alone))
    quantized, mask = octavo.prune_quantize(tensors[0], **args)
    assert_same(mask, alone)
    data, scale, _ = reference.quantize(reference.apply_mask(ws[0], alone))
    assert_same(quantized.data, data)
    assert_same(quantized.scale, scale)


@needs_torch
@cases(120)
@given(patterned())
def test_the_callers_flush_to_zero_changes_nothing(case):
    (w,), args = case
    (expected,) = reference.prune_masks([w], **args)
    quantized = reference.quantize(reference.apply_mask(w, expected))
    t = reference.magnitude_threshold([w], 0.5)
    for isa in isas():
        for threads in THREADS[:2]:
            with running(isa, threads), flushing_denormals():
                mask = octavo.prune_mask(w, **args)
                actual, second = octavo.prune_quantize(w, **args)
                threshold = octavo.magnitude_threshold(w, 0.5)
            assert_same(mask, expected, isa)
            assert_same(second, expected, isa)
            assert_same(actual.data, quantized[0], isa)
            assert_same(actual.scale, quantized[1], isa)
            assert_same(threshold, t, isa)


@needs_torch
def test_denormals_are_numbers_even_where_the_caller_flushes_them():
    w = np.array([1e-40, 2e-40, 0.0, 3e-40, -1e-45, 5e-39, 4e-40, 1e-39], np.float32)
    cases = [{"threshold": 1e-40}, {"ratio": 0.1}, {"sparsity": 0.5}, {"pattern": "2:4"}]
    cases += [{"pattern": "block1x2", "threshold": 4e-40}, {"pattern": "block1x2", "ratio": 0.05}]
    expected = [reference.prune_masks([w], **args)[0] for args in cases]
    for isa in isas():
        with running(isa), flushing_denormals():
            actual = [octavo.prune_mask(w, **args) for args in cases]
        for got, want, args in zip(actual, expected, cases, strict=True):
            assert_same(got, want, f"{args}, {isa}")


# ---- memory ----


@pytest.mark.parametrize("side", guard.SIDES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_nothing_outside_the_arrays_is_touched(dtype, side):
    rng = np.random.default_rng(6)
    for cols in (*range(1, 36), 63, 64, 65, 127, 129, 4097):
        values = rng.standard_normal((2, cols))
        values[1, :] = rng.choice(SPECIAL, cols)
        w = guard.copy(cast(values, dtype), side)
        mask = guard.empty(w.shape, np.bool_, side)
        copy = guard.empty(w.shape, w.dtype, side)
        expected = reference.prune_masks([w], sparsity=0.5)[0]
        data, scale, _ = reference.quantize(reference.apply_mask(w, expected))
        outs = (guard.empty(w.shape, np.int8, side), guard.empty((2,), np.float32, side), mask)
        patterns = ["row", "column", "block1x1"]
        wide = guard.copy(cast(rng.standard_normal((2, 4 * cols)), dtype), side)
        wide_mask = guard.empty(wide.shape, np.bool_, side)
        for isa in isas():
            with running(isa):
                for args in ({"threshold": 0.5}, {"ratio": 0.5}, {"sparsity": 0.5}):
                    octavo.prune_mask(w, **args, out=mask)
                assert_same(mask, expected, isa)
                for pattern in patterns:
                    octavo.prune_mask(w, pattern=pattern, sparsity=0.5, out=mask)
                octavo.prune_mask(wide, pattern="2:4", out=wide_mask)
                octavo.magnitude_threshold(w, 0.5)
                quantized, _ = octavo.prune_quantize(w, sparsity=0.5, out=outs)
                assert_same(quantized.data, data, isa)
                assert_same(quantized.scale, scale, isa)
                octavo.prune(w, sparsity=0.5)
                copy[...] = w
                octavo.prune_(copy, sparsity=0.5)
                assert_same(copy, reference.apply_mask(w, expected), isa)


@needs_torch
def test_prune_leaves_what_it_was_given_alone():
    import torch

    t = torch.randn(8, 16)
    before = t.clone()
    assert octavo.prune(t, sparsity=0.5).data_ptr() != t.data_ptr()
    assert torch.equal(t, before)
    layer = torch.nn.Linear(16, 8)
    mask = octavo.prune_(layer.weight, sparsity=0.5)
    assert int(mask.sum()) == 64
    assert_same(layer.weight, np.where(to_numpy(mask), to_numpy(layer.weight), np.float32(0)))


@needs_torch
@pytest.mark.parametrize("wants_gradient", [False, True])
def test_torch_tensors_into_out(wants_gradient):
    import torch

    ws = [torch.randn(8, 16, requires_grad=wants_gradient), torch.randn(40).bfloat16()]
    masks = [to_numpy(mask) for mask in octavo.prune_mask(ws, sparsity=0.5)]
    expected = [reference.apply_mask(to_numpy(w.detach()), m) for w, m in zip(ws, masks, strict=True)]
    with torch.no_grad() if wants_gradient else contextlib.nullcontext():
        outs = [torch.full_like(w, 7) for w in ws]
        pruned = octavo.prune(ws, sparsity=0.5, out=outs)
    changed = [w.detach().clone() for w in ws]
    mask_outs = [torch.ones(w.shape, dtype=torch.bool) for w in ws]
    versions = [t._version for t in (*changed, *mask_outs)]
    returned = octavo.prune_(changed, sparsity=0.5, out=mask_outs)
    assert all(t._version > v for t, v in zip((*changed, *mask_outs), versions, strict=True))
    for i in range(2):
        assert pruned[i] is outs[i]
        assert returned[i] is mask_outs[i]
        assert_same(outs[i], expected[i])
        assert_same(changed[i], expected[i])
        assert_same(mask_outs[i], masks[i])
    if wants_gradient:
        with pytest.raises(ValueError, match=r"^out: expected None where a gradient is wanted"):
            octavo.prune(ws[0], sparsity=0.5, out=torch.ones(8, 16))
        octavo.prune(ws[0], sparsity=0.5).sum().backward()
        assert_same(ws[0].grad, octavo.prune_mask(ws[0].detach(), sparsity=0.5).numpy().astype(np.float32))
