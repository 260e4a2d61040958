"""weight_only_linear and its module: every ISA and thread count against the references, bit for bit."""

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
    BF16,
    FLOATS,
    PEAK_MEMORY,
    assert_same,
    cases,
    float_arrays,
    flushing_denormals,
    int8_arrays,
    isas,
    needs_proc,
    needs_torch,
    on_every_isa,
    poisoned,
    running,
    scales,
    succeed,
    to_numpy,
    to_torch,
    untouched,
)

try:
    import torch

    import octavo.torch_ops
except ImportError:
    torch = None

f32 = np.float32
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu")
OUT_DTYPES = ("float32", "float16", "bfloat16")
# Rows: tiles of 1, 2, 4, 8 and a block of 64. Columns: vectors, panels of 16, strips of 64.
rows = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 65, 130])
columns = st.sampled_from([1, 2, 15, 16, 17, 31, 33, 48, 63, 64, 65, 80, 129])
terms = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 63, 64, 65, 100, 128, 129])


@st.composite
def products(draw, dtypes=FLOATS):
    """x, weight, scale [N, G] and bias."""
    m, n, k = draw(rows), draw(columns), draw(terms)
    if m > 31 and n > 65:
        n = draw(st.sampled_from([1, 17, 65]))
    groups = draw(st.sampled_from([1] + [g for g in (2, 5, 16, 25) if k and k % (4 * g) == 0]))
    flavours = ("normal", "normal", "special", "one special", "huge", "tiny", "wide", "zeros")
    x = draw(float_arrays((m, k), dtypes, flavours))
    weight = draw(int8_arrays((n, k)))
    scale = draw(scales(n * groups)).reshape(n, groups)
    bias = draw(float_arrays((n,), flavours=("normal", "special"))) if draw(st.booleans()) else None
    return x, weight, scale, bias


def expected(x, weight, scale, bias=None, out_dtype=None, activation=None):
    name = out_dtype or ("bfloat16" if x.dtype == BF16 else x.dtype.name).replace("float64", "float32")
    return reference.weight_only_linear(x, weight, scale, bias, activation, name)


# ---- the definition ----


@pytest.mark.parametrize(("k", "groups"), [(1, 1), (7, 1), (64, 1), (64, 4), (40, 10)])
def test_the_reference_is_the_definition(k, groups):
    """docs/numerics.md, one float32 number at a time."""
    rng = np.random.default_rng(k)
    x, weight = rng.standard_normal((2, k)).astype(f32), rng.integers(-128, 128, (3, k)).astype(np.int8)
    scale, bias = rng.random((3, groups)).astype(f32), rng.standard_normal(3).astype(np.float16)
    y = np.zeros((2, 3), f32)
    for m in range(2):
        for n in range(3):
            total = f32(0)
            for g in range(groups):
                s = f32(0)
                for i in range(g * k // groups, (g + 1) * k // groups):
                    s = s + x[m, i] * f32(weight[n, i])
                total = total + s * scale[n, g]
            y[m, n] = total + f32(bias[n])
    assert_same(reference.weight_only_linear(x, weight, scale, bias), y)


def test_it_is_the_product_and_nothing_is_quantized_but_the_weight():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 256), f32), rng.standard_normal((70, 256), f32)
    for group_size in (None, 32):
        granularity = "row" if group_size is None else "group"
        found = octavo.quantize(w, granularity=granularity, group_size=group_size)
        exact = x.astype(np.float64) @ octavo.dequantize(*found[:2]).astype(np.float64).T
        y = octavo.weight_only_linear(x, found)
        assert np.abs(y - exact).max() < 1e-4 * np.abs(exact).max()


# ---- native against reference ----


@cases(60)
@given(products(), st.sampled_from((None, *OUT_DTYPES)), st.booleans())
def test_every_isa_and_thread_count_gives_the_references_bits(product, out_dtype, packed):
    x, weight, scale, bias = product
    want = expected(x, weight, scale, bias, out_dtype)
    operand = octavo.pack_weight(weight) if packed else octavo.Quantized(weight, scale)
    given_scale = scale if packed else None

    def call():
        return octavo.weight_only_linear(x, operand, bias, weight_scale=given_scale, out_dtype=out_dtype)

    for label, y in on_every_isa(call):
        assert_same(y, want, label)


