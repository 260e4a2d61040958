"""The NumPy reference against definitions that share no code with it: elementwise, in exact numbers.

The torch reference must then equal it to the bit.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.reference import numpy as reference
from strategies import (
    FLOATS,
    SPECIAL,
    assert_close_ulp,
    assert_same,
    cases,
    cast,
    dtype_of,
    float_arrays,
    int8_arrays,
    lay_out,
    mnk,
    needs_torch,
    scales,
    shapes,
    small_sizes,
    to_torch,
)

ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu")
f32 = np.float32


def half_even(x: Fraction) -> int:
    return round(x)  # Fraction rounds half to even


def exact_f32(x: Fraction) -> np.float32:
    """x rounded once to f32: the nearer of two neighbours, the even one on a tie."""
    with np.errstate(over="ignore"):
        guess = f32(float(x))
        if not np.isfinite(guess):
            return guess
        near = [guess, np.nextafter(guess, f32(-np.inf)), np.nextafter(guess, f32(np.inf))]
    return min(
        (v for v in near if np.isfinite(v)),
        key=lambda v: (abs(Fraction(float(v)) - x), int(v.view(np.uint32)) & 1),
    )


def quantize_one_row(row: list[np.float32], symmetric: bool) -> tuple[list[int], np.float32, int | None]:
    """numerics.md, in exact rational arithmetic with one rounding per step."""
    finite = [Fraction(float(v)) for v in row if np.isfinite(v)]
    if symmetric:
        span, steps = max([abs(v) for v in finite], default=Fraction(0)), 127
    else:
        lo, hi = min([*finite, Fraction(0)]), max([*finite, Fraction(0)])
        wide = exact_f32(hi - lo)
        span, steps = None if np.isinf(wide) else Fraction(float(wide)), 255
    scale = f32(0) if span is None else exact_f32(span / steps)
    degenerate = scale < np.finfo(f32).tiny
    if degenerate:
        scale, zero = f32(1), 0
    else:
        inv = Fraction(float(exact_f32(steps / span)))
        zero = 0
        if not symmetric:
            shifted = exact_f32(-128 - Fraction(float(exact_f32(lo * inv))))
            zero = min(max(half_even(Fraction(float(shifted))), -128), 127)
    low = -127 if symmetric else -128
    data = []
    for v in row:
        if np.isnan(v):
            q = zero
        elif np.isinf(v):
            q = 127 if v > 0 else low
        elif degenerate:
            q = 0
        else:
            q = half_even(Fraction(float(exact_f32(Fraction(float(v)) * inv)))) + zero
        data.append(min(max(q, low), 127))
    return data, scale, None if symmetric else zero


@cases(300)
@given(
    x=float_arrays(st.tuples(st.integers(1, 3), st.integers(0, 20)), layouts=["contiguous"]),
    symmetric=st.booleans(),
)
def test_quantize_rows_is_the_definition(x, symmetric):
    data, scale, zero_point = reference.quantize(x, symmetric=symmetric)
    for i, row in enumerate(cast(x, "float32")):
        expected, expected_scale, expected_zero = quantize_one_row(list(row), symmetric)
        assert data[i].tolist() == expected
        assert scale[i] == expected_scale
        assert (None if zero_point is None else zero_point[i]) == expected_zero


@cases(50)
@given(
    x=float_arrays(st.tuples(small_sizes, small_sizes)),
    symmetric=st.booleans(),
    seed=st.integers(-(2**63), 2**64 - 1),
)
def test_tensor_and_group_are_rows_of_another_view(x, symmetric, seed):
    for rounding in ("nearest", "stochastic"):
        by_row = {"symmetric": symmetric, "rounding": rounding, "seed": seed}
        data, scale, zero_point = reference.quantize(x, "tensor", **by_row)
        flat = reference.quantize(x.reshape(1, -1), **by_row)
        assert_same(data, flat[0].reshape(x.shape))
        assert_same(scale, flat[1].reshape(()))
        assert scale.dtype == np.float32
        assert (zero_point is None) == symmetric
        if x.shape[-1] % 4 == 0:
            data, scale, zero_point = reference.quantize(x, "group", 4, **by_row)
            groups = reference.quantize(x.reshape(-1, 4), **by_row)
            assert_same(data, groups[0].reshape(x.shape))
            assert_same(scale, groups[1].reshape(x.shape[0], x.shape[-1] // 4))


def test_quantize_by_hand():
    x = np.array([[0.5, 1.5, 2.5, -127.0, np.nan, np.inf, -np.inf, -0.0]], f32)
    data, scale, zero_point = reference.quantize(x)
    assert data.tolist() == [[0, 2, 2, -127, 0, 127, -127, 0]]
    assert scale.tolist() == [1.0]
    assert zero_point is None
    x = np.array([[0.0, 255.0, 100.5, np.nan, np.inf, -np.inf]], f32)
    data, scale, zero_point = reference.quantize(x, symmetric=False)
    assert data.tolist() == [[-128, 127, -28, -128, 127, -128]]
    assert (scale.tolist(), zero_point.tolist()) == ([1.0], [-128])
    x = np.array(
        [[-3e38, 3e38, 1.0, np.inf, np.nan]], f32
    )  # hi - lo is Inf: nothing finite can be told apart
    data, scale, zero_point = reference.quantize(x, symmetric=False)
    assert (data.tolist(), scale.tolist(), zero_point.tolist()) == ([[0, 0, 0, 127, 0]], [1.0], [0])
    data, scale, _ = reference.quantize(np.array([[127e-38 / 2, -1e-45]], f32))  # the scale is subnormal
    assert (data.tolist(), scale.tolist()) == ([[0, 0]], [1.0])


def test_a_given_scale_is_used_as_it_is():
    x = np.array([[1.0, -1.0, 0.26, 300.0]], f32)
    data, scale, zero_point = reference.quantize(x, scale=np.array([0.5], f32))
    assert (data.tolist(), scale.tolist(), zero_point) == ([[2, -2, 1, 127]], [0.5], None)
    data, _, zero_point = reference.quantize(
        x, "tensor", symmetric=False, scale=np.array(0.5, f32), zero_point=np.array(-100, np.int32)
    )
    assert (data.tolist(), zero_point.tolist()) == ([[-98, -102, -99, 127]], -100)


def philox(counter: int, key: int) -> list[int]:
    """Philox4x32-10 in Python integers."""
    c = [(counter >> 32 * i) & 0xFFFFFFFF for i in range(4)]
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k1, p0 & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def test_the_generator_is_philox():
    # The published known answers (Random123, kat_vectors) pin the Python one.
    assert philox(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox(2**128 - 1, 2**64 - 1) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    for seed in (0, 1, 2**32, 2**64 - 1, -1, -(2**63)):
        words = [w for counter in range(5) for w in philox(counter, seed % 2**64)]
        assert reference._uniform(seed, 18).tolist() == [(w >> 8) / 2**24 for w in words[:18]]


@cases(50)
@given(seed=st.integers(0, 2**64 - 1), v=st.floats(-126, 126, width=32))
def test_stochastic_rounding_is_one_of_the_neighbours(seed, v):
    x = np.full(64, v, f32)
    data, _, _ = reference.quantize(x, scale=np.array(1.0, f32), rounding="stochastic", seed=seed)
    assert set(data.tolist()) <= {math.floor(v), math.floor(v) + 1}
    u = reference._uniform(seed, 64)
    assert data.tolist() == np.floor(x + u).astype(int).tolist()


def test_stochastic_rounding_is_unbiased():
    x = np.full(100_000, 0.3, f32)
    data, _, _ = reference.quantize(x, scale=np.array(1.0, f32), rounding="stochastic", seed=7)
    assert abs(data.mean() - 0.3) < 0.01


@cases(100)
@given(
    data=int8_arrays((2, 9)),
    scale=scales(2),
    zero_point=st.lists(st.integers(-128, 127), min_size=2, max_size=2),
    dtype=st.sampled_from(FLOATS),
)
def test_dequantize_is_the_definition(data, scale, zero_point, dtype):
    zero_point = np.array(zero_point, np.int32)
    expected = [
        [exact_f32((int(q) - int(z)) * Fraction(float(s))) for q in row]
        for row, s, z in zip(data, scale, zero_point, strict=True)
    ]
    assert_same(reference.dequantize(data, scale, zero_point, dtype), cast(np.array(expected, f32), dtype))
    whole = reference.dequantize(data, scale[0], zero_point[0], dtype)
    assert_same(whole[0], reference.dequantize(data[0], scale[0], zero_point[0], dtype))
    groups = reference.dequantize(
        data, np.repeat(scale, 3).reshape(2, 3), np.repeat(zero_point, 3).reshape(2, 3), dtype
    )
    assert_same(groups, reference.dequantize(data, scale, zero_point, dtype))


@cases(60)
@given(st.data())
def test_int_mm_is_exact(data):
    m, n, k = data.draw(mnk())
    a = data.draw(int8_arrays((m, k), data.draw(st.sampled_from(["int8", "uint8"]))))
    b = data.draw(int8_arrays((k, n)))
    assert_same(reference.int_mm(a, b), (a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32))


def test_int_mm_is_exact_at_the_limit_of_k():
    k = 131_071
    a = np.full((1, k), -128, np.int8)
    assert reference.int_mm(a, a.T).item() == 128 * 128 * k
    k = 65_793
    assert reference.int_mm(np.full((1, k), 255, np.uint8), a[:, :k].T).item() == -255 * 128 * k


@cases(60)
@given(
    a=int8_arrays((3, 5)),
    weight=int8_arrays((4, 5)),
    a_scale=scales(3),
    weight_scale=scales(4),
    bias=float_arrays((4,)),
    zero_point=st.lists(st.integers(-128, 127), min_size=3, max_size=3),
)
def test_epilogue_is_the_definition(a, weight, a_scale, weight_scale, bias, zero_point):
    zero_point = np.array(zero_point, np.int32)
    acc = reference.scaled_int_mm(a, None, weight, None, a_zero_point=zero_point, out_dtype="int32")
    y = reference.scaled_int_mm(a, a_scale, weight, weight_scale, bias, zero_point)
    with np.errstate(all="ignore"):
        for i in range(3):
            for j in range(4):
                expected = sum((int(a[i, t]) - int(zero_point[i])) * int(weight[j, t]) for t in range(5))
                assert acc[i, j] == expected
                step = exact_f32(Fraction(expected)) * weight_scale[j] * a_scale[i] + cast(bias, "float32")[j]
                assert step.dtype == f32
                assert_same(np.array(y[i, j]), np.array(step))


def test_activations_by_hand():
    x = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3e38, -3e38], f32)
    relu = reference._activate(x, "relu")
    assert_same(relu, np.array([0, -0.0, 1, 0, np.inf, 0, np.nan, 1e-45, 0, 3e38, 0], f32))
    for name, at_one, at_minus_one in (
        ("gelu", 0.8413447460685429, -0.15865525393145707),
        ("gelu_tanh", 0.8411919906082768, -0.15880800939172324),
        ("silu", 0.7310585786300049, -0.2689414213699951),
    ):
        y = reference._activate(x, name)
        assert_same(y[:4], np.array([0.0, -0.0, at_one, at_minus_one], f32))
        assert_same(y[4:7], np.array([np.inf, -0.0, np.nan], f32))
        assert_same(y[9:], np.array([3e38, -0.0], f32))


@needs_torch
def test_activations_are_those_of_torch():
    import torch
    from torch.nn import functional

    x = np.linspace(-12, 12, 4001, dtype=f32)
    t = torch.from_numpy(x).double()
    for name, expected in (
        ("gelu", functional.gelu(t)),
        ("gelu_tanh", functional.gelu(t, approximate="tanh")),
        ("silu", functional.silu(t)),
    ):
        # torch's own 0.5 * (1 + erf) cancels in the far tail even in f64
        near = np.abs(x) < 5
        assert_close_ulp(reference._activate(x, name)[near], expected.float().numpy()[near], 1, name)


def test_packed_format_byte_by_byte():
    n, k = 66, 5
    weight = (np.arange(n * k) % 251 - 125).astype(np.int8).reshape(n, k)
    buffer = reference.pack_weight(weight)
    assert buffer.nbytes == 64 + 4 * 80 + 80 * 64
    assert bytes(buffer[:64]) == b"OCTV" + bytes([1, 0, 0, 0] + [0] * 8 + [66] + [0] * 7 + [5] + [0] * 39)
    colsum = buffer[64 : 64 + 320].view("<i4")
    assert colsum.tolist() == [int(row.astype(int).sum()) for row in weight] + [0] * 14
    panels = buffer[64 + 320 :].view(np.int8)
    seen = np.zeros(panels.shape, bool)
    for i in range(n):
        for j in range(k):
            at = ((i // 16) * (64 // 4) + j // 4) * 64 + (i % 16) * 4 + j % 4
            assert panels[at] == weight[i, j]
            seen[at] = True
    assert not panels[~seen].any()


def test_bitmask_format_byte_by_byte():
    weight = np.zeros((34, 130), np.int8)  # three panels, so two pairs, of 48 lines
    weight[0, 0], weight[0, 4], weight[15, 7], weight[16, 3] = -128, 2, 3, 4  # the first pair
    weight[33, 129] = 5  # the second, whose other panel is zeros
    buffer = reference.pack_weight(weight, "bitmask")
    offsets, masks = 64 + 4 * 48, 64 + 4 * 48 + 64
    kept = masks + 2 * 48 * 2 * 8
    assert buffer.nbytes == kept + 64 + 64
    header = b"OCTV" + bytes([1, 0, 0, 0, 1, 0, 0, 0, *[0] * 4, 34, *[0] * 7, 130, *[0] * 7, 5, *[0] * 31])
    assert bytes(buffer[:64]) == header
    sums = {0: -126, 15: 3, 16: 4, 33: 5}
    assert buffer[64:offsets].view("<i4").tolist() == [sums.get(column, 0) for column in range(48)]
    assert buffer[offsets:masks].view("<i8").tolist() == [0, 4, 5, *[0] * 5]
    # pair, line of 4 terms, panel of the pair: bit 4 * (column % 16) + k % 4
    expected = {(0, 0, 0): 1 << 0, (0, 0, 1): 1 << 3, (0, 1, 0): 1 << 0 | 1 << 63, (1, 32, 0): 1 << 5}
    for (pair, line, panel), mask in expected.items():
        at = masks + ((pair * 48 + line) * 2 + panel) * 8
        assert bytes(buffer[at : at + 8]) == mask.to_bytes(8, "little"), (pair, line, panel)
    assert np.count_nonzero(buffer[masks:kept]) == 5
    assert buffer[kept:].view(np.int8).tolist() == [-128, 4, 2, 3, 5, *[0] * 123]


def test_block_format_byte_by_byte():
    weight = np.zeros((18, 200), np.int8)  # 8 rows of tiles, of which the last three have no columns
    weight[5, 33], weight[7, 32], weight[4, 199], weight[17, 16] = -128, 2, 3, 4
    buffer = reference.pack_weight(weight, "block")
    offsets = 64 + 4 * 32
    index = offsets + 128
    tiles = index + 64
    assert buffer.nbytes == tiles + 3 * 64
    header = b"OCTV" + bytes([1, 0, 0, 0, 2, 0, 0, 0, *[0] * 4, 18, *[0] * 7, 200, *[0] * 7, 3, *[0] * 31])
    assert bytes(buffer[:64]) == header
    sums = {5: -128, 7: 2, 4: 3, 17: 4}
    assert buffer[64:offsets].view("<i4").tolist() == [sums.get(column, 0) for column in range(32)]
    assert buffer[offsets:index].view("<i8").tolist() == [0, 0, 2, 2, 2, 3, 3, 3, 3, *[0] * 7]
    assert buffer[index:tiles].view("<u2").tolist() == [2, 12, 1, *[0] * 29]
    # tile, column % 4 * 16 + k % 16
    values = {(0, 1 * 16 + 1): -128, (0, 3 * 16): 2, (1, 0 * 16 + 7): 3, (2, 1 * 16): 4}
    expected = [values.get((tile, i), 0) for tile in range(3) for i in range(64)]
    assert buffer[tiles:].view(np.int8).tolist() == expected


@cases(80)
@given(st.data())
def test_unpack_gives_back_what_was_packed(data):
    _, n, k = data.draw(mnk())
    weight = data.draw(int8_arrays((n, k)))
    for layout in ("dense", "bitmask", "block"):
        buffer = reference.pack_weight(weight, layout)
        assert_same(reference.unpack_weight(buffer, n, k, layout), np.ascontiguousarray(weight), layout)


# ---- pruning ----


def key(v) -> tuple[int, float]:
    m = abs(float(f32(v)))
    return (1, 0.0) if math.isnan(m) else (0, m)


@cases(100)
@given(
    ws=st.lists(float_arrays(shapes(max_elements=300)), min_size=1, max_size=3),
    sparsity=st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)),
)
def test_sparsity_prunes_the_k_smallest_lowest_index_first(ws, sparsity):
    masks = reference.prune_masks(ws, sparsity=sparsity)
    with np.errstate(all="ignore"):
        keys = [key(v) for w in ws for v in w.reshape(-1)]
    k = half_even(Fraction(sparsity * len(keys)))
    pruned = set(sorted(range(len(keys)), key=lambda i: (keys[i], i))[:k])
    kept = np.concatenate([mask.reshape(-1) for mask in masks])
    assert kept.tolist() == [i not in pruned for i in range(len(keys))]
    t = reference.magnitude_threshold(ws, sparsity)
    expected = sorted(keys)[k - 1] if k else (0, 0.0)
    assert math.isnan(t) if expected[0] else t == expected[1]


@cases(100)
@given(w=float_arrays(), t=st.one_of(st.sampled_from([0.0, -0.0, -1e-300, 1.0, math.inf]), st.floats(-1, 5)))
def test_threshold_and_ratio_are_the_definition(w, t):
    (mask,) = reference.prune_masks([w], threshold=t)
    mags = np.abs(cast(w, "float32"))
    with np.errstate(all="ignore"):
        expected = [math.isnan(v) or t < 0 or v > f32(t) for v in mags.reshape(-1)]
    assert mask.reshape(-1).tolist() == expected
    (by_ratio,) = reference.prune_masks([w], ratio=abs(t) if math.isfinite(t) else 0.5)
    top = max([v for v in mags.reshape(-1) if np.isfinite(v)], default=f32(0))
    with np.errstate(all="ignore"):
        limit = f32(abs(t) if math.isfinite(t) else 0.5) * top
    assert by_ratio.reshape(-1).tolist() == [math.isnan(v) or v > limit for v in mags.reshape(-1)]


@cases(100)
@given(st.data())
def test_n_of_m_keeps_the_n_largest(data):
    m = data.draw(st.integers(2, 8))
    n = data.draw(st.integers(1, m - 1))
    w = data.draw(float_arrays((3, m * data.draw(st.integers(0, 4)))))
    (mask,) = reference.prune_masks([w], pattern=f"{n}:{m}")
    with np.errstate(all="ignore"):
        for row, kept in zip(w.reshape(-1, m), mask.reshape(-1, m), strict=True):
            best = sorted(range(m), key=lambda i: ([-v for v in key(row[i])], i))[:n]
            assert kept.tolist() == [i in best for i in range(m)]


@cases(60)
@given(st.data())
def test_unit_scores_are_the_definition(data):
    r, c = data.draw(st.sampled_from([(1, 1), (4, 16), (2, 3), (1, 9), (5, 2)]))
    rows, cols = r * data.draw(st.integers(0, 3)), c * data.draw(st.integers(0, 3))
    w = data.draw(float_arrays((rows, cols), flavours=("normal", "wide", "ties", "tiny")))
    scores = reference._unit_scores(w, r, c)
    expected = []
    with np.errstate(all="ignore"):
        for i in range(0, rows, r):
            for j in range(0, cols, c):
                s = [0.0] * 8
                for t in range(r * c):
                    s[t % 8] += abs(float(f32(w[i + t // c, j + t % c])))
                expected.append(((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])))
    assert scores.tolist() == expected or (np.isnan(scores) == np.isnan(expected)).all()


def test_patterns_by_hand():
    w = np.array([[1, 1, 1, 1], [0, 0, 9, 9], [2, 2, 0, 0], [3, 0, 0, 0]], f32)
    rows = reference.prune_masks([w], sparsity=0.5, pattern="row")[
        0
    ]  # scores 4, 18, 4, 3: the first 4 goes with the 3
    assert rows.all(axis=1).tolist() == [False, True, True, False]
    columns = reference.prune_masks([w], threshold=6, pattern="column")[0]  # scores 6, 3, 10, 10
    assert columns.all(axis=0).tolist() == [False, False, True, True]
    blocks = reference.prune_masks([w], ratio=0.25, pattern="block2x2")[0]  # scores 2, 20, 7, 0 against 5
    assert blocks[::2, ::2].tolist() == [[False, True], [True, False]]
    everywhere = reference.prune_masks([w, -10 * w], sparsity=0.5, pattern="row")
    assert [m.any(axis=1).tolist() for m in everywhere] == [[False, False, False, False], [True] * 4]
    cube = np.arange(24, dtype=f32).reshape(2, 3, 4)
    assert reference.prune_masks([cube], sparsity=0.5, pattern="row")[0].sum(axis=-1).tolist() == [
        [0, 0, 0],
        [4, 4, 4],
    ]
    assert reference.prune_masks([cube[0, 0]], sparsity=0.5, pattern="column")[0].tolist() == [
        False,
        False,
        True,
        True,
    ]
    nan = np.array([[np.nan, 0], [np.inf, 0], [1, 0]], f32)
    assert reference.prune_masks([nan], sparsity=2 / 3, pattern="row")[0][:, 0].tolist() == [
        True,
        False,
        False,
    ]
    assert reference.prune_masks([nan], ratio=1.0, pattern="row")[0][:, 0].tolist() == [True, True, False]


@needs_torch
def test_sparsity_counts_as_torch_does():
    import torch
    from torch.nn.utils import prune

    rng = np.random.default_rng(3)
    for n in (1, 2, 3, 7, 10, 101):
        for amount in (0.05, 0.25, 0.5, 0.75, 0.95):
            w = rng.permutation(n).astype(f32) + 1
            layer = torch.nn.Linear(n, 1, bias=False)
            layer.weight.data[:] = torch.from_numpy(w)
            prune.l1_unstructured(layer, "weight", amount)
            expected = layer.weight_mask.numpy().astype(bool)[0]
            assert_same(reference.prune_masks([w], sparsity=amount)[0], expected)


def test_pruned_elements_are_positive_zero():
    w = np.array([-1.0, -0.0, np.nan, 2.0], f32)
    for dtype in FLOATS:
        v = cast(w, dtype)
        pruned = reference.apply_mask(v, np.array([False, False, False, True]))
        assert_same(pruned, np.array([0.0, 0.0, 0.0, 2.0]).astype(dtype_of(dtype)))


# ---- the torch reference ----


@needs_torch
@cases(100)
@given(
    x=float_arrays(),
    symmetric=st.booleans(),
    seed=st.integers(-(2**63), 2**64 - 1),
    given_scale=st.booleans(),
)
def test_torch_reference_quantizes_to_the_same_bits(x, symmetric, seed, given_scale):
    from octavo.reference import torch as torch_reference

    t = to_torch(x)
    group = max(1, x.shape[-1] // 2) if x.shape[-1] % 2 == 0 else 1
    for granularity in ("row", "tensor", "group"):
        for rounding in ("nearest", "stochastic"):
            args = {"symmetric": symmetric, "rounding": rounding, "seed": seed}
            expected = reference.quantize(x, granularity, group, **args)
            if given_scale:
                fixed = {"scale": expected[1] * f32(0.7), "zero_point": expected[2]}
                expected = reference.quantize(x, granularity, group, **args, **fixed)
                args |= {k: None if v is None else to_torch(np.asarray(v)) for k, v in fixed.items()}
            actual = torch_reference.quantize(t, granularity, group, **args)
            for got, want in zip(actual, expected, strict=True):
                assert_same(got, want, f"{granularity} {rounding}")
    data, scale, zero_point = expected
    for dtype in FLOATS:
        actual = torch_reference.dequantize(*(None if v is None else to_torch(v) for v in expected), dtype)
        assert_same(actual, reference.dequantize(data, scale, zero_point, dtype), dtype)


@needs_torch
@cases(60)
@given(st.data())
def test_torch_reference_multiplies_to_the_same_bits(data):
    from octavo.reference import torch as torch_reference

    m, n, k = data.draw(mnk())
    x = data.draw(float_arrays((m, k)))
    weight, weight_scale = data.draw(int8_arrays((n, k))), data.draw(scales(n))
    bias = data.draw(st.none() | float_arrays((n,), layouts=["contiguous"]))
    out_dtype = data.draw(st.sampled_from(["float32", "float16", "bfloat16"]))
    tensors = [None if v is None else to_torch(v) for v in (x, weight, weight_scale, bias)]
    for activation in ACTIVATIONS:
        pre = reference.int8_linear(x, weight, weight_scale, bias, None)
        actual = torch_reference.int8_linear(*tensors, activation, out_dtype)
        if activation in (None, "relu"):
            assert_same(actual, reference.int8_linear(x, weight, weight_scale, bias, activation, out_dtype))
        else:
            assert_close_ulp(actual, reference._activate(pre, activation), 1, activation)
    for layout in ("dense", "bitmask", "block"):
        packed = torch_reference.pack_weight(tensors[1], layout)
        assert_same(packed, reference.pack_weight(weight, layout), layout)
        unpacked = torch_reference.unpack_weight(packed, n, k, layout)
        assert_same(unpacked, np.ascontiguousarray(weight), layout)


@needs_torch
@cases(60)
@given(
    ws=st.lists(
        float_arrays(st.sampled_from([(8, 16), (4, 32), (3, 8, 32), (0, 16), (16,)])), min_size=1, max_size=3
    ),
    amount=st.floats(0, 1),
    pattern=st.sampled_from(["unstructured", "row", "column", "block1x4", "block1x16"]),
)
def test_torch_reference_prunes_the_same(ws, amount, pattern):
    from octavo.reference import torch as torch_reference

    tensors = [to_torch(w) for w in ws]
    wanted = [{how: amount, "pattern": pattern} for how in ("threshold", "ratio", "sparsity")]
    for args in (*wanted, {"pattern": "2:4"}):
        expected = reference.prune_masks(ws, **args)
        for got, want in zip(torch_reference.prune_masks(tensors, **args), expected, strict=True):
            assert_same(got, want, str(args))
    assert_same(
        torch_reference.magnitude_threshold(tensors, amount), reference.magnitude_threshold(ws, amount)
    )


@pytest.mark.parametrize("layout", ["reversed", "strided", "transposed", "unaligned", "repeated rows"])
def test_layout_does_not_matter(layout):
    x = lay_out(cast(np.random.default_rng(0).choice(SPECIAL, (6, 12)), "float32"), layout)
    plain = np.array(x, order="C")
    for got, want in zip(
        reference.quantize(x, symmetric=False), reference.quantize(plain, symmetric=False), strict=True
    ):
        assert_same(got, want)
    assert_same(reference.prune_masks([x], sparsity=0.5)[0], reference.prune_masks([plain], sparsity=0.5)[0])
