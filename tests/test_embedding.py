"""int8_embedding, bags and their modules: every ISA and thread count against the references, bit for bit."""

from __future__ import annotations

import copy
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
    assert_same,
    cases,
    float_arrays,
    int8_arrays,
    isas,
    needs_torch,
    on_every_isa,
    poisoned,
    running,
    scales,
    to_torch,
)

try:
    import torch

    import octavo.torch_ops
except ImportError:
    torch = None

f32 = np.float32
MODES = ("sum", "mean", "max")
dims = st.sampled_from([0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100])


@st.composite
def tables(draw):
    entries, dim = draw(st.sampled_from([1, 2, 17, 300])), draw(dims)
    scale = draw(scales(entries))
    return draw(int8_arrays((entries, dim))), scale.reshape(draw(st.sampled_from([(entries,), (entries, 1)])))


@st.composite
def lookups(draw):
    table = draw(tables())
    shape = draw(st.sampled_from([(), (0,), (1,), (7,), (3, 5), (40,), (2, 1, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    indices = rng.integers(0, len(table[0]), shape).astype(draw(st.sampled_from(["int32", "int64"])))
    return (np.asarray(indices), *table)


@st.composite
def bags(draw):
    """The arguments of int8_embedding_bag, and what is named."""
    weight, scale = draw(tables())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["int32", "int64"]))
    named = {"mode": draw(st.sampled_from(MODES)), "out_dtype": draw(st.sampled_from(FLOATS))}
    if draw(st.booleans()):
        shape = draw(st.sampled_from([(0, 3), (3, 0), (1, 1), (4, 9), (70, 5)]))
        offsets = None
    else:
        lengths = rng.integers(0, 6, draw(st.sampled_from([0, 1, 5, 70])))
        total = int(lengths.sum()) + (draw(st.sampled_from([0, 2])) if lengths.size else 0)
        shape, ends = (total,), np.concatenate([[0], np.cumsum(lengths)])
        named["include_last_offset"] = draw(st.booleans())
        offsets = ends if named["include_last_offset"] else ends[:-1]
        offsets = offsets.astype(draw(st.sampled_from(["int32", "int64"])))
    indices = rng.integers(0, len(weight), shape).astype(kind)
    if draw(st.booleans()):
        named["padding_idx"] = draw(st.sampled_from([0, -1, len(weight) // 2]))
    if named["mode"] == "sum" and draw(st.booleans()):
        named["per_sample_weights"] = draw(
            float_arrays(indices.shape, flavours=("normal", "special", "huge"))
        )
    return (indices, weight, scale, offsets), named


def expected_bag(
    arguments, mode, out_dtype, include_last_offset=False, padding_idx=None, per_sample_weights=None
):
    indices, weight, scale, offsets = arguments
    if offsets is None:
        ends = np.arange(1, indices.shape[0] + 1) * indices.shape[1]
    else:
        ends = offsets[1:] if include_last_offset else np.append(offsets[1:], len(indices))[: len(offsets)]
    samples = None if per_sample_weights is None else reference._f32(per_sample_weights).reshape(-1)
    padding = -1 if padding_idx is None else padding_idx % len(weight)
    return reference.int8_embedding_bag(
        indices.reshape(-1), ends, weight, scale.reshape(-1), samples, padding, mode, out_dtype
    )


# ---- the definition ----


def test_by_hand():
    weight = np.array([[1, -2], [100, 127], [-128, 0]], np.int8)
    scale = np.array([0.5, 0.01, 2], f32)
    rows = octavo.int8_embedding(np.array([[2, 0]]), weight, scale)
    assert rows.tolist() == [[[-256, 0], [0.5, -1]]]
    indices = np.array([0, 1, 1, 2])
    for mode, want in {
        "sum": [[0.5 + 1, -1 + 1.27], [0, 0], [1 - 256, 1.27]],
        "mean": [[0.75, 0.135], [0, 0], [-127.5, 0.635]],
        "max": [[1, 1.27], [0, 0], [1, 1.27]],
    }.items():
        y = octavo.int8_embedding_bag(indices, weight, scale, np.array([0, 2, 2]), mode=mode)
        np.testing.assert_allclose(y, want, rtol=1e-6)
    sums = octavo.int8_embedding_bag(
        indices[None], weight, scale, mode="sum", per_sample_weights=np.array([[1, 2, 3, 4]], f32)
    )
    np.testing.assert_allclose(sums, [[0.5 + 2 + 3 - 1024, -1 + 5 * 1.27]], rtol=1e-6)
    absent = octavo.int8_embedding_bag(indices[None], weight, scale, mode="mean", padding_idx=-2)
    np.testing.assert_allclose(absent, [[(0.5 - 256) / 2, -0.5]], rtol=1e-6)


def test_sums_are_in_the_order_of_the_indices():
    weight, scale = np.array([[1], [1], [-1]], np.int8), np.array([1, 1e8, 1e8], f32)
    for indices, want in (([0, 1, 2], 0), ([1, 2, 0], 1)):
        for label, y in on_every_isa(
            lambda indices=indices: octavo.int8_embedding_bag(np.array([indices]), weight, scale, mode="sum")
        ):
            assert y.item() == want, label


@needs_torch
@pytest.mark.parametrize("mode", MODES)
def test_bags_are_those_of_torch(mode):
    """On values that float32 sums exactly."""
    rng = np.random.default_rng(0)
    q = torch.from_numpy(rng.integers(-128, 128, (50, 24)).astype(np.int8))
    indices = torch.from_numpy(rng.integers(0, 50, 30))
    offsets = torch.tensor([0, 0, 4, 4, 20, 30])
    calls = [
        (indices, offsets, {}),
        (indices, offsets, {"include_last_offset": True}),
        (indices, offsets, {"padding_idx": int(indices[0])}),
        (indices, offsets, {"padding_idx": int(indices[5]) - 50}),
        (indices.reshape(5, 6), None, {}),
        (indices.reshape(5, 6).int(), None, {"padding_idx": 3}),
    ]
    if mode == "sum":
        calls.append((indices, offsets, {"per_sample_weights": torch.randint(-3, 4, (30,)).float()}))
    for where, begins, named in calls:
        want = torch.nn.functional.embedding_bag(where, q.float() * 0.5, begins, mode=mode, **named)
        y = octavo.int8_embedding_bag(where, q, torch.full((50,), 0.5), begins, mode=mode, **named)
        torch.testing.assert_close(y, want, rtol=1e-6, atol=0)


# ---- native against reference ----


@cases(40)
@given(lookups(), st.sampled_from(FLOATS))
def test_lookups_have_the_references_bits(lookup, out_dtype):
    indices, weight, scale = lookup
    want = reference.int8_embedding(indices, weight, scale.reshape(-1), out_dtype)
    assert_same(want, reference.dequantize(weight[indices], scale.reshape(-1)[indices], None, out_dtype))
    for label, y in on_every_isa(lambda: octavo.int8_embedding(*lookup, out_dtype=out_dtype)):
        assert_same(y, want, label)


@cases(60)
@given(bags())
def test_bags_have_the_references_bits(bag):
    arguments, named = bag
    want = expected_bag(arguments, **named)
    for label, y in on_every_isa(lambda: octavo.int8_embedding_bag(*arguments, **named)):
        assert_same(y, want, label)
    with octavo.use_backend("reference"):
        assert_same(octavo.int8_embedding_bag(*arguments, **named), want)


@needs_torch
@cases(30)
@given(bags())
def test_torch_bags_have_the_references_bits(bag):
    arguments, named = bag
    want = expected_bag(arguments, **named)
    tensors = [None if a is None else to_torch(a) for a in arguments]
    if "per_sample_weights" in named:
        named = {**named, "per_sample_weights": to_torch(named["per_sample_weights"])}
    for backend in ("auto", "reference"):
        with octavo.use_backend(backend):
            assert_same(octavo.int8_embedding_bag(*tensors, **named), want, backend)
            lookup = octavo.int8_embedding(*tensors[:3])
        assert_same(lookup, reference.int8_embedding(arguments[0], arguments[1], arguments[2].reshape(-1)))


def test_many_threads_share_large_lookups():
    rng = np.random.default_rng(1)
    weight, scale = rng.integers(-128, 128, (5000, 96)).astype(np.int8), rng.random(5000).astype(f32)
    indices = rng.integers(0, 5000, (700, 11))
    rows = reference.int8_embedding(indices, weight, scale)
    sums = reference.int8_embedding_bag(
        indices.reshape(-1), np.arange(1, 701) * 11, weight, scale, None, -1, "mean"
    )
    for threads in (1, 2, 3):
        with running(isas()[-1], threads):
            assert_same(octavo.int8_embedding(indices, weight, scale), rows)
            assert_same(octavo.int8_embedding_bag(indices, weight, scale), sums)


# ---- memory and errors ----


@pytest.mark.parametrize("side", guard.SIDES)
@pytest.mark.parametrize(("entries", "dim"), [(1, 1), (5, 17), (9, 64)])
def test_nothing_is_touched_beyond_the_arrays(entries, dim, side):
    rng = np.random.default_rng(dim)
    weight, scale = rng.integers(-128, 128, (entries, dim)).astype(np.int8), rng.random(entries).astype(f32)
    indices = np.array([[0, entries - 1, 0], [entries - 1, 0, 0]], np.int32)
    rows = reference.int8_embedding(indices, weight, scale, "float16")
    sums = reference.int8_embedding_bag(
        indices.reshape(-1), np.array([3, 6]), weight, scale, None, -1, "sum", "float16"
    )
    weight, scale, indices = (guard.copy(a, side) for a in (weight, scale, indices))
    for isa in isas():
        with running(isa, 2):
            out = guard.empty((2, 3, dim), np.float16, side)
            octavo.int8_embedding(indices, weight, scale, out_dtype="float16", out=out)
            assert_same(np.array(out), rows, isa)
            out = guard.empty((2, dim), np.float16, side)
            octavo.int8_embedding_bag(indices, weight, scale, mode="sum", out_dtype="float16", out=out)
            assert_same(np.array(out), sums, isa)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("kind", ["int32", "int64"])
@pytest.mark.parametrize("bad", [-1, 10, 2**31 - 1, -(2**31)])
def test_an_index_outside_is_an_error_before_anything_is_written(bad, kind, backend):
    isas()
    weight, scale = np.ones((10, 3), np.int8), np.ones(10, f32)
    indices = np.zeros((40, 5000), kind)
    indices[30, 7] = indices[39, 0] = bad
    out, sums = poisoned((40, 5000, 3), f32), poisoned((40, 3), f32)
    before = out.copy(), sums.copy()
    with octavo.use_backend(backend):
        octavo.set_num_threads(3)
        try:
            message = rf"indices: expected values in \[0, 10\), got {bad} at \(30, 7\)"
            with pytest.raises(IndexError, match=message):
                octavo.int8_embedding(indices, weight, scale, out=out)
            with pytest.raises(IndexError, match=message):
                octavo.int8_embedding_bag(indices, weight, scale, padding_idx=0, out=sums)
        finally:
            octavo.set_num_threads(None)
    assert_same(out, before[0])
    assert_same(sums, before[1])


def test_an_index_that_fits_32_bits_only_when_cut_is_an_error():
    with pytest.raises(IndexError, match="got 4294967296"):
        octavo.int8_embedding(np.array([2**32]), np.ones((10, 3), np.int8), np.ones(10, f32))


def test_errors():
    weight, scale, indices = np.ones((10, 3), np.int8), np.ones(10, f32), np.zeros(6, np.int64)
    table = (weight, scale)
    lookup, bag = octavo.int8_embedding, octavo.int8_embedding_bag
    with pytest.raises(TypeError, match="indices: expected dtype int32 or int64, got float32"):
        lookup(indices.astype(f32), *table)
    with pytest.raises(TypeError, match="weight: expected dtype int8, got float32"):
        lookup(indices, weight.astype(f32), scale)
    with pytest.raises(ValueError, match=r"weight: expected two dimensions \[V, D\]"):
        lookup(indices, weight[0], scale)
    with pytest.raises(ValueError, match=r"weight_scale: expected shape \(10,\) or \(10, 1\), got \(9,\)"):
        lookup(indices, weight, scale[1:])
    with pytest.raises(TypeError, match="weight_scale: expected a float32 array, got None"):
        lookup(indices, weight, None)
    with pytest.raises(TypeError, match="out_dtype: expected"):
        lookup(indices, *table, out_dtype="int8")
    with pytest.raises(ValueError, match=r"out: expected shape \(6, 3\)"):
        lookup(indices, *table, out=np.zeros((6, 4), f32))
    with pytest.raises(ValueError, match="mode: expected"):
        bag(indices[None], *table, mode="min")
    with pytest.raises(ValueError, match="offsets: expected None with indices of two dimensions"):
        bag(indices[None], *table, indices[:1])
    with pytest.raises(ValueError, match="offsets: expected where each bag begins"):
        bag(indices, *table)
    with pytest.raises(ValueError, match=r"indices: expected one or two dimensions"):
        bag(indices[None, None], *table)
    with pytest.raises(TypeError, match="offsets: expected dtype int32 or int64, got float32"):
        bag(indices, *table, np.zeros(1, f32))
    for offsets in ([1, 2], [0, 3, 2], [0, 7], [-1, 2], [0, -1]):
        for include_last_offset in (False, True):
            with pytest.raises(ValueError, match="offsets: expected 0 first, ascending, at most 6, got"):
                bag(indices, *table, np.array(offsets), include_last_offset=include_last_offset)
    with pytest.raises(ValueError, match=r"offsets: expected shape \[B \+ 1\], got \(0,\)"):
        bag(indices, *table, indices[:0], include_last_offset=True)
    for mode in ("mean", "max"):
        with pytest.raises(ValueError, match=f"per_sample_weights: expected None with mode='{mode}'"):
            bag(indices[None], *table, mode=mode, per_sample_weights=np.ones((1, 6), f32))
    with pytest.raises(ValueError, match="per_sample_weights: expected shape"):
        bag(indices[None], *table, mode="sum", per_sample_weights=np.ones(6, f32))
    for padding_idx in (10, -11):
        with pytest.raises(ValueError, match=r"padding_idx: expected None or an int in \[-10, 10\)"):
            bag(indices[None], *table, padding_idx=padding_idx)


# ---- torch.ops ----


def arguments():
    torch.manual_seed(0)
    weight = torch.randint(-128, 128, (12, 8), dtype=torch.int8)
    return torch.randint(0, 12, (9,)), weight, torch.rand(12, 1)


@needs_torch
def test_opcheck():
    indices, weight, scale = arguments()
    op = torch.ops.octavo
    torch.library.opcheck(op.int8_embedding, (indices.reshape(3, 3).t(), weight, scale.requires_grad_()))
    offsets, samples = torch.tensor([0, 2, 7]), torch.rand(9, requires_grad=True)
    torch.library.opcheck(op.int8_embedding_bag, (indices, weight, scale, offsets, "sum", samples))
    torch.library.opcheck(
        op.int8_embedding_bag,
        (indices.int().reshape(3, 3), weight, scale.detach(), None, "max", None, False, 2),
        {"out_dtype": torch.bfloat16},
    )


@needs_torch
@pytest.mark.parametrize("mode", ["lookup", "sum", "mean"])
def test_gradients_are_those_of_the_float_table(mode):
    indices, weight, scale = arguments()
    offsets, named = torch.tensor([0, 2, 2, 9]), {"include_last_offset": True, "padding_idx": 4}
    grads = []
    for ours in (True, False):
        leaf = scale.detach().clone().requires_grad_()
        samples = torch.linspace(-1, 2, 9).requires_grad_() if mode == "sum" else None
        if ours:
            table = (indices, weight, leaf)
            y = (
                octavo.int8_embedding(*table)
                if mode == "lookup"
                else octavo.int8_embedding_bag(
                    *table, offsets, mode=mode, per_sample_weights=samples, **named
                )
            )
        elif mode == "lookup":
            y = torch.nn.functional.embedding(indices, weight.float() * leaf)
        else:
            y = torch.nn.functional.embedding_bag(
                indices, weight.float() * leaf, offsets, mode=mode, per_sample_weights=samples, **named
            )
        torch.manual_seed(1)
        (y * torch.randn_like(y)).sum().backward()
        grads.append([leaf.grad] + ([] if samples is None else [samples.grad]))
    torch.testing.assert_close(*grads)
    assert grads[0][0].any()


@needs_torch
def test_maxima_have_no_gradient():
    indices, weight, scale = arguments()
    y = octavo.int8_embedding_bag(indices.reshape(3, 3), weight, scale.requires_grad_(), mode="max")
    assert not y.requires_grad


# ---- the modules ----


@needs_torch
@pytest.mark.parametrize("dtype", FLOATS)
def test_an_embedding_is_its_float_module_rounded(dtype):
    from octavo.nn import Int8Embedding

    torch.manual_seed(0)
    source = torch.nn.Embedding(40, 24, padding_idx=-3).to(getattr(torch, dtype))
    layer = Int8Embedding.from_float(source.eval())
    indices = torch.randint(0, 40, (3, 5))
    y = layer(indices)
    data, scale, _ = octavo.quantize(source.weight.detach())
    assert torch.equal(y, octavo.int8_embedding(indices, data, scale, out_dtype=dtype))
    assert y.dtype == source.weight.dtype
    torch.testing.assert_close(y, source(indices), rtol=0, atol=0.03)
    assert layer.padding_idx == 37
    assert not layer.training
    assert repr(layer) == "Int8Embedding(40, 24, padding_idx=37)"


@needs_torch
@pytest.mark.parametrize("mode", MODES)
def test_a_bag_is_its_float_module_rounded(mode):
    from octavo.nn import Int8EmbeddingBag

    torch.manual_seed(0)
    source = torch.nn.EmbeddingBag(40, 24, mode=mode, include_last_offset=True, padding_idx=2).bfloat16()
    layer = Int8EmbeddingBag.from_float(source)
    indices, offsets = torch.randint(0, 40, (30,)), torch.tensor([0, 4, 4, 11, 30])
    samples = torch.rand(30).bfloat16() if mode == "sum" else None
    y = layer(indices, offsets, samples)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, source(indices, offsets, samples), rtol=0.05, atol=0.15)
    assert torch.equal(layer(indices.reshape(5, 6)), layer(indices, torch.arange(0, 31, 6)))
    assert repr(layer) == f"Int8EmbeddingBag(40, 24, padding_idx=2, mode='{mode}')"


@needs_torch
def test_a_tied_head_has_the_same_weight_and_scale():
    from octavo.nn import Int8Embedding, Int8Linear, Int8WeightOnly

    head, table = torch.nn.Linear(24, 40, bias=False), torch.nn.Embedding(40, 24)
    head.weight = table.weight
    embedded = Int8Embedding.from_float(table)
    for config in (octavo.Int8Dynamic(), Int8WeightOnly()):
        linear = Int8Linear.from_float(head, config)
        assert torch.equal(embedded.weight_int8, linear.weight_int8)
        assert torch.equal(embedded.weight_scale, linear.weight_scale)


@needs_torch
@pytest.mark.parametrize("bag", [False, True])
def test_state_dicts_and_copies_hold_the_table(bag):
    from octavo.nn import Int8Embedding, Int8EmbeddingBag

    torch.manual_seed(0)
    cls, source = (
        (Int8EmbeddingBag, torch.nn.EmbeddingBag(40, 24))
        if bag
        else (Int8Embedding, torch.nn.Embedding(40, 24))
    )
    layer = cls.from_float(source)
    state = layer.state_dict()
    assert {key: (value.dtype, tuple(value.shape)) for key, value in state.items()} == {
        "weight": (torch.float32, (0,)),
        "weight_int8": (torch.int8, (40, 24)),
        "weight_scale": (torch.float32, (40, 1)),
    }
    indices = torch.randint(0, 40, (3, 5))
    others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for assign in (False, True):
        other = cls(40, 24)
        assert not other(indices).any()
        assert other.load_state_dict(state, assign=assign) == ([], [])
        others.append(other)
    for other in others:
        assert torch.equal(other(indices), layer(indices))
        assert repr(other) == repr(layer)
    with pytest.raises(RuntimeError, match=r"weight: expected int8 \(40, 24\), got torch.float32"):
        cls(40, 24).load_state_dict({**state, "weight": source.weight.detach()})
    with pytest.raises(RuntimeError, match=r"weight_int8: expected int8 \(41, 24\), got"):
        cls(41, 24).load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        cls(40, 24).load_state_dict({"weight_scale": state["weight_scale"]})


@needs_torch
def test_another_dtype_changes_results_only():
    from octavo.nn import Int8Embedding

    layer = Int8Embedding.from_float(torch.nn.Embedding(40, 24))
    state = copy.deepcopy(layer.state_dict())
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        layer.to(dtype)
        assert layer(torch.tensor([1])).dtype == dtype
        after = layer.state_dict()
        assert after.pop("weight").dtype == dtype
        for key, value in after.items():
            assert value.dtype == state[key].dtype
            assert torch.equal(value, state[key])
        assert copy.deepcopy(layer)(torch.tensor([1])).dtype == dtype
    assert Int8Embedding(4, 3, dtype=torch.float16)(torch.tensor([1])).dtype == torch.float16


@needs_torch
def test_what_cannot_be_int8_is_refused_with_the_reason():
    from octavo.nn import Int8Embedding, Int8EmbeddingBag

    with pytest.raises(ValueError, match=r"embedding: expected .* max_norm changes the weights"):
        Int8Embedding.from_float(torch.nn.Embedding(4, 3, max_norm=1.0))
    with pytest.raises(ValueError, match=r"embedding: expected .* max_norm changes the weights"):
        Int8EmbeddingBag.from_float(torch.nn.EmbeddingBag(4, 3, max_norm=1.0))
    with pytest.raises(TypeError, match=r"embedding: expected a torch.nn.Embedding, got Linear"):
        Int8Embedding.from_float(torch.nn.Linear(4, 3))
    with pytest.raises(TypeError, match=r"embedding: expected a torch.nn.EmbeddingBag, got Embedding"):
        Int8EmbeddingBag.from_float(torch.nn.Embedding(4, 3))
    with pytest.raises(TypeError, match="config: expected"):
        Int8Embedding.from_float(torch.nn.Embedding(4, 3), "int8")
    source = torch.nn.Embedding(4, 3)
    source.weight.data[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"expected finite values, got 1 .* at \(1, 2\)"):
        Int8Embedding.from_float(source)

    class Scaled(torch.nn.Embedding):
        def forward(self, indices):
            return 2 * super().forward(indices)

    with pytest.raises(ValueError, match="Scaled has a forward of its own"):
        Int8Embedding.from_float(Scaled(4, 3))
    with pytest.raises(ValueError, match=r"padding_idx: expected None or an int in \[-4, 4\), got 4"):
        Int8Embedding(4, 3, padding_idx=4)
    with pytest.raises(ValueError, match="mode: expected"):
        Int8EmbeddingBag(4, 3, mode="min")
    for kept in (torch.nn.Embedding(4, 3, sparse=True), torch.nn.Embedding(4, 3, scale_grad_by_freq=True)):
        Int8Embedding.from_float(kept)  # both are about gradients of the weight


@needs_torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("bag", [False, True])
def test_compile_and_export(bag):
    from octavo.nn import Int8Embedding, Int8EmbeddingBag

    torch.compiler.reset()
    torch.manual_seed(0)
    layer = (
        Int8EmbeddingBag.from_float(torch.nn.EmbeddingBag(40, 24, mode="sum"))
        if bag
        else Int8Embedding.from_float(torch.nn.Embedding(40, 24))
    )
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (3, 5, 8):
        indices = torch.randint(0, 40, (n, 4))
        assert torch.equal(compiled(indices), layer(indices))
    batch = torch.export.Dim("batch", min=2, max=64)
    example = (torch.randint(0, 40, (4, 4)),)
    program = torch.export.export(layer, example, dynamic_shapes=({0: batch},))
    indices = torch.randint(0, 40, (7, 4))
    assert torch.equal(program.module()(indices), layer(indices))