@needs_torch
@cases(25)
@given(products())
def test_torch_and_its_reference_give_the_same_bits(product):
    x, weight, scale, bias = product
    want = expected(*product)
    tensors = [None if a is None else to_torch(a) for a in (x, weight, scale, bias)]
    quantized = octavo.Quantized(tensors[1], tensors[2])
    assert_same(octavo.weight_only_linear(tensors[0], quantized, tensors[3]), want)
    with octavo.use_backend("reference"):
        assert_same(octavo.weight_only_linear(tensors[0], quantized, tensors[3]), want)


@pytest.mark.parametrize("dtype", OUT_DTYPES)
def test_activations_have_the_bits_that_they_have_elsewhere(dtype):
    """The product is x itself: a unit matrix and scales of 1."""
    x = np.linspace(-20, 20, 33 * 16).reshape(33, 16).astype(f32)
    one = octavo.pack_weight(np.eye(16, dtype=np.int8), np.ones(16, f32))
    for activation in ACTIVATIONS:
        # int8_linear on integers up to 127 with a scale of 1 / 4 is exact before its activation
        q = np.rint(x * 4).clip(-127, 127).astype(np.int8)
        values = q.astype(f32) / 4
        want = octavo.scaled_int_mm(q, f32(0.25), one, activation=activation, out_dtype=dtype)

        def call(values=values, activation=activation):
            return octavo.weight_only_linear(values, one, activation=activation, out_dtype=dtype)

        for label, y in on_every_isa(call, threads=(1,)):
            assert_same(y, want, f"{activation}, {label}")


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_row_does_not_depend_on_the_others(dtype):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((140, 96)).astype(BF16 if dtype == "bfloat16" else dtype)
    x[77, 3] = np.inf  # the block that it is in takes another way
    w = octavo.pack_weight(rng.integers(-128, 128, (81, 96)).astype(np.int8), np.full(81, 0.01, f32))
    for isa in isas():
        with running(isa, 2):
            whole = octavo.weight_only_linear(x, w)
            for m in (0, 5, 63, 64, 77, 139):
                assert_same(octavo.weight_only_linear(x[m], w), whole[m], f"{isa}, row {m}")
            assert_same(octavo.weight_only_linear(x[3:10], w), whole[3:10], isa)


def test_a_product_that_overflows_is_not_fused():
    """bfloat16: 2^127 * 2 is Inf, where a fused multiply-add would take 2^127 off again first."""
    x = np.array([[2.0**127, 2.0**127, 0, 0]], BF16)
    w = octavo.pack_weight(np.array([[-1, 2, 0, 0]] * 16, np.int8), np.ones(16, f32))
    for label, y in on_every_isa(lambda: octavo.weight_only_linear(x, w, out_dtype="float32")):
        assert np.isinf(y).all(), label


@pytest.mark.parametrize("layout", ["bitmask", "block"])
def test_sparse_layouts_give_the_bits_of_dense(layout):
    rng = np.random.default_rng(2)
    q = np.where(rng.random((150, 200)) < 0.2, rng.integers(-128, 128, (150, 200)), 0).astype(np.int8)
    scale, x = rng.random((150, 5)).astype(f32), rng.standard_normal((9, 200)).astype(f32)
    packed = octavo.pack_weight(q, layout=layout)
    assert packed.layout == layout
    want = expected(x, q, scale)
    for label, y in on_every_isa(lambda: octavo.weight_only_linear(x, packed, weight_scale=scale)):
        assert_same(y, want, label)


@needs_torch
def test_flushing_denormals_changes_nothing():
    x = (np.random.default_rng(3).standard_normal((4, 32)) * 1e-39).astype(f32)
    q, scale = np.full((20, 32), 100, np.int8), np.full((20, 1), 0.01, f32)
    want = expected(x, q, scale)
    assert want.any()
    packed = octavo.pack_weight(q, scale)
    with flushing_denormals():
        found = [
            (label, to_numpy(y)) for label, y in on_every_isa(lambda: octavo.weight_only_linear(x, packed))
        ]
    for label, y in found:
        assert_same(y, want, label)


