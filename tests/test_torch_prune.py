"""The methods for torch.nn.utils.prune and prune_model_: their masks, what training does to them, errors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import octavo
from octavo.reference import numpy as reference
from strategies import assert_same, cases, float_arrays, shapes, to_numpy, to_torch

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

from octavo.nn import (  # noqa: E402
    L1SemiStructured,
    L1Structured,
    L1Unstructured,
    RatioUnstructured,
    ThresholdUnstructured,
    l1_unstructured,
)

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
quiet_cuda = pytest.mark.filterwarnings("ignore:octavo. .* run on the torch reference:RuntimeWarning")
FINITE = ("normal", "ties", "zeros", "tiny", "wide")  # mask * weight is NaN where torch prunes Inf and NaN
BLOCKS = [(f"block{r}x{c}", r, c) for r, c in ((1, 1), (1, 16), (4, 16), (2, 3))]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Holder(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.ones(3))

    def forward(self):
        return self.weight


def model():
    return nn.Sequential(nn.Linear(40, 64), nn.GELU(), nn.Linear(64, 24, bias=False), nn.LayerNorm(24)).eval()


def mask_of(module):
    return to_numpy(module.weight_mask).astype(np.float32) != 0


def k_of(amount, n):
    return amount if isinstance(amount, int) else round(amount * n)


def sparsity_of(amount, n):
    return k_of(amount, n) / max(n, 1)


# ---- masks of the methods against the definition ----


@st.composite
def amounts(draw, n):
    """A share or a number of at most n."""
    if draw(st.booleans()):
        return draw(st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)))
    return draw(st.integers(0, n))


@st.composite
def weights(draw, shape=None, flavours=None):
    more = {} if flavours is None else {"flavours": flavours}
    return draw(float_arrays(draw(shapes(max_elements=3000)) if shape is None else shape, **more))


@cases(200)
@given(data=st.data(), w=weights())
def test_l1_unstructured_is_the_definition(data, w):
    amount = data.draw(amounts(w.size))
    (expected,) = reference.prune_masks([w], sparsity=sparsity_of(amount, w.size))
    holder = Holder(to_torch(w))
    method = L1Unstructured.apply(holder, "weight", amount)
    assert isinstance(method, L1Unstructured)
    assert_same(mask_of(holder), expected)
    assert np.count_nonzero(~expected) == k_of(amount, w.size)
    assert holder.weight_mask.dtype == holder.weight_orig.dtype
    assert holder.weight_mask.is_contiguous()


@cases(150)
@given(
    w=weights(),
    limit=st.one_of(st.sampled_from([0.0, 0.5, 1.0, -1.0, float("inf")]), st.floats(0, 3)),
    ratio=st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 2)),
)
def test_threshold_and_ratio_are_the_definition(w, limit, ratio):
    holder = Holder(to_torch(w))
    ThresholdUnstructured.apply(holder, "weight", limit)
    assert_same(mask_of(holder), reference.prune_masks([w], threshold=limit)[0])
    holder = Holder(to_torch(w))
    RatioUnstructured.apply(holder, "weight", ratio)
    assert_same(mask_of(holder), reference.prune_masks([w], ratio=ratio)[0])


@st.composite
def grouped(draw):
    """A weight, an n:m that fits it, and a mask of what was pruned before."""
    m = draw(st.sampled_from([2, 3, 4, 8]))
    n = draw(st.sampled_from([1, m // 2, m - 1]))
    lead = draw(st.sampled_from([(), (3,), (2, 5)]))
    w = draw(weights((*lead, m * draw(st.integers(0, 9)))))
    before = np.random.default_rng(draw(st.integers(0, 99))).random(w.shape) < draw(st.floats(0.3, 1))
    return w, f"{n}:{m}", before


@cases(150)
@given(grouped())
def test_n_m_is_the_definition_of_what_is_left(case):
    w, pattern, before = case
    method = L1SemiStructured(pattern)
    mask = method.compute_mask(to_torch(w), torch.from_numpy(before).float())
    left = reference.apply_mask(w, before)
    assert_same(to_numpy(mask) != 0, reference.prune_masks([left], pattern=pattern)[0] & before)
    holder = Holder(to_torch(w))
    L1SemiStructured.apply(holder, "weight", pattern)
    assert_same(mask_of(holder), reference.prune_masks([w], pattern=pattern)[0])


@st.composite
def in_units(draw):
    """A weight, a pattern that fits it, a mask of what was pruned before (units and weights), unit, grid."""
    pattern, r, c = draw(st.sampled_from([("row", 1, 1), ("column", 1, 1), *BLOCKS]))
    shape = (r * draw(st.integers(0, 7)), c * draw(st.integers(0, 7)))
    w = draw(weights(shape))
    r, c = reference.unit_shape(shape, pattern)
    grid = (shape[0] // r if r else 0, shape[1] // c if c else 0)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    units = rng.random(grid) < draw(st.sampled_from([0.5, 1.0]))
    before = np.repeat(np.repeat(units, r, axis=0), c, axis=1).reshape(shape)
    return w, pattern, before & (rng.random(shape) < draw(st.sampled_from([0.7, 1.0]))), (r, c), grid


@cases(200)
@given(st.data(), in_units())
def test_units_are_the_definition_of_what_is_left(data, case):
    w, pattern, before, (r, c), grid = case
    live = before.reshape(grid[0], r, grid[1], c).any(axis=(1, 3)) if w.size else np.zeros(grid, bool)
    amount = data.draw(amounts(int(live.sum())))
    mask = L1Structured(amount, pattern).compute_mask(to_torch(w), torch.from_numpy(before).float())

    with np.errstate(all="ignore"):
        scores = reference._unit_scores(reference.apply_mask(w, before), r, c) if w.size else np.zeros(0)
    order = [i for i in np.argsort(scores, kind="stable") if live.reshape(-1)[i]]
    keep = live.reshape(-1).copy()
    keep[order[: k_of(amount, int(live.sum()))]] = False
    spread = np.repeat(np.repeat(keep.reshape(grid), r, axis=0), c, axis=1).reshape(w.shape)
    assert_same(to_numpy(mask) != 0, spread & before)

    if live.all() and before.all():
        share = sparsity_of(amount, live.size)
        assert_same(to_numpy(mask) != 0, reference.prune_masks([w], sparsity=share, pattern=pattern)[0])


@cases(100)
@given(data=st.data(), w=weights(flavours=FINITE))
def test_a_second_amount_counts_what_the_first_has_left(data, w):
    first, second = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))
    holder = Holder(to_torch(w))
    L1Unstructured.apply(holder, "weight", amount=first)
    assert isinstance(L1Unstructured.apply(holder, "weight", amount=second), prune.PruningContainer)
    (expected,) = reference.prune_masks([w], sparsity=first)
    left = w[expected]
    expected[expected] = reference.prune_masks([left], sparsity=sparsity_of(second, left.size))[0]
    assert_same(mask_of(holder), expected)
    left = int(expected.sum())
    with pytest.raises(ValueError, match=f"amount: expected at most {left}, the elements that are left"):
        L1Unstructured.apply(holder, "weight", amount=left + 1)


# ---- against torch's own, where there are no ties ----


def twins():
    torch.manual_seed(1)
    one = model()
    return one, copy.deepcopy(one)


def same_masks(a, b):
    for one, other in zip(a.modules(), b.modules(), strict=True):
        assert [name for name, _ in one.named_buffers(recurse=False)] == [
            name for name, _ in other.named_buffers(recurse=False)
        ]
        for (_, x), (_, y) in zip(
            one.named_buffers(recurse=False), other.named_buffers(recurse=False), strict=True
        ):
            assert x.dtype == y.dtype
            assert torch.equal(x, y)


@pytest.mark.parametrize("amount", [0.0, 0.3, 1.0, 0, 17, np.float64(0.25), np.int64(9)])
def test_l1_unstructured_takes_the_place_of_torchs(amount):
    a, b = twins()
    scores = torch.rand(24, 64)
    for m, method, function in (
        (a, prune.L1Unstructured, prune.l1_unstructured),
        (b, L1Unstructured, l1_unstructured),
    ):
        method.apply(m[0], "weight", amount)
        method.apply(m[0], name="bias", amount=0.5)
        assert function(m[2], "weight", amount=amount, importance_scores=scores) is m[2]
        method.apply(m[2], "weight", 0.5, scores)
        prune.random_unstructured(m[0], "bias", 0)
        prune.ln_structured(m[0], "weight", amount=0.25, n=2, dim=0)
        if amount != 1.0:
            method.apply(m[0], "weight", amount=40)
        assert prune.is_pruned(m)
    same_masks(a, b)
    assert torch.equal(a(torch.ones(2, 40)), b(torch.ones(2, 40)))


def test_global_pruning_takes_the_class():
    a, b = twins()
    scores = torch.rand(24, 64)
    for m, method in ((a, prune.L1Unstructured), (b, L1Unstructured)):
        parameters = [(m[0], "weight"), (m[2], "weight"), (m[0], "bias")]
        prune.global_unstructured(parameters, pruning_method=method, amount=0.4)
        prune.global_unstructured(parameters, method, {parameters[1]: scores}, amount=100)
    same_masks(a, b)
    before = [m.weight.detach().clone() for m in (b[0], b[2])]
    prune.global_unstructured([(b[0], "weight"), (b[2], "weight")], RatioUnstructured, ratio=0.7)
    for m, mask in zip((b[0], b[2]), octavo.prune_mask(before, ratio=0.7), strict=True):
        assert torch.equal(m.weight_mask != 0, mask)
    with pytest.raises(TypeError, match='Only "unstructured"'):
        prune.global_unstructured([(b[0], "weight")], L1SemiStructured)


def test_ties_go_lowest_index_first():
    method = L1Unstructured(4)
    mask = method.compute_mask(torch.ones(3, 4), torch.ones(3, 4))
    assert torch.equal(mask, torch.tensor([[0.0] * 4, [1.0] * 4, [1.0] * 4]))
    assert torch.equal(method.prune(torch.ones(8)), torch.tensor([0.0] * 4 + [1.0] * 4))


def test_kinds_combine_on_one_weight():
    holder = Holder(torch.randn(32, 64))
    L1Unstructured.apply(holder, "weight", amount=0.3)
    first = holder.weight_mask.clone()
    L1SemiStructured.apply(holder, "weight", "2:4")
    second = holder.weight_mask.clone()
    container = L1Structured.apply(holder, "weight", amount=0.5, pattern="block4x16")
    third = holder.weight_mask.clone()
    assert [type(each) for each in container] == [L1Unstructured, L1SemiStructured, L1Structured]
    assert first.mean() == pytest.approx(0.7, abs=1e-3)
    assert second.reshape(-1, 4).sum(1).max() == 2
    blocks = third.reshape(8, 4, 4, 16).sum((1, 3))
    assert int((blocks == 0).sum()) == 16
    for before, after in ((first, second), (second, third)):
        assert not after[before == 0].any()
    prune.ln_structured(holder, "weight", amount=2, n=1, dim=0)
    ThresholdUnstructured.apply(holder, "weight", 10.0)
    assert not holder.weight.any()
    L1Structured.apply(holder, "weight", amount=0, pattern="row")
    with pytest.raises(ValueError, match="amount: expected at most 0, the units that are left, got 1"):
        L1Structured.apply(holder, "weight", amount=1, pattern="row")


def test_amount_of_units_counts_those_that_are_left():
    holder = Holder(torch.arange(1.0, 33.0).reshape(8, 4))
    L1Structured.apply(holder, "weight", amount=2, pattern="row")
    L1Structured.apply(holder, "weight", amount=0.5, pattern="row")
    assert torch.equal(holder.weight_mask.any(1), torch.tensor([False] * 5 + [True] * 3))


@cuda
@quiet_cuda
def test_masks_on_cuda_are_those_on_the_cpu():
    w = torch.randn(32, 64)
    for apply in (
        lambda m: L1Unstructured.apply(m, "weight", 0.3),
        lambda m: L1SemiStructured.apply(m, "weight", "2:4"),
        lambda m: L1Structured.apply(m, "weight", 0.5, "block4x16"),
    ):
        here, there = Holder(w), Holder(w.cuda())
        apply(here)
        apply(there)
        assert there.weight_mask.is_cuda
        assert torch.equal(there.weight_mask.cpu(), here.weight_mask)


# ---- errors of the methods ----


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: L1Unstructured("half"), TypeError, "amount: expected an int or a float, got str"),
        (lambda: L1Unstructured(True), TypeError, "amount: expected an int or a float, got bool"),
        (lambda: L1Unstructured(1.5), ValueError, r"amount: expected a float in \[0, 1\] or an int >= 0"),
        (lambda: L1Unstructured(float("nan")), ValueError, "amount: expected a float .* got nan"),
        (lambda: L1Unstructured(-1), ValueError, "amount: .* got -1"),
        (lambda: L1Structured(-0.5, "row"), ValueError, "amount: .* got -0.5"),
        (lambda: L1Structured(0.5, "2:4"), ValueError, "pattern: expected 'row', 'column' or .* got '2:4'"),
        (lambda: L1Structured(0.5, "block0x4"), ValueError, "pattern: expected .* got 'block0x4'"),
        (lambda: L1SemiStructured("row"), ValueError, "pattern: expected 'n:m', such as '2:4', got 'row'"),
        (lambda: L1SemiStructured("4:4"), ValueError, "pattern: expected .*1 <= n < m <= 32.* got '4:4'"),
        (lambda: L1SemiStructured(2), ValueError, "pattern: expected 'n:m', such as '2:4', got 2"),
        (lambda: ThresholdUnstructured(float("nan")), ValueError, "threshold: expected a number, got nan"),
        (lambda: RatioUnstructured(-1), ValueError, "ratio: expected a finite float32 >= 0, got -1"),
        (lambda: RatioUnstructured(None), TypeError, "ratio: expected a number, got NoneType"),
        (lambda: ThresholdUnstructured(None), TypeError, "threshold: expected a number, got NoneType"),
    ],
)
def test_errors_of_the_methods(make, error, match):
    with pytest.raises(error, match=match):
        make()


BAD_CALLS = [
    (lambda m: L1Unstructured.apply(m, "weight", amount=13), "amount: expected at most 12, the elements"),
    (lambda m: L1Unstructured.apply(m, "weight", amount=2.0), "amount: expected a float"),
    (
        lambda m: L1Unstructured.apply(m, "weights", amount=1),
        "name: expected a parameter of Holder, .* got 'w",
    ),
    (lambda m: L1SemiStructured.apply(m, "weight", "2:8"), "weight: expected a last axis divisible by 8"),
    (lambda m: L1Structured.apply(m, "weight", 1, "block2x2"), "weight: expected a 2-D view of whole 2 x 2"),
    (lambda m: L1Structured.apply(m, "weight", 4, "row"), "amount: expected at most 3, the units"),
    (lambda m: ThresholdUnstructured.apply(m, "weight", "x"), "threshold: expected a number, got str"),
    (
        lambda m: L1Unstructured.apply(m, "weight", 1, torch.ones(4, 3)),
        r"importance_scores: expected shape \(3, 4\) like weight, got \(4, 3\)",
    ),
    (lambda m: L1Unstructured.apply(m, "weight", 1, torch.ones(3, 4).int()), "importance_scores: .* int32"),
    (
        lambda m: L1Unstructured.apply(m, "weight", 1, np.ones((3, 4))),
        "importance_scores: expected torch",
    ),
    (lambda m: L1Unstructured.apply(m, "weight", 1, torch.ones(3, 4, device="meta")), "importance_.* device"),
]


@pytest.mark.parametrize("pruned", [0, 1, 2])
@pytest.mark.parametrize(("call", "match"), BAD_CALLS)
def test_an_error_leaves_the_module_as_it_was(call, match, pruned):
    holder = Holder(torch.randn(3, 4))
    for _ in range(pruned):
        L1Unstructured.apply(holder, "weight", amount=0)
    parameters, buffers = dict(holder.named_parameters()), dict(holder.named_buffers())
    hooks = list(holder._forward_pre_hooks.items())
    with pytest.raises((TypeError, ValueError), match=match):
        call(holder)
    assert list(holder._parameters) == list(parameters)
    assert all(holder._parameters[name] is each for name, each in parameters.items())
    assert all(holder._buffers[name] is each for name, each in buffers.items())
    assert list(holder._forward_pre_hooks.items()) == hooks
    if pruned == 2:
        assert len(hooks[0][1]) == 2
    assert torch.equal(holder(), holder.weight)
    L1Unstructured.apply(holder, "weight", amount=1)  # goes on as before
    assert holder.weight_mask.sum() == 11


def test_errors_of_calls():
    with pytest.raises(TypeError, match=r"module: expected a torch.nn.Module, got Tensor"):
        L1Unstructured.apply(torch.ones(3), "weight", amount=1)
    with pytest.raises(ValueError, match=r"default_mask: expected shape \(3,\) like t, got \(4,\)"):
        L1Unstructured(1).compute_mask(torch.ones(3), torch.ones(4))
    with pytest.raises(TypeError, match="t: expected dtype float32"):
        L1Unstructured(1).compute_mask(torch.ones(3).int(), torch.ones(3))
    counts = nn.Module()
    counts.register_parameter("n", nn.Parameter(torch.ones(2, dtype=torch.int32), requires_grad=False))
    with pytest.raises(TypeError, match=r"n: expected dtype float32, .* got int32"):
        L1Unstructured.apply(counts, "n", amount=1)
    linear = nn.Linear(3, 3, bias=False)
    with pytest.raises(ValueError, match=r"name: expected a parameter of Linear, \('weight',\), got 'bias'"):
        L1Unstructured.apply(linear, "bias", amount=1)