# ---- memory ----


@pytest.mark.parametrize("side", guard.SIDES)
@pytest.mark.parametrize(
    ("m", "n", "k", "groups"), [(1, 1, 1, 1), (9, 33, 12, 3), (3, 65, 67, 1), (8, 16, 64, 16)]
)
def test_nothing_is_touched_beyond_the_arrays(m, n, k, groups, side):
    rng = np.random.default_rng(n)
    x, q = rng.standard_normal((m, k)).astype(np.float16), rng.integers(-128, 128, (n, k)).astype(np.int8)
    scale, bias = rng.random((n, groups)).astype(f32), rng.standard_normal(n).astype(np.float16)
    packed = octavo.pack_weight(q)
    want = expected(x, q, scale, bias)
    x, scale, bias = (guard.copy(a, side) for a in (x, scale, bias))
    for isa in isas():
        with running(isa, 2):
            out = guard.empty((m, n), np.float16, side)
            octavo.weight_only_linear(x, packed, bias, weight_scale=scale, out=out)
            assert_same(np.array(out), want, isa)


def test_out_is_filled_where_it_lies():
    rng = np.random.default_rng(4)
    x, q, scale = rng.standard_normal((5, 8), f32), np.ones((20, 8), np.int8), np.ones(20, f32)
    packed = octavo.pack_weight(q, scale)
    want = octavo.weight_only_linear(x, packed)
    out = poisoned((5, 20), f32, row_pad=3)
    assert octavo.weight_only_linear(x, packed, out=out) is out
    assert_same(np.ascontiguousarray(out), want)
    assert untouched(out, 3)
    backwards = np.empty((20, 5), f32).T
    assert_same(np.ascontiguousarray(octavo.weight_only_linear(x, packed, out=backwards)), want)
    memory = np.zeros(140, f32)
    with pytest.raises(ValueError, match="out: expected memory apart from x"):
        octavo.weight_only_linear(memory[:40].reshape(5, 8), packed, out=memory[39:139].reshape(5, 20))


@needs_proc
def test_no_expanded_weight_is_ever_allocated():
    """A float32 copy of this 64 MB weight would need 256 MB; the call may need a strip's worth."""
    script = """
import numpy as np
import octavo
q = np.ones((8192, 8192), np.int8)
packed = octavo.pack_weight(q, np.ones(8192, np.float32), layout="dense")
x = np.ones((2, 8192), np.float32)
octavo.weight_only_linear(x[:, :64], octavo.pack_weight(q[:64, :64], np.ones(64, np.float32)))
before = peak_memory()
y = octavo.weight_only_linear(x, packed)
grown = peak_memory() - before
assert (y == 8192).all()
assert grown < 8 << 20, grown
"""
    isas()  # the native module is there
    succeed(PEAK_MEMORY + script)


# ---- errors ----


def test_errors():
    x, q = np.zeros((2, 24), f32), np.zeros((5, 24), np.int8)
    bare, packed = octavo.pack_weight(q), octavo.pack_weight(q, np.ones(5, f32))
    for scale in (
        np.ones(4, f32),
        np.ones((5, 5), f32),
        np.ones((5, 4), f32),
        np.ones((5, 0), f32),
        np.ones((1, 5, 1), f32),
    ):
        with pytest.raises(ValueError, match=r"weight_scale: expected shape .* got"):
            octavo.weight_only_linear(x, bare, weight_scale=scale)
    with pytest.raises(TypeError, match="weight_scale: expected dtype float32, got float64"):
        octavo.weight_only_linear(x, bare, weight_scale=np.ones(5))
    with pytest.raises(ValueError, match="weight_scale: expected scales for a weight without its own"):
        octavo.weight_only_linear(x, bare)
    with pytest.raises(TypeError, match="weight: expected a PackedWeight or a Quantized, got ndarray"):
        octavo.weight_only_linear(x, q)
    with pytest.raises(ValueError, match="weight: expected a symmetric Quantized"):
        octavo.weight_only_linear(x, octavo.quantize(np.ones((5, 24), f32), symmetric=False))
    with pytest.raises(ValueError, match=r"x: expected shape \(..., 24\).* got \(2, 23\)"):
        octavo.weight_only_linear(x[:, 1:], packed)
    with pytest.raises(ValueError, match="bias: expected shape"):
        octavo.weight_only_linear(x, packed, np.zeros(6, f32))
    with pytest.raises(ValueError, match="activation: expected None"):
        octavo.weight_only_linear(x, packed, activation="tanh")
    with pytest.raises(TypeError, match="out_dtype: expected float32, float16 or bfloat16, got 'int32'"):
        octavo.weight_only_linear(x, packed, out_dtype="int32")
    with pytest.raises(TypeError, match="x: expected dtype float32"):
        octavo.weight_only_linear(x.astype(np.int32), packed)


@needs_torch
def test_group_sizes_are_checked():
    from octavo.nn import Int8WeightOnly, Int8WeightOnlyLinear

    for size in (0, -4, 3, 6):
        with pytest.raises(ValueError, match="group_size: expected a positive multiple of 4"):
            Int8WeightOnly(size)
    for size in (4.0, True, "8"):
        with pytest.raises(TypeError, match="group_size: expected None or an int"):
            Int8WeightOnly(size)
    with pytest.raises(
        ValueError, match=r"group_size: expected a positive divisor of in_features \(40\), got 16"
    ):
        Int8WeightOnlyLinear(40, 3, group_size=16)
    with pytest.raises(ValueError, match="group_size: expected a positive divisor"):
        Int8WeightOnlyLinear.from_float(torch.nn.Linear(40, 3), Int8WeightOnly(16))
    with pytest.raises(TypeError, match=r"config: expected an octavo.Int8WeightOnly"):
        Int8WeightOnlyLinear.from_float(torch.nn.Linear(40, 3), octavo.Int8Dynamic())


# ---- torch.ops ----


def tensors(m=(2, 3), n=9, k=32, groups=1, dtype="float32", seed=0):
    torch.manual_seed(seed)
    kind = getattr(torch, dtype)
    weight = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    return torch.randn(*m, k).to(kind), weight, torch.rand(n, groups), torch.randn(n).to(kind)


@needs_torch
@pytest.mark.parametrize(("dtype", "activation", "groups"), [("float32", None, 1), ("bfloat16", "gelu", 4)])
def test_opcheck(dtype, activation, groups):
    x, weight, scale, bias = tensors(dtype=dtype, groups=groups)
    arguments = (x.requires_grad_(), weight, scale.requires_grad_(), bias.requires_grad_())
    torch.library.opcheck(torch.ops.octavo.weight_only_linear, arguments, {"activation": activation})
    packed = torch.ops.octavo.pack_weight(weight)
    arguments = (x.detach().transpose(0, 1), packed, scale.detach())
    torch.library.opcheck(torch.ops.octavo.weight_only_linear, arguments, {"out_dtype": torch.float16})


@needs_torch
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("groups", [1, 4])
def test_gradients_are_those_of_the_float_product(groups, activation):
    x, weight, scale, bias = (
        t.requires_grad_() if t.is_floating_point() else t for t in tensors(groups=groups)
    )
    wanted = [t.detach().clone().requires_grad_() for t in (x, scale, bias)]
    w = (weight.float().reshape(9, groups, -1) * wanted[1].unsqueeze(-1)).reshape(9, 32)
    y = torch.nn.functional.linear(wanted[0], w, wanted[2])
    functional = torch.nn.functional
    y = {None: lambda v: v, "relu": torch.relu, "gelu": functional.gelu, "silu": functional.silu,
         "gelu_tanh": lambda v: functional.gelu(v, approximate="tanh")}[activation](y)  # fmt: skip
    grad = torch.randn_like(y)
    (y * grad).sum().backward()
    for form in (weight, torch.ops.octavo.pack_weight(weight)):
        for t in (x, scale, bias):
            t.grad = None
        (
            torch.ops.octavo.weight_only_linear(x, form, scale, bias, activation=activation) * grad
        ).sum().backward()
        for t, want in zip((x, scale, bias), wanted, strict=True):
            torch.testing.assert_close(t.grad, want.grad, rtol=1e-3, atol=1e-2 * float(want.grad.abs().max()))


# ---- the module ----


def layers(k=48, n=24, bias=True, dtype="float32", group_size=None):
    from octavo.nn import Int8Linear, Int8WeightOnly

    torch.manual_seed(0)
    source = torch.nn.Linear(k, n, bias=bias).to(getattr(torch, dtype))
    return source, Int8Linear.from_float(source, Int8WeightOnly(group_size))


@needs_torch
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_module_computes_the_function(dtype, group_size):
    from octavo.nn import Int8WeightOnlyLinear

    source, layer = layers(dtype=dtype, group_size=group_size)
    assert type(layer) is Int8WeightOnlyLinear
    x = torch.randn(2, 3, 48).to(source.weight.dtype)
    granularity = "row" if group_size is None else "group"
    found = octavo.quantize(source.weight.detach(), granularity=granularity, group_size=group_size)
    want = octavo.weight_only_linear(x, found, source.bias.detach())
    assert torch.equal(layer(x), want)
    assert torch.equal(layer(x[0, 0]), want[0, 0])
    assert torch.equal(layer.weight_int8, found.data)
    torch.testing.assert_close(want.double(), source(x).double(), rtol=0.05, atol=0.05)
    assert layer.train().training
    assert not layer.eval().training


@needs_torch
@pytest.mark.parametrize("group_size", [None, 16])
def test_state_dicts_and_copies_hold_the_layer(group_size):
    from octavo.nn import Int8WeightOnlyLinear

    _, layer = layers(group_size=group_size)
    groups = 1 if group_size is None else 48 // group_size
    state = layer.state_dict()
    assert {key: (value.dtype, tuple(value.shape)) for key, value in state.items()} == {
        "weight": (torch.float32, (0,)),
        "weight_int8": (torch.int8, (24, 48)),
        "weight_scale": (torch.float32, (24, groups)),
        "bias": (torch.float32, (24,)),
    }
    x = torch.randn(3, 48)
    others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for assign in (False, True):
        other = Int8WeightOnlyLinear(48, 24, group_size=group_size)
        assert torch.equal(other(x), torch.zeros(3, 24))
        assert other.load_state_dict(state, assign=assign) == ([], [])
        others.append(other)
    for other in others:
        assert torch.equal(other(x), layer(x))
        assert repr(other) == repr(layer)
    with pytest.raises(RuntimeError, match="weight_scale"):
        Int8WeightOnlyLinear(48, 24, group_size=8).load_state_dict(state)


@needs_torch
def test_another_dtype_changes_the_bias_only():
    _, layer = layers(group_size=16)
    state = copy.deepcopy(layer.state_dict())
    layer.to(torch.bfloat16)
    assert layer.bias.dtype == torch.bfloat16
    assert layer.weight_scale.dtype == torch.float32
    assert torch.equal(layer.weight_scale, state["weight_scale"])
    assert torch.equal(layer.weight_int8, state["weight_int8"])
    x = torch.randn(3, 48).bfloat16()
    assert layer(x).dtype == torch.bfloat16


@needs_torch
def test_quantize_and_explain_know_it():
    from octavo.nn import Int8WeightOnlyLinear

    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 64)).eval()
    x = torch.randn(5, 64)
    want = model(x).detach()
    octavo.quantize_(model, octavo.Int8WeightOnly(group_size=32))
    assert [type(m) for m in model] == [Int8WeightOnlyLinear, torch.nn.ReLU, Int8WeightOnlyLinear]
    torch.testing.assert_close(model(x), want, rtol=0.05, atol=0.02)
    text = str(octavo.explain(model))
    assert text.count("weight_only_linear") == 2
    assert "Int8WeightOnlyLinear" in text
    with pytest.raises(ValueError, match=r"at least one layer with an int8 form"):
        octavo.quantize_(model, octavo.Int8WeightOnly())


@needs_torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("group_size", [None, 16])
def test_compile_and_export(group_size):
    torch.compiler.reset()
    _, layer = layers(group_size=group_size)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for m in (3, 5, 8):
        x = torch.randn(m, 48)
        assert torch.equal(compiled(x), layer(x))
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, (torch.randn(4, 48),), dynamic_shapes=({0: batch},))
    x = torch.randn(7, 48)
    assert torch.equal(program.module()(x), layer(x))
